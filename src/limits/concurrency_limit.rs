//! Concurrency limit for requests in flight, with fair queueing under contention. Ours: tokio's `Semaphore`, and the layers
//! of tower upon it, have one queue in order of arrival, in which one client's flood makes all others wait.
//!
//! While no more than half of the permits are in use, a request takes one with a single atomic operation,
//! whatever its flow. Beyond that, permits are counted per client, agent and endpoint, and two rules apply:
//!
//! - *A reserve stays free.* A flow that holds permits gets another only while enough are free besides: more than
//!   a sixteenth of the sum of what its client holds, what its agent holds through this client, and what its
//!   endpoint holds through both. Switches share buffer memory between ports like this (Choudhury and Hahne's dynamic thresholds). Requests cannot be revoked once
//!   WeCom has them, so taking turns alone would not help: a flood of calls that hang would hold all permits
//!   before any other request had to wait. One flood alone gets more than nine tenths of the permits, several
//!   share them, and a new client finds one.
//! - *Waiters are served round-robin*: first between clients, then between a client's agents, then between the
//!   endpoints called through an agent. A client with many agents, or one that calls many paths, gets no more
//!   turns than another.
//!
//! The queue is bounded too, and the first rule applies to it as well: a flood is refused at once, and leaves
//! queue capacity for the others. Weights and shuffle sharding (Kubernetes) are for tenants that are expensive
//! to tell apart; here all are known by name. A limit per client (HAProxy, Envoy) would have to be guessed, and
//! lies idle while the others are quiet.

use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use parking_lot::Mutex;

use foldhash::fast::RandomState;
use tokio::{sync::oneshot, time::timeout};

use super::fair_queue::FairQueue;
pub use super::fair_queue::FlowKey;

/// Smallest queue capacity; else as many may wait as there are permits.
pub(super) const MIN_QUEUE_CAPACITY: usize = 1024;

/// With fewer permits than this there is no reserve, because it would be too large a part of them. Waiters are
/// still served round-robin.
const MIN_PERMITS_FOR_RESERVE: usize = 64;

/// A semaphore with a reserve and a fair wait queue.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    max_permits: usize,
    /// Up to this many permits flows are not counted.
    uncontended_permits: usize,
    /// Most waiters.
    queue_capacity: usize,
    in_use: AtomicUsize,
    /// Number of waiters; written under the lock.
    queued: AtomicUsize,
    queue: Mutex<WaitQueue>,
    hasher: RandomState,
}

#[derive(Debug)]
struct WaitQueue {
    fair_queue: FairQueue<oneshot::Sender<Permit>>,
    is_closed: bool,
}

/// Why no permit was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireError {
    /// The queue is full.
    QueueFull,
    /// No permit became free in time.
    TimedOut,
    /// The queue is closed.
    Closed,
}

impl ConcurrencyLimit {
    /// A limit with `max_permits` permits.
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

    /// The number of permits.
    pub fn max_permits(&self) -> usize {
        self.max_permits
    }

    /// Number of permits in use.
    pub fn in_use(&self) -> usize {
        self.in_use.load(SeqCst)
    }

    /// Number of waiters.
    pub fn queued(&self) -> usize {
        self.queued.load(SeqCst)
    }

    /// A permit, if no more than half are in use: the fast path.
    pub fn try_acquire_uncontended(self: &Arc<Self>) -> Option<Permit> {
        self.try_increment(self.uncontended_permits).map(|_| Permit { limit: self.clone(), flow_key: None })
    }

    /// A permit at once or none, for requests that must not wait. `flow` is called only if more than half of the
    /// permits are in use.
    pub fn try_acquire(self: &Arc<Self>, flow: impl FnOnce() -> FlowKey) -> Option<Permit> {
        self.try_acquire_uncontended().or_else(|| self.try_grant(&mut self.queue.lock(), flow()))
    }

    /// The flow that a request counts for, from the outer level to the inner one: client, agent and endpoint, if
    /// the caller has no reason for another order.
    pub fn flow_key(&self, outer: Option<&str>, middle: Option<&str>, inner: &str) -> FlowKey {
        FlowKey([self.hasher.hash_one(outer), self.hasher.hash_one(middle), self.hasher.hash_one(inner)])
    }

