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

pub use super::turns::Flow;
use super::turns::Turns;

/// As many may wait as there are places, and no fewer than so many.
pub(super) const LEAST_ROOM: usize = 1024;

/// Fewer places than these are all given to whoever comes first: a few that are held back would be too many of them.
const FEW: usize = 64;

/// Places for requests.
#[derive(Debug)]
pub struct Places {
    total: usize,
    /// As long as no more are taken nobody is told apart.
    common: usize,
    /// Most who may wait.
    room: usize,
    taken: AtomicUsize,
    /// How many wait; written under the lock.
    waiting: AtomicUsize,
    row: Mutex<Row>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Row {
    turns: Turns<oneshot::Sender<Place>>,
    closed: bool,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Too many wait already.
    Full,
    /// None came free in time.
    Late,
    /// Nobody waits any more.
    Closed,
}

impl Places {
    /// So many places.
    pub fn new(total: usize) -> Self {
        Self {
            total,
            common: total / 2,
            room: total.max(LEAST_ROOM),
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            row: Mutex::new(Row { turns: Turns::new(), closed: false }),
            hasher: RandomState::default(),
        }
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(SeqCst)
    }

    /// How many wait for one.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// A place, where nobody need be told apart.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        self.claim(self.common).map(|_| Place { places: self.clone(), flow: None })
    }

    /// A place at once or none, for requests that must not queue for it. `flow` is called only once half of the places are
    /// taken.
    pub fn try_take(self: &Arc<Self>, flow: impl FnOnce() -> Flow) -> Option<Place> {
        self.take().or_else(|| self.grant(&mut self.row(), flow()))
    }

    /// What a request counts for.
    pub fn flow(&self, client: Option<&str>, agent: Option<&str>, endpoint: &str) -> Flow {
        Flow([self.hasher.hash_one(client), self.hasher.hash_one(agent), self.hasher.hash_one(endpoint)])
    }

    /// A place for this one, if need be after a while in the row.
    pub async fn wait(self: &Arc<Self>, flow: Flow, patience: Duration) -> Result<Place, NoPlace> {
        let mut turn = match self.ask(flow)? {
            Asked::Place(place) => return Ok(place),
            Asked::Turn(turn) => turn,
        };
        match timeout(patience, &mut turn.granted).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(NoPlace::Closed),
            Err(_) => Err(NoPlace::Late),
        }
    }

    /// From now on nobody waits: who would have to is told so, and who does is told now.
    pub fn close(&self) {
        let mut row = self.row();
        row.closed = true;
        let away = row.turns.send_away();
        self.waiting.store(0, SeqCst);
        drop(row);
        drop(away);
    }

    fn ask(self: &Arc<Self>, flow: Flow) -> Result<Asked, NoPlace> {
        let mut row = self.row();
        let mut granted = self.serve(&mut row);
        let asked = self.place_or_turn(&mut row, flow);
        if matches!(asked, Ok(Asked::Turn(_))) {
            // Whoever gave a place back before it could see that somebody waits has woken nobody.
            granted.append(&mut self.serve(&mut row));
        }
        drop(row);
        hand_over(granted);
        asked
    }

    fn place_or_turn(self: &Arc<Self>, row: &mut Row, flow: Flow) -> Result<Asked, NoPlace> {
        if let Some(place) = self.grant(row, flow) {
            return Ok(Asked::Place(place));
        }
        if row.closed {
            return Err(NoPlace::Closed);
        }
        if !row.turns.may_wait(&flow, self.room.saturating_sub(row.turns.waiting())) {
            return Err(NoPlace::Full);
        }
        let (sender, granted) = oneshot::channel();
        let number = row.turns.wait(flow, sender);
        self.waiting.store(row.turns.waiting(), SeqCst);
        Ok(Asked::Turn(Turn { places: self.clone(), flow, number, granted }))
    }

    /// A place that is free and that the first rule grants, counted for `flow`.
    fn grant(self: &Arc<Self>, row: &mut Row, flow: Flow) -> Option<Place> {
        let granted = row.turns.may_hold(&flow, self.spare(self.free())) && self.claim(self.total).is_some();
        granted.then(|| {
            row.turns.hold(&flow);
            self.counted(flow)
        })
    }

    /// Finds those whose turn it is, as far as there are places. They are told when the lock is free: one that has left
    /// gives its place back.
    #[must_use]
    fn serve(self: &Arc<Self>, row: &mut Row) -> Vec<(oneshot::Sender<Place>, Place)> {
        let mut granted = Vec::new();
        while row.turns.waiting() > 0
            && let Some(free) = self.claim(self.total)
        {
            let Some((flow, sender)) = row.turns.next(self.spare(free)) else {
                self.taken.fetch_sub(1, SeqCst);
                break;
            };
            granted.push((sender, self.counted(flow)));
        }
        self.waiting.store(row.turns.waiting(), SeqCst);
        granted
    }

    /// Counts one more as taken, if fewer than `bound` are; how many were free before.
    fn claim(&self, bound: usize) -> Option<usize> {
        let mut taken = self.taken.load(Relaxed);
        while taken < bound {
            match self.taken.compare_exchange_weak(taken, taken + 1, SeqCst, Relaxed) {
                Ok(_) => return Some(self.total - taken),
                Err(now) => taken = now,
            }
        }
        None
    }

    /// What of the free places the first rule sees: of few places none is held back.
    fn spare(&self, free: usize) -> usize {
        if free > 0 && self.total < FEW { usize::MAX } else { free }
    }

    fn free(&self) -> usize {
        self.total.saturating_sub(self.taken.load(SeqCst))
    }

    fn counted(self: &Arc<Self>, flow: Flow) -> Place {
        Place { places: self.clone(), flow: Some(Box::new(flow)) }
    }

    fn give_back(self: &Arc<Self>, flow: Option<&Flow>) {
        self.taken.fetch_sub(1, SeqCst);
        if flow.is_none() && self.waiting.load(SeqCst) == 0 {
            return;
        }
        let mut row = self.row();
        if let Some(flow) = flow {
            row.turns.let_go(flow);
        }
        let granted = self.serve(&mut row);
        drop(row);
        hand_over(granted);
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hand_over(granted: Vec<(oneshot::Sender<Place>, Place)>) {
    for (sender, place) in granted {
        let _ = sender.send(place);
    }
}

enum Asked {
    Place(Place),
    Turn(Turn),
}

/// One who waits; dropped, it waits no longer.
struct Turn {
    places: Arc<Places>,
    flow: Flow,
    number: u64,
    granted: oneshot::Receiver<Place>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut row = self.places.row();
        row.turns.leave(&self.flow, self.number);
        self.places.waiting.store(row.turns.waiting(), SeqCst);
    }
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    /// Whom it is counted for.
    flow: Option<Box<Flow>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(self.flow.as_deref());
    }
}

#[cfg(test)]
mod tests;
