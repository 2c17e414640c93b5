//! Agents: the WeCom applications.

use std::{borrow::Cow, cmp::Ordering, fmt, sync::Arc};

use super::{
    CaptureSwitch, Client, Shared, Suite,
    pass_keys::AgentPassKeys,
    reuse_or_create_limiter,
    secret_lookup::{SecretHashes, secret_hash},
};
use crate::{
    config::{self, ClientKey, KeyHash, Origin, SourcedSecret},
    limits::RateLimiter,
    secret::{Masked, random_u64},
    text::SharedStr,
    tokens::{
        AgentToken, Credentials,
        passes::{PassError, PassKey, UnverifiedPass},
    },
};

/// What the token of an agent is fetched with, by this secret of it.
pub fn credentials(config: &config::AgentConfig, secret: &SourcedSecret) -> Credentials {
    let config::AgentConfig { corpid, upstream, origin, .. } = config;
    Credentials {
        corpid: corpid.clone(),
        secret: secret.value.clone(),
        upstream: upstream.clone(),
        generation: origin.generation(),
    }
}

/// The same, by its first secret.
pub fn first_credentials(config: &config::AgentConfig) -> Credentials {
    credentials(config, &config.secrets[0])
}

/// What a pass is bought with.
#[derive(Clone, Copy)]
pub enum PassBuyer<'a> {
    /// A client's key.
    Client(&'a Client, &'a ClientKey),
    /// The agent's own secret.
    OwnSecret(&'a Masked),
    /// Nothing: the proxy is open.
    OpenProxy,
}

/// What an agent stands for.
#[derive(Clone)]
pub enum AgentRole {
    /// A WeCom application of a company.
    Application,
    /// A service provider.
    Provider,
    /// A suite of a provider.
    Suite(Arc<Suite>),
    /// A corp that authorised the suite of this name.
    Corp {
        /// The suite's name.
        suite: Box<str>,
    },
}

/// One WeCom application, or what has tokens like one.
// The order is that of the memory: what requests read comes first, as with very many agents it is in no CPU cache.
#[repr(C)]
pub struct Agent {
    /// Its configured name.
    pub name: SharedStr,
    /// What it stands for.
    pub role: AgentRole,
    /// Its token and tickets, which agents with the same corpid and secret at one upstream share.
    pub token: AgentToken,
    /// The rest of its configuration.
    pub settings: Arc<config::AgentSettings>,
    /// The rate limit for all its requests together.
    pub rate_limiter: Option<Arc<RateLimiter>>,
    /// Whether an operator captures its exchanges.
    pub capture_switch: CaptureSwitch,
    /// Where its requests go.
    pub upstream: config::UpstreamId,
    /// The company's corpid.
    pub corpid: SharedStr,
    /// Where it is defined.
    pub origin: Origin,
    /// Chosen at random whenever it changes.
    pub revision: u64,
    /// The hashes of its secrets as configured, where they can change; those of one that cannot are computed when needed.
    pub(super) hashes: Option<Box<[SecretHashes]>>,
    pub(super) pass_keys: Arc<AgentPassKeys>,
    /// What the passes of a corp of the state are made under, in place of its secret.
    pub(super) corp_pass_key: Option<Box<PassKey>>,
}

