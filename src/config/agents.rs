//! `[agents.*]`: the WeCom applications.

use std::collections::{BTreeMap, HashMap};

use super::error::{Error, quote};
use super::named_tables;
use super::pattern::{self, PathPattern};
use super::rate_limit::{self, RateLimit};
use super::reader::{ConfigTable, ConfigValue};
use super::secret::{self, is_placeholder_word};
use crate::secret::Masked;

pub(super) const KEYS: &[&str] = &["corpid", "secret", "agentid", "accept_secret", "limit", "plain"];

/// Refused as a name: the first path segment names the agent, so this one would hide every path without a name.
const RESERVED_NAME: &str = "cgi-bin";

const NO_AGENT_MESSAGE: &str = "no agent is configured; add one like this:

[agents.hr]
corpid = \"ww1234567890abcdef\"
secret = { env = \"WECOM_HR_SECRET\" }
";

/// `[agents.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// The table's name.
    pub name: String,
    /// Visible ASCII, not empty.
    pub corpid: String,
    /// Visible ASCII, not empty.
    pub secret: Masked,
    /// The application's number within the corp.
    pub agentid: Option<u64>,
    /// Whether gettoken accepts the agent's real secret as a key for this agent.
    pub accept_secret: bool,
    /// Limits its requests from all callers together.
    pub limit: Option<RateLimit>,
    /// Paths that carry a credential of their own, besides webhook, service and license.
    pub passthrough: Vec<PathPattern>,
}

pub(super) fn read(roots: &[ConfigTable<'_>]) -> Result<BTreeMap<String, AgentConfig>, Error> {
    let items = named_tables::collect_named(roots, "agents")?;
    let agents = items.iter().map(|(name, item)| Ok(((*name).to_owned(), read_agent(name, item)?)));
    let agents: BTreeMap<_, _> = agents.collect::<Result<_, Error>>()?;
    warn_of_shared_credentials(&items, &agents);
    match roots.first() {
        Some(root) if agents.is_empty() => Err(root.location_of("agents").error(NO_AGENT_MESSAGE.trim_end())),
        _ => Ok(agents),
    }
}

/// Warns of agents with the same corpid and secret: WeCom may invalidate the token of one when the other's is fetched.
/// One warning covers all such agents, because there may be very many.
fn warn_of_shared_credentials(
    items: &BTreeMap<&str, ConfigValue<'_>>,
    agents: &BTreeMap<String, AgentConfig>,
) {
    let mut first: HashMap<_, &str> = HashMap::with_capacity(agents.len());
    let mut duplicates = Vec::new();
    for (name, agent) in agents {
        let original = *first.entry((&*agent.corpid, agent.secret.expose())).or_insert(name);
        if original != name {
            duplicates.push((name, original));
        }
    }
    let Some((name, original)) = duplicates.first() else { return };
    let Some(item) = items.get(name.as_str()) else { return };
    let others = match duplicates.len() - 1 {
        0 => String::new(),
        count => format!(" (as have {count} more agents)"),
    };
    item.location.warn(format!(
        "has the corpid and secret of agents.{original}{others}; make them one agent, or each refresh may invalidate the other's token"
    ));
}

fn read_agent(name: &str, item: &ConfigValue<'_>) -> Result<AgentConfig, Error> {
    if name == RESERVED_NAME {
        return Err(item.error("cannot be an agent's name, since every path of WeCom starts with it"));
    }
    let section = item.table("a table with corpid and secret", KEYS)?;
    Ok(AgentConfig {
        name: name.to_owned(),
        corpid: section.read_required("corpid", "corpid = \"ww1234567890abcdef\"", read_corpid)?,
        secret: section.read_required("secret", "secret = { env = \"WECOM_HR_SECRET\" }", secret::read)?,
        agentid: section.read_optional("agentid", |item| item.integer(0..=u64::MAX))?,
        accept_secret: section.read_or("accept_secret", false, ConfigValue::boolean)?,
        limit: section.read_optional("limit", rate_limit::read)?,
        passthrough: section.read_or("plain", Vec::new(), pattern::read_path_patterns)?,
    })
}

fn read_corpid(item: &ConfigValue<'_>) -> Result<String, Error> {
    let text = item.string("a string like \"ww1234567890abcdef\"")?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            item.error(format!("{} is not a corpid; a corpid is visible ASCII without spaces", quote(text)))
        );
    }
    // A corpid starts with `ww`, and so do most placeholders of one.
    let is_masked = text.len() > 4 && text.trim_start_matches('w').bytes().all(|byte| byte == b'x');
    if is_masked || is_placeholder_word(text) {
        return Err(item.error("is a placeholder; replace it with the real one"));
    }
    Ok(text.to_owned())
}
