//! Who may call, and through which agent: the part of the configuration that a reload replaces as a whole.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use crate::{
    config::{self, AgentSet, KeyHash},
    limits::Bucket,
    passes::PassKey,
    secret::Masked,
    tickets::Tickets,
    tokens::{Credentials, Issuer, TokenSlot},
};

/// One WeCom application.
pub struct Agent {
    /// Its name, as it stands in the configuration.
    pub name: String,
    /// The company's id.
    pub corpid: String,
    /// The application's number, where the configuration gives it.
    pub agentid: Option<u64>,
    /// Its token.
    pub slot: Arc<TokenSlot>,
    /// Its tickets, as old as its slot.
    pub tickets: Arc<Tickets>,
    /// What its passes are authenticated with.
    pub pass_key: PassKey,
    /// How often it may be used, whoever sends.
    pub limit: Option<Arc<Bucket>>,
    /// Whether its real secret serves as a key for it.
    pub accept_secret: bool,
    plain: Vec<config::PathPattern>,
}

impl Agent {
    /// Whether the operator says that this path carries a credential of its own.
    pub fn is_plain(&self, path: &str) -> bool {
        self.plain.iter().any(|pattern| pattern.matches(path))
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({})", self.name)
    }
}

/// One program that calls.
#[derive(Debug)]
pub struct Client {
    /// Its name, as it stands in the configuration.
    pub name: String,
    /// Whether the proxy's own errors go to it with HTTP 200.
    pub always_200: bool,
    /// Its key's hash.
    pub key: KeyHash,
    /// How often it may call.
    pub limit: Option<Arc<Bucket>>,
    agents: AgentSet,
    allow: Vec<config::AllowPattern>,
}

impl Client {
    /// Whether it may use this agent.
    pub fn may_use(&self, agent: &str) -> bool {
        self.agents.contains(agent)
    }

    /// Whether it may call this path with this method.
    pub fn may_call(&self, method: &http::Method, path: &str) -> bool {
        self.allow.iter().any(|pattern| pattern.matches(method, path))
    }
}

/// All agents and clients.
#[derive(Debug)]
pub struct Directory {
    agents: BTreeMap<String, Arc<Agent>>,
    clients: HashMap<[u8; 32], Arc<Client>>,
    clients_by_name: HashMap<String, Arc<Client>>,
    agents_by_corpid: HashMap<String, Vec<Arc<Agent>>>,
    /// By the hash of corpid and secret, which several may share; only those whose secret is accepted.
    agents_by_secret: HashMap<[u8; 32], Vec<(KeyHash, Arc<Agent>)>>,
    open: bool,
}

impl Directory {
    /// Builds it from the configuration. An agent of `before` whose corpid and secret did not change keeps its token.
    pub fn new(config: &config::Config, issuer: &Arc<Issuer>, before: Option<&Self>) -> Self {
        let mut built = Self {
            agents: BTreeMap::new(),
            clients: HashMap::new(),
            clients_by_name: HashMap::new(),
            agents_by_corpid: HashMap::new(),
            agents_by_secret: HashMap::new(),
            open: config.is_open(),
        };
        for agent in config.agents.values() {
            built.add_agent(agent, issuer, before);
        }
        for client in config.clients.values() {
            let known = before.and_then(|before| before.clients_by_name.get(&client.name));
            let client = Arc::new(Client {
                name: client.name.clone(),
                always_200: client.always_200,
                key: client.key,
                limit: bucket(client.limit, known.and_then(|known| known.limit.as_ref())),
                agents: client.agents.clone(),
                allow: client.allow.clone(),
            });
            built.clients.insert(*client.key.as_bytes(), client.clone());
            built.clients_by_name.insert(client.name.clone(), client);
        }
        built
    }