impl Agent {
    /// Builds an agent; what did not change is taken from the agent of this name before.
    pub(super) fn build(
        config: config::AgentConfig,
        shared: &Shared<'_>,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let before = previous.filter(|previous| previous.origin.generation() == config.origin.generation());
        let secrets = config.secrets.iter().map(|secret| (credentials(&config, secret), secret.file.clone()));
        let before = before.map(|before| &before.token);
        let token = AgentToken::new(shared.tokens, &config.name, secrets, before, previous.is_some());
        let hashes = match &token {
            AgentToken::Fixed(_) => None,
            AgentToken::Rotating(_) => {
                let of = |secret: &SourcedSecret| SecretHashes::of(&config.corpid, secret.value.expose());
                Some(config.secrets.iter().map(of).collect())
            }
        };
        let config::AgentConfig { name, corpid, upstream, settings, origin, .. } = config;
        // One that was deleted and made anew has nothing of the one before.
        let previous = previous.filter(|previous| previous.origin.generation() == origin.generation());
        let with_same_credentials = previous.filter(|previous| previous.token.is_same_as(&token));
        let is_unchanged = |previous: &&Arc<Self>| {
            previous.settings == settings && previous.hashes == hashes && previous.origin.follow(&origin)
        };
        if let Some(previous) = with_same_credentials.filter(is_unchanged) {
            return previous.clone();
        }
        let same_corp = previous.filter(|previous| previous.corpid == corpid);
        let (pass_keys, capture_switch) = Self::take_over(shared, &origin, &token, same_corp);
        let rate_limiter = reuse_or_create_limiter(
            shared.limits,
            settings.limit,
            previous.and_then(|previous| previous.rate_limiter.as_ref()),
            || format!("agent:{name}"),
        );
        Arc::new(Self {
            upstream,
            settings,
            hashes,
            rate_limiter,
            capture_switch,
            pass_keys,
            ..Self::new(name, corpid, origin, token, AgentRole::Application)
        })
    }

    /// Pass keys and capture switch: those of the agent before, if it has the same credentials, else new ones.
    pub(super) fn take_over(
        shared: &Shared<'_>,
        origin: &Origin,
        token: &AgentToken,
        previous: Option<&Arc<Self>>,
    ) -> (Arc<AgentPassKeys>, CaptureSwitch) {
        if let Some(previous) = previous.filter(|previous| previous.token.is_same_as(token)) {
            return (previous.pass_keys.clone(), previous.capture_switch.clone());
        }
        let before = previous.map(|previous| (&*previous.pass_keys, &previous.token));
        let pass_keys = AgentPassKeys::new(shared.pass_key.clone(), origin.generation(), token, before);
        (pass_keys.shared(), CaptureSwitch::default())
    }

    /// One without settings, of the default upstream.
    pub(super) fn new(
        name: SharedStr,
        corpid: SharedStr,
        origin: Origin,
        token: AgentToken,
        role: AgentRole,
    ) -> Self {
        Self {
            name,
            corpid,
            upstream: config::UpstreamId::default(),
            settings: config::AgentSettings::default().shared(),
            origin,
            revision: random_u64(),
            token,
            hashes: None,
            rate_limiter: None,
            capture_switch: CaptureSwitch::default(),
            role,
            pass_keys: AgentPassKeys::default().shared(),
            corp_pass_key: None,
        }
    }

    /// Whether ordinary paths are called in its name: an application or a corp.
    pub fn has_access_token(&self) -> bool {
        matches!(self.role, AgentRole::Application | AgentRole::Corp { .. })
    }

    /// Whether it is a corp without a name of its own.
    pub fn is_unnamed_corp(&self) -> bool {
        self.corp_pass_key.is_some()
    }

    /// The suite that it is, if it is one.
    pub fn suite(&self) -> Option<&Arc<Suite>> {
        match &self.role {
            AgentRole::Suite(suite) => Some(suite),
            _ => None,
        }
    }

    /// The name in metrics: a corp that no file names counts as its suite.
    pub fn counted_as(&self) -> &str {
        match &self.role {
            AgentRole::Corp { suite } if self.is_unnamed_corp() => suite,
            _ => &self.name,
        }
    }

    /// Its configuration.
    pub fn config(&self) -> config::AgentConfig {
        config::AgentConfig {
            name: self.name.clone(),
            corpid: self.corpid.clone(),
            secrets: self.token.secrets(),
            upstream: self.upstream.clone(),
            settings: self.settings.clone(),
            origin: self.origin.clone(),
        }
    }

