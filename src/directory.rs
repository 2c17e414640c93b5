//! Agents and clients, and which client may call which agent. A reload replaces the directory as a whole.

mod capture_switch;

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    fmt,
    hash::{Hash, Hasher},
    mem,
    sync::{Arc, LazyLock},
};

use foldhash::fast::RandomState;

pub use self::capture_switch::CaptureSwitch;
use crate::{
    config::{self, AgentSet, KeyHash},
    limits::{RateLimiter, RateLimiterFactory},
    secret::Masked,
    tokens::{AgentToken, Credentials, TokenService, passes::PassKey, tickets::AgentTickets},
};

/// One WeCom application.
pub struct Agent {
    /// Its configured name.
    pub name: String,
    /// The company's corpid.
    pub corpid: String,
    /// The application's number, if it is configured.
    pub agentid: Option<u64>,
    /// Its token cache entry.
    pub token: Arc<AgentToken>,
    /// Its ticket cache, replaced with `token`.
    pub tickets: Arc<AgentTickets>,
    /// The key of its passes; derived on first use, because there can be very many agents.
    pub pass_key: LazyLock<Box<PassKey>, DerivePassKey>,
    /// The rate limit for all its requests together.
    pub rate_limiter: Option<Arc<RateLimiter>>,
    /// Whether its real secret is accepted as a client key for it.
    pub accept_secret: bool,
    /// Whether an operator captures its exchanges.
    pub capture_switch: Arc<CaptureSwitch>,
    passthrough: Vec<config::PathPattern>,
}

type DerivePassKey = Box<dyn FnOnce() -> Box<PassKey> + Send + Sync>;

impl Agent {
    /// Whether this path is configured to carry a credential of its own.
    pub fn is_passthrough(&self, path: &str) -> bool {
        self.passthrough.iter().any(|pattern| pattern.matches(path))
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({})", self.name)
    }
}

/// A client, as configured.
#[derive(Debug)]
pub struct Client {
    /// Its configured name.
    pub name: String,
    /// Whether it gets the proxy's own errors with HTTP 200.
    pub always_200: bool,
    /// The hash of its key.
    pub key_hash: KeyHash,
    /// Its rate limit.
    pub rate_limiter: Option<Arc<RateLimiter>>,
    allowed_agents: AgentSet,
    allowed_calls: Vec<config::AllowPattern>,
}

impl Client {
    /// Whether it may use this agent.
    pub fn may_use_agent(&self, agent: &str) -> bool {
        self.allowed_agents.contains(agent)
    }

    /// Whether it may call this path with this method.
    pub fn may_call(&self, method: &http::Method, path: &str) -> bool {
        self.allowed_calls.iter().any(|pattern| pattern.matches(method, path))
    }
}

/// All agents and clients. Lookups take constant time, and the maps hold shared pointers only, so that a reload
/// does not fragment memory.
#[derive(Debug)]
pub struct Directory {
    agents_by_name: HashSet<ByName<Agent>, RandomState>,
    agents_sorted: Vec<Arc<Agent>>,
    /// Sorted by corpid; used by gettoken only.
    agents_by_corpid: Vec<Arc<Agent>>,
    clients_by_key_hash: HashMap<[u8; 32], Arc<Client>, RandomState>,
    clients_by_name: HashSet<ByName<Client>, RandomState>,
    /// By the hash of corpid and secret, which several agents can share; only agents with `accept_secret`, or all
    /// agents if `is_open`.
    agents_by_secret: HashMap<[u8; 32], Vec<(KeyHash, Arc<Agent>)>>,
    /// Whether callers without a key are served.
    is_open: bool,
}

impl Directory {
    /// Builds the directory and takes the agents and clients out of `config`. An agent of `before` keeps its
    /// token if corpid and secret did not change; agents and clients that did not change at all are reused.
    pub fn new(
        config: &mut config::Config,
        service: &Arc<TokenService>,
        limits: &RateLimiterFactory,
        before: Option<&Self>,
    ) -> Self {
        let is_open = config.is_open();
        let (agents, clients) = (mem::take(&mut config.agents), mem::take(&mut config.clients));
        let mut directory = Self {
            agents_by_name: HashSet::with_capacity_and_hasher(agents.len(), RandomState::default()),
            agents_sorted: Vec::with_capacity(agents.len()),
            agents_by_corpid: Vec::new(),
            agents_by_secret: HashMap::new(),
            clients_by_key_hash: HashMap::with_capacity_and_hasher(clients.len(), RandomState::default()),
            clients_by_name: HashSet::with_capacity_and_hasher(clients.len(), RandomState::default()),
            is_open,
        };
        for (name, agent) in agents {
            let previous = before.and_then(|before| before.agents_by_name.get(&*name));
            directory.add_agent(build_agent(
                agent,
                service,
                limits,
                previous.map(|ByName(previous)| previous),
            ));
        }
        directory.agents_by_corpid.clone_from(&directory.agents_sorted);
        directory.agents_by_corpid.sort_by(|left, right| left.corpid.cmp(&right.corpid));
        for (name, client) in clients {
            let previous = before.and_then(|before| before.client_by_name(&name));
            let client = build_client(client, limits, previous);
            directory.clients_by_key_hash.insert(*client.key_hash.as_bytes(), client.clone());
            directory.clients_by_name.insert(ByName(client));
        }
        directory
    }

