//! One fetch of a ticket for all replicas, as for tokens: whoever holds the lease in the store fetches it, the others take
//! what it puts there.
//!
//! The store is asked only where no ticket is kept in memory. While it is away each replica fetches by itself.

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

/// How long another replica's fetch is waited for before this one fetches by itself.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(45);
/// How long other replicas answer what WeCom said instead of a ticket: long enough for those who waited for it.
const RESPONSE_TTL: Duration = Duration::from_secs(1);

/// What the other replicas have of a ticket that this one lacks.
#[derive(Debug)]
pub enum SharedLookup {
    /// The ticket, as WeCom would answer it.
    Ticket(Bytes),
    /// Another replica has just asked, and WeCom said something else, this.
    Response(Bytes),
    /// Nothing, and they wait for this one.
    Lease(FetchLease),
    /// They cannot be asked.
    Unavailable,
}

/// The right to fetch a ticket for all replicas. It ends when it is dropped.
#[derive(Debug)]
pub struct FetchLease {
    store: Arc<Store>,
    name: String,
    lease: Option<Lease>,
}

/// A ticket as it lies in the store, for as long as it is used.
#[derive(Serialize, Deserialize)]
struct StoredTicket<'a> {
    ticket: &'a str,
    /// How much longer than that it is valid.
    then_ms: u64,
}

impl TicketEntry {
    /// Asks the store for a ticket newer than the one that this slot has had, or for the right to fetch it.
    pub async fn lookup_shared(
        &self,
        kind: TicketKind,
        credentials: &Credentials,
        store: &Arc<Store>,
    ) -> SharedLookup {
        let name = credentials.store_name(kind.as_str());
        let mut held = self.lock_cached().as_ref().map_or(0, |kept| kept.fence);
        let (watch, give_up) = (store.subscribe(&name), Instant::now() + REPLICA_TIMEOUT);
        while Instant::now() < give_up {
            match store.claim(&name, held, false).await {
                Err(Unavailable) => break,
                Ok(Claim::Newer(record)) => match self.insert_record(&record) {
                    Some(answer) => return SharedLookup::Ticket(answer),
                    None => held = record.fence,
                },
                Ok(Claim::Failed { failure, .. }) => return SharedLookup::Response(failure.to_vec().into()),
                Ok(Claim::Held { remaining: left }) => watch.wait(left).await,
                Ok(Claim::Acquired { lease, .. }) => {
                    drop(watch);
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

    /// Keeps what another replica got.
    fn insert_record(&self, record: &StoreRecord) -> Option<Bytes> {
        let StoredTicket { ticket, then_ms } = serde_json::from_slice(&record.value).ok()?;
        let (now, ticket) = (Instant::now(), Masked::new(ticket));
        let usable_until = now + record.ttl.min(MAX_TTL);
        let expires = usable_until + Duration::from_millis(then_ms).min(MAX_TTL);
        *self.lock_cached() =
            Some(CachedTicket { ticket, usable_until, expires_at: expires, fence: record.fence });
        self.response(now)
    }

    /// What others may have of the kept ticket, and for how long.
    fn stored_value(&self, fence: u64) -> Option<(Vec<u8>, Duration)> {
        let mut kept = self.lock_cached();
        let kept = kept.as_mut()?;
        kept.fence = fence;
        let left = kept.usable_until.checked_duration_since(Instant::now())?;
        let then_ms = (kept.expires_at - kept.usable_until).as_millis().try_into().ok()?;
        let value = serde_json::to_vec(&StoredTicket { ticket: kept.ticket.expose(), then_ms }).ok()?;
        Some((value, left))
    }
}

impl FetchLease {
    /// Keeps the right as long as `fetching` takes.
    pub async fn extend_while<T>(&self, fetching: impl Future<Output = T>) -> T {
        match &self.lease {
            Some(lease) => self.store.extend_lease_while(&self.name, lease, fetching).await,
            None => fetching.await,
        }
    }

    /// Tells the others what WeCom answered: the ticket that the slot keeps of it by now, or else `body` itself.
    pub async fn publish(mut self, slot: &TicketEntry, body: &[u8]) {
        let Some(lease) = self.lease.take() else { return };
        let _ = match slot.stored_value(lease.fence).filter(|_| slot.response(Instant::now()).is_some()) {
            Some((value, life)) => {
                self.store.put(&self.name, &lease, &value, life, NotificationKind::Updated).await.map(|_| ())
            }
            None => self.store.end_lease(&self.name, &lease, Some((body, RESPONSE_TTL))).await,
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
