//! `[clients.*]`: the programs that call the proxy, and what each of them may do.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::agents::Agent;
use super::error::{Error, quoted};
use super::keyhash::{self, KeyHash};
use super::limit::{self, Limit};
use super::named;
use super::near::suggestion;
use super::pattern::{self, AllowPattern};
use super::secret;
use super::section::{Item, Place, Section};

pub(super) const KEYS: &[&str] = &["key_sha256", "key", "agents", "allow", "limit", "always_200"];

/// Below this a key can be guessed from its hash.
const SHORTEST_GOOD_KEY: usize = 16;

const EXPECTED_AGENTS: &str = "a list of agents like [\"hr\"], or [\"*\"] for all";

/// `[clients.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The table's name.
    pub name: String,
    /// No two clients have the same.
    pub key: KeyHash,
    /// The agents it may use.
    pub agents: AgentSet,
    /// What it may call: never empty; where the file is silent, everything.
    pub allow: Vec<AllowPattern>,
    /// Its requests, to whichever agent.
    pub limit: Option<Limit>,
    /// Whether the proxy's own errors come with HTTP 200.
    pub always_200: bool,
}

/// The agents a client may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentSet {
    /// `["*"]`, those of a later reload too.
    All,
    /// Each exists; never empty.
    Named(BTreeSet<String>),
}

impl AgentSet {
    /// Whether the agent `name` is among them.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(name),
        }
    }
}

pub(super) fn read(
    roots: &[Section<'_>],
    agents: &BTreeMap<String, Agent>,
) -> Result<BTreeMap<String, Client>, Error> {
    let mut clients: BTreeMap<String, Client> = BTreeMap::new();
    let mut keys: BTreeMap<[u8; 32], Place<'_>> = BTreeMap::new();
    let items = named::gather(roots, "clients")?;
    let secrets = if items.is_empty() { HashMap::new() } else { by_secret(agents) };
    for (name, item) in items {
        let section = item.section("a table with key_sha256 and agents", KEYS)?;
        let (key, place) = read_key(&section, &item)?;
        if let Some(first) = keys.insert(*key.as_bytes(), place.clone()) {
            let first = first.shown();
            return Err(
                place.error(format!("is the same key as the one in {first}; each client needs its own"))
            );
        }
        if let Some(agent) = secrets.get(key.as_bytes()) {
            place.warn(format!("is the real secret of agents.{agent}; give the client a key of its own"));
        }
        let client = Client {
            name: name.to_owned(),
            key,
            agents: section
                .need("agents", "agents = [\"hr\"], or [\"*\"] for all", |item| read_agents(item, agents))?,
            allow: section.or("allow", vec![AllowPattern::everything()], pattern::read_allow)?,
            limit: section.maybe("limit", limit::read)?,
            always_200: section.or("always_200", false, Item::boolean)?,
        };
        clients.insert(name.to_owned(), client);
    }
    Ok(clients)
}

/// The agents by their secrets' hashes, so that each client need not be held against each agent.
fn by_secret(agents: &BTreeMap<String, Agent>) -> HashMap<[u8; 32], &str> {
    let mut all = HashMap::with_capacity(agents.len());
    for agent in agents.values() {
        all.entry(*KeyHash::of(agent.secret.expose()).as_bytes()).or_insert(agent.name.as_str());
    }
    all
}

/// The key's hash, and where it stands.
fn read_key<'a>(section: &Section<'a>, client: &Item<'a>) -> Result<(KeyHash, Place<'a>), Error> {
    match (section.find("key_sha256"), section.find("key")) {
        (Some(hash), None) => Ok((keyhash::read(&hash)?, hash.place)),
        (None, Some(item)) => {
            let key = secret::read(&item)?;
            if key.expose().len() < SHORTEST_GOOD_KEY {
                item.place.warn(format!("is shorter than {SHORTEST_GOOD_KEY} characters and easy to guess"));
            }
            Ok((KeyHash::of(key.expose()), item.place))
        }
        (Some(_), Some(key)) => Err(key.error("stands beside key_sha256; keep one of the two")),
        (None, None) => Err(client
            .error("has no key; write key_sha256 = \"…\" (\"wecom-proxy key NAME\" makes one) or key = { env = \"NAME\" }")),
    }
}

fn read_agents(item: &Item<'_>, agents: &BTreeMap<String, Agent>) -> Result<AgentSet, Error> {
    let items = item.list(EXPECTED_AGENTS)?;
    let mut names = BTreeSet::new();
    for item in &items {
        let name = item.text("an agent's name")?;
        if name == "*" && items.len() == 1 {
            return Ok(AgentSet::All);
        }
        if name == "*" {
            return Err(item.error("stands for all agents, so it must stand alone"));
        }
        if !agents.contains_key(name) {
            let meant = suggestion(name, agents.keys().map(String::as_str));
            return Err(item.error(format!(
                "there is no agent {}; {meant}there are: {}",
                quoted(name),
                listed(agents)
            )));
        }
        names.insert(name.to_owned());
    }
    if names.is_empty() {
        return Err(item.error(format!("is empty; write {EXPECTED_AGENTS}")));
    }
    Ok(AgentSet::Named(names))
}

/// Their names, as many as fit a line.
fn listed(agents: &BTreeMap<String, Agent>) -> String {
    const MOST: usize = 10;
    let names: Vec<_> = agents.keys().take(MOST).map(String::as_str).collect();
    format!("{}{}", names.join(", "), if agents.len() > MOST { ", …" } else { "" })
}
