//! What all agents' tokens share: where they come from, how many gettokens may leave, and what is counted of them.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::Instant};

use super::{
    backoff,
    failures::Failures,
    fetch::{Credentials, FetchError},
    held::Held,
    past::Past,
    renewals::{Renewals, Renewed},
    shared::{self, Shared},
    shares::Shares,
};
use crate::{
    store::{Said, Store},
    wecom::reply::Grant,
};

/// Where tokens come from. A trait so that the life of a token can be tested without a network.
pub trait Source: Send + Sync {
    /// Fetches a token once.
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, FetchError>> + Send + 'a>>;
}

/// When tokens are renewed, and how often.
#[derive(Debug, Clone, Copy)]
pub struct RenewalSettings {
    /// How long before its expiry a token in use is renewed.
    pub refresh_ahead: Duration,
    /// Most renewals in an hour beyond first tokens and expiries; `None`: as many as the agents in use need.
    pub renewals_per_hour: Option<u32>,
}

/// What all agents' tokens share.
pub struct Issuer {
    pub(super) source: Box<dyn Source>,
    pub(super) runtime: Handle,
    pub(super) refresh_ahead: Duration,
    pub(super) shares: Shares,
    pub(super) failures: Failures,
    pub(super) held: Arc<Held>,
    pub(super) past: Past,
    pub(super) renewals: Renewals,
    pub(super) shared: Option<Shared>,
    /// From 0 to 1; a field so that a life of tokens can be repeated in tests.
    pub(super) jitter: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl Issuer {
    /// Renewals run on `runtime`, which must outlive the callers'.
    pub fn new(source: Box<dyn Source>, runtime: Handle, settings: RenewalSettings) -> Arc<Self> {
        Arc::new(Self::with(source, runtime, settings, None))
    }

    /// The same, with what it gets shared among the replicas that use this store.
    pub fn sharing(
        source: Box<dyn Source>,
        runtime: Handle,
        settings: RenewalSettings,
        (store, said): (Arc<Store>, Said),
    ) -> Arc<Self> {
        let issuer = Arc::new(Self::with(source, runtime, settings, Some(Shared::new(store))));
        issuer.runtime.spawn(shared::listen(Arc::downgrade(&issuer), said));
        issuer
    }

    pub(super) fn with(
        source: Box<dyn Source>,
        runtime: Handle,
        RenewalSettings { refresh_ahead, renewals_per_hour }: RenewalSettings,
        shared: Option<Shared>,
    ) -> Self {
        Self {
            source,
            runtime,
            refresh_ahead,
            shares: Shares::new(renewals_per_hour),
            failures: Failures::default(),
            held: Arc::default(),
            past: Past::default(),
            renewals: Renewals::default(),
            shared,
            jitter: Box::new(backoff::random_unit),
        }
    }

    /// How many renewals there were, by agent, reason and outcome.
    pub fn renewals(&self) -> Vec<Renewed> {
        self.renewals.all()
    }

    /// The agents whose renewals are held back because a share is spent, and how long until the next may be tried.
    pub fn held(&self) -> Vec<(String, Duration)> {
        self.held.all(Instant::now())
    }

    /// Drops what is known of all agents but these.
    pub fn keep_only(&self, agents: impl Fn(&str) -> bool) {
        self.renewals.keep(&agents);
        self.held.keep(&agents);
        self.shares.keep(agents);
    }

    /// Where this replica comes among those that share a token, from 0 to 1: they do not all wake at once, and most find
    /// that another has renewed it.
    pub(super) fn stagger(&self) -> f64 {
        self.shared.as_ref().map_or(0.0, |_| (self.jitter)())
    }

    /// The store that replicas share, where there is one.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.shared.as_ref().map(Shared::store)
    }

    /// Why the store that replicas share is away; `None` while it is there, and where there is none.
    pub fn store_trouble(&self) -> Option<String> {
        self.shared.as_ref().and_then(Shared::trouble)
    }
}
