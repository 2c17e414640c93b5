//! `[clients.*]`: the programs that call the proxy, and their permissions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::agent_names::{AgentNames, UnknownAgents};
use super::agent_texts::short_hash;
use super::error::Error;
use super::file_agents::FileAgents;
use super::key_hash::{self, KeyHash};
use super::named_tables;
use super::origin::Origin;
use super::pattern::{self, AllowPattern};
use super::rate_limit::{self, RateLimit};
use super::reader::{ConfigTable, ConfigValue, Location, read_all};
use super::secret;
use super::suites::SuitesConfig;
use crate::secret::credential_scan::is_base64url;
use crate::text::Text;
use crate::{format_text, text};

pub(super) const KEYS: &[&str] = &["key_sha256", "key", "key_in", "agents", "allow", "limit", "always_200"];

/// Most keys of one client.
pub const MAX_CLIENT_KEYS: usize = 4;

/// A shorter key can be guessed from its hash.
const MIN_KEY_BYTES: usize = 16;

const EXPECTED_AGENTS: Text = text!(
    "a list of agents like [\"hr\"], or [\"*\"] for all",
    "应用列表，如 [\"hr\"]，或用 [\"*\"] 表示全部"
);

/// `[clients.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The table's name.
    pub name: String,
    /// Its keys, each of which is valid; never empty, and each unique among all clients.
    pub keys: Vec<ClientKey>,
    /// Whether the key is accepted in the path, too.
    pub key_in_path: bool,
    /// The agents that the client may use.
    pub agents: AgentSet,
    /// The calls that it may make; never empty, everything by default.
    pub allow: Vec<AllowPattern>,
    /// Limits its requests to all agents together.
    pub limit: Option<RateLimit>,
    /// Whether the proxy's own errors are sent with HTTP 200.
    pub always_200: bool,
    /// Where it is defined.
    pub origin: Origin,
}

/// One key of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientKey {
    /// The key's hash.
    pub hash: KeyHash,
    /// Names the key where it can be deleted by itself; `None` for a key of a file.
    pub id: Option<Box<str>>,
    /// When it was made, in seconds since 1970, where that is known.
    pub created: Option<u64>,
}

impl ClientKey {
    /// A key of a file.
    pub fn new(hash: KeyHash) -> Self {
        Self { hash, id: None, created: None }
    }

    /// What its passes are bound to: one of the state that was deleted and comes back has another id, so that the passes
    /// before stay void.
    pub fn pass_binding(&self) -> impl Iterator<Item = &[u8]> {
        [self.hash.as_bytes()].into_iter().map(|hash| &hash[..]).chain(self.id.as_deref().map(str::as_bytes))
    }
}

/// The agents a client may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentSet {
    /// `["*"]`: all agents and corps, including later ones, but no suite and no provider.
    All,
    /// `["*"]` with suites and providers beside it.
    AllWith(BTreeSet<String>),
    /// Existing agents; never empty.
    Named(BTreeSet<String>),
}

impl AgentSet {
    /// Whether the set contains the agent `name`.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All | Self::AllWith(_) => true,
            Self::Named(names) => names.contains(name),
        }
    }

    /// Its names as in the file, `*` first.
    pub fn listed(&self) -> Vec<&str> {
        let (all, names) = match self {
            Self::All => (Some("*"), None),
            Self::AllWith(names) => (Some("*"), Some(names)),
            Self::Named(names) => (None, Some(names)),
        };
        all.into_iter().chain(names.into_iter().flatten().map(String::as_str)).collect()
    }

    /// Whether the set names this suite or provider.
    pub fn names(&self, name: &str) -> bool {
        match self {
            Self::All => false,
            Self::AllWith(names) | Self::Named(names) => names.contains(name),
        }
    }

    /// Whether the set contains this corp of a suite.
    pub fn contains_corp(&self, suite: &str, corpid: &str) -> bool {
        match self {
            Self::All | Self::AllWith(_) => true,
            Self::Named(names) => names.iter().any(|name| match name.split_once(':') {
                Some((named, "*")) => named == suite,
                Some((named, named_corp)) => named == suite && named_corp == corpid,
                None => name == suite,
            }),
        }
    }
}

/// The agents, suites and providers of a file.
struct KnownAgents<'a> {
    agents: &'a FileAgents<'a>,
    suites: &'a SuitesConfig,
}

