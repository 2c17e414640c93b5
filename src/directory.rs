//! Who may call, and through which agent: the part of the configuration that a reload replaces as a whole.

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
    /// Its name, as it stands in the configuration.
    pub name: String,
    /// The company's id.
    pub corpid: String,
    /// The application's number, where the configuration gives it.
    pub agentid: Option<u64>,
    /// Its token.
    pub token: Arc<AgentToken>,
    /// Its tickets, as old as its slot.
    pub tickets: Arc<AgentTickets>,
    /// What its passes are authenticated with; derived when the first is made or shown, for there may be very many agents.
    pub pass_key: LazyLock<Box<PassKey>, DerivePassKey>,
    /// How often it may be used, whoever sends.
    pub rate_limiter: Option<Arc<RateLimiter>>,
    /// Whether its real secret serves as a key for it.
    pub accept_secret: bool,
    /// Whether an operator looks closely at its exchanges.
    pub capture_switch: Arc<CaptureSwitch>,
    passthrough: Vec<config::PathPattern>,
}

type DerivePassKey = Box<dyn FnOnce() -> Box<PassKey> + Send + Sync>;

impl Agent {
    /// Whether the operator says that this path carries a credential of its own.
    pub fn is_passthrough(&self, path: &str) -> bool {
        self.passthrough.iter().any(|pattern| pattern.matches(path))
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
    pub key_hash: KeyHash,
    /// How often it may call.
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

/// All agents and clients. What a request looks up takes the same time however many there are, and no entry has memory
/// of its own, so that a reload leaves no holes behind.
#[derive(Debug)]
pub struct Directory {
    agents_by_name: HashSet<ByName<Agent>, RandomState>,
    agents_sorted: Vec<Arc<Agent>>,
    /// By corpid; only gettoken asks for these.
    agents_by_corpid: Vec<Arc<Agent>>,
    clients_by_key_hash: HashMap<[u8; 32], Arc<Client>, RandomState>,
    clients_by_name: HashSet<ByName<Client>, RandomState>,
    /// By the hash of corpid and secret, which several may share; only those whose secret is accepted.
    agents_by_secret: HashMap<[u8; 32], Vec<(KeyHash, Arc<Agent>)>>,
    is_open: bool,
}

impl Directory {
    /// Builds it from the configuration, whose agents and clients it takes; `limits` makes their buckets. An agent of `before` whose corpid and secret
    /// did not change keeps its token, and whoever did not change at all is taken over as it is.
    pub fn new(
        config: &mut config::Config,
        issuer: &Arc<TokenService>,
        limits: &RateLimiterFactory,
        before: Option<&Self>,
    ) -> Self {
        let open = config.is_open();
        let (agents, clients) = (mem::take(&mut config.agents), mem::take(&mut config.clients));
        let mut built = Self {
            agents_by_name: HashSet::with_capacity_and_hasher(agents.len(), RandomState::default()),
            agents_sorted: Vec::with_capacity(agents.len()),
            agents_by_corpid: Vec::new(),
            agents_by_secret: HashMap::new(),
            clients_by_key_hash: HashMap::with_capacity_and_hasher(clients.len(), RandomState::default()),
            clients_by_name: HashSet::with_capacity_and_hasher(clients.len(), RandomState::default()),
            is_open: open,
        };
        for (name, agent) in agents {
            let known = before.and_then(|before| before.agents_by_name.get(&*name));
            built.add_agent(build_agent(agent, issuer, limits, known.map(|ByName(known)| known)));
        }
        built.agents_by_corpid.clone_from(&built.agents_sorted);
        built.agents_by_corpid.sort_by(|one, other| one.corpid.cmp(&other.corpid));
        for (name, client) in clients {
            let known = before.and_then(|before| before.client_by_name(&name));
            let client = build_client(client, limits, known);
            built.clients_by_key_hash.insert(*client.key_hash.as_bytes(), client.clone());
            built.clients_by_name.insert(ByName(client));
        }
        built
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

    /// The client with this key. Found by its hash and compared in constant time.
    pub fn client_by_key(&self, key: &str) -> Option<&Arc<Client>> {
        let hash = KeyHash::of(key);
        self.clients_by_key_hash.get(hash.as_bytes()).filter(|client| client.key_hash == hash)
    }

    /// Whether this text is what the file has in the place of a client's hash: somebody has taken the key for its hash, or
    /// the hash for its key.
    pub fn is_key_hash(&self, text: &str) -> bool {
        KeyHash::from_hex(text).is_some_and(|hash| self.clients_by_key_hash.contains_key(hash.as_bytes()))
    }

    /// The client of this name, for a pass that names it.
    pub fn client_by_name(&self, name: &str) -> Option<&Arc<Client>> {
        self.clients_by_name.get(name).map(|ByName(client)| client)
    }

    /// The agents with this company and real secret, where secrets are accepted. Found by a hash and compared in constant
    /// time.
    pub fn agents_by_secret(&self, corpid: &str, secret: &str) -> impl Iterator<Item = &Arc<Agent>> {
        let hash = secret_hash(corpid, secret);
        let found = self.agents_by_secret.get(hash.as_bytes()).into_iter().flatten();
        found.filter(move |(known, _)| *known == hash).map(|(_, agent)| agent)
    }

    /// Whether there is any agent of this company.
    pub fn has_corpid(&self, corpid: &str) -> bool {
        !self.agents_of_corpid(corpid).is_empty()
    }

    /// The agents of a company that this client may use.
    pub fn allowed_agents<'a>(
        &'a self,
        corpid: &'a str,
        client: &'a Client,
    ) -> impl Iterator<Item = &'a Arc<Agent>> {
        // Of a company's agents, which may be very many, a client mostly knows a few.
        let (named, all) = match &client.allowed_agents {
            AgentSet::Named(names) => (Some(names), &[][..]),
            AgentSet::All => (None, self.agents_of_corpid(corpid)),
        };
        let named = named.into_iter().flatten().filter_map(|name| self.agent(name, None));
        named.filter(move |agent| agent.corpid == corpid).chain(all)
    }

    fn agents_of_corpid(&self, corpid: &str) -> &[Arc<Agent>] {
        let from = self.agents_by_corpid.partition_point(|agent| *agent.corpid < *corpid);
        let rest = &self.agents_by_corpid[from..];
        &rest[..rest.partition_point(|agent| agent.corpid == corpid)]
    }

    /// The agent of this name, if the caller may use it.
    pub fn agent(&self, name: &str, client: Option<&Client>) -> Option<&Arc<Agent>> {
        let ByName(agent) = self.agents_by_name.get(name)?;
        client.is_none_or(|client| client.may_use_agent(name)).then_some(agent)
    }

    /// The only agent that the caller may use.
    pub fn only_agent(&self, client: Option<&Client>) -> Option<&Arc<Agent>> {
        let mut usable = match client.map(|client| &client.allowed_agents) {
            // Named ones are few even where there are many agents.
            Some(AgentSet::Named(names)) if names.len() > 1 => return None,
            Some(AgentSet::Named(names)) => {
                return names.iter().next().and_then(|name| self.agent(name, None));
            }
            _ => self.agents_sorted.iter(),
        };
        usable.next().filter(|_| usable.next().is_none())
    }

    /// Tells every secret that is known here as it is: of each agent its secret, its token and its tickets. It takes a
    /// while where there are very many agents.
    pub fn for_each_secret(&self, tell: &mut dyn FnMut(&str)) {
        for agent in self.agents() {
            tell(agent.token.credentials().secret.expose());
            if let Some(token) = agent.token.cached_even_expired() {
                tell(token.value.expose());
            }
            agent.tickets.for_each_value(tell);
        }
    }

    /// All agents, by name.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents_sorted.iter()
    }

