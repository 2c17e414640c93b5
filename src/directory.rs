//! Agents and clients, and which client may call which agent. A snapshot is immutable; a change makes another one, which
//! shares with it what did not change.

mod agent;
mod capture_switch;
mod client;
mod named_corps;
mod pass_keys;
mod secret_lookup;
mod shared_table;
mod sorted_list;
mod stored;
mod suite;
mod suite_table;
mod updater;

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher, Hash},
    mem,
    sync::{Arc, atomic::AtomicBool},
};

use foldhash::fast::RandomState;

pub use self::{
    agent::{Agent, AgentRole, PassBuyer, credentials, first_credentials},
    capture_switch::CaptureSwitch,
    client::Client,
    stored::{StoredEntry, StoredKey},
    suite::{CorpCredentials, CorpOverride, Suite, SuiteState, corp_credentials},
    updater::{DirectoryChange, DirectoryUpdater},
};
use self::{
    secret_lookup::{AgentsByHash, SecretHashes},
    shared_table::SharedTable,
    sorted_list::SortedList,
    suite_table::SuiteTable,
};
use crate::{
    config::{self, AgentSet, KeyHash, UpstreamConfig},
    limits::{RateLimiter, RateLimiterFactory},
    secret::Masked,
    tokens::TokenCache,
};

/// All agents and clients. Lookups take constant time, and the maps hold shared pointers only, so that a change does not
/// fragment memory.
#[derive(Clone)]
pub struct Directory {
    hasher: RandomState,
    agents_by_name: SharedTable<Arc<Agent>>,
    agents_sorted: SortedList<Agent>,
    /// Used by gettoken only.
    agents_by_corpid: SortedList<Agent>,
    /// By corpid and each secret, which several agents can share; used by gettoken only.
    agents_by_secret: AgentsByHash,
    /// By each secret alone; for the warning of a client whose key is one.
    agents_by_secret_alone: AgentsByHash,
    /// Whether the file of a secret had another one when it was read again.
    has_changed_secret_files: Arc<AtomicBool>,
    clients_by_key: SharedTable<(KeyHash, Arc<Client>)>,
    clients_by_name: SharedTable<Arc<Client>>,
    clients_sorted: SortedList<Client>,
    /// Suites, providers, and the corps that the files name.
    suites: Arc<SuiteTable>,
    /// Whether callers without a key are served.
    is_open: bool,
    /// Whether they may be, as far as the files say and the clients before: a proxy that was closed stays so.
    may_open: bool,
    /// `server.open`
    allow_open: bool,
    /// Whether all agents and clients of the state are known, if there is one.
    is_complete: bool,
    /// `[upstreams.*]`; a reload does not change it.
    upstreams: Arc<BTreeMap<String, UpstreamConfig>>,
    /// `tokens.pass_key`; a reload does not change it.
    pass_key: Option<Arc<Masked>>,
}

/// What agents and clients are built with.
pub(super) struct Shared<'a> {
    tokens: &'a Arc<TokenCache>,
    limits: &'a RateLimiterFactory,
    pass_key: Option<Arc<Masked>>,
}

impl Directory {
    /// Builds the directory and takes the agents and clients out of `config`.
    pub fn new(config: &mut config::Config, tokens: &Arc<TokenCache>, limits: &RateLimiterFactory) -> Self {
        let mut directory = Self {
            hasher: RandomState::default(),
            agents_by_name: SharedTable::default(),
            agents_sorted: SortedList::new(Agent::compare_names),
            agents_by_corpid: SortedList::new(Agent::compare_corpids),
            agents_by_secret: AgentsByHash::default(),
            agents_by_secret_alone: AgentsByHash::default(),
            has_changed_secret_files: tokens.has_changed_secret_files(),
            clients_by_key: SharedTable::default(),
            clients_by_name: SharedTable::default(),
            clients_sorted: SortedList::new(Client::compare_names),
            suites: Arc::default(),
            // What the state has is not known yet.
            is_open: config.server.open || config.clients.is_empty() && config.state.is_none(),
            may_open: config.clients.is_empty(),
            allow_open: config.server.open,
            is_complete: config.state.is_none(),
            upstreams: Arc::new(config.upstreams.clone()),
            pass_key: config.tokens.pass_key.clone().map(Arc::new),
        };
        let shared = Shared { tokens, limits, pass_key: directory.pass_key.clone() };
        for agent in mem::take(&mut config.agents).into_values() {
            directory.put_agent(agent, &shared);
        }
        for client in mem::take(&mut config.clients).into_values() {
            directory.put_client(client, &shared);
        }
        directory.replace_suites(mem::take(&mut config.suites), &shared);
        directory
    }

    /// Whether callers without a key are served.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// `server.open`: whether callers without a key are served even if there are clients.
    pub fn allow_open(&self) -> bool {
        self.allow_open
    }

