//! One gettoken for all replicas: the one that holds the lease in the store calls it, the others take its result
//! from the store.
//!
//! For tokens the store is called when one is to be fetched, after a notification, and after a reconnect; a request
//! with a cached token that WeCom accepts does not call it. While it is unavailable each
//! replica fetches by itself.

mod shared_fetch;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{sync::Semaphore, time::Instant};

use self::shared_fetch::SharedFetch;

use super::{
    AgentToken, FetchError, RefreshReason, TokenService, fetched_token::FetchedToken,
    refresh_budget::BudgetClass,
};
use crate::store::{Claim, Notification, NotificationKind, Store, StoreEvent, StoreEvents, Unavailable};

/// Concurrent reads of records after notifications.
const MAX_CONCURRENT_READS: usize = 16;

/// The store, and the cache entries to update from it.
pub(super) struct ReplicaSync {
    store: Arc<Store>,
    /// By name in the store; only entries that have fetched. Several agents can have the same credentials.
    entries: Mutex<HashMap<String, Vec<Weak<AgentToken>>>>,
    /// By name, the notification whose record is to be read.
    pending_reads: Mutex<HashMap<String, NotificationKind>>,
    read_permits: Semaphore,
}

/// Handles the store's events until the service is dropped.
pub(super) async fn run_event_loop(service: Weak<TokenService>, mut events: StoreEvents) {
    while let Some(event) = events.recv().await {
        let Some(service) = service.upgrade() else { return };
        let Some(replicas) = &service.replicas else { return };
        match event {
            StoreEvent::Notification(notification) => replicas.on_notification(&service, notification),
            StoreEvent::Disconnected => replicas.store.request_probe(),
            StoreEvent::Connected => {
                let runtime = service.runtime.clone();
                runtime.spawn(async move {
                    if let Some(replicas) = &service.replicas {
                        let _ = replicas.resync().await;
                    }
                });
            }
        }
    }
}

impl ReplicaSync {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            entries: Mutex::default(),
            pending_reads: Mutex::default(),
            read_permits: Semaphore::new(MAX_CONCURRENT_READS),
        }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Why the store is unavailable; `None` while it is connected.
    pub(super) fn store_error(&self) -> Option<String> {
        self.store.last_error()
    }

    /// Fetches a token newer than the cached one: from the store, from the replica that has the lease, or from WeCom.
    pub(super) async fn fetch_token(
        &self,
        entry: &Arc<AgentToken>,
        reason: RefreshReason,
        class: BudgetClass,
    ) -> Result<FetchedToken, FetchError> {
        let name = entry.credentials.store_name("");
        self.register(&name, entry);
        SharedFetch::run(self, &name, entry, reason, class).await
    }

    /// Registers an entry for the notifications of its name.
    fn register(&self, name: &str, entry: &Arc<AgentToken>) {
        let mut by_name = self.lock_entries();
        // Removes entries of dropped agents before the map grows; nothing else removes them.
        if by_name.len() == by_name.capacity() {
            by_name.retain(|_, entries| entries.iter().any(|entry| entry.strong_count() > 0));
        }
        let entries = by_name.entry(name.to_owned()).or_default();
        entries.retain(|other| other.strong_count() > 0);
        if !entries.iter().any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(entry))) {
            entries.push(Arc::downgrade(entry));
        }
    }

    /// The entries registered for a name.
    fn registered_entries(&self, name: &str) -> Vec<Arc<AgentToken>> {
        self.lock_entries().get(name).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    /// Handles a notification of another replica, or of this one.
    fn on_notification(&self, service: &Arc<TokenService>, notification: Notification) {
        self.store.wake_subscribers(&notification.name);
        let mut needs_read = false;
        for entry in self.registered_entries(&notification.name) {
            let current = entry.current.load_full();
            let fence = current.as_ref().map_or(0, |current| current.fence());
            match (notification.kind, current) {
                (NotificationKind::Refused, Some(current)) if fence == notification.fence => {
                    current.mark_refused()
                }
                (NotificationKind::Updated | NotificationKind::Unchanged | NotificationKind::Restored, _) => {
                    needs_read |= fence < notification.fence
                }
                _ => {}
            }
        }
        if needs_read
            && self.lock_pending_reads().insert(notification.name.clone(), notification.kind).is_none()
        {
            let (runtime, service) = (service.runtime.clone(), service.clone());
            runtime.spawn(async move {
                if let Some(replicas) = &service.replicas {
                    replicas.apply_record(&notification.name).await;
                }
            });
        }
    }

    /// Applies the record of a notification. Reads are bounded, and a name is read once for several
    /// notifications.
    async fn apply_record(&self, name: &str) {
        let permit = self.read_permits.acquire().await;
        let event = self.lock_pending_reads().remove(name);
        if let Ok(Some(record)) = self.store.read(name).await
            && let Some(fetched) = FetchedToken::from_record(&record)
        {
            for entry in self.registered_entries(name) {
                entry.apply_remote(fetched.clone(), event == Some(NotificationKind::Unchanged));
            }
        }
        drop(permit);
    }

    /// After a reconnect: writes the tokens that the store lacks, and applies those that are newer in the store.
    async fn resync(&self) -> Result<(), Unavailable> {
        let known: Vec<_> = {
            let by_name = self.lock_entries();
            let each =
                by_name.iter().flat_map(|(name, entries)| entries.iter().map(move |entry| (name, entry)));
            each.map(|(name, entry)| (name.clone(), entry.clone())).collect()
        };
        for (name, entry) in known {
            let Some(entry) = entry.upgrade() else { continue };
            let Some(current) = entry.current.load_full() else { continue };
            let stored = self.store.read(&name).await?.and_then(|record| FetchedToken::from_record(&record));
            let remaining = current.usable_until.saturating_duration_since(Instant::now());
            match stored {
                Some(stored) if stored.response.token == current.value => current.set_fence(stored.fence),
                Some(stored) if !stored.is_not_newer_than(&current) => entry.apply_remote(stored, false),
                stored if !remaining.is_zero() && !current.is_refused() => {
                    let fence = stored.map_or(0, |stored| stored.fence);
                    if let Claim::Acquired { lease, .. } = self.store.claim(&name, fence, false).await? {
                        // Backdated to its real age, so that it is not newer than a record fetched meanwhile.
                        let lease = lease.backdated(current.age(), fence);
                        let value = current.value.expose().as_bytes();
                        if self.store.put(&name, &lease, value, remaining, NotificationKind::Restored).await?
                        {
                            current.set_fence(lease.fence);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn lock_pending_reads(&self) -> MutexGuard<'_, HashMap<String, NotificationKind>> {
        self.pending_reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_entries(&self) -> MutexGuard<'_, HashMap<String, Vec<Weak<AgentToken>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
