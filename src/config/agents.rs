//! `[agents.*]`: the WeCom applications.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::error::{Error, quote};
use super::origin::Origin;
use super::pattern::{self, PathPattern};
use super::rate_limit::{self, RateLimit};
use super::reader::{ConfigTable, ConfigValue};
use super::secret::{self, SourcedSecret, is_placeholder_word};
use super::upstream::{self, UpstreamConfig, UpstreamId};
use super::web_origin::{self, WebOrigin};
use crate::text::SharedStr;
use crate::{format_text, text};

pub(super) const KEYS: &[&str] =
    &["corpid", "secret", "upstream", "agentid", "accept_secret", "limit", "plain", "jssdk_origins"];

/// Refused as names, because the first path segment names the agent, and paths of the proxy itself begin with these.
const RESERVED_NAMES: [&str; 4] = ["cgi-bin", "callbacks", "jssdk", "k"];

/// `[agents.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// The table's name.
    pub name: SharedStr,
    /// Visible ASCII, not empty.
    pub corpid: SharedStr,
    /// One secret, or two while it is changed: the first is used, the other one where WeCom refuses it. Visible ASCII.
    pub secrets: Vec<SourcedSecret>,
    /// Where its requests go.
    pub upstream: UpstreamId,
    /// The other keys.
    pub settings: Arc<AgentSettings>,
    /// Where it is defined.
    pub origin: Origin,
}

/// What does not concern an agent's token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentSettings {
    /// The application's number within the corp.
    pub agentid: Option<u64>,
    /// Whether gettoken accepts the agent's real secret as a key for this agent.
    pub accept_secret: bool,
    /// Limits its requests from all callers together.
    pub limit: Option<RateLimit>,
    /// Paths that carry a credential of their own, besides webhook, service and license.
    pub passthrough: Vec<PathPattern>,
    /// Origins of web pages whose URLs are signed without a client's key.
    pub jssdk_origins: Vec<WebOrigin>,
}

impl AgentConfig {
    /// Whether nothing of it is read from elsewhere than its own table.
    pub(super) fn is_of_text_alone(&self) -> bool {
        self.upstream.index() == 0 && self.secrets.iter().all(|secret| secret.file.is_none())
    }
}

impl AgentSettings {
    /// The same behind a pointer; those that most agents have, the default ones, are there once.
    pub fn shared(self) -> Arc<Self> {
        static DEFAULT: LazyLock<Arc<AgentSettings>> = LazyLock::new(Arc::default);
        if self == **DEFAULT { DEFAULT.clone() } else { Arc::new(self) }
    }
}

/// Whether an entry of `[agents.*]` is an authorised corp of a suite.
pub(super) fn is_corp(item: &ConfigValue<'_>) -> bool {
    item.has_key("suite")
}

pub(super) fn read_agent(
    name: &str,
    item: &ConfigValue<'_>,
    upstreams: &BTreeMap<String, UpstreamConfig>,
) -> Result<AgentConfig, Error> {
    reject_reserved_name(name, item)?;
    let section = item.table(text!("a table with corpid and secret", "含 corpid 和 secret 的表"), KEYS)?;
    // All are read before the first error counts.
    let corpid = section.read_required("corpid", "corpid = \"ww1234567890abcdef\"", read_corpid);
    let secret_example = match item.location.source.is_file() {
        true => "secret = { env = \"WECOM_HR_SECRET\" }",
        false => "\"secret\": \"…\"",
    };
    let secrets = section.read_required("secret", secret_example, secret::read_wecom_secrets);
    let upstream =
        section.read_or("upstream", UpstreamId::default(), |item| upstream::read_id(item, upstreams));
    let settings = read_settings(&section, section.read_or("accept_secret", false, ConfigValue::boolean));
    Ok(AgentConfig {
        name: name.into(),
        corpid: corpid?.into(),
        secrets: secrets?,
        upstream,
        settings: AgentSettings::shared(settings),
        origin: item.location.origin(),
    })
}

/// Refuses names that paths of this proxy begin with.
pub(super) fn reject_reserved_name(name: &str, item: &ConfigValue<'_>) -> Result<(), Error> {
    match RESERVED_NAMES.contains(&name) {
        true => Err(item.error(text!(
            "cannot be an agent's name, since other paths of this proxy start with it",
            "不能用作应用名，因为代理自身的路径以它开头"
        ))),
        false => Ok(()),
    }
}

/// Reads what does not concern the token.
pub(super) fn read_settings(section: &ConfigTable<'_>, accept_secret: bool) -> AgentSettings {
    AgentSettings {
        agentid: section.read_optional("agentid", |item| item.integer(0..=u64::MAX)),
        accept_secret,
        limit: section.read_optional("limit", rate_limit::read),
        passthrough: section.read_or("plain", Vec::new(), pattern::read_path_patterns),
        jssdk_origins: section.read_or("jssdk_origins", Vec::new(), web_origin::read_list),
    }
}

pub(super) fn read_corpid<'a>(item: &ConfigValue<'a>) -> Result<&'a str, Error> {
    let text =
        item.string(text!("a string like \"ww1234567890abcdef\"", "\"ww1234567890abcdef\" 这样的字符串"))?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(item.error(format_text!(
            "{} is not a corpid; a corpid is visible ASCII without spaces",
            "{} 不是 corpid；corpid 由可见的 ASCII 字符组成，不含空格",
            quote(text)
        )));
    }
    // A corpid starts with `ww`, and so do most placeholders of one.
    let is_masked = text.len() > 4 && text.trim_start_matches('w').bytes().all(|byte| byte == b'x');
    if is_masked || is_placeholder_word(text) {
        return Err(
            item.error(text!("is a placeholder; replace it with the real one", "是占位文字；请换成真正的值"))
        );
    }
    Ok(text)
}