    /// A permit for this flow, after waiting up to `max_wait`.
    pub async fn acquire(
        self: &Arc<Self>,
        flow: FlowKey,
        max_wait: Duration,
    ) -> Result<Permit, AcquireError> {
        let mut waiter = match self.acquire_or_enqueue(flow)? {
            Admission::Granted(permit) => return Ok(permit),
            Admission::Queued(waiter) => waiter,
        };
        match timeout(max_wait, &mut waiter.permit_receiver).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(AcquireError::Closed),
            Err(_) => Err(AcquireError::TimedOut),
        }
    }

    /// Closes the queue: current and future waiters fail with [`AcquireError::Closed`].
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.is_closed = true;
        let waiters = queue.fair_queue.drain();
        self.queued.store(0, SeqCst);
        drop(queue);
        drop(waiters);
    }

    fn acquire_or_enqueue(self: &Arc<Self>, flow: FlowKey) -> Result<Admission, AcquireError> {
        let mut queue = self.queue.lock();
        let mut granted = self.grant_waiters(&mut queue);
        let admission = self.grant_or_enqueue(&mut queue, flow);
        if matches!(admission, Ok(Admission::Queued(_))) {
            // A permit released before the waiter was visible has woken no waiter.
            granted.append(&mut self.grant_waiters(&mut queue));
        }
        drop(queue);
        send_permits(granted);
        admission
    }

    fn grant_or_enqueue(
        self: &Arc<Self>,
        queue: &mut WaitQueue,
        flow: FlowKey,
    ) -> Result<Admission, AcquireError> {
        if let Some(permit) = self.try_grant(queue, flow) {
            return Ok(Admission::Granted(permit));
        }
        if queue.is_closed {
            return Err(AcquireError::Closed);
        }
        if !queue.fair_queue.may_enqueue(&flow, self.queue_capacity.saturating_sub(queue.fair_queue.queued()))
        {
            return Err(AcquireError::QueueFull);
        }
        let (sender, granted) = oneshot::channel();
        let id = queue.fair_queue.enqueue(flow, sender);
        self.queued.store(queue.fair_queue.queued(), SeqCst);
        Ok(Admission::Queued(Waiter { limit: self.clone(), flow_key: flow, id, permit_receiver: granted }))
    }

    /// A free permit, if the first rule allows it, counted for `flow`.
    fn try_grant(self: &Arc<Self>, queue: &mut WaitQueue, flow: FlowKey) -> Option<Permit> {
        let granted = queue.fair_queue.may_acquire(&flow, self.grantable(self.available()))
            && self.try_increment(self.max_permits).is_some();
        granted.then(|| {
            queue.fair_queue.count_acquired(&flow);
            self.counted_permit(flow)
        })
    }

    /// Takes permits for the next waiters, as far as they are free. They are sent after the lock is released,
    /// because a waiter that has left releases its permit, which locks.
    #[must_use]
    fn grant_waiters(self: &Arc<Self>, queue: &mut WaitQueue) -> Vec<(oneshot::Sender<Permit>, Permit)> {
        let mut granted = Vec::new();
        while queue.fair_queue.queued() > 0
            && let Some(available) = self.try_increment(self.max_permits)
        {
            let Some((flow, sender)) = queue.fair_queue.dequeue(self.grantable(available)) else {
                self.in_use.fetch_sub(1, SeqCst);
                break;
            };
            granted.push((sender, self.counted_permit(flow)));
        }
        self.queued.store(queue.fair_queue.queued(), SeqCst);
        granted
    }

    /// Counts one more permit in use if fewer than `bound` are; returns how many were free before.
    fn try_increment(&self, bound: usize) -> Option<usize> {
        let mut in_use = self.in_use.load(Relaxed);
        while in_use < bound {
            match self.in_use.compare_exchange_weak(in_use, in_use + 1, SeqCst, Relaxed) {
                Ok(_) => return Some(self.max_permits - in_use),
                Err(actual) => in_use = actual,
            }
        }
        None
    }

    /// The free permits as the first rule sees them: a small limit has no reserve.
    fn grantable(&self, available: usize) -> usize {
        if available > 0 && self.max_permits < MIN_PERMITS_FOR_RESERVE { usize::MAX } else { available }
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
        let mut queue = self.queue.lock();
        if let Some(flow) = flow {
            queue.fair_queue.count_released(flow);
        }
        let granted = self.grant_waiters(&mut queue);
        drop(queue);
        send_permits(granted);
    }
}

fn send_permits(granted: Vec<(oneshot::Sender<Permit>, Permit)>) {
    for (sender, permit) in granted {
        let _ = sender.send(permit);
    }
}

enum Admission {
    Granted(Permit),
    Queued(Waiter),
}

/// A waiter; leaves the queue when dropped.
struct Waiter {
    limit: Arc<ConcurrencyLimit>,
    flow_key: FlowKey,
    id: u64,
    permit_receiver: oneshot::Receiver<Permit>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut queue = self.limit.queue.lock();
        queue.fair_queue.remove(&self.flow_key, self.id);
        self.limit.queued.store(queue.fair_queue.queued(), SeqCst);
    }
}

/// A permit; released when dropped.
#[derive(Debug)]
pub struct Permit {
    limit: Arc<ConcurrencyLimit>,
    /// The flow that it is counted for; `None` on the fast path.
    flow_key: Option<Box<FlowKey>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.release(self.flow_key.as_deref());
    }
}

#[cfg(test)]
mod tests;
