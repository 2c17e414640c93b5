//! Recent exchanges, kept in memory for the admin API.
//!
//! Each worker writes to its own rings: one of all exchanges, and one of those that failed, were retried or were slow. A reader copies small batches, so that the worker's wait for the lock is
//! short; a reader that is too slow misses overwritten exchanges.

mod detail;
mod exchange;
mod notable;
mod raw_exchange;
pub(crate) mod redact;
mod redaction_queue;

use std::{
    cmp::Reverse,
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;

pub(crate) use self::raw_exchange::{BodyExcerpt, RawAttempts, RawExchange, RawHeaders, RawMessage};
pub use self::{
    detail::{AttemptDetail, CapturedMessage, ExchangeDetail},
    exchange::{ErrcodeFilter, Exchange, ExchangeFilter, FailureFilter},
    redaction_queue::{DetailCell, DropReason, RedactionJob},
};
use self::{exchange::is_notable, notable::NotableByAgent, redaction_queue::RedactionQueue};
use crate::telemetry::access_log::AccessLogEntry;

/// Maximum exchanges examined per lock.
const MAX_EXCHANGES_PER_LOCK: u64 = 32;
/// Minimum capacity of a worker's ring, within the configured total.
const MIN_RING_CAPACITY: usize = 1000;
/// Maximum exchanges with details in a ring; the details of one may take tens of KiB.
const MAX_DETAILS_PER_RING: usize = 200;

/// The rings of all workers.
pub struct RecentExchanges {
    capacity: usize,
    ring_capacity: usize,
    rings: Mutex<Vec<Arc<Mutex<ExchangeRing>>>>,
    /// The second ring of each worker, of notable exchanges.
    notable_rings: Mutex<Vec<Arc<Mutex<ExchangeRing>>>>,
    notable_by_agent: Arc<NotableByAgent>,
    redaction_queue: RedactionQueue,
}

/// One worker's rings, and what all workers share.
pub struct ExchangeRecorder {
    ring: Arc<Mutex<ExchangeRing>>,
    notable_ring: Arc<Mutex<ExchangeRing>>,
    notable_by_agent: Arc<NotableByAgent>,
    redaction_queue: RedactionQueue,
}

struct ExchangeRing {
    slots: Vec<Exchange>,
    capacity: usize,
    /// Number of exchanges written, which is the sequence number of the next one.
    written: u64,
    /// Sequence numbers of the exchanges with details, oldest first.
    detailed: VecDeque<u64>,
}

impl ExchangeRecorder {
    /// Records an exchange from its access log entry. A capture is redacted on another thread.
    pub fn record(&self, entry: &AccessLogEntry<'_>, capture: Option<RedactionJob>) {
        let detail = capture.map(|capture| self.redaction_queue.submit(capture));
        if is_notable(entry) {
            self.notable_ring.lock().push(entry, detail.clone());
            self.notable_by_agent.push(entry);
        }
        self.ring.lock().push(entry, detail);
    }
}

impl ExchangeRing {
    fn new(capacity: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { slots: Vec::new(), capacity, written: 0, detailed: VecDeque::new() }))
    }

    fn push(&mut self, entry: &AccessLogEntry<'_>, detail: Option<Arc<DetailCell>>) {
        if detail.is_some() {
            self.evict_excess_details();
        }
        let slot = self.slot_of(self.written);
        if slot == self.slots.len() {
            self.slots.push(Exchange::default());
        }
        self.slots[slot].overwrite(entry, detail);
        self.written += 1;
    }

    /// Accounts for details of the next exchange; drops the oldest details beyond the maximum.
    fn evict_excess_details(&mut self) {
        self.detailed.push_back(self.written);
        if self.detailed.len() > MAX_DETAILS_PER_RING
            && let Some(sequence) = self.detailed.pop_front()
            && sequence >= self.oldest_sequence()
        {
            let slot = self.slot_of(sequence);
            self.slots[slot].detail = None;
        }
    }

    /// Sequence number of the oldest exchange in the ring.
    fn oldest_sequence(&self) -> u64 {
        self.written - self.slots.len() as u64
    }

    /// The place of an exchange in `slots`.
    fn slot_of(&self, sequence: u64) -> usize {
        (sequence % self.capacity as u64) as usize
    }

    fn get(&self, sequence: u64) -> &Exchange {
        &self.slots[self.slot_of(sequence)]
    }
}