impl AgentNames for KnownAgents<'_> {
    fn contains(&self, name: &str) -> bool {
        self.agents.contains(name) || self.suites.may_be_listed(name)
    }

    fn names(&self) -> Vec<&str> {
        self.agents.names().into_iter().chain(self.suites.names()).collect()
    }

    fn is_suite_or_provider(&self, name: &str) -> bool {
        self.suites.suites.contains_key(name) || self.suites.providers.contains_key(name)
    }
}

pub(super) fn read(
    roots: &[ConfigTable<'_>],
    agents: &FileAgents<'_>,
    suites: &SuitesConfig,
    has_state: bool,
) -> BTreeMap<String, ClientConfig> {
    let names = KnownAgents { agents, suites };
    let known = if has_state { UnknownAgents::Warn(&names) } else { UnknownAgents::Refuse(&names) };
    let mut keys: BTreeMap<[u8; 32], Location<'_>> = BTreeMap::new();
    let items = named_tables::collect_named(roots, "clients");
    let secrets = if items.is_empty() { HashMap::new() } else { agents.names_by_secret() };
    named_tables::read_each(&items, |name, item| {
        let (client, locations) = read_client(name, item, &known)?;
        for (key, location) in client.keys.iter().zip(locations) {
            if let Some(first) = keys.insert(*key.hash.as_bytes(), location.clone()) {
                let first = first.file_and_line();
                return Err(location.error(format_text!(
                    "is the same key as the one in {first}; each client needs its own",
                    "与 {first} 处的密钥相同；每个调用方需要自己的密钥"
                )));
            }
            if let Some(agent) = secrets.get(&short_hash(&key.hash)) {
                location.warn(format_text!(
                    "is the real secret of agents.{agent}; give the client a key of its own",
                    "就是 agents.{agent} 真正的 secret；请给该调用方单独的密钥"
                ));
            }
        }
        Ok(client)
    })
}

/// Reads `[clients.NAME]`; also returns the locations of its keys.
pub(super) fn read_client<'a>(
    name: &str,
    item: &ConfigValue<'a>,
    agents: &UnknownAgents<'_>,
) -> Result<(ClientConfig, Vec<Location<'a>>), Error> {
    let section =
        item.table(text!("a table with key_sha256 and agents", "含 key_sha256 和 agents 的表"), KEYS)?;
    // All are read before the first error counts.
    let keys = read_keys(&section, item).map_err(|error| section.record(error));
    let fits_path = keys.as_ref().is_ok_and(|(_, fits_path)| *fits_path);
    let key_in_path = section.read_or("key_in", false, |item| match keys {
        Ok(_) => read_key_in(item, fits_path),
        Err(()) => Ok(false),
    });
    let named = section
        .read_required("agents", "agents = [\"hr\"], or [\"*\"] for all", |item| read_agents(item, agents));
    let allow = section.read_or("allow", AllowPattern::everything(), pattern::read_allow_patterns);
    let limit = section.read_optional("limit", rate_limit::read);
    let always_200 = section.read_or("always_200", false, ConfigValue::boolean);
    let (keys, locations) = keys.map_err(|()| Error::recorded())?.0.into_iter().unzip();
    let client = ClientConfig {
        name: name.to_owned(),
        keys,
        key_in_path,
        agents: named?,
        allow,
        limit,
        always_200,
        origin: item.location.origin(),
    };
    Ok((client, locations))
}

/// Keys with their locations.
type LocatedKeys<'a> = Vec<(ClientKey, Location<'a>)>;

