//! The end of an entry whose owner is gone for good: what replicas share of it is deleted.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{CachedToken, CredentialId, TokenCache, kinds::ticket::TicketKind};

/// The delays before further attempts where the store is away. A value that is never deleted expires.
const RETRY_INTERVALS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(1800),
];

impl TokenCache {
    /// Removes an entry, and deletes its token and tickets in the store, in the background.
    pub fn discard(&self, entry: &Arc<CachedToken>) {
        self.remove(entry);
        // Before the deletion: a fetch that ends later sees it and deletes what it has written.
        entry.discarded.store(true, Ordering::SeqCst);
        entry.current.store(None);
        entry.forget_shared();
    }
}

impl CachedToken {
    /// To be called after a fetch has written to the store.
    pub(super) fn forget_if_discarded(self: &Arc<Self>) {
        if self.discarded.load(Ordering::SeqCst) {
            self.forget_shared();
        }
    }

    fn forget_shared(self: &Arc<Self>) {
        let Some(store) = self.store().cloned() else { return };
        let tickets = TicketKind::ALL.map(|kind| CredentialId::new(kind.id_kind(), &self.credentials));
        let names: Vec<_> = [self.id].into_iter().chain(tickets).map(|id| id.store_name()).collect();
        self.service.runtime.spawn(async move {
            for name in names {
                let mut delays = RETRY_INTERVALS.into_iter();
                while store.forget(&name).await.is_err() {
                    let Some(delay) = delays.next() else { break };
                    sleep(delay).await;
                }
            }
        });
    }
}
