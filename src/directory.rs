//! Who may call, and through which agent: the part of the configuration that a reload replaces as a whole.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use http::HeaderValue;

use crate::{
    config::{self, AgentSet, KeyHash},
    tokens::{Credentials, Issuer, TokenSlot},
};

/// One WeCom application.
pub struct Agent {
    /// Its name, as it stands in the configuration.
    pub name: String,
    /// The same as a header's value.
    pub name_header: HeaderValue,
    /// The company's id.
    pub corpid: String,
    /// The application's number, where the configuration gives it.
    pub agentid: Option<u64>,
    /// Its token.
    pub slot: Arc<TokenSlot>,
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
    clients: HashMap<[u8; 32], (KeyHash, Arc<Client>)>,
    open: bool,
}

impl Directory {
    /// Builds it from the configuration. An agent of `before` whose corpid and secret did not change keeps its token.
    pub fn new(config: &config::Config, issuer: &Arc<Issuer>, before: Option<&Self>) -> Self {
        let agents =
            config.agents.values().map(|agent| (agent.name.clone(), build_agent(agent, issuer, before)));
        let clients = config.clients.values().map(|client| {
            let built = Client {
                name: client.name.clone(),
                always_200: client.always_200,
                agents: client.agents.clone(),
                allow: client.allow.clone(),
            };
            (*client.key.as_bytes(), (client.key, Arc::new(built)))
        });
        Self { agents: agents.collect(), clients: clients.collect(), open: config.is_open() }
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
        self.clients.get(hash.as_bytes()).filter(|(known, _)| *known == hash).map(|(_, client)| client)
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

fn build_agent(agent: &config::Agent, issuer: &Arc<Issuer>, before: Option<&Directory>) -> Arc<Agent> {
    let credentials = Credentials { corpid: agent.corpid.clone(), secret: agent.secret.clone() };
    let kept = before.and_then(|before| before.agents.get(&agent.name));
    let slot = match kept.filter(|kept| *kept.slot.credentials() == credentials) {
        Some(kept) => kept.slot.clone(),
        None => TokenSlot::new(&agent.name, credentials, issuer.clone()),
    };
    Arc::new(Agent {
        name: agent.name.clone(),
        // The configuration lets only [A-Za-z0-9_-] into a name.
        name_header: HeaderValue::from_str(&agent.name).unwrap_or(HeaderValue::from_static("")),
        corpid: agent.corpid.clone(),
        agentid: agent.agentid,
        slot,
        plain: agent.plain.clone(),
    })
}