impl RecentExchanges {
    /// Keeps at most `capacity` exchanges of `workers` workers. A small capacity is kept in full by each worker, a
    /// larger one is divided.
    pub fn new(capacity: usize, workers: usize) -> Self {
        let ring_capacity = (capacity / workers.max(1)).max(capacity.min(MIN_RING_CAPACITY));
        Self {
            capacity,
            ring_capacity,
            rings: Mutex::default(),
            notable_rings: Mutex::default(),
            notable_by_agent: Arc::default(),
            redaction_queue: RedactionQueue::default(),
        }
    }

    /// Adds a worker's rings; `None` if the capacity is 0.
    pub fn add_recorder(&self) -> Option<ExchangeRecorder> {
        (self.capacity > 0).then(|| {
            let (ring, notable_ring) =
                (ExchangeRing::new(self.ring_capacity), ExchangeRing::new(notable::RING_CAPACITY));
            self.rings.lock().push(ring.clone());
            self.notable_rings.lock().push(notable_ring.clone());
            ExchangeRecorder {
                ring,
                notable_ring,
                notable_by_agent: self.notable_by_agent.clone(),
                redaction_queue: self.redaction_queue.clone(),
            }
        })
    }

    /// Number of captures dropped for this reason.
    pub fn captures_dropped(&self, reason: DropReason) -> u64 {
        self.redaction_queue.dropped(reason)
    }

    /// The configured number of exchanges, the longest page. If it is small, each worker keeps that many.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The newest exchanges that match the filter, newest first.
    pub fn latest(&self, filter: &ExchangeFilter, limit: usize) -> Vec<Exchange> {
        // Those with details come first: of two copies of an exchange, the first is taken.
        let rings = [self.rings.lock().clone(), self.notable_rings.lock().clone()].concat();
        let mut found: Vec<_> = rings.iter().flat_map(|ring| latest_in_ring(ring, filter, limit)).collect();
        let mut recent = HashSet::new();
        found.retain(|exchange| !exchange.is_notable() || recent.insert(exchange.identity()));
        found.extend(
            self.notable_by_agent
                .matching(filter)
                .into_iter()
                .filter(|exchange| recent.insert(exchange.identity())),
        );
        found.sort_by_key(|exchange| Reverse(exchange.entry().ended_at));
        found.truncate(limit);
        found
    }

    /// Follows what is recorded from now on.
    pub fn tail(&self) -> ExchangeTail {
        let rings = self.rings.lock().clone();
        ExchangeTail {
            positions: rings.into_iter().map(|ring| (ring.lock().written, ring.clone())).collect(),
        }
    }
}

/// The newest matching exchanges of one ring.
fn latest_in_ring(ring: &Mutex<ExchangeRing>, filter: &ExchangeFilter, limit: usize) -> Vec<Exchange> {
    let (mut found, mut before) = (Vec::new(), u64::MAX);
    while found.len() < limit {
        let ring = ring.lock();
        let end = before.min(ring.written);
        let from = end.saturating_sub(MAX_EXCHANGES_PER_LOCK).max(ring.oldest_sequence());
        let matching =
            (from..end).rev().map(|sequence| ring.get(sequence)).filter(|exchange| filter.matches(exchange));
        found.extend(matching.take(limit - found.len()).cloned());
        if from >= end {
            break;
        }
        before = from;
    }
    found
}

/// A reader's position in each ring.
pub struct ExchangeTail {
    positions: Vec<(u64, Arc<Mutex<ExchangeRing>>)>,
}

impl ExchangeTail {
    /// Returns the matching exchanges recorded since the last call, roughly in order of time, and the number
    /// overwritten before they were read.
    pub fn read(&mut self, filter: &ExchangeFilter) -> (Vec<Exchange>, u64) {
        let (mut found, mut lost) = (Vec::new(), 0);
        for (position, ring) in &mut self.positions {
            // The end is fixed first: with a busy worker the loop would not terminate.
            let end = ring.lock().written;
            while *position < end {
                let ring = ring.lock();
                let from = ring.oldest_sequence().max(*position);
                lost += from - *position;
                let end = (from + MAX_EXCHANGES_PER_LOCK).min(ring.written);
                found.extend(
                    (from..end)
                        .map(|sequence| ring.get(sequence))
                        .filter(|exchange| filter.matches(exchange))
                        .cloned(),
                );
                *position = end;
            }
        }
        found.sort_by_key(|exchange| exchange.entry().ended_at);
        (found, lost)
    }
}

#[cfg(test)]
mod tests;