    fn add_agent(&mut self, agent: Arc<Agent>) {
        if self.is_open || agent.accept_secret {
            let Credentials { corpid, secret } = agent.token.credentials();
            let hash = secret_hash(corpid, secret.expose());
            self.agents_by_secret.entry(*hash.as_bytes()).or_default().push((hash, agent.clone()));
        }
        self.agents_sorted.push(agent.clone());
        self.agents_by_name.insert(ByName(agent));
    }

    /// Whether callers without a key are served.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether there are clients, and so keys that a caller can get wrong.
    pub fn has_clients(&self) -> bool {
        !self.clients_by_key_hash.is_empty()
    }

    /// The client with this key; looked up by its hash and compared in constant time.
    pub fn client_by_key(&self, key: &str) -> Option<&Arc<Client>> {
        let hash = KeyHash::of(key);
        self.clients_by_key_hash.get(hash.as_bytes()).filter(|client| client.key_hash == hash)
    }

    /// Whether this text is a client's configured key hash: a caller sent the hash in place of the key.
    pub fn is_key_hash(&self, text: &str) -> bool {
        KeyHash::from_hex(text).is_some_and(|hash| self.clients_by_key_hash.contains_key(hash.as_bytes()))
    }

    /// The client of this name, for a pass that names it.
    pub fn client_by_name(&self, name: &str) -> Option<&Arc<Client>> {
        self.clients_by_name.get(name).map(|ByName(client)| client)
    }

    /// The agents with this corpid and real secret, where secrets are accepted; looked up by hash and compared
    /// in constant time.
    pub fn agents_by_secret(&self, corpid: &str, secret: &str) -> impl Iterator<Item = &Arc<Agent>> {
        let hash = secret_hash(corpid, secret);
        let candidates = self.agents_by_secret.get(hash.as_bytes()).into_iter().flatten();
        candidates.filter(move |(known, _)| *known == hash).map(|(_, agent)| agent)
    }

    /// Whether any agent has this corpid.
    pub fn has_corpid(&self, corpid: &str) -> bool {
        !self.agents_of_corpid(corpid).is_empty()
    }

    /// The agents with this corpid that this client may use.
    pub fn allowed_agents<'a>(
        &'a self,
        corpid: &'a str,
        client: &'a Client,
    ) -> impl Iterator<Item = &'a Arc<Agent>> {
        // A company can have very many agents, of which a client usually lists few.
        let (named, all) = match &client.allowed_agents {
            AgentSet::Named(names) => (Some(names), &[][..]),
            AgentSet::All => (None, self.agents_of_corpid(corpid)),
        };
        let named = named.into_iter().flatten().filter_map(|name| self.agent_by_name(name));
        named.filter(move |agent| agent.corpid == corpid).chain(all)
    }

    fn agents_of_corpid(&self, corpid: &str) -> &[Arc<Agent>] {
        let from = self.agents_by_corpid.partition_point(|agent| *agent.corpid < *corpid);
        let rest = &self.agents_by_corpid[from..];
        &rest[..rest.partition_point(|agent| agent.corpid == corpid)]
    }

    /// The agent of this name. Checks no permission.
    pub fn agent_by_name(&self, name: &str) -> Option<&Arc<Agent>> {
        self.agents_by_name.get(name).map(|ByName(agent)| agent)
    }

    /// The agent of this name, if the client may use it. Checks nothing for a request without a key (`None`), which
    /// the caller must authenticate.
    pub fn permitted_agent(&self, name: &str, client: Option<&Client>) -> Option<&Arc<Agent>> {
        let agent = self.agent_by_name(name)?;
        client.is_none_or(|client| client.may_use_agent(name)).then_some(agent)
    }

    /// The only agent that the client may use.
    pub fn only_agent(&self, client: Option<&Client>) -> Option<&Arc<Agent>> {
        let mut usable = match client.map(|client| &client.allowed_agents) {
            // A client lists few agents even where there are many.
            Some(AgentSet::Named(names)) if names.len() > 1 => return None,
            Some(AgentSet::Named(names)) => {
                return names.iter().next().and_then(|name| self.agent_by_name(name));
            }
            _ => self.agents_sorted.iter(),
        };
        usable.next().filter(|_| usable.next().is_none())
    }

    /// Calls `visit` with every secret, token and ticket in plain text, for redaction. Slow with very many
    /// agents.
    pub fn for_each_secret(&self, visit: &mut dyn FnMut(&str)) {
        for agent in self.agents() {
            visit(agent.token.credentials().secret.expose());
            if let Some(token) = agent.token.cached_even_expired() {
                visit(token.value.expose());
            }
            agent.tickets.for_each_value(visit);
        }
    }

    /// All agents, sorted by name.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents_sorted.iter()
    }

    /// Number of clients.
    pub fn client_count(&self) -> usize {
        self.clients_by_key_hash.len()
    }
}

