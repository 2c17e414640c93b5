//! `[providers.*]`, `[suites.*]` and the `[agents.*]` with a `suite`: service providers, their suites, and authorised
//! corps that are known beforehand.

use std::collections::{BTreeMap, HashMap};

use super::agent_names::AgentNames;
use super::agents::{self, AgentSettings};
use super::error::{Error, quote};
use super::file_agents::FileAgents;
use super::named_tables;
use super::origin::Origin;
use super::rate_limit::{self, RateLimit};
use super::reader::{ConfigTable, ConfigValue};
use super::secret;
use super::suggest::did_you_mean;
use super::table_name;
use super::url::PrivateUrl;
use crate::secret::Masked;
use crate::{format_text, text};

pub(super) const PROVIDER_KEYS: &[&str] = &["corpid", "secret"];
pub(super) const SUITE_KEYS: &[&str] = &[
    "suite_id",
    "secret",
    "provider",
    "token",
    "aes_key",
    "max_age",
    "after_install",
    "limit_per_corp",
    "to",
];
pub(super) const CORP_KEYS: &[&str] =
    &["suite", "corpid", "permanent_code", "agentid", "limit", "plain", "jssdk_origins"];

/// `[providers.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderConfig {
    /// The table's name.
    pub name: String,
    /// Visible ASCII, not empty.
    pub corpid: String,
    /// The provider_secret.
    pub secret: Masked,
    /// Where it is defined.
    pub origin: Origin,
}

/// `[suites.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuiteConfig {
    /// The table's name.
    pub name: String,
    /// Visible ASCII, not empty; `dk…` for a template of customized apps.
    pub suite_id: String,
    /// The suite_secret.
    pub secret: Masked,
    /// The name of an existing provider.
    pub provider: Option<String>,
    /// The token of its command URL and its data URL.
    pub token: Masked,
    /// The EncodingAESKey of both.
    pub aes_key: Masked,
    /// Where the browser of an administrator goes after the installation.
    pub after_install: Option<PrivateUrl>,
    /// Limits the requests of each corp.
    pub limit_per_corp: Option<RateLimit>,
    /// Where it is defined.
    pub origin: Origin,
}

/// `[agents.NAME]` with a `suite`: an authorised corp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpConfig {
    /// The table's name.
    pub name: String,
    /// The name of an existing suite.
    pub suite: String,
    /// The corpid as the provider sees it.
    pub corpid: String,
    /// The permanent code.
    pub permanent_code: Masked,
    /// The other keys.
    pub settings: AgentSettings,
    /// Where it is defined.
    pub origin: Origin,
}

/// What this file reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuitesConfig {
    /// `[providers.*]` by name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// `[suites.*]` by name.
    pub suites: BTreeMap<String, SuiteConfig>,
    /// `[agents.*]` with a `suite`, by name.
    pub corps: BTreeMap<String, CorpConfig>,
}

impl SuitesConfig {
    /// Whether there is neither a provider nor a suite.
    pub fn is_empty(&self) -> bool {
        self.providers.is_empty() && self.suites.is_empty()
    }

    /// Whether a client may list this name, beside those of agents: a suite, a provider, a suite's corps (`crm:*`), or one
    /// of them (`crm:CORPID`), which need not be there yet.
    pub(super) fn may_be_listed(&self, name: &str) -> bool {
        match name.split_once(':') {
            Some((suite, corpid)) => self.suites.contains_key(suite) && (corpid == "*" || is_corpid(corpid)),
            None => {
                self.suites.contains_key(name)
                    || self.providers.contains_key(name)
                    || self.corps.contains_key(name)
            }
        }
    }

    /// The names of suites, providers and corps.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.suites.keys().chain(self.providers.keys()).chain(self.corps.keys()).map(String::as_str)
    }
}

/// Whether a text can be the corpid of an authorised corp in an agent's name: letters, digits, `-` and `_`.
pub fn is_corpid(text: &str) -> bool {
    table_name::is_valid_name(text)
}

