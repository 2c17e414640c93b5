//! The last exchanges, kept for whoever looks into what happens.
//!
//! Each worker writes into a ring of its own. Who reads copies a few exchanges at a time, so that no worker waits for
//! longer than that takes, and a reader who is too slow finds that some have been written over.

mod detail;
mod exchange;
pub mod redact;
mod redaction_queue;

use std::{
    cmp::Reverse,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::redaction_queue::RedactionQueue;
pub use self::{
    detail::{AttemptDetail, CapturedMessage, ExchangeDetail},
    exchange::{Exchange, ExchangeFilter},
    redaction_queue::{DetailCell, DropReason, RedactionJob},
};
use crate::telemetry::access_log::AccessLogEntry;

/// Copied at a time, while the worker may have to wait.
const MAX_BATCH: u64 = 32;
/// A worker keeps so many, if they are to be kept at all, however many workers there are.
const MIN_RING_CAPACITY: usize = 1000;
/// Of so many exchanges a worker keeps the details; each may take some ten KiB.
const MAX_DETAILS_PER_RING: usize = 200;

/// The rings of all workers.
pub struct RecentExchanges {
    capacity: usize,
    ring_capacity: usize,
    rings: Mutex<Vec<Arc<Mutex<ExchangeRing>>>>,
    redaction_queue: RedactionQueue,
}

/// One worker's ring, and the way to the thread that redacts.
pub struct ExchangeRecorder {
    ring: Arc<Mutex<ExchangeRing>>,
    redaction_queue: RedactionQueue,
}

struct ExchangeRing {
    slots: Vec<Exchange>,
    capacity: usize,
    /// How many were written so far; the nth is at n modulo the room.
    written: u64,
    /// Which of them have details, the oldest first.
    detailed_indices: VecDeque<u64>,
}

impl ExchangeRecorder {
    /// Keeps an exchange, by the line that the access log has of it. What was captured of it is redacted elsewhere.
    pub fn record(&self, line: &AccessLogEntry<'_>, capture: Option<RedactionJob>) {
        let captured = capture.map(|capture| self.redaction_queue.submit(capture));
        lock(&self.ring).push(line, captured);
    }
}

impl ExchangeRing {
    fn push(&mut self, line: &AccessLogEntry<'_>, detail: Option<Arc<DetailCell>>) {
        if detail.is_some() {
            self.evict_excess_details();
        }
        let place = (self.written % self.capacity as u64) as usize;
        if place == self.slots.len() {
            self.slots.push(Exchange::default());
        }
        self.slots[place].overwrite(line, detail);
        self.written += 1;
    }

    /// The next one has details; the oldest ones lose theirs when there are too many.
    fn evict_excess_details(&mut self) {
        self.detailed_indices.push_back(self.written);
        if self.detailed_indices.len() > MAX_DETAILS_PER_RING
            && let Some(nth) = self.detailed_indices.pop_front()
            && nth >= self.oldest_index()
        {
            let place = (nth % self.capacity as u64) as usize;
            self.slots[place].detail = None;
        }
    }

    /// The first that is still there.
    fn oldest_index(&self) -> u64 {
        self.written - self.slots.len() as u64
    }

    fn get(&self, nth: u64) -> &Exchange {
        &self.slots[(nth % self.capacity as u64) as usize]
    }
}

impl RecentExchanges {
    /// At most so many exchanges, written by so many workers. A worker keeps all of them if they are few, and else its
    /// share.
    pub fn new(capacity: usize, workers: usize) -> Self {
        let ring_capacity = (capacity / workers.max(1)).max(capacity.min(MIN_RING_CAPACITY));
        Self { capacity, ring_capacity, rings: Mutex::default(), redaction_queue: RedactionQueue::default() }
    }

    /// Another worker's ring; `None` where nothing is to be kept.
    pub fn add_recorder(&self) -> Option<ExchangeRecorder> {
        let ring = Arc::new(Mutex::new(ExchangeRing {
            slots: Vec::new(),
            capacity: self.ring_capacity,
            written: 0,
            detailed_indices: VecDeque::new(),
        }));
        (self.capacity > 0).then(|| {
            lock(&self.rings).push(ring.clone());
            ExchangeRecorder { ring, redaction_queue: self.redaction_queue.clone() }
        })
    }

    /// How many captures were dropped for this reason.
    pub fn captures_dropped(&self, reason: DropReason) -> u64 {
        self.redaction_queue.dropped(reason)
    }

    /// How many are kept at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The newest ones that pass the filter, the newest first.
    pub fn latest(&self, filter: &ExchangeFilter, limit: usize) -> Vec<Exchange> {
        let rings = lock(&self.rings).clone();
        let mut found: Vec<_> = rings.iter().flat_map(|ring| latest_in_ring(ring, filter, limit)).collect();
        found.sort_by_key(|exchange| Reverse(exchange.ended_at));
        found.truncate(limit);
        found
    }

    /// Follows what is written from now on.
    pub fn tail(&self) -> ExchangeTail {
        let rings = lock(&self.rings).clone();
        ExchangeTail {
            positions: rings.into_iter().map(|ring| (lock(&ring).written, ring.clone())).collect(),
        }
    }
}

/// The newest of one ring.
fn latest_in_ring(ring: &Mutex<ExchangeRing>, filter: &ExchangeFilter, limit: usize) -> Vec<Exchange> {
    let (mut found, mut before) = (Vec::new(), u64::MAX);
    while found.len() < limit {
        let ring = lock(ring);
        let upto = before.min(ring.written);
        let from = upto.saturating_sub(MAX_BATCH).max(ring.oldest_index());
        let passing = (from..upto).rev().map(|nth| ring.get(nth)).filter(|exchange| filter.matches(exchange));
        found.extend(passing.take(limit - found.len()).cloned());
        if from >= upto {
            break;
        }
        before = from;
    }
    found
}

/// Where one reader has come to.
pub struct ExchangeTail {
    positions: Vec<(u64, Arc<Mutex<ExchangeRing>>)>,
}

impl ExchangeTail {
    /// What has been written since the last time and passes the filter, about in the order in which it was, and how many
    /// were written over before they could be looked at.
    pub fn read(&mut self, filter: &ExchangeFilter) -> (Vec<Exchange>, u64) {
        let (mut found, mut lost) = (Vec::new(), 0);
        for (seen, ring) in &mut self.positions {
            // Not beyond what is there now: a busy worker would be followed for ever.
            let upto = lock(ring).written;
            while *seen < upto {
                let ring = lock(ring);
                let from = ring.oldest_index().max(*seen);
                lost += from - *seen;
                let end = (from + MAX_BATCH).min(ring.written);
                found.extend((from..end).map(|nth| ring.get(nth)).filter(|it| filter.matches(it)).cloned());
                *seen = end;
            }
        }
        found.sort_by_key(|exchange| exchange.ended_at);
        (found, lost)
    }
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
