//! Who may call, and through which agent: the part of the configuration that a reload replaces as a whole.

mod inspection;

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    fmt,
    hash::{Hash, Hasher},
    mem,
    sync::{Arc, LazyLock},
};

use foldhash::fast::RandomState;

pub use self::inspection::Inspection;
use crate::{
    config::{self, AgentSet, KeyHash},
    limits::{Bucket, Limits},
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
    /// What its passes are authenticated with; derived when the first is made or shown, for there may be very many agents.
    pub pass_key: LazyLock<Box<PassKey>, Derivation>,
    /// How often it may be used, whoever sends.
    pub limit: Option<Arc<Bucket>>,
    /// Whether its real secret serves as a key for it.
    pub accept_secret: bool,
    /// Whether an operator looks closely at its exchanges.
    pub inspection: Arc<Inspection>,
    plain: Vec<config::PathPattern>,
}

type Derivation = Box<dyn FnOnce() -> Box<PassKey> + Send + Sync>;

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

/// All agents and clients. What a request looks up takes the same time however many there are, and no entry has memory
/// of its own, so that a reload leaves no holes behind.
#[derive(Debug)]
pub struct Directory {
    agents: HashSet<ByName<Agent>, RandomState>,
    agents_in_order: Vec<Arc<Agent>>,
    /// By corpid; only gettoken asks for these.
    agents_by_company: Vec<Arc<Agent>>,
    clients: HashMap<[u8; 32], Arc<Client>, RandomState>,
    clients_by_name: HashSet<ByName<Client>, RandomState>,
    /// By the hash of corpid and secret, which several may share; only those whose secret is accepted.
    agents_by_secret: HashMap<[u8; 32], Vec<(KeyHash, Arc<Agent>)>>,
    open: bool,
}

impl Directory {
    /// Builds it from the configuration, whose agents and clients it takes; `limits` makes their buckets. An agent of `before` whose corpid and secret
    /// did not change keeps its token, and whoever did not change at all is taken over as it is.
    pub fn new(
        config: &mut config::Config,
        issuer: &Arc<Issuer>,
        limits: &Limits,
        before: Option<&Self>,
    ) -> Self {
        let open = config.is_open();
        let (agents, clients) = (mem::take(&mut config.agents), mem::take(&mut config.clients));
        let mut built = Self {
            agents: HashSet::with_capacity_and_hasher(agents.len(), RandomState::default()),
            agents_in_order: Vec::with_capacity(agents.len()),
            agents_by_company: Vec::new(),
            agents_by_secret: HashMap::new(),
            clients: HashMap::with_capacity_and_hasher(clients.len(), RandomState::default()),
            clients_by_name: HashSet::with_capacity_and_hasher(clients.len(), RandomState::default()),
            open,
        };
        for (name, agent) in agents {
            let known = before.and_then(|before| before.agents.get(&*name));
            built.add_agent(build_agent(agent, issuer, limits, known.map(|ByName(known)| known)));
        }
        built.agents_by_company.clone_from(&built.agents_in_order);
        built.agents_by_company.sort_by(|one, other| one.corpid.cmp(&other.corpid));
        for (name, client) in clients {
            let known = before.and_then(|before| before.client_named(&name));
            let client = build_client(client, limits, known);
            built.clients.insert(*client.key.as_bytes(), client.clone());
            built.clients_by_name.insert(ByName(client));
        }
        built
    }

    fn add_agent(&mut self, agent: Arc<Agent>) {
        if self.open || agent.accept_secret {
            let Credentials { corpid, secret } = agent.slot.credentials();
            let hash = secret_hash(corpid, secret.expose());
            self.agents_by_secret.entry(*hash.as_bytes()).or_default().push((hash, agent.clone()));
        }
        self.agents_in_order.push(agent.clone());
        self.agents.insert(ByName(agent));
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

    /// Whether this text is what the file has in the place of a client's hash: somebody has taken the key for its hash, or
    /// the hash for its key.
    pub fn has_for_a_hash(&self, text: &str) -> bool {
        KeyHash::from_hex(text).is_some_and(|hash| self.clients.contains_key(hash.as_bytes()))
    }

    /// The client of this name, for a pass that names it.
    pub fn client_named(&self, name: &str) -> Option<&Arc<Client>> {
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
    pub fn knows_company(&self, corpid: &str) -> bool {
        !self.company(corpid).is_empty()
    }

    /// The agents of a company that this client may use.
    pub fn agents_of<'a>(
        &'a self,
        corpid: &'a str,
        client: &'a Client,
    ) -> impl Iterator<Item = &'a Arc<Agent>> {
        // Of a company's agents, which may be very many, a client mostly knows a few.
        let (named, all) = match &client.agents {
            AgentSet::Named(names) => (Some(names), &[][..]),
            AgentSet::All => (None, self.company(corpid)),
        };
        let named = named.into_iter().flatten().filter_map(|name| self.agent(name, None));
        named.filter(move |agent| agent.corpid == corpid).chain(all)
    }