    fn add_agent(&mut self, agent: &config::Agent, issuer: &Arc<Issuer>, before: Option<&Self>) {
        let agent =
            Arc::new(build_agent(agent, issuer, before.and_then(|before| before.agents.get(&agent.name))));
        if self.open || agent.accept_secret {
            let Credentials { corpid, secret } = agent.slot.credentials();
            let hash = secret_hash(corpid, secret.expose());
            self.agents_by_secret.entry(*hash.as_bytes()).or_default().push((hash, agent.clone()));
        }
        self.agents_by_corpid.entry(agent.corpid.clone()).or_default().push(agent.clone());
        self.agents.insert(agent.name.clone(), agent);
    }

    /// Whether callers without a key are served.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether there are clients, and so keys that a caller can get wrong.
    pub fn knows_keys(&self) -> bool {
        !self.clients.is_empty()
    }

    /// The client with this key. Found by its hash and compared in constant time.
    pub fn client(&self, key: &str) -> Option<&Arc<Client>> {
        let hash = KeyHash::of(key);
        self.clients.get(hash.as_bytes()).filter(|client| client.key == hash)
    }

    /// The client of this name, for a pass that names it.
    pub fn client_named(&self, name: &str) -> Option<&Arc<Client>> {
        self.clients_by_name.get(name)
    }

    /// The agents with this company and real secret, where secrets are accepted. Found by a hash and compared in constant
    /// time.
    pub fn agents_by_secret(&self, corpid: &str, secret: &str) -> impl Iterator<Item = &Arc<Agent>> {
        let hash = secret_hash(corpid, secret);
        let found = self.agents_by_secret.get(hash.as_bytes()).into_iter().flatten();
        found.filter(move |(known, _)| *known == hash).map(|(_, agent)| agent)
    }

    /// All agents of a company.
    pub fn agents_of(&self, corpid: &str) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents_by_corpid.get(corpid).into_iter().flatten()
    }

    /// The agent of this name, if the caller may use it.
    pub fn agent(&self, name: &str, client: Option<&Client>) -> Option<&Arc<Agent>> {
        self.agents.get(name).filter(|_| client.is_none_or(|client| client.may_use(name)))
    }

    /// The only agent that the caller may use.
    pub fn only_agent(&self, client: Option<&Client>) -> Option<&Arc<Agent>> {
        let mut usable = match client.map(|client| &client.agents) {
            // Named ones are few even where there are many agents.
            Some(AgentSet::Named(names)) if names.len() > 1 => return None,
            Some(AgentSet::Named(names)) => {
                return names.iter().next().and_then(|name| self.agents.get(name));
            }
            _ => self.agents.values(),
        };
        usable.next().filter(|_| usable.next().is_none())
    }

    /// All agents, by name.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents.values()
    }

    /// How many clients there are.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }
}

fn build_agent(agent: &config::Agent, issuer: &Arc<Issuer>, known: Option<&Arc<Agent>>) -> Agent {
    let credentials = Credentials { corpid: agent.corpid.clone(), secret: agent.secret.clone() };
    let pass_key = PassKey::derive(&agent.corpid, &agent.secret);
    let (slot, tickets) = match known.filter(|known| *known.slot.credentials() == credentials) {
        Some(known) => (known.slot.clone(), known.tickets.clone()),
        None => (TokenSlot::new(&agent.name, credentials, issuer.clone()), Arc::default()),
    };
    Agent {
        name: agent.name.clone(),
        corpid: agent.corpid.clone(),
        agentid: agent.agentid,
        slot,
        tickets,
        pass_key,
        limit: bucket(agent.limit, known.and_then(|known| known.limit.as_ref())),
        accept_secret: agent.accept_secret,
        plain: agent.plain.clone(),
    }
}

/// A bucket for a limit; the one there was, as full as it is, where the limit did not change.
fn bucket(limit: Option<config::Limit>, known: Option<&Arc<Bucket>>) -> Option<Arc<Bucket>> {
    let limit = limit?;
    Some(
        known.filter(|known| known.limit() == limit).cloned().unwrap_or_else(|| Arc::new(Bucket::new(limit))),
    )
}

fn secret_hash(corpid: &str, secret: &str) -> KeyHash {
    KeyHash::of(Masked::new(format!("{corpid}\0{secret}")).expose())
}