/// Reads the tables; `agents` are those without a suite.
pub(super) fn read(
    root: &ConfigTable<'_>,
    roots: &[ConfigTable<'_>],
    agents: &FileAgents<'_>,
    has_state: bool,
) -> SuitesConfig {
    let main = std::slice::from_ref(root);
    let mut config = SuitesConfig::default();
    for (name, item) in named_tables::collect_named(main, "providers") {
        let provider = check_name(name, &item, agents, &config).and_then(|()| read_provider(name, &item));
        insert(&mut config.providers, name, &item, provider);
    }
    for (name, item) in named_tables::collect_named(main, "suites") {
        let suite = check_name(name, &item, agents, &config).and_then(|()| {
            let suite = read_suite(name, &item, &config.providers)?;
            reject_shared_id(&suite, &item, &config.suites)?;
            Ok(suite)
        });
        insert(&mut config.suites, name, &item, suite);
    }
    let mut corps = BTreeMap::new();
    let suite_names: Vec<_> = config.suites.keys().map(String::as_str).collect();
    let mut known_corps = HashMap::new();
    for (name, item) in named_tables::collect_named(roots, "agents") {
        if agents::is_corp(&item) {
            let corp = check_name(name, &item, agents, &config).and_then(|()| {
                let corp = read_corp(name, &item, &suite_names)?;
                reject_shared_corp(&corp, &item, &mut known_corps)?;
                Ok(corp)
            });
            insert(&mut corps, name, &item, corp);
        }
    }
    config.corps = corps;
    if !has_state && !config.suites.is_empty() {
        let message = text!(
            "needs [state]: tickets and permanent codes must outlive the process; add path and key there",
            "需要 [state]：ticket 和永久授权码必须在重启后保留；请在其中写 path 和 key"
        );
        let location = root.location_of("suites");
        location.record(location.error(message));
    }
    config
}

/// Keeps a table that was read; a wrong one is recorded and left out.
fn insert<T>(tables: &mut BTreeMap<String, T>, name: &str, item: &ConfigValue<'_>, read: Result<T, Error>) {
    match read {
        Ok(table) => drop(tables.insert(name.to_owned(), table)),
        Err(error) => item.location.record(error),
    }
}

/// Agents, suites and providers share one set of names.
fn check_name(
    name: &str,
    item: &ConfigValue<'_>,
    agents: &FileAgents<'_>,
    config: &SuitesConfig,
) -> Result<(), Error> {
    agents::reject_reserved_name(name, item)?;
    let taken = [
        (text!("an agent", "应用"), agents.contains(name)),
        (text!("a provider", "服务商"), config.providers.contains_key(name)),
        (text!("a suite", "套件"), config.suites.contains_key(name)),
    ];
    match taken.iter().find(|(_, is_taken)| *is_taken) {
        Some((kind, _)) => Err(item.error(format_text!(
            "is the name of {} too; agents, suites and providers share one set of names",
            "与一个{}同名；应用、套件和服务商不能重名",
            kind
        ))),
        None => Ok(()),
    }
}

fn read_provider(name: &str, item: &ConfigValue<'_>) -> Result<ProviderConfig, Error> {
    let section =
        item.table(text!("a table with corpid and secret", "含 corpid 和 secret 的表"), PROVIDER_KEYS)?;
    let corpid = section.read_required("corpid", "corpid = \"ww1234567890abcdef\"", agents::read_corpid);
    let secret =
        section.read_required("secret", "secret = { env = \"PROVIDER_SECRET\" }", secret::read_wecom);
    Ok(ProviderConfig {
        name: name.to_owned(),
        corpid: corpid?.to_owned(),
        secret: secret?,
        origin: item.location.origin(),
    })
}

fn read_suite(
    name: &str,
    item: &ConfigValue<'_>,
    providers: &BTreeMap<String, ProviderConfig>,
) -> Result<SuiteConfig, Error> {
    let section =
        item.table(text!("a table with suite_id and secret", "含 suite_id 和 secret 的表"), SUITE_KEYS)?;
    let read_provider_name = |item: &ConfigValue<'_>| {
        let provider = item.string(text!("a provider's name", "服务商名"))?;
        match providers.contains_key(provider) || section.is_broken(&format!("providers.{provider}")) {
            true => Ok(provider.to_owned()),
            false => {
                let hint = did_you_mean(provider, providers.keys().map(String::as_str));
                Err(item.error(format_text!(
                    "there is no provider {}; {}add [providers.NAME]",
                    "没有服务商 {}；{}请添加 [providers.NAME]",
                    quote(provider),
                    hint
                )))
            }
        }
    };
    let suite_id =
        section.read_required("suite_id", "suite_id = \"ww1234567890abcdef\"", agents::read_corpid);
    let secret = section.read_required("secret", "secret = { env = \"SUITE_SECRET\" }", secret::read_wecom);
    let token = section.read_required("token", "token = { env = \"SUITE_TOKEN\" }", secret::read);
    let example = "aes_key = { env = \"SUITE_AES_KEY\" }";
    let aes_key = section.read_required("aes_key", example, secret::read_aes_key);
    Ok(SuiteConfig {
        name: name.to_owned(),
        suite_id: suite_id?.to_owned(),
        secret: secret?,
        provider: section.read_optional("provider", read_provider_name),
        token: token?,
        aes_key: aes_key?,
        after_install: section.read_optional("after_install", read_after_install),
        limit_per_corp: section.read_optional("limit_per_corp", rate_limit::read),
        origin: item.location.origin(),
    })
}

