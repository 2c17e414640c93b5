//! One fetch of a ticket for all replicas, as for tokens: whoever holds the lease in the store fetches it, the others take
//! what it puts there.
//!
//! The store is asked only where no ticket is kept in memory. While it is away each replica fetches by itself.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, time::Instant};

use super::{Kept, LONGEST_LIFE, TicketKind, TicketSlot};
use crate::{
    secret::Masked,
    store::{Away, Claim, Event, Lease, Record, Store},
    tokens::Credentials,
};

/// How long another replica's fetch is waited for before this one fetches by itself.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long other replicas answer what WeCom said instead of a ticket: long enough for those who waited for it.
const TOLD: Duration = Duration::from_secs(1);

/// What the other replicas have of a ticket that this one lacks.
#[derive(Debug)]
pub enum Elsewhere {
    /// The ticket, as WeCom would answer it.
    Kept(Bytes),
    /// Another replica has just asked, and WeCom said something else, this.
    Answered(Bytes),
    /// Nothing, and they wait for this one.
    Ours(SharedTurn),
    /// They cannot be asked.
    Unknown,
}

/// The right to fetch a ticket for all replicas. It ends when it is dropped.
#[derive(Debug)]
pub struct SharedTurn {
    store: Arc<Store>,
    name: String,
    lease: Option<Lease>,
}

/// A ticket as it lies in the store, for as long as it is used.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    ticket: &'a str,
    /// How much longer than that it is valid.
    then_ms: u64,
}

impl TicketSlot {
    /// Asks the store for a ticket newer than the one that this slot has had, or for the right to fetch it.
    pub async fn elsewhere(
        &self,
        kind: TicketKind,
        credentials: &Credentials,
        store: &Arc<Store>,
    ) -> Elsewhere {
        let name = credentials.name_in_store(kind.as_str());
        let mut held = self.kept().as_ref().map_or(0, |kept| kept.fence);
        let (watch, give_up) = (store.watch(&name), Instant::now() + PATIENCE);
        while Instant::now() < give_up {
            match store.claim(&name, held, false).await {
                Err(Away) => break,
                Ok(Claim::Record(record)) => match self.take_in(&record) {
                    Some(answer) => return Elsewhere::Kept(answer),
                    None => held = record.fence,
                },
                Ok(Claim::Failed { failure, .. }) => return Elsewhere::Answered(failure.to_vec().into()),
                Ok(Claim::Taken { left }) => watch.news(left).await,
                Ok(Claim::Ours { lease, .. }) => {
                    drop(watch);
                    return Elsewhere::Ours(SharedTurn { store: store.clone(), name, lease: Some(lease) });
                }
            }
        }
        Elsewhere::Unknown
    }

    /// Keeps what another replica got.
    fn take_in(&self, record: &Record) -> Option<Bytes> {
        let Stored { ticket, then_ms } = serde_json::from_slice(&record.value).ok()?;
        let (now, ticket) = (Instant::now(), Masked::new(ticket));
        let usable_until = now + record.life.min(LONGEST_LIFE);
        let expires = usable_until + Duration::from_millis(then_ms).min(LONGEST_LIFE);
        *self.kept() = Some(Kept { ticket, usable_until, expires, fence: record.fence });
        self.answer(now)
    }

    /// What others may have of the kept ticket, and for how long.
    fn to_store(&self, fence: u64) -> Option<(Vec<u8>, Duration)> {
        let mut kept = self.kept();
        let kept = kept.as_mut()?;
        kept.fence = fence;
        let left = kept.usable_until.checked_duration_since(Instant::now())?;
        let then_ms = (kept.expires - kept.usable_until).as_millis().try_into().ok()?;
        let value = serde_json::to_vec(&Stored { ticket: kept.ticket.expose(), then_ms }).ok()?;
        Some((value, left))
    }
}

impl SharedTurn {
    /// Keeps the right as long as `fetching` takes.
    pub async fn hold<T>(&self, fetching: impl Future<Output = T>) -> T {
        match &self.lease {
            Some(lease) => self.store.while_extending(&self.name, lease, fetching).await,
            None => fetching.await,
        }
    }

    /// Tells the others what WeCom answered: the ticket that the slot keeps of it by now, or else `body` itself.
    pub async fn tell(mut self, slot: &TicketSlot, body: &[u8]) {
        let Some(lease) = self.lease.take() else { return };
        let _ = match slot.to_store(lease.fence).filter(|_| slot.answer(Instant::now()).is_some()) {
            Some((value, life)) => {
                self.store.put(&self.name, &lease, &value, life, Event::Renewed).await.map(|_| ())
            }
            None => self.store.end(&self.name, &lease, Some((body, TOLD))).await,
        };
    }
}

impl Drop for SharedTurn {
    fn drop(&mut self) {
        if let (Some(lease), Ok(runtime)) = (self.lease.take(), Handle::try_current()) {
            let (store, name) = (self.store.clone(), std::mem::take(&mut self.name));
            runtime.spawn(async move { store.end(&name, &lease, None).await });
        }
    }
}
