//! `[clients.*]`: the programs that call the proxy, and their permissions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::agents::AgentConfig;
use super::error::{Error, quote};
use super::key_hash::{self, KeyHash};
use super::named_tables;
use super::origin::Origin;
use super::pattern::{self, AllowPattern};
use super::rate_limit::{self, RateLimit};
use super::reader::{ConfigTable, ConfigValue, Location};
use super::secret;
use super::suggest::did_you_mean;
use super::suites::SuitesConfig;
use crate::secret::credential_scan::is_base64url;

pub(super) const KEYS: &[&str] = &["key_sha256", "key", "key_in", "agents", "allow", "limit", "always_200"];

/// Most keys of one client.
pub const MAX_CLIENT_KEYS: usize = 4;

/// A shorter key can be guessed from its hash.
const MIN_KEY_BYTES: usize = 16;

const EXPECTED_AGENTS: &str = "a list of agents like [\"hr\"], or [\"*\"] for all";

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

pub(super) fn read(
    roots: &[ConfigTable<'_>],
    agents: &BTreeMap<String, AgentConfig>,
    suites: &SuitesConfig,
    has_state: bool,
) -> BTreeMap<String, ClientConfig> {
    let names = KnownAgents { agents, suites };
    let known = if has_state { UnknownAgents::Warn(&names) } else { UnknownAgents::Refuse(&names) };
    let mut keys: BTreeMap<[u8; 32], Location<'_>> = BTreeMap::new();
    let items = named_tables::collect_named(roots, "clients");
    let secrets = if items.is_empty() { HashMap::new() } else { agents_by_secret_hash(agents) };
    named_tables::read_each(&items, |name, item| {
        let (client, locations) = read_client(name, item, &known)?;
        for (key, location) in client.keys.iter().zip(locations) {
            if let Some(first) = keys.insert(*key.hash.as_bytes(), location.clone()) {
                let first = first.file_and_line();
                return Err(location
                    .error(format!("is the same key as the one in {first}; each client needs its own")));
            }
            if let Some(agent) = secrets.get(key.hash.as_bytes()) {
                location
                    .warn(format!("is the real secret of agents.{agent}; give the client a key of its own"));
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
    let section = item.table("a table with key_sha256 and agents", KEYS)?;
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

/// The agents by the hashes of their secrets, so that not every client is compared with every agent.
fn agents_by_secret_hash(agents: &BTreeMap<String, AgentConfig>) -> HashMap<[u8; 32], &str> {
    let mut names = HashMap::with_capacity(agents.len());
    for agent in agents.values() {
        for secret in &agent.secrets {
            names.entry(*KeyHash::of(secret.value.expose()).as_bytes()).or_insert(agent.name.as_str());
        }
    }
    names
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
            Err(key.error("is for files; write key_sha256, the key's SHA-256 in 64 hex digits"))
        }
        (None, Some(item)) => {
            let key = secret::read(&item)?;
            if key.expose().len() < MIN_KEY_BYTES {
                item.location.warn(format!("is shorter than {MIN_KEY_BYTES} characters and easy to guess"));
            }
            let fits_path = is_base64url(key.expose());
            Ok((vec![(ClientKey::new(KeyHash::of(key.expose())), item.location)], fits_path))
        }
        (Some(_), Some(key)) => Err(key.error("conflicts with key_sha256; keep one of the two")),
        (None, None) if !client.location.source.is_file() => {
            Err(client.error("has no key; write key_sha256, the key's SHA-256 in 64 hex digits (\"wecom-proxy key NAME\" generates both)"))
        }
        (None, None) => Err(client
            .error("has no key; write key_sha256 = \"…\" (\"wecom-proxy key NAME\" generates one) or key = { env = \"NAME\" }")),
    }
}

/// Reads `key_sha256`: one hash, or a list of at most [`MAX_CLIENT_KEYS`], none of them twice.
fn read_key_hashes<'a>(item: &ConfigValue<'a>) -> Result<LocatedKeys<'a>, Error> {
    let items = match item.is_list() {
        true => item.list(key_hash::EXPECTED)?,
        false => vec![item.clone()],
    };
    if items.is_empty() || items.len() > MAX_CLIENT_KEYS {
        return Err(item.error(format!("lists {} keys; write 1 to {MAX_CLIENT_KEYS}", items.len())));
    }
    let mut keys: LocatedKeys<'a> = Vec::with_capacity(items.len());
    for item in items {
        let key = ClientKey::new(key_hash::read(&item)?);
        if keys.iter().any(|(other, _)| *other == key) {
            return Err(item.error("is the same key as one before it; list each key once"));
        }
        keys.push((key, item.location));
    }
    Ok(keys)
}

/// Reads `key_in = "path"`.
fn read_key_in(item: &ConfigValue<'_>, fits_path: bool) -> Result<bool, Error> {
    let in_path = item.one_of(&[("path", true)])?;
    if !fits_path {
        return Err(item.error("needs a key of letters, digits, - and _ only"));
    }
    item.location.warn(
        "puts the key into URLs: whatever stands in front of this proxy, and the program itself, may log it",
    );
    Ok(in_path)
}

fn read_agents(item: &ConfigValue<'_>, agents: &UnknownAgents<'_>) -> Result<AgentSet, Error> {
    let items = item.list(EXPECTED_AGENTS)?;
    let mut names = BTreeSet::new();
    let mut all = None;
    for item in &items {
        let name = item.string("an agent's name")?;
        if name == "*" {
            all = Some(item);
            continue;
        }
        agents.check(item, name)?;
        if let Some(all) = all.or_else(|| items.iter().find(|item| item.as_str() == Some("*")))
            && !agents.is_suite_or_provider(name)
        {
            return Err(all.error(
                "means all agents, so it must be the only entry; only suites and providers stand beside it",
            ));
        }
        names.insert(name.to_owned());
    }
    match (all, names.is_empty()) {
        (Some(_), true) => Ok(AgentSet::All),
        (Some(_), false) => Ok(AgentSet::AllWith(names)),
        (None, true) => Err(item.error(format!("is empty; write {EXPECTED_AGENTS}"))),
        (None, false) => Ok(AgentSet::Named(names)),
    }
}

/// The agents that there are.
pub trait AgentNames {
    /// Whether there is an agent of this name.
    fn contains(&self, name: &str) -> bool;

    /// All names, sorted.
    fn names(&self) -> Vec<&str>;

    /// Whether it is the name of a suite or a provider, which may stand beside `"*"`.
    fn is_suite_or_provider(&self, _: &str) -> bool {
        false
    }
}

/// The agents, suites and providers of a file.
struct KnownAgents<'a> {
    agents: &'a BTreeMap<String, AgentConfig>,
    suites: &'a SuitesConfig,
}

impl AgentNames for KnownAgents<'_> {
    fn contains(&self, name: &str) -> bool {
        self.agents.contains_key(name) || self.suites.may_be_listed(name)
    }

    fn names(&self) -> Vec<&str> {
        self.agents.keys().map(String::as_str).chain(self.suites.names()).collect()
    }

    fn is_suite_or_provider(&self, name: &str) -> bool {
        self.suites.suites.contains_key(name) || self.suites.providers.contains_key(name)
    }
}