    fn company(&self, corpid: &str) -> &[Arc<Agent>] {
        let from = self.agents_by_company.partition_point(|agent| *agent.corpid < *corpid);
        let rest = &self.agents_by_company[from..];
        &rest[..rest.partition_point(|agent| agent.corpid == corpid)]
    }

    /// The agent of this name, if the caller may use it.
    pub fn agent(&self, name: &str, client: Option<&Client>) -> Option<&Arc<Agent>> {
        let ByName(agent) = self.agents.get(name)?;
        client.is_none_or(|client| client.may_use(name)).then_some(agent)
    }

    /// The only agent that the caller may use.
    pub fn only_agent(&self, client: Option<&Client>) -> Option<&Arc<Agent>> {
        let mut usable = match client.map(|client| &client.agents) {
            // Named ones are few even where there are many agents.
            Some(AgentSet::Named(names)) if names.len() > 1 => return None,
            Some(AgentSet::Named(names)) => {
                return names.iter().next().and_then(|name| self.agent(name, None));
            }
            _ => self.agents_in_order.iter(),
        };
        usable.next().filter(|_| usable.next().is_none())
    }

    /// Tells every secret that is known here as it is: of each agent its secret, its token and its tickets. It takes a
    /// while where there are very many agents.
    pub fn each_secret(&self, tell: &mut dyn FnMut(&str)) {
        for agent in self.agents() {
            tell(agent.slot.credentials().secret.expose());
            if let Some(token) = agent.slot.held() {
                tell(token.value.expose());
            }
            agent.tickets.each(tell);
        }
    }

    /// All agents, by name.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents_in_order.iter()
    }

    /// How many clients there are.
    pub fn client_count(&self) -> usize {
        self.clients.len()
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
    agent: config::Agent,
    issuer: &Arc<Issuer>,
    limits: &Limits,
    known: Option<&Arc<Agent>>,
) -> Arc<Agent> {
    let config::Agent { name, corpid, secret, agentid, accept_secret, limit, plain } = agent;
    let credentials = Credentials { corpid: corpid.clone(), secret };
    let heir = known.filter(|known| *known.slot.credentials() == credentials);
    if let Some(known) = heir
        && (known.agentid, known.accept_secret) == (agentid, accept_secret)
        && known.limit.as_ref().map(|bucket| bucket.limit()) == limit
        && known.plain == plain
    {
        return known.clone();
    }
    let (slot, tickets, inspection) = match heir {
        Some(known) => (known.slot.clone(), known.tickets.clone(), known.inspection.clone()),
        None => (TokenSlot::new(&name, credentials, issuer.clone()), Arc::default(), Arc::default()),
    };
    let bought_with = slot.clone();
    let derive = move || {
        let Credentials { corpid, secret } = bought_with.credentials();
        Box::new(PassKey::derive(corpid, secret))
    };
    let limit =
        bucket(limits, limit, known.and_then(|known| known.limit.as_ref()), || format!("agent:{name}"));
    Arc::new(Agent {
        name,
        corpid,
        agentid,
        slot,
        tickets,
        pass_key: LazyLock::new(Box::new(derive)),
        limit,
        accept_secret,
        inspection,
        plain,
    })
}

fn build_client(client: config::Client, limits: &Limits, known: Option<&Arc<Client>>) -> Arc<Client> {
    let config::Client { name, key, agents, allow, limit, always_200 } = client;
    if let Some(known) = known
        && (known.key, known.always_200) == (key, always_200)
        && known.limit.as_ref().map(|bucket| bucket.limit()) == limit
        && (&known.agents, &known.allow) == (&agents, &allow)
    {
        return known.clone();
    }
    let limit =
        bucket(limits, limit, known.and_then(|known| known.limit.as_ref()), || format!("client:{name}"));
    Arc::new(Client { name, always_200, key, limit, agents, allow })
}

/// A bucket for a limit; the one there was, as full as it is, where the limit did not change.
fn bucket(
    limits: &Limits,
    limit: Option<config::Limit>,
    known: Option<&Arc<Bucket>>,
    name: impl FnOnce() -> String,
) -> Option<Arc<Bucket>> {
    let limit = limit?;
    let known = known.filter(|known| known.limit() == limit).cloned();
    Some(known.unwrap_or_else(|| limits.bucket(limit, name)))
}

fn secret_hash(corpid: &str, secret: &str) -> KeyHash {
    KeyHash::of(Masked::new(format!("{corpid}\0{secret}")).expose())
}
