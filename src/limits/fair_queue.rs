//! Who holds places and who waits for one, and whose turn it is. It only counts and orders; [`super::places`] has the
//! places themselves and wakes those who wait.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

/// So many times as much as is free somebody may already have, or there is no more for them.
const MAX_HELD_PER_FREE: usize = 16;

/// What a request counts for: its client, its agent, its endpoint, each as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey(pub(super) [u64; 3]);

/// Everybody who holds a place or waits for one, as a tree: clients, the agents of each, the endpoints of each of those.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    root: FlowNode<T>,
    last_id: u64,
}

/// One client, agent or endpoint with all that is below it.
#[derive(Debug)]
struct FlowNode<T> {
    held: usize,
    queued: usize,
    children: HashMap<u64, Self, RandomState>,
    /// Those below in which somebody waits, in the order of their turns.
    round_robin: VecDeque<u64>,
    /// At an endpoint: who waits, by rising numbers.
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

    /// How many wait.
    pub(super) fn queued(&self) -> usize {
        self.root.queued
    }

    /// Whether this one may hold one more of `free` places.
    pub(super) fn may_acquire(&self, flow: &FlowKey, free: usize) -> bool {
        self.root.is_within_threshold(&flow.0, free, |branch| branch.held)
    }

    /// Whether this one may wait with those who wait already, where there is room for `free` more.
    pub(super) fn may_enqueue(&self, flow: &FlowKey, free: usize) -> bool {
        self.root.is_within_threshold(&flow.0, free, |branch| branch.queued)
    }

    /// Counts a place as held.
    pub(super) fn count_acquired(&mut self, flow: &FlowKey) {
        self.root.held += 1;
        let mut branch = &mut self.root;
        for name in flow.0 {
            branch = branch.children.entry(name).or_insert_with(FlowNode::new);
            branch.held += 1;
        }
    }

    /// Counts it as held no longer.
    pub(super) fn count_released(&mut self, flow: &FlowKey) {
        self.root.count_released(&flow.0);
    }

    /// Puts somebody at the end of their row. The number is for [`Turns::leave`].
    pub(super) fn enqueue(&mut self, flow: FlowKey, who: T) -> u64 {
        self.last_id += 1;
        self.root.enqueue(&flow.0, QueueEntry { id: self.last_id, flow_key: flow, value: who });
        self.last_id
    }

    /// Takes somebody out of the row; `None` where they had their turn already.
    pub(super) fn remove(&mut self, flow: &FlowKey, number: u64) -> Option<T> {
        self.root.remove(&flow.0, number)
    }

    /// Whose turn it is, where `free` places are free. It counts as holding one from now on.
    pub(super) fn dequeue(&mut self, free: usize) -> Option<(FlowKey, T)> {
        self.root
            .dequeue(free.saturating_mul(MAX_HELD_PER_FREE))
            .map(|waiting| (waiting.flow_key, waiting.value))
    }

    /// Sends away all who wait.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let mut away = Vec::with_capacity(self.root.queued);
        self.root.drain_into(&mut away);
        away
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

    fn is_within_threshold(&self, way: &[u64], free: usize, count: impl Fn(&Self) -> usize) -> bool {
        let (mut branch, mut room) = (self, free.saturating_mul(MAX_HELD_PER_FREE));
        for name in way {
            let Some(below) = branch.children.get(name) else { break };
            room = room.saturating_sub(count(below));
            branch = below;
        }
        room > 0
    }

    fn count_released(&mut self, way: &[u64]) {
        self.held -= 1;
        let [name, way @ ..] = way else { return };
        let Some(below) = self.children.get_mut(name) else { return };
        below.count_released(way);
        if below.is_empty() {
            self.children.remove(name);
        }
    }

    fn enqueue(&mut self, way: &[u64], waiting: QueueEntry<T>) {
        self.queued += 1;
        let [name, way @ ..] = way else { return self.entries.push_back(waiting) };
        let below = self.children.entry(*name).or_insert_with(Self::new);
        if below.queued == 0 {
            self.round_robin.push_back(*name);
        }
        below.enqueue(way, waiting);
    }

    fn remove(&mut self, way: &[u64], number: u64) -> Option<T> {
        let who = match way {
            [] => {
                let at = self.entries.binary_search_by_key(&number, |waiting| waiting.id).ok()?;
                self.entries.remove(at)?.value
            }
            [name, way @ ..] => {
                let below = self.children.get_mut(name)?;
                let who = below.remove(way, number)?;
                if below.queued == 0 {
                    self.round_robin.retain(|other| other != name);
                }
                if below.is_empty() {
                    self.children.remove(name);
                }
                who
            }
        };
        self.queued -= 1;
        Some(who)
    }

    fn dequeue(&mut self, room: usize) -> Option<QueueEntry<T>> {
        let next = match self.entries.pop_front() {
            Some(first) => first,
            None => self.dequeue_child(room)?,
        };
        self.queued -= 1;
        self.held += 1;
        Some(next)
    }

    /// Who has had no turn for longest comes first; who holds too much is passed over.
    fn dequeue_child(&mut self, room: usize) -> Option<QueueEntry<T>> {
        for _ in 0..self.round_robin.len() {
            let name = self.round_robin.pop_front()?;
            let Some(below) = self.children.get_mut(&name) else { continue };
            let next = match room.saturating_sub(below.held) {
                0 => None,
                room => below.dequeue(room),
            };
            if below.queued > 0 {
                self.round_robin.push_back(name);
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }

    fn drain_into(&mut self, away: &mut Vec<T>) {
        away.extend(self.entries.drain(..).map(|waiting| waiting.value));
        self.round_robin.clear();
        self.queued = 0;
        self.children.retain(|_, below| {
            below.drain_into(away);
            !below.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