/// An agent or client in a set, hashed by its name.
struct ByName<T>(Arc<T>);

trait Named {
    fn name(&self) -> &str;
}

impl Named for Agent {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Client {
    fn name(&self) -> &str {
        &self.name
    }
}

impl<T: Named> Borrow<str> for ByName<T> {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl<T: Named> Hash for ByName<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl<T: Named> PartialEq for ByName<T> {
    fn eq(&self, right: &Self) -> bool {
        self.0.name() == right.0.name()
    }
}

impl<T: Named> Eq for ByName<T> {}

impl<T: fmt::Debug> fmt::Debug for ByName<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn build_agent(
    agent: config::AgentConfig,
    service: &Arc<TokenService>,
    limits: &RateLimiterFactory,
    previous: Option<&Arc<Agent>>,
) -> Arc<Agent> {
    let config::AgentConfig { name, corpid, secret, agentid, accept_secret, limit, passthrough } = agent;
    let credentials = Credentials { corpid: corpid.clone(), secret };
    let with_same_credentials = previous.filter(|previous| *previous.token.credentials() == credentials);
    if let Some(previous) = with_same_credentials
        && (previous.agentid, previous.accept_secret) == (agentid, accept_secret)
        && previous.rate_limiter.as_ref().map(|limiter| limiter.limit()) == limit
        && previous.passthrough == passthrough
    {
        return previous.clone();
    }
    let (token, tickets, capture_switch) = match with_same_credentials {
        Some(previous) => (previous.token.clone(), previous.tickets.clone(), previous.capture_switch.clone()),
        None => {
            let create = if previous.is_some() { AgentToken::with_changed_secret } else { AgentToken::new };
            (create(&name, credentials, service.clone()), Arc::default(), Arc::default())
        }
    };
    let key_source = token.clone();
    let derive = move || {
        let Credentials { corpid, secret } = key_source.credentials();
        Box::new(PassKey::derive(corpid, secret))
    };
    let rate_limiter = reuse_or_create_limiter(
        limits,
        limit,
        previous.and_then(|previous| previous.rate_limiter.as_ref()),
        || format!("agent:{name}"),
    );
    Arc::new(Agent {
        name,
        corpid,
        agentid,
        token,
        tickets,
        pass_key: LazyLock::new(Box::new(derive)),
        rate_limiter,
        accept_secret,
        capture_switch,
        passthrough,
    })
}

fn build_client(
    client: config::ClientConfig,
    limits: &RateLimiterFactory,
    previous: Option<&Arc<Client>>,
) -> Arc<Client> {
    let config::ClientConfig { name, key_hash, agents, allow, limit, always_200 } = client;
    if let Some(previous) = previous
        && (previous.key_hash, previous.always_200) == (key_hash, always_200)
        && previous.rate_limiter.as_ref().map(|limiter| limiter.limit()) == limit
        && (&previous.allowed_agents, &previous.allowed_calls) == (&agents, &allow)
    {
        return previous.clone();
    }
    let rate_limiter = reuse_or_create_limiter(
        limits,
        limit,
        previous.and_then(|previous| previous.rate_limiter.as_ref()),
        || format!("client:{name}"),
    );
    Arc::new(Client {
        name,
        always_200,
        key_hash,
        rate_limiter,
        allowed_agents: agents,
        allowed_calls: allow,
    })
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

fn secret_hash(corpid: &str, secret: &str) -> KeyHash {
    KeyHash::of(Masked::new(format!("{corpid}\0{secret}")).expose())
}
