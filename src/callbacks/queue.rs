//! The queue of messages in the state: one record for each message and target.
//!
//! Pending records are named by callback, target, and the time at which they are due (of an ordered target: at which they
//! arrived), so that a scan finds what is to be delivered next without reading the rest.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::stored_event::{EventHead, StoredEvent};
use crate::{
    secret::{hex, random_u64},
    state::{Collection, PageLimit, Precondition, ReadError, Record, State, Write, WriteError},
};

/// How long a message is recognised when WeCom sends it again.
const DEDUPE_TTL: Duration = Duration::from_secs(20 * 60);
/// How long a dead letter is kept.
const DEAD_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Messages that are read from the state at once.
pub(super) const MAX_FETCHED: usize = 32;
/// Their size, which the last of them may exceed: a message has up to 1 MiB, a raw one twice that.
const MAX_FETCHED_BYTES: usize = 4 << 20;
/// The same for one of many readers, which may read slowly.
const MAX_PULLED_BYTES: usize = 64 << 10;
/// How long a message is kept for those who read it.
const PULL_TTL: Duration = Duration::from_secs(24 * 3600);

/// The queue. Times are in milliseconds since 1970.
#[derive(Clone)]
pub(super) struct CallbackQueue {
    pub(super) state: Arc<State>,
}

/// A message for one target, to be put into the queue.
pub(super) struct NewEvent<'a> {
    pub(super) target: &'a str,
    pub(super) kind: NewEventKind,
    pub(super) event: StoredEvent,
}

/// Which queue of a target a message is put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NewEventKind {
    /// It is sent in the order of what is due.
    Due {
        /// Whether its first attempt, for a reply, is made without the queue.
        is_sent_already: bool,
    },
    /// It is sent in the order of arrival.
    Ordered,
    /// Clients read it.
    Pull,
}

/// A message that waits for an attempt, and its record.
pub(super) struct PendingEvent {
    pub(super) name: String,
    /// What the record must be for its attempt to count: another process may have made one since.
    pub(super) precondition: Precondition,
    pub(super) event: StoredEvent,
}

impl PendingEvent {
    fn delete(&self) -> Write {
        Write::delete(Collection::CallbackPending, &*self.name).when(self.precondition)
    }
}

