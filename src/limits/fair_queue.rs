//! Counts held permits and orders waiters per flow. [`super::concurrency_limit`] has the permits and wakes the
//! waiters.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

/// The permits that client, agent and endpoint of a flow hold, added up, are limited to this multiple of the free
/// ones.
const MAX_HELD_PER_FREE: usize = 16;

/// What a request counts for: its client, agent and endpoint, each as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey(pub(super) [u64; 3]);

/// All flows that hold permits or have waiters, as a tree: clients, the agents of each, the endpoints of each of
/// those.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    root: FlowNode<T>,
    last_id: u64,
}

/// A client, agent or endpoint, with its children.
#[derive(Debug)]
struct FlowNode<T> {
    held: usize,
    queued: usize,
    children: HashMap<u64, Self, RandomState>,
    /// The children with waiters, in round-robin order.
    round_robin: VecDeque<u64>,
    /// At an endpoint: its waiters, by ascending id.
    entries: VecDeque<QueueEntry<T>>,
}

#[derive(Debug)]
struct QueueEntry<T> {
    id: u64,
    flow_key: FlowKey,
    value: T,
}

impl<T> FairQueue<T> {
    pub(super) fn new() -> Self {
        Self { root: FlowNode::new(), last_id: 0 }
    }

    /// Number of waiters.
    pub(super) fn queued(&self) -> usize {
        self.root.queued
    }

    /// Whether this flow may hold one more permit if `free` are free.
    pub(super) fn may_acquire(&self, flow: &FlowKey, free: usize) -> bool {
        self.root.is_within_threshold(&flow.0, free, |node| node.held)
    }

    /// Whether this flow may have one more waiter if `free` more fit into the queue.
    pub(super) fn may_enqueue(&self, flow: &FlowKey, free: usize) -> bool {
        self.root.is_within_threshold(&flow.0, free, |node| node.queued)
    }

    /// Counts a permit as held.
    pub(super) fn count_acquired(&mut self, flow: &FlowKey) {
        self.root.held += 1;
        let mut node = &mut self.root;
        for key in flow.0 {
            node = node.children.entry(key).or_insert_with(FlowNode::new);
            node.held += 1;
        }
    }

    /// Counts a permit as released.
    pub(super) fn count_released(&mut self, flow: &FlowKey) {
        self.root.count_released(&flow.0);
    }

    /// Appends a waiter to the queue of its flow. The id is for [`FairQueue::remove`].
    pub(super) fn enqueue(&mut self, flow: FlowKey, value: T) -> u64 {
        self.last_id += 1;
        self.root.enqueue(&flow.0, QueueEntry { id: self.last_id, flow_key: flow, value });
        self.last_id
    }

    /// Removes a waiter; `None` if it was dequeued already.
    pub(super) fn remove(&mut self, flow: &FlowKey, id: u64) -> Option<T> {
        self.root.remove(&flow.0, id)
    }

    /// The next waiter, if `free` permits are free. It counts as holding one from now on.
    pub(super) fn dequeue(&mut self, free: usize) -> Option<(FlowKey, T)> {
        self.root.dequeue(free.saturating_mul(MAX_HELD_PER_FREE)).map(|entry| (entry.flow_key, entry.value))
    }

    /// Removes all waiters.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let mut drained = Vec::with_capacity(self.root.queued);
        self.root.drain_into(&mut drained);
        drained
    }
}

impl<T> FlowNode<T> {
    fn new() -> Self {
        Self {
            held: 0,
            queued: 0,
            children: HashMap::default(),
            round_robin: VecDeque::new(),
            entries: VecDeque::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.held == 0 && self.queued == 0
    }

    fn is_within_threshold(&self, levels: &[u64], free: usize, count: impl Fn(&Self) -> usize) -> bool {
        let (mut node, mut threshold) = (self, free.saturating_mul(MAX_HELD_PER_FREE));
        for key in levels {
            let Some(child) = node.children.get(key) else { break };
            threshold = threshold.saturating_sub(count(child));
            node = child;
        }
        threshold > 0
    }

    fn count_released(&mut self, levels: &[u64]) {
        self.held -= 1;
        let [key, levels @ ..] = levels else { return };
        let Some(child) = self.children.get_mut(key) else { return };
        child.count_released(levels);
        if child.is_empty() {
            self.children.remove(key);
        }
    }

    fn enqueue(&mut self, levels: &[u64], entry: QueueEntry<T>) {
        self.queued += 1;
        let [key, levels @ ..] = levels else { return self.entries.push_back(entry) };
        let child = self.children.entry(*key).or_insert_with(Self::new);
        if child.queued == 0 {
            self.round_robin.push_back(*key);
        }
        child.enqueue(levels, entry);
    }

    fn remove(&mut self, levels: &[u64], id: u64) -> Option<T> {
        let value = match levels {
            [] => {
                let at = self.entries.binary_search_by_key(&id, |entry| entry.id).ok()?;
                self.entries.remove(at)?.value
            }
            [key, levels @ ..] => {
                let child = self.children.get_mut(key)?;
                let value = child.remove(levels, id)?;
                if child.queued == 0 {
                    self.round_robin.retain(|other| other != key);
                }
                if child.is_empty() {
                    self.children.remove(key);
                }
                value
            }
        };
        self.queued -= 1;
        Some(value)
    }

    fn dequeue(&mut self, threshold: usize) -> Option<QueueEntry<T>> {
        let next = match self.entries.pop_front() {
            Some(first) => first,
            None => self.dequeue_child(threshold)?,
        };
        self.queued -= 1;
        self.held += 1;
        Some(next)
    }

    /// The child that was served longest ago comes first; one that holds too much is skipped.
    fn dequeue_child(&mut self, threshold: usize) -> Option<QueueEntry<T>> {
        for _ in 0..self.round_robin.len() {
            let key = self.round_robin.pop_front()?;
            let Some(child) = self.children.get_mut(&key) else { continue };
            let next = match threshold.saturating_sub(child.held) {
                0 => None,
                threshold => child.dequeue(threshold),
            };
            if child.queued > 0 {
                self.round_robin.push_back(key);
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }

    fn drain_into(&mut self, drained: &mut Vec<T>) {
        drained.extend(self.entries.drain(..).map(|entry| entry.value));
        self.round_robin.clear();
        self.queued = 0;
        self.children.retain(|_, child| {
            child.drain_into(drained);
            !child.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
