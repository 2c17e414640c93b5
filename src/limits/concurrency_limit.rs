//! The places among the requests in flight, and who gets one when they are scarce.
//!
//! While no more than half of the places are taken, a request takes one with a single atomic operation and nobody is told
//! apart. Beyond that the places are counted for client, agent and endpoint, and two rules hold:
//!
//! - *Nobody takes the last ones.* Who holds places gets another only while enough are free besides: a sixteenth of what
//!   the client holds, and as much again for its agent and for the endpoint. This is how switches share their memory between
//!   ports (Choudhury and Hahne's dynamic thresholds). Requests cannot be taken back once they are with WeCom, so turns
//!   alone would not help: a flood of calls that hang would hold all places before anybody had to wait. One flood alone gets
//!   more than nine tenths of the places, several share them, and whoever comes anew finds one.
//! - *Who waits is served in turns*: first between clients, then between a client's agents, then between the endpoints that
//!   are called through an agent. A client with many agents, or one that calls many paths, has no more turns than another.
//!
//! How many may wait is bounded too, and the first rule holds for that room as well: a flood is refused at once, and leaves
//! room for the others. Weights and shuffled shards (Kubernetes) are for tenants that cannot be told apart cheaply; here all
//! are known by name. A bound for each client (HAProxy, Envoy) would have to be guessed, and lies idle when others are
//! quiet.

use std::{
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use tokio::{sync::oneshot, time::timeout};

use super::fair_queue::FairQueue;
pub use super::fair_queue::FlowKey;

/// As many may wait as there are places, and no fewer than so many.
pub(super) const MIN_QUEUE_CAPACITY: usize = 1024;

/// Fewer places than these are all given to whoever comes first: a few that are held back would be too many of them.
const MIN_PERMITS_FOR_RESERVE: usize = 64;

/// Places for requests.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    max_permits: usize,
    /// As long as no more are taken nobody is told apart.
    uncontended_permits: usize,
    /// Most who may wait.
    queue_capacity: usize,
    in_use: AtomicUsize,
    /// How many wait; written under the lock.
    queued: AtomicUsize,
    queue: Mutex<WaitQueue>,
    hasher: RandomState,
}

#[derive(Debug)]
struct WaitQueue {
    fair_queue: FairQueue<oneshot::Sender<Permit>>,
    is_closed: bool,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireError {
    /// Too many wait already.
    QueueFull,
    /// None came free in time.
    TimedOut,
    /// Nobody waits any more.
    Closed,
}

impl ConcurrencyLimit {
    /// So many places.
    pub fn new(max_permits: usize) -> Self {
        Self {
            max_permits,
            uncontended_permits: max_permits / 2,
            queue_capacity: max_permits.max(MIN_QUEUE_CAPACITY),
            in_use: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            queue: Mutex::new(WaitQueue { fair_queue: FairQueue::new(), is_closed: false }),
            hasher: RandomState::default(),
        }
    }

    /// How many places are taken.
    pub fn in_use(&self) -> usize {
        self.in_use.load(SeqCst)
    }

    /// How many wait for one.
    pub fn queued(&self) -> usize {
        self.queued.load(SeqCst)
    }

    /// A place, where nobody need be told apart.
    pub fn try_acquire_uncontended(self: &Arc<Self>) -> Option<Permit> {
        self.try_increment(self.uncontended_permits).map(|_| Permit { limit: self.clone(), flow_key: None })
    }

    /// A place at once or none, for requests that must not queue for it. `flow` is called only once half of the places are
    /// taken.
    pub fn try_acquire(self: &Arc<Self>, flow: impl FnOnce() -> FlowKey) -> Option<Permit> {
        self.try_acquire_uncontended().or_else(|| self.try_grant(&mut self.lock_queue(), flow()))
    }

    /// What a request counts for.
    pub fn flow_key(&self, client: Option<&str>, agent: Option<&str>, endpoint: &str) -> FlowKey {
        FlowKey([self.hasher.hash_one(client), self.hasher.hash_one(agent), self.hasher.hash_one(endpoint)])
    }

    /// A place for this one, if need be after a while in the row.
    pub async fn acquire(
        self: &Arc<Self>,
        flow: FlowKey,
        patience: Duration,
    ) -> Result<Permit, AcquireError> {
        let mut turn = match self.acquire_or_enqueue(flow)? {
            Admission::Granted(place) => return Ok(place),
            Admission::Queued(turn) => turn,
        };
        match timeout(patience, &mut turn.permit_receiver).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(AcquireError::Closed),
            Err(_) => Err(AcquireError::TimedOut),
        }
    }

    /// From now on nobody waits: who would have to is told so, and who does is told now.
    pub fn close(&self) {
        let mut row = self.lock_queue();
        row.is_closed = true;
        let away = row.fair_queue.drain();
        self.queued.store(0, SeqCst);
        drop(row);
        drop(away);
    }

