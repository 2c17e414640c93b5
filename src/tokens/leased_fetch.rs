//! One fetch for all replicas: [`take_or_fetch`] takes a value from the store, or fetches it under a lease and
//! publishes it. What differs between tokens and tickets is in [`LeasedFetch`].
//!
//! The store's rules: a claim returns a record that is newer than the caller's, or a failure whose backoff has not
//! ended, or the lease to fetch, or how long another replica has that lease. While the store is unavailable a replica
//! fetches without a lease.

use std::{mem, ops::ControlFlow, sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::Instant};
use zeroize::Zeroizing;

use crate::store::{Claim, Lease, NotificationKind, Store, StoreRecord};

/// How long a fetch waits for other replicas before it fetches without a lease.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(45);

/// A fetch of one value that replicas share.
pub(super) trait LeasedFetch {
    /// The result for the caller.
    type Output;

    /// The result if the store has a newer record; `None` if the record is of no use.
    fn on_record(&mut self, record: &StoreRecord) -> Option<Self::Output>;

    /// The result if another replica published a failure; `None` to ignore it.
    fn on_failure(&mut self, failure: &[u8]) -> Option<Self::Output>;

    /// Another replica has the lease. Whether to ignore a failure of it.
    fn on_held(&mut self) -> bool;

    /// Fetches the value from WeCom, with or without the lease.
    async fn fetch(&mut self, is_leased: bool) -> Self::Output;

    /// What to tell the other replicas of a fetched value. `earlier_failure`: what the attempt before published, if
    /// it failed.
    fn publication(
        &self,
        fetched: &Self::Output,
        lease: &Lease,
        earlier_failure: Option<&[u8]>,
    ) -> Publication;

    /// The result after the store took the value under this fence (true), or had a newer one (false). `Continue`:
    /// the newer one is to be taken.
    fn on_stored(&mut self, fetched: Self::Output, fence: u64, is_stored: bool) -> ControlFlow<Self::Output>;
}

/// What ends a lease.
pub(super) enum Publication {
    /// A value, how long the store keeps it, and the notification.
    Record(Zeroizing<Vec<u8>>, Duration, NotificationKind),
    /// A failure, and how long other replicas return it; `None` if it does not concern them.
    Failure(Option<(Vec<u8>, Duration)>),
}

/// Takes a value newer than `fence` from the store, or fetches it. `force`: ignores a failure of another replica.
pub(super) async fn take_or_fetch<F: LeasedFetch>(
    store: Option<&Arc<Store>>,
    name: &str,
    mut fence: u64,
    mut force: bool,
    fetch: &mut F,
) -> F::Output {
    let Some(store) = store else { return fetch.fetch(false).await };
    // Before the first claim, so that no notification is missed.
    let subscription = store.subscribe(name);
    let deadline = Instant::now() + REPLICA_TIMEOUT;
    while Instant::now() < deadline {
        let Ok(claim) = store.claim(name, fence, mem::take(&mut force)).await else { break };
        match claim {
            Claim::Newer(record) => match fetch.on_record(&record) {
                Some(output) => return output,
                None => fence = record.fence,
            },
            Claim::Failed { failure, .. } => match fetch.on_failure(&failure) {
                Some(output) => return output,
                None => force = true,
            },
            Claim::Held { remaining } => {
                force = fetch.on_held();
                subscription.wait(remaining).await;
            }
            Claim::Acquired { lease, failure } => {
                let held = HeldLease { store, name, lease: Some(lease.clone()) };
                let failure = failure.as_ref().map(|failure| &failure[..]);
                match fetch_under_lease(held, &lease, failure, fetch).await {
                    ControlFlow::Break(output) => return output,
                    ControlFlow::Continue(()) => fence = lease.fence,
                }
            }
        }
    }
    fetch.fetch(false).await
}

async fn fetch_under_lease<F: LeasedFetch>(
    mut held: HeldLease<'_>,
    lease: &Lease,
    earlier_failure: Option<&[u8]>,
    fetch: &mut F,
) -> ControlFlow<F::Output> {
    let HeldLease { store, name, .. } = held;
    let fetched = store.extend_lease_while(name, lease, fetch.fetch(true)).await;
    let is_stored = match fetch.publication(&fetched, lease, earlier_failure) {
        Publication::Record(value, ttl, kind) => store.put(name, lease, &value, ttl, kind).await.ok(),
        Publication::Failure(failure) => {
            let failure = failure.as_ref().map(|(failure, backoff)| (&failure[..], *backoff));
            let _ = store.end_lease(name, lease, failure).await;
            None
        }
    };
    held.lease = None;
    match is_stored {
        Some(is_stored) => fetch.on_stored(fetched, lease.fence, is_stored),
        None => ControlFlow::Break(fetched),
    }
}

/// A lease, ended when dropped, so that a cancelled fetch lets the next replica begin.
struct HeldLease<'a> {
    store: &'a Arc<Store>,
    name: &'a str,
    lease: Option<Lease>,
}

impl Drop for HeldLease<'_> {
    fn drop(&mut self) {
        if let (Some(lease), Ok(runtime)) = (self.lease.take(), Handle::try_current()) {
            let (store, name) = (self.store.clone(), self.name.to_owned());
            runtime.spawn(async move { store.end_lease(&name, &lease, None).await });
        }
    }
}
