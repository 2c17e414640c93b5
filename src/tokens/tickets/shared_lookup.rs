//! One fetch of a ticket for all replicas, as for tokens: the replica that holds the lease in the store fetches,
//! the others take its result.
//!
//! The store is called only if no ticket is cached in memory. While it is unavailable each replica fetches by
//! itself.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, time::Instant};

use super::{CachedTicket, MAX_TTL, TicketEntry, TicketKind};
use crate::{
    secret::Masked,
    store::{Claim, Lease, NotificationKind, Store, StoreRecord, Unavailable},
    tokens::Credentials,
};

/// How long to wait for another replica's fetch before fetching without a lease.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(45);
/// How long other replicas return WeCom's error response: long enough for requests that waited for it.
const ERROR_RESPONSE_TTL: Duration = Duration::from_secs(1);

/// The result of a lookup in the store.
#[derive(Debug)]
pub enum SharedLookup {
    /// A ticket, as WeCom's response body.
    Ticket(Bytes),
    /// WeCom's error response to another replica's recent fetch.
    ErrorResponse(Bytes),
    /// No ticket; the caller has the lease to fetch it.
    Lease(FetchLease),
    /// The store is unavailable, or the wait timed out.
    Unavailable,
}

/// The lease to fetch a ticket; ended when dropped.
#[derive(Debug)]
pub struct FetchLease {
    store: Arc<Store>,
    name: String,
    lease: Option<Lease>,
}

/// A ticket in the store; the record's TTL is how long it is used. Replicas of two versions must agree on the
/// JSON names.
#[derive(Serialize, Deserialize)]
struct StoredTicket<'a> {
    ticket: &'a str,
    /// Validity beyond the TTL, in milliseconds.
    #[serde(rename = "then_ms")]
    extra_validity_ms: u64,
}

impl TicketEntry {
    /// Looks in the store for a ticket newer than the cached one, or acquires the lease to fetch it.
    pub async fn lookup_shared(
        &self,
        kind: TicketKind,
        credentials: &Credentials,
        store: &Arc<Store>,
    ) -> SharedLookup {
        let name = credentials.store_name(kind.as_str());
        let mut fence = self.lock_cached().as_ref().map_or(0, |cached| cached.fence);
        let (subscription, deadline) = (store.subscribe(&name), Instant::now() + REPLICA_TIMEOUT);
        while Instant::now() < deadline {
            match store.claim(&name, fence, false).await {
                Err(Unavailable) => break,
                Ok(Claim::Newer(record)) => match self.insert_record(&record) {
                    Some(body) => return SharedLookup::Ticket(body),
                    None => fence = record.fence,
                },
                Ok(Claim::Failed { failure, .. }) => {
                    return SharedLookup::ErrorResponse(failure.to_vec().into());
                }
                Ok(Claim::Held { remaining }) => subscription.wait(remaining).await,
                Ok(Claim::Acquired { lease, .. }) => {
                    drop(subscription);
                    return SharedLookup::Lease(FetchLease {
                        store: store.clone(),
                        name,
                        lease: Some(lease),
                    });
                }
            }
        }
        SharedLookup::Unavailable
    }

    /// Caches the ticket of a record.
    fn insert_record(&self, record: &StoreRecord) -> Option<Bytes> {
        let StoredTicket { ticket, extra_validity_ms } = serde_json::from_slice(&record.value).ok()?;
        let (now, ticket) = (Instant::now(), Masked::new(ticket));
        let usable_until = now + record.ttl.min(MAX_TTL);
        let expires_at = usable_until + Duration::from_millis(extra_validity_ms).min(MAX_TTL);
        *self.lock_cached() = Some(CachedTicket { ticket, usable_until, expires_at, fence: record.fence });
        self.response(now)
    }

    /// Sets the fence of the cached ticket, and returns it as a store value with its TTL.
    fn set_fence_and_encode(&self, fence: u64) -> Option<(Vec<u8>, Duration)> {
        let mut cached = self.lock_cached();
        let cached = cached.as_mut()?;
        cached.fence = fence;
        let remaining = cached.usable_until.checked_duration_since(Instant::now())?;
        let extra_validity_ms = (cached.expires_at - cached.usable_until).as_millis().try_into().ok()?;
        let value =
            serde_json::to_vec(&StoredTicket { ticket: cached.ticket.expose(), extra_validity_ms }).ok()?;
        Some((value, remaining))
    }
}

impl FetchLease {
    /// Extends the lease until `fetch` completes.
    pub async fn extend_while<T>(&self, fetch: impl Future<Output = T>) -> T {
        match &self.lease {
            Some(lease) => self.store.extend_lease_while(&self.name, lease, fetch).await,
            None => fetch.await,
        }
    }

    /// Publishes the result to the other replicas: the ticket that `entry` has cached by now, or else WeCom's
    /// response `body`.
    pub async fn publish(mut self, entry: &TicketEntry, body: &[u8]) {
        let Some(lease) = self.lease.take() else { return };
        let _ = match entry
            .set_fence_and_encode(lease.fence)
            .filter(|_| entry.response(Instant::now()).is_some())
        {
            Some((value, ttl)) => {
                self.store.put(&self.name, &lease, &value, ttl, NotificationKind::Updated).await.map(|_| ())
            }
            None => self.store.end_lease(&self.name, &lease, Some((body, ERROR_RESPONSE_TTL))).await,
        };
    }
}

impl Drop for FetchLease {
    fn drop(&mut self) {
        if let (Some(lease), Ok(runtime)) = (self.lease.take(), Handle::try_current()) {
            let (store, name) = (self.store.clone(), std::mem::take(&mut self.name));
            runtime.spawn(async move { store.end_lease(&name, &lease, None).await });
        }
    }
}