fn read_after_install(item: &ConfigValue<'_>) -> Result<PrivateUrl, Error> {
    let text = item.string(text!(
        "a URL like \"https://crm.example.com/welcome\"",
        "\"https://crm.example.com/welcome\" 这样的 URL"
    ))?;
    let is_url = text
        .parse::<http::Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some());
    if !is_url || text.contains('#') {
        return Err(item.error(text!(
            "is no URL like \"https://crm.example.com/welcome\", without a fragment",
            "不是 \"https://crm.example.com/welcome\" 这样的 URL（不含 #）"
        )));
    }
    Ok(text.to_owned().into())
}

/// Reads an authorised corp; `suites` are the names of the suites.
pub(super) fn read_corp(name: &str, item: &ConfigValue<'_>, suites: &[&str]) -> Result<CorpConfig, Error> {
    if item.has_key("secret") {
        return Err(item.error(text!(
            "has suite and secret; an authorised corp has permanent_code in place of secret",
            "同时有 suite 和 secret；授权企业用 permanent_code 代替 secret"
        )));
    }
    let section = item.table(
        text!("a table with suite, corpid and permanent_code", "含 suite、corpid 和 permanent_code 的表"),
        CORP_KEYS,
    )?;
    let read_suite_name = |item: &ConfigValue<'_>| {
        let suite = item.string(text!("a suite's name", "套件名"))?;
        match suites.contains(&suite) || section.is_broken(&format!("suites.{suite}")) {
            true => Ok(suite.to_owned()),
            false => {
                let hint = did_you_mean(suite, suites.iter().copied());
                Err(item.error(format_text!(
                    "there is no suite {}; {}add [suites.NAME]",
                    "没有套件 {}；{}请添加 [suites.NAME]",
                    quote(suite),
                    hint
                )))
            }
        }
    };
    let read_corpid = |item: &ConfigValue<'_>| {
        let corpid = agents::read_corpid(item)?.to_owned();
        if !is_corpid(&corpid) {
            return Err(item.error(text!(
                "is no corpid of an authorised corp: letters, digits, - and _, at most 64",
                "不是授权企业的 corpid：字母、数字、- 和 _，最多 64 个字符"
            )));
        }
        Ok(corpid)
    };
    let example = "permanent_code = { env = \"CORP_PERMANENT_CODE\" }";
    let suite = section.read_required("suite", "suite = \"crm\"", read_suite_name);
    let corpid = section.read_required("corpid", "corpid = \"wp1234567890abcdef\"", read_corpid);
    let permanent_code = section.read_required("permanent_code", example, secret::read_wecom);
    Ok(CorpConfig {
        name: name.to_owned(),
        suite: suite?,
        corpid: corpid?,
        permanent_code: permanent_code?,
        settings: agents::read_settings(&section, false),
        origin: item.location.origin(),
    })
}

/// Two suites of one id would each need every ticket, and share one token.
fn reject_shared_id(
    suite: &SuiteConfig,
    item: &ConfigValue<'_>,
    suites: &BTreeMap<String, SuiteConfig>,
) -> Result<(), Error> {
    match suites.values().find(|other| other.suite_id == suite.suite_id) {
        Some(other) => Err(item.error(format_text!(
            "has the suite_id of suites.{}; keep one of them",
            "的 suite_id 与 suites.{} 相同；只保留一个",
            other.name
        ))),
        None => Ok(()),
    }
}

/// `known` has the names of the corps before, by suite and corpid.
fn reject_shared_corp(
    corp: &CorpConfig,
    item: &ConfigValue<'_>,
    known: &mut HashMap<(String, String), String>,
) -> Result<(), Error> {
    let key = (corp.suite.clone(), corp.corpid.clone());
    match known.insert(key, corp.name.clone()) {
        Some(other) => Err(item.error(format_text!(
            "is the suite and corpid of agents.{other} too; keep one of them",
            "的套件和 corpid 与 agents.{other} 相同；只保留一个"
        ))),
        None => Ok(()),
    }
}