/// A conflict means that another process has stored the outcome of an attempt of its own.
fn done_unless_unavailable(written: Result<u64, WriteError>) -> Result<(), WriteError> {
    match written {
        Ok(_) | Err(WriteError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

impl CallbackQueue {
    /// Stores a message for its targets, and a `note` with it, durably, unless it was stored within the last 20 minutes; returns the version of
    /// its records if it is new.
    pub(super) async fn insert(
        &self,
        callback: &str,
        message_hash: &str,
        events: &[NewEvent<'_>],
        note: Option<Write>,
        now: u64,
    ) -> Result<Option<u64>, WriteError> {
        let mut writes = vec![
            Write::put(Collection::CallbackDedupe, format!("{callback}/{message_hash}"), *b"")
                .when(Precondition::Absent)
                .expires_at(expiry(now, DEDUPE_TTL)),
        ];
        writes.extend(events.iter().map(|NewEvent { target, kind, event }| match kind {
            NewEventKind::Due { .. } => pending_write(callback, target, false, event),
            NewEventKind::Ordered => pending_write(callback, target, true, event),
            NewEventKind::Pull => {
                let name = format!("{callback}/{target}/{}", event.head.id);
                let write = Write::put_secret(Collection::CallbackPull, name, event.encode());
                write.expires_at(expiry(now, PULL_TTL))
            }
        }));
        writes.extend(note);
        match self.state.write(writes).await {
            Ok(version) => Ok(Some(version)),
            Err(WriteError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next messages of a target in the order of their names, at most `max_records`; and whether there may be more.
    pub(super) async fn pending(
        &self,
        callback: &str,
        target: &str,
        max_records: usize,
    ) -> Result<(Vec<PendingEvent>, bool), ReadError> {
        let limit = PageLimit { records: max_records, bytes: MAX_FETCHED_BYTES };
        let prefix = prefix(callback, target);
        let page = self.state.scan_page(Collection::CallbackPending, [&prefix, ""], limit).await?;
        Ok((page.records.into_iter().filter_map(pending_event).collect(), page.after.is_some()))
    }

    /// Removes a message that was delivered, whatever has become of its record.
    pub(super) async fn complete(&self, name: &str, note: Option<Write>) -> Result<(), WriteError> {
        let delete = Write::delete(Collection::CallbackPending, name);
        self.state.write([delete].into_iter().chain(note).collect()).await.map(drop)
    }

    /// Replaces a message by its next attempt, unless its record has changed since it was read.
    pub(super) async fn retry(
        &self,
        callback: &str,
        target: &str,
        ordered: bool,
        pending: &PendingEvent,
        note: Option<Write>,
    ) -> Result<(), WriteError> {
        let write = pending_write(callback, target, ordered, &pending.event);
        let mut writes = if write.name == pending.name {
            vec![write.when(pending.precondition)]
        } else {
            vec![pending.delete(), write]
        };
        writes.extend(note);
        done_unless_unavailable(self.state.write(writes).await)
    }

    /// Makes a message a dead letter, unless its record has changed since it was read.
    pub(super) async fn bury(
        &self,
        callback: &str,
        target: &str,
        pending: &PendingEvent,
        note: Option<Write>,
        now: u64,
    ) -> Result<(), WriteError> {
        let name = format!("{callback}/{target}/{}", pending.event.head.id);
        let dead = Write::put_secret(Collection::CallbackDead, name, pending.event.encode());
        let writes =
            [pending.delete(), dead.expires_at(expiry(now, DEAD_TTL))].into_iter().chain(note).collect();
        done_unless_unavailable(self.state.write(writes).await)
    }

    /// Puts a dead letter back into the queue; `false` if there is none of this id.
    pub(super) async fn redeliver(
        &self,
        callback: &str,
        target: &str,
        id: &str,
        ordered: bool,
        now: u64,
    ) -> Result<bool, WriteError> {
        let name = format!("{callback}/{target}/{id}");
        let read = self.state.read(Collection::CallbackDead, &name).await;
        let record = read.map_err(|error| WriteError::Unavailable(error.to_string()))?;
        let Some((record, mut event)) = record.and_then(|record| {
            let event = StoredEvent::decode(record.value.as_deref()?)?;
            Some((record, event))
        }) else {
            return Ok(false);
        };
        let lifetime = event.head.deadline.saturating_sub(event.head.received_at);
        (event.head.due, event.head.deadline, event.head.attempts) = (now, now.saturating_add(lifetime), 0);
        let delete =
            Write::delete(Collection::CallbackDead, name).when(Precondition::Version(record.version));
        let pending = pending_write(callback, target, ordered, &event);
        match self.state.write(vec![delete, pending]).await {
            Ok(_) => Ok(true),
            Err(WriteError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Messages that clients read.
impl CallbackQueue {
    /// The next events of a pull target behind a version, in the order in which they were stored, each with its version.
    pub(super) async fn pull_after(
        &self,
        callback: &str,
        target: &str,
        version: u64,
    ) -> Result<Vec<(u64, StoredEvent)>, ReadError> {
        let limit = PageLimit { records: MAX_FETCHED, bytes: MAX_PULLED_BYTES };
        let records = self.state.scan_since(&prefix(callback, target), version, limit).await?;
        let decode = |record: Record| Some((record.version, StoredEvent::decode(record.value.as_deref()?)?));
        Ok(records.into_iter().filter_map(decode).collect())
    }

    /// The version of an event that a client has read; 0, the start, if it is not kept any more.
    pub(super) async fn pull_position(&self, callback: &str, target: &str, id: &str) -> u64 {
        let name = format!("{callback}/{target}/{id}");
        let record = self.state.read(Collection::CallbackPull, &name).await.ok().flatten();
        record.map_or(0, |record| record.version)
    }
}

/// What operators see of the queue.
impl CallbackQueue {
    /// How many messages of a target a collection has, and the time of arrival of the oldest.
    pub(super) async fn summarize(
        &self,
        collection: Collection,
        callback: &str,
        target: &str,
    ) -> Result<(u64, Option<u64>), ReadError> {
        let summary = self.state.summarize(collection, &prefix(callback, target), ID_CHARS).await?;
        Ok((summary.count, summary.min_suffix.as_deref().and_then(arrival_of)))
    }

    /// What `summarize` makes of the messages of a callback in a collection, in the order of their names, at most `limit`;
    /// and where the list goes on. Few messages are in memory at the same time, whatever `limit` is.
    pub(super) async fn list<T>(
        &self,
        collection: Collection,
        [callback, after]: [&str; 2],
        limit: usize,
        summarize: impl Fn(&str, EventHead) -> T,
    ) -> Result<(Vec<T>, Option<String>), ReadError> {
        let prefix = format!("{callback}/");
        let (mut found, mut after) = (Vec::new(), Some(after.to_owned()));
        while let Some(begin) = after.take_if(|_| found.len() < limit) {
            let page_limit =
                PageLimit { records: MAX_FETCHED.min(limit - found.len()), bytes: MAX_FETCHED_BYTES };
            let page = self.state.scan_page(collection, [&prefix, &begin], page_limit).await?;
            found.extend(page.records.into_iter().filter_map(|record| {
                let event = StoredEvent::decode(record.value.as_deref()?)?;
                Some(summarize(&record.name, event.head))
            }));
            after = page.after;
        }
        Ok((found, after))
    }
}

/// The length of a message's id.
const ID_CHARS: usize = 28;
/// The digits of the time of arrival at its beginning.
const TIME_DIGITS: usize = 12;

/// The time of arrival that an id contains.
fn arrival_of(id: &str) -> Option<u64> {
    u64::from_str_radix(id.get(..TIME_DIGITS)?, 16).ok()
}

/// A message's id: sorted by arrival, unique among all processes.
pub(super) fn new_id(now: u64) -> String {
    /// Sorts what arrives within a millisecond.
    static SEQUENCE: AtomicU32 = AtomicU32::new(0);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
    format!("{now:012x}{sequence:06x}{:010x}", random_u64() >> 24)
}

/// The hash by which a message is recognised when it is sent again.
pub(super) fn message_hash(receive_id: &str, message: &[u8]) -> String {
    let mut hash = Sha256::new();
    // The length parts the two.
    hash.update((receive_id.len() as u64).to_be_bytes());
    hash.update(receive_id.as_bytes());
    hash.update(message);
    hex::encode(&hash.finalize())
}

/// What all records of a target begin with.
pub(super) fn prefix(callback: &str, target: &str) -> String {
    format!("{callback}/{target}/")
}

fn pending_event(record: Record) -> Option<PendingEvent> {
    let event = StoredEvent::decode(record.value.as_deref()?)?;
    Some(PendingEvent { name: record.name, precondition: Precondition::Version(record.version), event })
}

/// The name of a pending record.
pub(super) fn pending_name(callback: &str, target: &str, ordered: bool, event: &StoredEvent) -> String {
    let order = if ordered { event.head.received_at } else { event.head.due };
    format!("{callback}/{target}/{order:014}-{}", event.head.id)
}

fn pending_write(callback: &str, target: &str, ordered: bool, event: &StoredEvent) -> Write {
    let (head, name) = (&event.head, pending_name(callback, target, ordered, event));
    let write = Write::put_secret(Collection::CallbackPending, name, event.encode());
    // Those of a target that was removed go in the end.
    write.expires_at(expiry(head.deadline, DEAD_TTL))
}

/// In seconds since 1970, as the state wants it.
fn expiry(now: u64, ttl: Duration) -> u64 {
    now / 1000 + ttl.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_arrival() {
        let ids: Vec<_> = [1, 1, 1_700_000_000_000, 1_700_000_000_001].map(new_id).to_vec();
        assert!(ids.is_sorted(), "{ids:?}");
        assert_eq!(arrival_of(&ids[2]), Some(1_700_000_000_000));
        assert!(ids.iter().all(|id| id.len() == ID_CHARS), "{ids:?}");
    }

    #[test]
    fn hash_parts_receiveid_and_message() {
        assert_ne!(message_hash("ww1", b"x"), message_hash("ww", b"1x"));
        assert_eq!(message_hash("ww1", b"x"), message_hash("ww1", b"x"));
    }
}
