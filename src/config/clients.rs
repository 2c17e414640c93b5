//! `[clients.*]`: the programs that call the proxy, and their permissions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::agents::AgentConfig;
use super::error::{Error, quote};
use super::key_hash::{self, KeyHash};
use super::named_tables;
use super::pattern::{self, AllowPattern};
use super::rate_limit::{self, RateLimit};
use super::reader::{ConfigTable, ConfigValue, Location};
use super::secret;
use super::suggest::did_you_mean;

pub(super) const KEYS: &[&str] = &["key_sha256", "key", "agents", "allow", "limit", "always_200"];

/// A shorter key can be guessed from its hash.
const MIN_KEY_BYTES: usize = 16;

const EXPECTED_AGENTS: &str = "a list of agents like [\"hr\"], or [\"*\"] for all";

/// `[clients.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The table's name.
    pub name: String,
    /// Unique among the clients.
    pub key_hash: KeyHash,
    /// The agents that the client may use.
    pub agents: AgentSet,
    /// The calls that it may make; never empty, everything by default.
    pub allow: Vec<AllowPattern>,
    /// Limits its requests to all agents together.
    pub limit: Option<RateLimit>,
    /// Whether the proxy's own errors are sent with HTTP 200.
    pub always_200: bool,
}

/// The agents a client may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentSet {
    /// `["*"]`: all agents, including those of a later reload.
    All,
    /// Existing agents; never empty.
    Named(BTreeSet<String>),
}

impl AgentSet {
    /// Whether the set contains the agent `name`.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(name),
        }
    }
}

pub(super) fn read(
    roots: &[ConfigTable<'_>],
    agents: &BTreeMap<String, AgentConfig>,
) -> Result<BTreeMap<String, ClientConfig>, Error> {
    let mut clients: BTreeMap<String, ClientConfig> = BTreeMap::new();
    let mut keys: BTreeMap<[u8; 32], Location<'_>> = BTreeMap::new();
    let items = named_tables::collect_named(roots, "clients")?;
    let secrets = if items.is_empty() { HashMap::new() } else { agents_by_secret_hash(agents) };
    for (name, item) in items {
        let section = item.table("a table with key_sha256 and agents", KEYS)?;
        let (key, location) = read_key(&section, &item)?;
        if let Some(first) = keys.insert(*key.as_bytes(), location.clone()) {
            let first = first.file_and_line();
            return Err(
                location.error(format!("is the same key as the one in {first}; each client needs its own"))
            );
        }
        if let Some(agent) = secrets.get(key.as_bytes()) {
            location.warn(format!("is the real secret of agents.{agent}; give the client a key of its own"));
        }
        let client = ClientConfig {
            name: name.to_owned(),
            key_hash: key,
            agents: section.read_required("agents", "agents = [\"hr\"], or [\"*\"] for all", |item| {
                read_agents(item, agents)
            })?,
            allow: section.read_or(
                "allow",
                vec![AllowPattern::everything()],
                pattern::read_allow_patterns,
            )?,
            limit: section.read_optional("limit", rate_limit::read)?,
            always_200: section.read_or("always_200", false, ConfigValue::boolean)?,
        };
        clients.insert(name.to_owned(), client);
    }
    Ok(clients)
}

/// The agents by the hashes of their secrets, so that not every client is compared with every agent.
fn agents_by_secret_hash(agents: &BTreeMap<String, AgentConfig>) -> HashMap<[u8; 32], &str> {
    let mut names = HashMap::with_capacity(agents.len());
    for agent in agents.values() {
        names.entry(*KeyHash::of(agent.secret.expose()).as_bytes()).or_insert(agent.name.as_str());
    }
    names
}

/// The hash of the key, and its location.
fn read_key<'a>(
    section: &ConfigTable<'a>,
    client: &ConfigValue<'a>,
) -> Result<(KeyHash, Location<'a>), Error> {
    match (section.find("key_sha256"), section.find("key")) {
        (Some(hash), None) => Ok((key_hash::read(&hash)?, hash.location)),
        (None, Some(item)) => {
            let key = secret::read(&item)?;
            if key.expose().len() < MIN_KEY_BYTES {
                item.location.warn(format!("is shorter than {MIN_KEY_BYTES} characters and easy to guess"));
            }
            Ok((KeyHash::of(key.expose()), item.location))
        }
        (Some(_), Some(key)) => Err(key.error("conflicts with key_sha256; keep one of the two")),
        (None, None) => Err(client
            .error("has no key; write key_sha256 = \"…\" (\"wecom-proxy key NAME\" generates one) or key = { env = \"NAME\" }")),
    }
}

fn read_agents(item: &ConfigValue<'_>, agents: &BTreeMap<String, AgentConfig>) -> Result<AgentSet, Error> {
    let items = item.list(EXPECTED_AGENTS)?;
    let mut names = BTreeSet::new();
    for item in &items {
        let name = item.string("an agent's name")?;
        if name == "*" && items.len() == 1 {
            return Ok(AgentSet::All);
        }
        if name == "*" {
            return Err(item.error("means all agents, so it must be the only entry"));
        }
        if !agents.contains_key(name) {
            let hint = did_you_mean(name, agents.keys().map(String::as_str));
            return Err(item.error(format!(
                "there is no agent {}; {hint}there are: {}",
                quote(name),
                name_list(agents)
            )));
        }
        names.insert(name.to_owned());
    }
    if names.is_empty() {
        return Err(item.error(format!("is empty; write {EXPECTED_AGENTS}")));
    }
    Ok(AgentSet::Named(names))
}

/// The names of the first agents, as many as fit on a line.
fn name_list(agents: &BTreeMap<String, AgentConfig>) -> String {
    const MAX_NAMES: usize = 10;
    let names: Vec<_> = agents.keys().take(MAX_NAMES).map(String::as_str).collect();
    format!("{}{}", names.join(", "), if agents.len() > MAX_NAMES { ", …" } else { "" })
}
