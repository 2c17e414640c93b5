//! The end of an entry whose owner is gone for good: what replicas share of it is deleted.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{CachedToken, CredentialId, TokenCache, kinds::ticket::TicketKind};
use crate::{secret::random_fraction, time::backoff::BackoffRange};

/// The delays before further attempts where the store is away.
const BACKOFF_RANGE: BackoffRange =
    BackoffRange { min: Duration::from_secs(1), max: Duration::from_secs(600) };
/// Attempts within some 40 minutes. A value that is never deleted expires.
const MAX_ATTEMPTS: u32 = 13;

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
                for earlier in 0..MAX_ATTEMPTS {
                    if store.forget(&name).await.is_ok() || earlier + 1 == MAX_ATTEMPTS {
                        break;
                    }
                    sleep(BACKOFF_RANGE.jittered(earlier, random_fraction())).await;
                }
            }
        });
    }
}
