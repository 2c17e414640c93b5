//! The cache entries of all credentials: one for each, however many agents have them. It outlives reloads; the
//! directory keeps the entries that its agents use, so that no request looks one up.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::{runtime::Handle, time::Instant};

use super::{
    CachedToken, CredentialId, Credentials, FetchObserver, FetchToken, GettokenStats, RefreshCount,
    RefreshSettings, TokenSpec, backoff::Backoff, kinds::TokenKind, replicas, service::TokenService,
};
use crate::{
    store::{Store, StoreEvents},
    text::SharedStr,
};

/// The cache of tokens and tickets.
pub struct TokenCache {
    service: Arc<TokenService>,
    entries: DashMap<CredentialId, Arc<CachedToken>, RandomState>,
    /// Backoff of removed entries, so that changing a secret back and forth does not reset it.
    former_backoffs: Mutex<HashMap<CredentialId, Backoff>>,
    has_changed_secret_files: Arc<AtomicBool>,
}

impl TokenCache {
    /// A cache of this process. Refreshes run on `runtime`, which must outlive those of the callers.
    pub fn new(fetcher: Box<dyn FetchToken>, runtime: Handle, settings: RefreshSettings) -> Arc<Self> {
        Self::of_service(TokenService::new(fetcher, runtime, settings, None))
    }

    /// The same, for replicas that share this store.
    pub fn with_store(
        fetcher: Box<dyn FetchToken>,
        runtime: Handle,
        settings: RefreshSettings,
        (store, events): (Arc<Store>, StoreEvents),
    ) -> Arc<Self> {
        let cache = Self::of_service(TokenService::new(fetcher, runtime, settings, Some(store)));
        cache.service.runtime.spawn(replicas::run_event_loop(Arc::downgrade(&cache), events));
        cache
    }

    pub(super) fn of_service(service: TokenService) -> Arc<Self> {
        Arc::new(Self {
            service: Arc::new(service),
            entries: DashMap::default(),
            former_backoffs: Mutex::default(),
            has_changed_secret_files: Arc::default(),
        })
    }

    /// The entry of these credentials; created if there is none. Named in logs and counters after the agent that it
    /// was created for. `is_changed`: an operator has changed them, so the first attempt waits for no failure budget,
    /// unless they are known to have failed.
    pub fn entry(
        &self,
        agent: impl Into<SharedStr>,
        credentials: Credentials,
        is_changed: bool,
    ) -> Arc<CachedToken> {
        self.entry_of(
            TokenSpec { agent: &agent.into(), counted_as: None, credentials, kind: TokenKind::AccessToken },
            is_changed,
        )
    }

    /// The same for any kind of token.
    pub fn entry_of(&self, spec: TokenSpec<'_>, is_changed: bool) -> Arc<CachedToken> {
        let id = CredentialId::new(spec.kind.id_kind(), &spec.credentials);
        if let Some(entry) = self.entries.get(&id) {
            return entry.clone();
        }
        let backoff = self
            .former_backoffs
            .lock()
            .remove(&backoff_id(spec.kind.id_kind(), &spec.credentials))
            .filter(|backoff| !backoff.is_stale(Instant::now()));
        let entry = CachedToken::new(spec, self.service.clone(), is_changed);
        if let Some(backoff) = backoff {
            entry.state.lock().backoff = backoff;
        }
        self.entries.entry(id).or_insert_with(|| Arc::new(entry)).clone()
    }

    /// Whether the file of a secret had another one when it was read again.
    pub fn has_changed_secret_files(&self) -> Arc<AtomicBool> {
        self.has_changed_secret_files.clone()
    }

    /// The entry of this id, if it has been used.
    pub(super) fn used_entry(&self, id: &CredentialId) -> Option<Arc<CachedToken>> {
        self.entries.get(id).filter(|entry| entry.is_requested()).map(|entry| entry.clone())
    }

    /// All entries that have been used.
    pub(super) fn used_entries(&self) -> Vec<Arc<CachedToken>> {
        self.entries.iter().filter(|entry| entry.is_requested()).map(|entry| entry.clone()).collect()
    }

    /// Removes an entry that is in use no more.
    pub fn remove(&self, entry: &Arc<CachedToken>) {
        if self.entries.remove_if(&entry.id, |_, other| Arc::ptr_eq(other, entry)).is_some() {
            let backoff = (backoff_id(entry.kind.id_kind(), &entry.credentials), entry.backoff());
            let now = Instant::now();
            self.former_backoffs.lock().extend(Some(backoff).filter(|(_, backoff)| !backoff.is_stale(now)));
        }
    }

    /// Drops the counters and budgets of all agents but these, and those that an entry is named after, and backoffs that
    /// are long over.
    pub fn retain_agents(&self, is_agent: impl Fn(&str) -> bool) {
        // Collected only where an agent is gone: there can be very many entries.
        let names = OnceCell::new();
        let collect = || self.entries.iter().map(|entry| entry.agent_name().clone()).collect::<HashSet<_>>();
        self.service.retain_agents(|agent| is_agent(agent) || names.get_or_init(collect).contains(agent));
        self.drop_stale_backoffs();
    }

    /// Drops the backoffs of removed entries that are long over.
    pub fn drop_stale_backoffs(&self) {
        let now = Instant::now();
        self.former_backoffs.lock().retain(|_, backoff| !backoff.is_stale(now));
    }

    /// Refresh counters by agent, reason and outcome.
    pub fn refresh_counts(&self) -> Vec<RefreshCount> {
        self.service.refresh_counts.refreshes()
    }

    /// Tells `observer` of each call that fetches a token, from now on.
    pub fn set_observer(&self, observer: impl FetchObserver + 'static) {
        let _ = self.service.fetch_observer.set(Box::new(observer));
    }

    /// What became of the calls that fetch tokens, by agent.
    pub fn gettoken_calls(&self) -> Vec<(SharedStr, GettokenStats)> {
        self.service.refresh_counts.calls()
    }

    /// The refreshes of the last hour beyond first tokens and expiries, and the most that there may be.
    pub fn refresh_budget_usage(&self) -> (usize, usize) {
        self.service.refresh_budget.usage(Instant::now())
    }

    /// The agents whose refreshes are throttled by a budget, and the time until each next attempt.
    pub fn throttled_agents(&self) -> Vec<(String, Duration)> {
        self.service.throttled.snapshot(Instant::now())
    }

    /// The store that replicas share, if one is configured.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.service.store()
    }

    /// Why the store is unavailable; `None` while it is connected, and if none is configured.
    pub fn store_error(&self) -> Option<String> {
        self.store().and_then(|store| store.last_error())
    }

    pub(super) fn service(&self) -> &Arc<TokenService> {
        &self.service
    }
}

/// The key of `former_backoffs`.
fn backoff_id(id_kind: &str, credentials: &Credentials) -> CredentialId {
    CredentialId::new(id_kind, &credentials.without_generation())
}

#[cfg(test)]
impl TokenCache {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of removed entries whose backoff is kept.
    pub(super) fn former_len(&self) -> usize {
        self.former_backoffs.lock().len()
    }
}