    /// Issues a pass. `now` is in seconds since 1970.
    pub fn issue_pass(&self, buyer: PassBuyer<'_>, now: u64) -> Masked {
        match buyer {
            PassBuyer::Client(client, client_key) => {
                let issue = |key: &PassKey| key.issue(&self.name, &client.config.name, Some(client_key), now);
                match &self.corp_pass_key {
                    Some(key) => issue(key),
                    None => self.pass_keys.with_client_key(&self.token, issue),
                }
            }
            // Under this very secret, of those that the agent has.
            PassBuyer::OwnSecret(secret) => {
                let key = PassKey::derive(&self.corpid, secret, self.origin.generation());
                key.issue(&self.name, "", None, now)
            }
            PassBuyer::OpenProxy => {
                let issue = |key: &PassKey| key.issue(&self.name, "", None, now);
                match &self.corp_pass_key {
                    Some(key) => issue(key),
                    None => self.token.with_first_entry(|entry| issue(entry.pass_key())),
                }
            }
        }
    }

    /// Verifies a pass of this agent, bought with the key of `client`, or with the agent's own secret.
    pub fn verify_pass(
        &self,
        pass: &UnverifiedPass<'_>,
        client: Option<&Client>,
        now: u64,
    ) -> Result<(), PassError> {
        let Some(client) = client else { return self.verify_under(pass, None, now) };
        let mut verdicts = client.config.keys.iter().map(|key| self.verify_under(pass, Some(key), now));
        let found = verdicts.find(|verdict| *verdict != Err(PassError::Unverified));
        found.unwrap_or(Err(PassError::Unverified))
    }

    /// The key of the client under which a pass of this agent was issued.
    pub fn client_key_of_pass<'c>(
        &self,
        pass: &UnverifiedPass<'_>,
        client: &'c Client,
        now: u64,
    ) -> Option<&'c ClientKey> {
        client.config.keys.iter().find(|key| self.verify_under(pass, Some(key), now).is_ok())
    }

    fn verify_under(
        &self,
        pass: &UnverifiedPass<'_>,
        client_key: Option<&ClientKey>,
        now: u64,
    ) -> Result<(), PassError> {
        match &self.corp_pass_key {
            Some(key) => key.verify(pass, client_key, now),
            None => self.pass_keys.verify(&self.token, pass, client_key, now),
        }
    }

    /// Whether this is the hash of its corpid and of a secret that it has now.
    pub(super) fn has_secret(&self, hash: &KeyHash) -> bool {
        match &self.token {
            AgentToken::Fixed(entry) => {
                secret_hash(&self.corpid, entry.credentials().secret.expose()) == *hash
            }
            AgentToken::Rotating(_) => {
                let entries = self.token.entries();
                let mut secrets = entries.iter().map(|entry| entry.credentials().secret.expose());
                secrets.any(|secret| secret_hash(&self.corpid, secret) == *hash)
            }
        }
    }

    /// The hashes of its secrets, as configured.
    pub(super) fn secret_hashes(&self) -> Cow<'_, [SecretHashes]> {
        match (&self.hashes, &self.token) {
            (Some(hashes), _) => Cow::Borrowed(hashes),
            (None, AgentToken::Fixed(entry)) => {
                Cow::Owned(vec![SecretHashes::of(&self.corpid, entry.credentials().secret.expose())])
            }
            (None, AgentToken::Rotating(_)) => Cow::Borrowed(&[]),
        }
    }

    /// Whether this path is configured to carry a credential of its own.
    pub fn is_passthrough(&self, path: &str) -> bool {
        self.settings.passthrough.iter().any(|pattern| pattern.matches(path))
    }

    /// Calls `visit` with its secrets, tokens and tickets in plain text, for redaction.
    pub fn for_each_secret(&self, visit: &mut dyn FnMut(&str)) {
        let former = self.token.former_entries().into_iter().map(|(entry, _)| entry);
        for entry in self.token.entries().into_iter().chain(former) {
            visit(entry.credentials().secret.expose());
            entry.for_each_value(visit);
        }
        if let Some(suite) = self.suite() {
            visit(suite.config.token.expose());
            visit(suite.config.aes_key.expose());
            suite.state.ticket.visit_value(visit);
        }
    }

    pub(super) fn compare_names(left: &Self, right: &Self) -> Ordering {
        left.name.cmp(&right.name)
    }

    pub(super) fn compare_corpids(left: &Self, right: &Self) -> Ordering {
        left.corpid.cmp(&right.corpid).then_with(|| left.name.cmp(&right.name))
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({})", self.name)
    }
}
