//! Clients: the programs that call the proxy.

use std::{cmp::Ordering, sync::Arc};

use super::{Agent, AgentRole, Shared, reuse_or_create_limiter};
use crate::{
    config::{self, ClientKey, KeyHash},
    limits::RateLimiter,
    secret::random_u64,
};

/// A client, as configured.
#[derive(Debug)]
pub struct Client {
    /// Its configuration.
    pub config: config::ClientConfig,
    /// Chosen at random whenever it changes.
    pub revision: u64,
    /// Its rate limit.
    pub rate_limiter: Option<Arc<RateLimiter>>,
}

impl Client {
    /// Builds a client; what did not change is taken from the client of this name before.
    pub(super) fn build(
        config: config::ClientConfig,
        shared: &Shared<'_>,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        if let Some(previous) = previous.filter(|previous| previous.config == config) {
            return previous.clone();
        }
        let rate_limiter = reuse_or_create_limiter(
            shared.limits,
            config.limit,
            previous.and_then(|previous| previous.rate_limiter.as_ref()),
            || format!("client:{}", config.name),
        );
        Arc::new(Self { config, revision: random_u64(), rate_limiter })
    }

    /// This key, if it is one of the client's; compared in constant time.
    pub fn find_key(&self, key: &str) -> Option<&ClientKey> {
        let hash = KeyHash::of(key);
        self.config.keys.iter().find(|known| known.hash == hash)
    }

    /// Whether it may use this agent.
    #[inline(always)]
    pub fn may_use_agent(&self, agent: &Agent) -> bool {
        let agents = &self.config.agents;
        match &agent.role {
            AgentRole::Application => agents.contains(&agent.name),
            AgentRole::Provider | AgentRole::Suite(_) => agents.names(&agent.name),
            AgentRole::Corp { suite } => {
                agents.contains(&agent.name) || agents.contains_corp(suite, &agent.corpid)
            }
        }
    }

    /// Whether it may call this path with this method.
    pub fn may_call(&self, method: &http::Method, path: &str) -> bool {
        self.config.allow.iter().any(|pattern| pattern.matches(method, path))
    }

    pub(super) fn compare_names(left: &Self, right: &Self) -> Ordering {
        left.config.name.cmp(&right.config.name)
    }
}
