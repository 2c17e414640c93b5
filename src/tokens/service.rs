//! What all agents' tokens share: where they come from, how many gettokens may leave, and what is counted of them.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::Instant};

use super::{
    backoff,
    backoff_history::BackoffHistory,
    failure_budget::FailureBudget,
    fetch::{Credentials, FetchError},
    refresh_budget::RefreshBudget,
    refresh_counts::{RefreshCount, RefreshCounts},
    replicas::{self, ReplicaSync},
    throttled::ThrottledAgents,
};
use crate::{
    store::{Store, StoreEvents},
    wecom::response::GettokenResponse,
};

/// Where tokens come from. A trait so that the life of a token can be tested without a network.
pub trait FetchToken: Send + Sync {
    /// Fetches a token once.
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>>;
}

/// When tokens are renewed, and how often.
#[derive(Debug, Clone, Copy)]
pub struct RefreshSettings {
    /// How long before its expiry a token in use is renewed.
    pub refresh_ahead: Duration,
    /// Most renewals in an hour beyond first tokens and expiries; `None`: as many as the agents in use need.
    pub renewals_per_hour: Option<u32>,
}

/// What all agents' tokens share.
pub struct TokenService {
    pub(super) fetcher: Box<dyn FetchToken>,
    pub(super) runtime: Handle,
    pub(super) refresh_ahead: Duration,
    pub(super) refresh_budget: RefreshBudget,
    pub(super) failure_budget: FailureBudget,
    pub(super) throttled: Arc<ThrottledAgents>,
    pub(super) backoff_history: BackoffHistory,
    pub(super) refresh_counts: RefreshCounts,
    pub(super) replicas: Option<ReplicaSync>,
    /// From 0 to 1; a field so that a life of tokens can be repeated in tests.
    pub(super) jitter: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl TokenService {
    /// Renewals run on `runtime`, which must outlive the callers'.
    pub fn new(source: Box<dyn FetchToken>, runtime: Handle, settings: RefreshSettings) -> Arc<Self> {
        Arc::new(Self::build(source, runtime, settings, None))
    }

    /// The same, with what it gets shared among the replicas that use this store.
    pub fn with_store(
        source: Box<dyn FetchToken>,
        runtime: Handle,
        settings: RefreshSettings,
        (store, said): (Arc<Store>, StoreEvents),
    ) -> Arc<Self> {
        let issuer = Arc::new(Self::build(source, runtime, settings, Some(ReplicaSync::new(store))));
        issuer.runtime.spawn(replicas::run_event_loop(Arc::downgrade(&issuer), said));
        issuer
    }

    pub(super) fn build(
        fetcher: Box<dyn FetchToken>,
        runtime: Handle,
        RefreshSettings { refresh_ahead, renewals_per_hour }: RefreshSettings,
        replicas: Option<ReplicaSync>,
    ) -> Self {
        Self {
            fetcher,
            runtime,
            refresh_ahead,
            refresh_budget: RefreshBudget::new(renewals_per_hour),
            failure_budget: FailureBudget::default(),
            throttled: Arc::default(),
            backoff_history: BackoffHistory::default(),
            refresh_counts: RefreshCounts::default(),
            replicas,
            jitter: Box::new(backoff::random_jitter),
        }
    }

    /// How many renewals there were, by agent, reason and outcome.
    pub fn refresh_counts(&self) -> Vec<RefreshCount> {
        self.refresh_counts.snapshot()
    }

    /// The agents whose renewals are held back because a share is spent, and how long until the next may be tried.
    pub fn throttled_agents(&self) -> Vec<(String, Duration)> {
        self.throttled.snapshot(Instant::now())
    }

    /// Drops what is known of all agents but these.
    pub fn retain_agents(&self, agents: impl Fn(&str) -> bool) {
        self.refresh_counts.retain(&agents);
        self.throttled.retain(&agents);
        self.refresh_budget.retain(agents);
    }

    /// Where this replica comes among those that share a token, from 0 to 1: they do not all wake at once, and most find
    /// that another has renewed it.
    pub(super) fn random_stagger(&self) -> f64 {
        self.replicas.as_ref().map_or(0.0, |_| (self.jitter)())
    }

    /// The store that replicas share, where there is one.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.replicas.as_ref().map(ReplicaSync::store)
    }

    /// Why the store that replicas share is away; `None` while it is there, and where there is none.
    pub fn store_error(&self) -> Option<String> {
        self.replicas.as_ref().and_then(ReplicaSync::store_error)
    }
}
