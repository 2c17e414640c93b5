//! What all cache entries share: the fetcher, the budgets and the counters.

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

/// Fetches tokens. A trait, so that tests need no network.
pub trait FetchToken: Send + Sync {
    /// Fetches a token once.
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>>;
}

/// When and how often tokens are refreshed.
#[derive(Debug, Clone, Copy)]
pub struct RefreshSettings {
    /// The earliest that a token in use is refreshed before its expiry; a hash of the token delays it, down to a
    /// quarter of this.
    pub refresh_ahead: Duration,
    /// Most refreshes per hour beyond first tokens and expiries; `None`: the default for the number of agents in
    /// use.
    pub renewals_per_hour: Option<u32>,
}

/// What all cache entries share.
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
    /// Random, from 0 to 1; a field, so that tests can repeat a run.
    pub(super) jitter: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl TokenService {
    /// Refreshes run on `runtime`, which must outlive those of the callers.
    pub fn new(fetcher: Box<dyn FetchToken>, runtime: Handle, settings: RefreshSettings) -> Arc<Self> {
        Arc::new(Self::build(fetcher, runtime, settings, None))
    }

    /// The same, for replicas that share this store.
    pub fn with_store(
        fetcher: Box<dyn FetchToken>,
        runtime: Handle,
        settings: RefreshSettings,
        (store, events): (Arc<Store>, StoreEvents),
    ) -> Arc<Self> {
        let service = Arc::new(Self::build(fetcher, runtime, settings, Some(ReplicaSync::new(store))));
        service.runtime.spawn(replicas::run_event_loop(Arc::downgrade(&service), events));
        service
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

    /// Refresh counters by agent, reason and outcome.
    pub fn refresh_counts(&self) -> Vec<RefreshCount> {
        self.refresh_counts.snapshot()
    }

    /// The agents whose refreshes are throttled by a budget, and the time until each next attempt.
    pub fn throttled_agents(&self) -> Vec<(String, Duration)> {
        self.throttled.snapshot(Instant::now())
    }

    /// Drops the counters and budgets of all agents but these.
    pub fn retain_agents(&self, agents: impl Fn(&str) -> bool) {
        self.refresh_counts.retain(&agents);
        self.throttled.retain(&agents);
        self.refresh_budget.retain(agents);
    }

    /// The random part, from 0 to 1, of the longest delay by which this replica refreshes later than others that
    /// share the token: they do not all wake at once, and most find it refreshed.
    pub(super) fn random_stagger(&self) -> f64 {
        self.replicas.as_ref().map_or(0.0, |_| (self.jitter)())
    }

    /// The store that replicas share, if one is configured.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.replicas.as_ref().map(ReplicaSync::store)
    }

    /// Why the store is unavailable; `None` while it is connected, and if none is configured.
    pub fn store_error(&self) -> Option<String> {
        self.replicas.as_ref().and_then(ReplicaSync::store_error)
    }
}
