//! The last exchanges, kept for whoever looks into what happens.
//!
//! Each worker writes into a ring of its own. Who reads copies a few exchanges at a time, so that no worker waits for
//! longer than that takes, and a reader who is too slow finds that some have been written over.

mod detail;
mod exchange;
mod queue;

use std::{
    cmp::Reverse,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::queue::Queue;
pub use self::{
    detail::{Detail, Message, Try},
    exchange::{Exchange, Filter},
    queue::{Capture, Captured, Missing},
};
use crate::access::Line;

/// Copied at a time, while the worker may have to wait.
const SLICE: u64 = 32;
/// A worker keeps so many, if they are to be kept at all, however many workers there are.
const LEAST_SHARE: usize = 1000;
/// Of so many exchanges a worker keeps the details; each may take some ten KiB.
const MOST_DETAILS: usize = 200;

/// The rings of all workers.
pub struct Recent {
    most: usize,
    share: usize,
    rings: Mutex<Vec<Arc<Mutex<Ring>>>>,
    captures: Queue,
}

/// One worker's ring, and the way to the thread that redacts.
pub struct Recorder {
    ring: Arc<Mutex<Ring>>,
    captures: Queue,
}

struct Ring {
    slots: Vec<Exchange>,
    room: usize,
    /// How many were written so far; the nth is at n modulo the room.
    written: u64,
    /// Which of them have details, the oldest first.
    detailed: VecDeque<u64>,
}

impl Recorder {
    /// Keeps an exchange, by the line that the access log has of it. What was captured of it is redacted elsewhere.
    pub fn keep(&self, line: &Line<'_>, capture: Option<Capture>) {
        let captured = capture.map(|capture| self.captures.submit(capture));
        lock(&self.ring).keep(line, captured);
    }
}

impl Ring {
    fn keep(&mut self, line: &Line<'_>, detail: Option<Arc<Captured>>) {
        if detail.is_some() {
            self.note_detail();
        }
        let place = (self.written % self.room as u64) as usize;
        if place == self.slots.len() {
            self.slots.push(Exchange::default());
        }
        self.slots[place].write(line, detail);
        self.written += 1;
    }

    /// The next one has details; the oldest ones lose theirs when there are too many.
    fn note_detail(&mut self) {
        self.detailed.push_back(self.written);
        if self.detailed.len() > MOST_DETAILS
            && let Some(nth) = self.detailed.pop_front()
            && nth >= self.oldest()
        {
            let place = (nth % self.room as u64) as usize;
            self.slots[place].detail = None;
        }
    }

    /// The first that is still there.
    fn oldest(&self) -> u64 {
        self.written - self.slots.len() as u64
    }

    fn nth(&self, nth: u64) -> &Exchange {
        &self.slots[(nth % self.room as u64) as usize]
    }
}

impl Recent {
    /// At most so many exchanges, written by so many workers. A worker keeps all of them if they are few, and else its
    /// share.
    pub fn new(most: usize, workers: usize) -> Self {
        let share = (most / workers.max(1)).max(most.min(LEAST_SHARE));
        Self { most, share, rings: Mutex::default(), captures: Queue::default() }
    }

    /// Another worker's ring; `None` where nothing is to be kept.
    pub fn recorder(&self) -> Option<Recorder> {
        let ring = Arc::new(Mutex::new(Ring {
            slots: Vec::new(),
            room: self.share,
            written: 0,
            detailed: VecDeque::new(),
        }));
        (self.most > 0).then(|| {
            lock(&self.rings).push(ring.clone());
            Recorder { ring, captures: self.captures.clone() }
        })
    }

    /// How many captures were dropped for this reason.
    pub fn captures_dropped(&self, reason: Missing) -> u64 {
        self.captures.dropped(reason)
    }

    /// How many are kept at most.
    pub fn most(&self) -> usize {
        self.most
    }

    /// The newest ones that pass the filter, the newest first.
    pub fn latest(&self, filter: &Filter, limit: usize) -> Vec<Exchange> {
        let rings = lock(&self.rings).clone();
        let mut found: Vec<_> = rings.iter().flat_map(|ring| latest_of(ring, filter, limit)).collect();
        found.sort_by_key(|exchange| Reverse(exchange.at));
        found.truncate(limit);
        found
    }

    /// Follows what is written from now on.
    pub fn tail(&self) -> Tail {
        let rings = lock(&self.rings).clone();
        Tail { rings: rings.into_iter().map(|ring| (lock(&ring).written, ring.clone())).collect() }
    }
}

/// The newest of one ring.
fn latest_of(ring: &Mutex<Ring>, filter: &Filter, limit: usize) -> Vec<Exchange> {
    let (mut found, mut before) = (Vec::new(), u64::MAX);
    while found.len() < limit {
        let ring = lock(ring);
        let upto = before.min(ring.written);
        let from = upto.saturating_sub(SLICE).max(ring.oldest());
        let passing = (from..upto).rev().map(|nth| ring.nth(nth)).filter(|exchange| filter.passes(exchange));
        found.extend(passing.take(limit - found.len()).cloned());
        if from >= upto {
            break;
        }
        before = from;
    }
    found
}

/// Where one reader has come to.
pub struct Tail {
    rings: Vec<(u64, Arc<Mutex<Ring>>)>,
}

impl Tail {
    /// What has been written since the last time and passes the filter, about in the order in which it was, and how many
    /// were written over before they could be looked at.
    pub fn read(&mut self, filter: &Filter) -> (Vec<Exchange>, u64) {
        let (mut found, mut lost) = (Vec::new(), 0);
        for (seen, ring) in &mut self.rings {
            // Not beyond what is there now: a busy worker would be followed for ever.
            let upto = lock(ring).written;
            while *seen < upto {
                let ring = lock(ring);
                let from = ring.oldest().max(*seen);
                lost += from - *seen;
                let end = (from + SLICE).min(ring.written);
                found.extend((from..end).map(|nth| ring.nth(nth)).filter(|it| filter.passes(it)).cloned());
                *seen = end;
            }
        }
        found.sort_by_key(|exchange| exchange.at);
        (found, lost)
    }
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
