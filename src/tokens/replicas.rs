//! Keeps the tokens in memory up to date with the store: reads a record after a notification, and all of them after a
//! reconnect. A request with a cached token that WeCom accepts does not call the store.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use tokio::{sync::Semaphore, time::Instant};

use super::{CachedToken, CredentialId, TokenCache, fetched_token::FetchedToken};
use crate::store::{Claim, Notification, NotificationKind, Store, StoreEvent, StoreEvents, Unavailable};

/// Concurrent reads of records after notifications.
const MAX_CONCURRENT_READS: usize = 16;

/// The store, and the cache entries to update from it.
pub(super) struct ReplicaSync {
    store: Arc<Store>,
    /// The notification whose record is to be read.
    pending_reads: Mutex<HashMap<CredentialId, NotificationKind>>,
    read_permits: Semaphore,
}

/// Handles the store's events until the cache is dropped.
pub(super) async fn run_event_loop(cache: Weak<TokenCache>, mut events: StoreEvents) {
    while let Some(event) = events.recv().await {
        let Some(cache) = cache.upgrade() else { return };
        let Some(replicas) = &cache.service().replicas else { return };
        match event {
            StoreEvent::Notification(notification) => replicas.on_notification(&cache, notification),
            StoreEvent::Disconnected => replicas.store.request_probe(),
            StoreEvent::Connected => {
                let runtime = cache.service().runtime.clone();
                runtime.spawn(async move {
                    if let Some(replicas) = &cache.service().replicas {
                        let _ = replicas.resync(&cache).await;
                    }
                });
            }
        }
    }
}

impl ReplicaSync {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, pending_reads: Mutex::default(), read_permits: Semaphore::new(MAX_CONCURRENT_READS) }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Handles a notification of another replica, or of this one.
    fn on_notification(&self, cache: &TokenCache, Notification { kind, fence, name }: Notification) {
        self.store.wake_subscribers(&name);
        let entry = CredentialId::from_store_name(&name).and_then(|id| cache.used_entry(&id));
        let Some(entry) = entry else { return };
        let current = entry.current.load_full();
        let known_fence = current.as_ref().map_or(0, |current| current.fence());
        let needs_read = match (kind, current) {
            (NotificationKind::Refused, Some(current)) if known_fence == fence => {
                current.mark_refused();
                false
            }
            (NotificationKind::Updated | NotificationKind::Unchanged | NotificationKind::Restored, _) => {
                known_fence < fence
            }
            _ => false,
        };
        if needs_read && self.pending_reads.lock().insert(entry.id, kind).is_none() {
            let runtime = entry.service.runtime.clone();
            runtime.spawn(async move {
                if let Some(replicas) = &entry.service.replicas {
                    replicas.apply_record(&entry).await;
                }
            });
        }
    }

    /// Applies the record of a notification. Reads are bounded, and a name is read once for several
    /// notifications.
    async fn apply_record(&self, entry: &Arc<CachedToken>) {
        let permit = self.read_permits.acquire().await;
        let kind = self.pending_reads.lock().remove(&entry.id);
        if let Ok(Some(record)) = self.store.read(&entry.id.store_name()).await
            && let Some(fetched) = FetchedToken::from_record(&record)
        {
            entry.apply_remote(fetched, kind == Some(NotificationKind::Unchanged));
        }
        drop(permit);
    }

    /// After a reconnect: writes the tokens that the store lacks, and applies those that are newer in the store.
    async fn resync(&self, cache: &TokenCache) -> Result<(), Unavailable> {
        for entry in cache.used_entries() {
            let (name, Some(current)) = (entry.id.store_name(), entry.current.load_full()) else { continue };
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
                        entry.forget_if_discarded();
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
