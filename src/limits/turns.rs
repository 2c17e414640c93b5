//! Who holds places and who waits for one, and whose turn it is. It only counts and orders; [`super::places`] has the
//! places themselves and wakes those who wait.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

/// So many times as much as is free somebody may already have, or there is no more for them.
const TIMES: usize = 16;

/// What a request counts for: its client, its agent, its endpoint, each as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow(pub(super) [u64; 3]);

/// Everybody who holds a place or waits for one, as a tree: clients, the agents of each, the endpoints of each of those.
#[derive(Debug)]
pub(super) struct Turns<T> {
    root: Branch<T>,
    numbers: u64,
}

/// One client, agent or endpoint with all that is below it.
#[derive(Debug)]
struct Branch<T> {
    held: usize,
    waiting: usize,
    below: HashMap<u64, Self, RandomState>,
    /// Those below in which somebody waits, in the order of their turns.
    order: VecDeque<u64>,
    /// At an endpoint: who waits, by rising numbers.
    row: VecDeque<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    flow: Flow,
    who: T,
}

impl<T> Turns<T> {
    pub(super) fn new() -> Self {
        Self { root: Branch::new(), numbers: 0 }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.root.waiting
    }

    /// Whether this one may hold one more of `free` places.
    pub(super) fn may_hold(&self, flow: &Flow, free: usize) -> bool {
        self.root.leaves_enough(&flow.0, free, |branch| branch.held)
    }

    /// Whether this one may wait with those who wait already, where there is room for `free` more.
    pub(super) fn may_wait(&self, flow: &Flow, free: usize) -> bool {
        self.root.leaves_enough(&flow.0, free, |branch| branch.waiting)
    }

    /// Counts a place as held.
    pub(super) fn hold(&mut self, flow: &Flow) {
        self.root.held += 1;
        let mut branch = &mut self.root;
        for name in flow.0 {
            branch = branch.below.entry(name).or_insert_with(Branch::new);
            branch.held += 1;
        }
    }

    /// Counts it as held no longer.
    pub(super) fn let_go(&mut self, flow: &Flow) {
        self.root.let_go(&flow.0);
    }

    /// Puts somebody at the end of their row. The number is for [`Turns::leave`].
    pub(super) fn wait(&mut self, flow: Flow, who: T) -> u64 {
        self.numbers += 1;
        self.root.wait(&flow.0, Waiting { number: self.numbers, flow, who });
        self.numbers
    }

    /// Takes somebody out of the row; `None` where they had their turn already.
    pub(super) fn leave(&mut self, flow: &Flow, number: u64) -> Option<T> {
        self.root.leave(&flow.0, number)
    }

    /// Whose turn it is, where `free` places are free. It counts as holding one from now on.
    pub(super) fn next(&mut self, free: usize) -> Option<(Flow, T)> {
        self.root.next(free.saturating_mul(TIMES)).map(|waiting| (waiting.flow, waiting.who))
    }

    /// Sends away all who wait.
    pub(super) fn send_away(&mut self) -> Vec<T> {
        let mut away = Vec::with_capacity(self.root.waiting);
        self.root.send_away(&mut away);
        away
    }
}

impl<T> Branch<T> {
    fn new() -> Self {
        Self { held: 0, waiting: 0, below: HashMap::default(), order: VecDeque::new(), row: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.held == 0 && self.waiting == 0
    }

    fn leaves_enough(&self, way: &[u64], free: usize, count: impl Fn(&Self) -> usize) -> bool {
        let (mut branch, mut room) = (self, free.saturating_mul(TIMES));
        for name in way {
            let Some(below) = branch.below.get(name) else { break };
            room = room.saturating_sub(count(below));
            branch = below;
        }
        room > 0
    }

    fn let_go(&mut self, way: &[u64]) {
        self.held -= 1;
        let [name, way @ ..] = way else { return };
        let Some(below) = self.below.get_mut(name) else { return };
        below.let_go(way);
        if below.is_empty() {
            self.below.remove(name);
        }
    }

    fn wait(&mut self, way: &[u64], waiting: Waiting<T>) {
        self.waiting += 1;
        let [name, way @ ..] = way else { return self.row.push_back(waiting) };
        let below = self.below.entry(*name).or_insert_with(Self::new);
        if below.waiting == 0 {
            self.order.push_back(*name);
        }
        below.wait(way, waiting);
    }

    fn leave(&mut self, way: &[u64], number: u64) -> Option<T> {
        let who = match way {
            [] => {
                let at = self.row.binary_search_by_key(&number, |waiting| waiting.number).ok()?;
                self.row.remove(at)?.who
            }
            [name, way @ ..] => {
                let below = self.below.get_mut(name)?;
                let who = below.leave(way, number)?;
                if below.waiting == 0 {
                    self.order.retain(|other| other != name);
                }
                if below.is_empty() {
                    self.below.remove(name);
                }
                who
            }
        };
        self.waiting -= 1;
        Some(who)
    }

    fn next(&mut self, room: usize) -> Option<Waiting<T>> {
        let next = match self.row.pop_front() {
            Some(first) => first,
            None => self.next_below(room)?,
        };
        self.waiting -= 1;
        self.held += 1;
        Some(next)
    }

    /// Who has had no turn for longest comes first; who holds too much is passed over.
    fn next_below(&mut self, room: usize) -> Option<Waiting<T>> {
        for _ in 0..self.order.len() {
            let name = self.order.pop_front()?;
            let Some(below) = self.below.get_mut(&name) else { continue };
            let next = match room.saturating_sub(below.held) {
                0 => None,
                room => below.next(room),
            };
            if below.waiting > 0 {
                self.order.push_back(name);
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }

    fn send_away(&mut self, away: &mut Vec<T>) {
        away.extend(self.row.drain(..).map(|waiting| waiting.who));
        self.order.clear();
        self.waiting = 0;
        self.below.retain(|_, below| {
            below.send_away(away);
            !below.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
