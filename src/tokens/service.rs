//! What all cache entries share: the fetcher, the budgets and the counters.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::runtime::Handle;

use super::{
    credential_id::Credentials, failure_budget::FailureBudget, fetch_error::FetchError,
    fetch_observer::FetchObserver, kinds::json_call::JsonCall, proactive::ProactiveSchedule,
    refresh_budget::RefreshBudget, refresh_counts::RefreshCounts, replicas::ReplicaSync,
    throttled::ThrottledAgents,
};
use crate::{secret::random_fraction, store::Store, upstream::Fetched, wecom::response::GettokenResponse};

/// Fetches tokens. A trait, so that tests need no network.
pub trait FetchToken: Send + Sync {
    /// Calls gettoken once.
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>>;

    /// Makes a call for another kind of token once.
    fn call(&self, _: JsonCall) -> Pin<Box<dyn Future<Output = Result<Fetched, FetchError>> + Send + '_>> {
        Box::pin(async { Err(FetchError::Cancelled) })
    }
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
pub(super) struct TokenService {
    pub(super) fetcher: Box<dyn FetchToken>,
    pub(super) runtime: Handle,
    pub(super) refresh_ahead: Duration,
    pub(super) refresh_budget: RefreshBudget,
    pub(super) failure_budget: FailureBudget,
    pub(super) proactive: Arc<ProactiveSchedule>,
    pub(super) throttled: Arc<ThrottledAgents>,
    pub(super) refresh_counts: RefreshCounts,
    /// Set once, where there are traces.
    pub(super) fetch_observer: OnceLock<Box<dyn FetchObserver>>,
    pub(super) replicas: Option<ReplicaSync>,
    /// Random, from 0 to 1; a field, so that tests can repeat a run.
    pub(super) jitter: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl TokenService {
    pub(super) fn new(
        fetcher: Box<dyn FetchToken>,
        runtime: Handle,
        RefreshSettings { refresh_ahead, renewals_per_hour }: RefreshSettings,
        store: Option<Arc<Store>>,
    ) -> Self {
        Self {
            fetcher,
            runtime,
            refresh_ahead,
            refresh_budget: RefreshBudget::new(renewals_per_hour),
            failure_budget: FailureBudget::default(),
            proactive: Arc::default(),
            throttled: Arc::default(),
            refresh_counts: RefreshCounts::default(),
            fetch_observer: OnceLock::new(),
            replicas: store.map(ReplicaSync::new),
            jitter: Box::new(random_fraction),
        }
    }

    /// Drops the counters and budgets of all agents but these.
    pub(super) fn retain_agents(&self, is_agent: impl Fn(&str) -> bool) {
        self.refresh_counts.retain(&is_agent);
        self.throttled.retain(&is_agent);
        self.refresh_budget.retain(is_agent);
    }

    /// The random part, from 0 to 1, of the longest delay by which this replica refreshes later than others that
    /// share the token: they do not all wake at once, and most find it refreshed.
    pub(super) fn random_stagger(&self) -> f64 {
        self.replicas.as_ref().map_or(0.0, |_| (self.jitter)())
    }

    /// The store that replicas share, if one is configured.
    pub(super) fn store(&self) -> Option<&Arc<Store>> {
        self.replicas.as_ref().map(ReplicaSync::store)
    }
}