    fn acquire_or_enqueue(self: &Arc<Self>, flow: FlowKey) -> Result<Admission, AcquireError> {
        let mut row = self.lock_queue();
        let mut granted = self.grant_waiters(&mut row);
        let asked = self.grant_or_enqueue(&mut row, flow);
        if matches!(asked, Ok(Admission::Queued(_))) {
            // Whoever gave a place back before it could see that somebody waits has woken nobody.
            granted.append(&mut self.grant_waiters(&mut row));
        }
        drop(row);
        send_permits(granted);
        asked
    }

    fn grant_or_enqueue(
        self: &Arc<Self>,
        row: &mut WaitQueue,
        flow: FlowKey,
    ) -> Result<Admission, AcquireError> {
        if let Some(place) = self.try_grant(row, flow) {
            return Ok(Admission::Granted(place));
        }
        if row.is_closed {
            return Err(AcquireError::Closed);
        }
        if !row.fair_queue.may_enqueue(&flow, self.queue_capacity.saturating_sub(row.fair_queue.queued())) {
            return Err(AcquireError::QueueFull);
        }
        let (sender, granted) = oneshot::channel();
        let number = row.fair_queue.enqueue(flow, sender);
        self.queued.store(row.fair_queue.queued(), SeqCst);
        Ok(Admission::Queued(Waiter {
            limit: self.clone(),
            flow_key: flow,
            id: number,
            permit_receiver: granted,
        }))
    }

    /// A place that is free and that the first rule grants, counted for `flow`.
    fn try_grant(self: &Arc<Self>, row: &mut WaitQueue, flow: FlowKey) -> Option<Permit> {
        let granted = row.fair_queue.may_acquire(&flow, self.grantable(self.available()))
            && self.try_increment(self.max_permits).is_some();
        granted.then(|| {
            row.fair_queue.count_acquired(&flow);
            self.counted_permit(flow)
        })
    }

    /// Finds those whose turn it is, as far as there are places. They are told when the lock is free: one that has left
    /// gives its place back.
    #[must_use]
    fn grant_waiters(self: &Arc<Self>, row: &mut WaitQueue) -> Vec<(oneshot::Sender<Permit>, Permit)> {
        let mut granted = Vec::new();
        while row.fair_queue.queued() > 0
            && let Some(free) = self.try_increment(self.max_permits)
        {
            let Some((flow, sender)) = row.fair_queue.dequeue(self.grantable(free)) else {
                self.in_use.fetch_sub(1, SeqCst);
                break;
            };
            granted.push((sender, self.counted_permit(flow)));
        }
        self.queued.store(row.fair_queue.queued(), SeqCst);
        granted
    }

    /// Counts one more as taken, if fewer than `bound` are; how many were free before.
    fn try_increment(&self, bound: usize) -> Option<usize> {
        let mut taken = self.in_use.load(Relaxed);
        while taken < bound {
            match self.in_use.compare_exchange_weak(taken, taken + 1, SeqCst, Relaxed) {
                Ok(_) => return Some(self.max_permits - taken),
                Err(now) => taken = now,
            }
        }
        None
    }

    /// What of the free places the first rule sees: of few places none is held back.
    fn grantable(&self, free: usize) -> usize {
        if free > 0 && self.max_permits < MIN_PERMITS_FOR_RESERVE { usize::MAX } else { free }
    }

    fn available(&self) -> usize {
        self.max_permits.saturating_sub(self.in_use.load(SeqCst))
    }

    fn counted_permit(self: &Arc<Self>, flow: FlowKey) -> Permit {
        Permit { limit: self.clone(), flow_key: Some(Box::new(flow)) }
    }

    fn release(self: &Arc<Self>, flow: Option<&FlowKey>) {
        self.in_use.fetch_sub(1, SeqCst);
        if flow.is_none() && self.queued.load(SeqCst) == 0 {
            return;
        }
        let mut row = self.lock_queue();
        if let Some(flow) = flow {
            row.fair_queue.count_released(flow);
        }
        let granted = self.grant_waiters(&mut row);
        drop(row);
        send_permits(granted);
    }

    fn lock_queue(&self) -> MutexGuard<'_, WaitQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send_permits(granted: Vec<(oneshot::Sender<Permit>, Permit)>) {
    for (sender, place) in granted {
        let _ = sender.send(place);
    }
}

enum Admission {
    Granted(Permit),
    Queued(Waiter),
}

/// One who waits; dropped, it waits no longer.
struct Waiter {
    limit: Arc<ConcurrencyLimit>,
    flow_key: FlowKey,
    id: u64,
    permit_receiver: oneshot::Receiver<Permit>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut row = self.limit.lock_queue();
        row.fair_queue.remove(&self.flow_key, self.id);
        self.limit.queued.store(row.fair_queue.queued(), SeqCst);
    }
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub struct Permit {
    limit: Arc<ConcurrencyLimit>,
    /// Whom it is counted for.
    flow_key: Option<Box<FlowKey>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.release(self.flow_key.as_deref());
    }
}

#[cfg(test)]
mod tests;