impl AgentNames for BTreeMap<String, AgentConfig> {
    fn contains(&self, name: &str) -> bool {
        self.contains_key(name)
    }

    fn names(&self) -> Vec<&str> {
        self.keys().map(String::as_str).collect()
    }
}

/// What becomes of a client that names an agent that does not exist.
pub(super) enum UnknownAgents<'a> {
    /// An error; these exist.
    Refuse(&'a dyn AgentNames),
    /// A warning; these exist, and there may be others later.
    Warn(&'a dyn AgentNames),
    /// Nothing: for it, the agent does not exist.
    Accept,
}

impl UnknownAgents<'_> {
    /// Where it is not known what there is, it may be one.
    fn is_suite_or_provider(&self, name: &str) -> bool {
        match self {
            Self::Refuse(agents) | Self::Warn(agents) => agents.is_suite_or_provider(name),
            Self::Accept => true,
        }
    }

    fn check(&self, item: &ConfigValue<'_>, name: &str) -> Result<(), Error> {
        let agents = match self {
            Self::Refuse(agents) | Self::Warn(agents) if !agents.contains(name) => agents,
            _ => return Ok(()),
        };
        let table = name.split(':').next().unwrap_or(name);
        let is_broken = |kind: &str| item.location.source.is_broken(&format!("{kind}.{table}"));
        if ["agents", "suites", "providers"].into_iter().any(is_broken) {
            return Ok(());
        }
        let names = agents.names();
        let hint = did_you_mean(name, names.iter().copied());
        if matches!(self, Self::Warn(_)) {
            let place = if item.location.source.is_file() { " in the files" } else { "" };
            let name = quote(name);
            item.location.warn(format!(
                "there is no agent {name}{place}; {hint}for this client, it does not exist until the state has it"
            ));
            return Ok(());
        }
        Err(item.error(format!("there is no agent {}; {hint}there are: {}", quote(name), name_list(&names))))
    }
}

/// The names of the first agents, as many as fit on a line.
fn name_list(names: &[&str]) -> String {
    const MAX_NAMES: usize = 10;
    let listed = names[..names.len().min(MAX_NAMES)].join(", ");
    format!("{listed}{}", if names.len() > MAX_NAMES { ", …" } else { "" })
}