    /// Whether all agents and clients of the state are known: not before the first reply of a store, and not while a
    /// record cannot be decrypted. Until then nothing can be said of names and keys that are not known.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// `[upstreams.*]`, which agents may name.
    pub fn upstreams(&self) -> &BTreeMap<String, UpstreamConfig> {
        &self.upstreams
    }

    /// Whether there are clients, and so keys that a caller can get wrong.
    pub fn has_clients(&self) -> bool {
        self.clients_by_name.len() > 0
    }

    /// The client with this key; looked up by its hash and compared in constant time.
    pub fn client_by_key(&self, key: &str) -> Option<&Arc<Client>> {
        self.client_by_key_hash(&KeyHash::of(key))
    }

    /// The client that has a key of this hash.
    pub fn client_by_key_hash(&self, hash: &KeyHash) -> Option<&Arc<Client>> {
        let entry = self.clients_by_key.find(self.hash(hash.as_bytes()), |(known, _)| known == hash);
        entry.map(|(_, client)| client)
    }

    /// Whether this text is a client's configured key hash: a caller sent the hash in place of the key.
    pub fn is_key_hash(&self, text: &str) -> bool {
        KeyHash::from_hex(text).is_some_and(|hash| self.client_by_key_hash(&hash).is_some())
    }

    /// The client of this name, for a pass that names it.
    pub fn client_by_name(&self, name: &str) -> Option<&Arc<Client>> {
        self.clients_by_name.find(self.hash(name), |client| client.config.name == name)
    }

    /// Whether any agent has this corpid.
    pub fn has_corpid(&self, corpid: &str) -> bool {
        self.agents_of_corpid(corpid).next().is_some()
    }

    /// The agents with this corpid that this client may use.
    pub fn allowed_agents<'a>(
        &'a self,
        corpid: &'a str,
        client: &'a Client,
    ) -> impl Iterator<Item = &'a Arc<Agent>> {
        // A company can have very many agents, of which a client usually lists few.
        let (named, all) = match &client.config.agents {
            AgentSet::Named(names) => (Some(names), None),
            AgentSet::All | AgentSet::AllWith(_) => (None, Some(self.agents_of_corpid(corpid))),
        };
        let named = named.into_iter().flatten().filter_map(|name| self.agent_by_name(name));
        named.filter(move |agent| agent.corpid == corpid).chain(all.into_iter().flatten())
    }

    fn agents_of_corpid<'a>(&'a self, corpid: &'a str) -> impl Iterator<Item = &'a Arc<Agent>> {
        let from = self.agents_by_corpid.iter_from(|agent| *agent.corpid < *corpid);
        from.take_while(move |agent| agent.corpid == corpid)
    }

    /// The agent of this name. Checks no permission.
    pub fn agent_by_name(&self, name: &str) -> Option<&Arc<Agent>> {
        self.agents_by_name.find(self.hash(name), |agent| agent.name == name)
    }

    /// The agent of this name, if the client may use it. Checks nothing for a request without a key (`None`), which
    /// the caller must authenticate.
    pub fn permitted_agent(&self, name: &str, client: Option<&Client>) -> Option<Arc<Agent>> {
        self.find_agent(name).filter(|agent| client.is_none_or(|client| client.may_use_agent(agent)))
    }

    /// The only agent that the client may use.
    pub fn only_agent(&self, client: Option<&Client>) -> Option<Arc<Agent>> {
        match client.map(|client| &client.config.agents) {
            // A client lists few agents even where there are many.
            Some(AgentSet::Named(names)) if names.len() > 1 => None,
            Some(AgentSet::Named(names)) => names.iter().next().and_then(|name| self.find_agent(name)),
            _ => self.agents().next().filter(|_| self.agent_count() == 1).cloned(),
        }
    }

    /// All agents, sorted by name.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents_sorted.iter()
    }

    /// The agents whose names come after this one, sorted by name.
    pub fn agents_after(&self, name: &str) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents_sorted.iter_from(|agent| *agent.name <= *name)
    }

    /// Number of agents.
    pub fn agent_count(&self) -> usize {
        self.agents_by_name.len()
    }

    /// All clients, sorted by name.
    pub fn clients(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.clients_sorted.iter()
    }

    /// Number of clients.
    pub fn client_count(&self) -> usize {
        self.clients_by_name.len()
    }

    fn hash<T: Hash + ?Sized>(&self, key: &T) -> u64 {
        self.hasher.hash_one(key)
    }
}