/// The keys, and whether they can stand in a path, as far as is known.
fn read_keys<'a>(
    section: &ConfigTable<'a>,
    client: &ConfigValue<'a>,
) -> Result<(LocatedKeys<'a>, bool), Error> {
    match (section.find("key_sha256"), section.find("key")) {
        (Some(hashes), None) => Ok((read_key_hashes(&hashes)?, true)),
        (_, Some(key)) if !key.location.source.is_file() => {
            Err(key.error(text!("is for files; write key_sha256, the key's SHA-256 in 64 hex digits", "只能写在文件里；请写 key_sha256，即密钥的 SHA-256，64 位十六进制")))
        }
        (None, Some(item)) => {
            let key = secret::read(&item)?;
            if key.expose().len() < MIN_KEY_BYTES {
                item.location.warn(format_text!("is shorter than {MIN_KEY_BYTES} characters and easy to guess", "少于 {MIN_KEY_BYTES} 个字符，容易被猜到"));
            }
            let fits_path = is_base64url(key.expose());
            Ok((vec![(ClientKey::new(KeyHash::of(key.expose())), item.location)], fits_path))
        }
        (Some(_), Some(key)) => Err(key.error(text!("conflicts with key_sha256; keep one of the two", "与 key_sha256 冲突；两者只保留一个"))),
        (None, None) if !client.location.source.is_file() => {
            Err(client.error(text!("has no key; write key_sha256, the key's SHA-256 in 64 hex digits (\"wecom-proxy key NAME\" generates both)", "没有密钥；请写 key_sha256，即密钥的 SHA-256，64 位十六进制（\"wecom-proxy key NAME\" 会生成两者）")))
        }
        (None, None) => Err(client
            .error(text!("has no key; write key_sha256 = \"…\" (\"wecom-proxy key NAME\" generates one) or key = { env = \"NAME\" }", "没有密钥；请写 key_sha256 = \"…\"（由 \"wecom-proxy key NAME\" 生成），或 key = { env = \"NAME\" }"))),
    }
}

/// Reads `key_sha256`: one hash, or a list of at most [`MAX_CLIENT_KEYS`], none of them twice.
fn read_key_hashes<'a>(item: &ConfigValue<'a>) -> Result<LocatedKeys<'a>, Error> {
    let items = if item.is_list() { item.list(key_hash::EXPECTED)? } else { vec![item.clone()] };
    if items.is_empty() || items.len() > MAX_CLIENT_KEYS {
        return Err(item.error(format_text!(
            "lists {} keys; write 1 to {MAX_CLIENT_KEYS}",
            "列出了 {} 个密钥；请写 1 到 {MAX_CLIENT_KEYS} 个",
            items.len()
        )));
    }
    let mut keys: LocatedKeys<'a> = Vec::with_capacity(items.len());
    read_all(&items, |item| {
        let key = ClientKey::new(key_hash::read(item)?);
        if keys.iter().any(|(other, _)| *other == key) {
            return Err(item.error(text!(
                "is the same key as one before it; list each key once",
                "与前面的密钥相同；每个密钥只写一次"
            )));
        }
        keys.push((key, item.location.clone()));
        Ok(())
    })?;
    Ok(keys)
}

/// Reads `key_in = "path"`.
fn read_key_in(item: &ConfigValue<'_>, fits_path: bool) -> Result<bool, Error> {
    let in_path = item.one_of(&[("path", true)])?;
    if !fits_path {
        return Err(item
            .error(text!("needs a key of letters, digits, - and _ only", "要求密钥只含字母、数字、- 和 _")));
    }
    item.location.warn(text!(
        "puts the key into URLs: whatever stands in front of this proxy, and the program itself, may log it",
        "会把密钥放进 URL：代理前面的设备和程序自身都可能把它记入日志"
    ));
    Ok(in_path)
}

fn read_agents(item: &ConfigValue<'_>, agents: &UnknownAgents<'_>) -> Result<AgentSet, Error> {
    let items = item.list(EXPECTED_AGENTS)?;
    let mut names = BTreeSet::new();
    let mut all = None;
    read_all(&items, |item| {
        let name = item.string(text!("an agent's name", "应用名"))?;
        if name == "*" {
            all = Some(());
            return Ok(());
        }
        agents.check(item, name)?;
        if let Some(all) = items.iter().find(|item| item.as_str() == Some("*"))
            && !agents.is_suite_or_provider(name)
        {
            return Err(all.error(text!(
                "means all agents, so it must be the only entry; only suites and providers stand beside it",
                "表示全部应用，因此必须是唯一的一项；旁边只能有套件和服务商"
            )));
        }
        names.insert(name.to_owned());
        Ok(())
    })?;
    match (all, names.is_empty()) {
        (Some(_), true) => Ok(AgentSet::All),
        (Some(_), false) => Ok(AgentSet::AllWith(names)),
        (None, true) => Err(item.error(format_text!("is empty; write {}", "为空；请写{}", EXPECTED_AGENTS))),
        (None, false) => Ok(AgentSet::Named(names)),
    }
}