    /// How many clients there are.
    pub fn client_count(&self) -> usize {
        self.clients_by_key_hash.len()
    }
}

/// An agent or client as a member of a set, where it is found by its name.
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
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
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
    issuer: &Arc<TokenService>,
    limits: &RateLimiterFactory,
    known: Option<&Arc<Agent>>,
) -> Arc<Agent> {
    let config::AgentConfig { name, corpid, secret, agentid, accept_secret, limit, passthrough: plain } =
        agent;
    let credentials = Credentials { corpid: corpid.clone(), secret };
    let heir = known.filter(|known| *known.token.credentials() == credentials);
    if let Some(known) = heir
        && (known.agentid, known.accept_secret) == (agentid, accept_secret)
        && known.rate_limiter.as_ref().map(|bucket| bucket.limit()) == limit
        && known.passthrough == plain
    {
        return known.clone();
    }
    let (slot, tickets, inspection) = match heir {
        Some(known) => (known.token.clone(), known.tickets.clone(), known.capture_switch.clone()),
        None => (AgentToken::new(&name, credentials, issuer.clone()), Arc::default(), Arc::default()),
    };
    let bought_with = slot.clone();
    let derive = move || {
        let Credentials { corpid, secret } = bought_with.credentials();
        Box::new(PassKey::derive(corpid, secret))
    };
    let limit =
        reuse_or_create_limiter(limits, limit, known.and_then(|known| known.rate_limiter.as_ref()), || {
            format!("agent:{name}")
        });
    Arc::new(Agent {
        name,
        corpid,
        agentid,
        token: slot,
        tickets,
        pass_key: LazyLock::new(Box::new(derive)),
        rate_limiter: limit,
        accept_secret,
        capture_switch: inspection,
        passthrough: plain,
    })
}

fn build_client(
    client: config::ClientConfig,
    limits: &RateLimiterFactory,
    known: Option<&Arc<Client>>,
) -> Arc<Client> {
    let config::ClientConfig { name, key_hash: key, agents, allow, limit, always_200 } = client;
    if let Some(known) = known
        && (known.key_hash, known.always_200) == (key, always_200)
        && known.rate_limiter.as_ref().map(|bucket| bucket.limit()) == limit
        && (&known.allowed_agents, &known.allowed_calls) == (&agents, &allow)
    {
        return known.clone();
    }
    let limit =
        reuse_or_create_limiter(limits, limit, known.and_then(|known| known.rate_limiter.as_ref()), || {
            format!("client:{name}")
        });
    Arc::new(Client {
        name,
        always_200,
        key_hash: key,
        rate_limiter: limit,
        allowed_agents: agents,
        allowed_calls: allow,
    })
}

/// A bucket for a limit; the one there was, as full as it is, where the limit did not change.
fn reuse_or_create_limiter(
    limits: &RateLimiterFactory,
    limit: Option<config::RateLimit>,
    known: Option<&Arc<RateLimiter>>,
    name: impl FnOnce() -> String,
) -> Option<Arc<RateLimiter>> {
    let limit = limit?;
    let known = known.filter(|known| known.limit() == limit).cloned();
    Some(known.unwrap_or_else(|| limits.rate_limiter(limit, name)))
}

fn secret_hash(corpid: &str, secret: &str) -> KeyHash {
    KeyHash::of(Masked::new(format!("{corpid}\0{secret}")).expose())
}