/// Changes; the snapshot is not in use yet.
impl Directory {
    /// Adds an agent, in place of the one of its name, which is returned.
    fn put_agent(&mut self, config: config::AgentConfig, shared: &Shared<'_>) -> Option<Arc<Agent>> {
        let previous = self.agent_by_name(&config.name).cloned();
        let agent = Agent::build(config, shared, previous.as_ref());
        if let Some(previous) = &previous {
            if Arc::ptr_eq(previous, &agent) {
                return None;
            }
            self.unlink_agent(previous);
        }
        let hasher = self.hasher.clone();
        for SecretHashes { with_corpid, alone } in &*agent.secret_hashes() {
            self.agents_by_secret.insert(hasher.hash_one(with_corpid.as_bytes()), &agent);
            self.agents_by_secret_alone.insert(hasher.hash_one(alone.as_bytes()), &agent);
        }
        self.agents_by_name.insert(agent.clone(), |agent| hasher.hash_one(&*agent.name));
        self.agents_sorted.insert(agent.clone());
        self.agents_by_corpid.insert(agent);
        previous
    }

    /// Removes and returns an agent.
    fn remove_agent(&mut self, name: &str) -> Option<Arc<Agent>> {
        let agent = self.agent_by_name(name).cloned()?;
        self.unlink_agent(&agent);
        Some(agent)
    }

    fn unlink_agent(&mut self, agent: &Arc<Agent>) {
        let is_agent = |other: &Arc<Agent>| Arc::ptr_eq(other, agent);
        for SecretHashes { with_corpid, alone } in &*agent.secret_hashes() {
            self.agents_by_secret.remove(self.hasher.hash_one(with_corpid.as_bytes()), agent);
            self.agents_by_secret_alone.remove(self.hasher.hash_one(alone.as_bytes()), agent);
        }
        self.agents_by_name.remove(self.hash(&*agent.name), is_agent);
        self.agents_sorted.remove(agent);
        self.agents_by_corpid.remove(agent);
    }

    /// Forgets the tokens of an agent that is no longer here, unless another agent has the same credentials.
    fn release_token(&self, agent: &Agent, tokens: &Arc<TokenCache>) {
        let former = agent.token.former_entries().into_iter().map(|(entry, _)| entry);
        for entry in agent.token.entries().into_iter().chain(former) {
            let secret = entry.credentials().secret.expose();
            let mut others = self.agents_with_credentials(&agent.corpid, secret);
            if !others.any(|other| other.token.has_entry(&entry)) {
                tokens.remove(&entry);
            }
        }
    }

    /// Replaces the suites and providers; tickets and corps of the suites that stay are kept.
    fn replace_suites(&mut self, config: config::SuitesConfig, shared: &Shared<'_>) {
        if !config.is_empty() || self.has_suites() {
            self.suites = Arc::new(SuiteTable::build(config, shared, &self.suites));
        }
    }

    /// Adds a client, in place of the one of its name.
    fn put_client(&mut self, config: config::ClientConfig, shared: &Shared<'_>) {
        let previous = self.client_by_name(&config.name).cloned();
        let client = Client::build(config, shared, previous.as_ref());
        if let Some(previous) = previous {
            if Arc::ptr_eq(&previous, &client) {
                return;
            }
            self.unlink_client(&previous);
        }
        let hasher = self.hasher.clone();
        for key in &client.config.keys {
            let by_key = (key.hash, client.clone());
            self.clients_by_key.insert(by_key, |(hash, _)| hasher.hash_one(hash.as_bytes()));
        }
        self.clients_by_name.insert(client.clone(), |client| hasher.hash_one(&*client.config.name));
        self.clients_sorted.insert(client);
    }

    fn remove_client(&mut self, name: &str) {
        if let Some(client) = self.client_by_name(name).cloned() {
            self.unlink_client(&client);
        }
    }

    fn unlink_client(&mut self, client: &Arc<Client>) {
        let is_client = |other: &Arc<Client>| Arc::ptr_eq(other, client);
        for key in &client.config.keys {
            let is_entry = |(known, other): &(KeyHash, Arc<Client>)| *known == key.hash && is_client(other);
            self.clients_by_key.remove(self.hash(key.hash.as_bytes()), is_entry);
        }
        self.clients_by_name.remove(self.hash(&*client.config.name), is_client);
        self.clients_sorted.remove(client);
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Directory({} agents, {} clients)", self.agent_count(), self.client_count())
    }
}

/// The rate limiter for a limit; the previous one with its usage, if the limit did not change.
fn reuse_or_create_limiter(
    limits: &RateLimiterFactory,
    limit: Option<config::RateLimit>,
    previous: Option<&Arc<RateLimiter>>,
    name: impl FnOnce() -> String,
) -> Option<Arc<RateLimiter>> {
    let limit = limit?;
    let previous = previous.filter(|previous| previous.limit() == limit).cloned();
    Some(previous.unwrap_or_else(|| limits.rate_limiter(limit, name)))
}
