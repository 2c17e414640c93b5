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
const LEAST_ROOM: usize = 1024;

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
        if row.turns.may_hold(&flow, self.spare(self.free())) && self.claim(self.total).is_some() {
            row.turns.hold(&flow);
            return Ok(Asked::Place(self.counted(flow)));
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
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn flow(places: &Places, client: &str) -> Flow {
        places.flow(Some(client), Some("hr"), "/cgi-bin/user/get")
    }

    async fn take_as(places: &Arc<Places>, client: &str) -> Result<Place, NoPlace> {
        match places.take() {
            Some(place) => Ok(place),
            None => places.wait(flow(places, client), PATIENCE).await,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_leaves_places_to_others_and_few_places_are_all_given() {
        for (total, taken) in [(1, 1), (2, 2), (16, 16), (63, 63), (64, 59), (4096, 3773)] {
            let places = Arc::new(Places::new(total));
            let mut held = Vec::new();
            while let Ok(place) = take_as(&places, "flood").await {
                held.push(place);
            }
            assert_eq!(held.len(), taken, "of {total}");
            assert_eq!(take_as(&places, "another").await.is_ok(), taken < total);
            drop(held);
            assert_eq!(places.taken(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_place_that_comes_free_and_leaves_nothing_behind() {
        let places = Arc::new(Places::new(1));
        let first = take_as(&places, "one").await.expect("a place");
        let late = take_as(&places, "two").await;
        assert_eq!(late.map(drop), Err(NoPlace::Late));
        let (second, ()) = tokio::join!(take_as(&places, "two"), async { drop(first) });
        drop(second.expect("a place"));
        assert_eq!((places.free(), places.row().turns.waiting()), (1, 0));
        assert!(take_as(&places, "three").await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_row_is_bounded_and_a_flood_leaves_room_in_it() {
        let places = Arc::new(Places::new(1));
        let _held = take_as(&places, "one").await.expect("a place");
        let mut waiting = Vec::new();
        let full = loop {
            match places.ask(flow(&places, "flood")) {
                Ok(Asked::Turn(turn)) => waiting.push(turn),
                Ok(Asked::Place(_)) => panic!("there is none"),
                Err(full) => break full,
            }
        };
        assert_eq!(full, NoPlace::Full);
        assert!((LEAST_ROOM / 2..LEAST_ROOM).contains(&waiting.len()), "{}", waiting.len());
        assert!(matches!(places.ask(flow(&places, "another")), Ok(Asked::Turn(_))));
        waiting.clear();
        assert_eq!(places.waiting.load(SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_closes_who_waits_is_told_and_who_need_not_wait_is_served() {
        let places = Arc::new(Places::new(1));
        let held = take_as(&places, "one").await.expect("a place");
        let (waited, ()) = tokio::join!(take_as(&places, "two"), async { places.close() });
        assert_eq!(waited.map(drop), Err(NoPlace::Closed));
        assert_eq!(take_as(&places, "two").await.map(drop), Err(NoPlace::Closed));
        drop(held);
        assert!(take_as(&places, "two").await.is_ok());
    }

    #[test]
    fn many_threads_lose_no_place_and_wake_everybody() {
        let places = Arc::new(Places::new(3));
        let work = |client: String| {
            let places = places.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    for _ in 0..3000 {
                        let place = take_as(&places, &client).await.expect("a place in time");
                        tokio::task::yield_now().await;
                        drop(place);
                    }
                });
                Ok::<_, std::io::Error>(())
            }
        };
        let threads: Vec<_> = (0..6).map(|nth| std::thread::spawn(work(nth.to_string()))).collect();
        for thread in threads {
            thread.join().expect("no panic").expect("a runtime");
        }
        assert_eq!((places.free(), places.row().turns.waiting()), (3, 0));
    }
}
