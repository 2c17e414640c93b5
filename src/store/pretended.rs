//! A store without a server, for tests in paused time: the scripts in Rust, and a line for each replica that can be cut,
//! frozen and slowed down.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use redis::Value;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    Away, Said, Store,
    news::{News, Word},
    seal::Sealer,
    way::{Ask, Script, Way},
};
use crate::secret::Masked;

/// What all lines lead to.
#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    keys: HashMap<String, (Kept, Instant)>,
    lines: Vec<Line>,
    /// How many scripts ran.
    asked: usize,
    /// Every so many news is lost; 0: none.
    loses: u64,
    told: u64,
}

#[derive(Clone)]
enum Kept {
    Text(Vec<u8>),
    Record { value: Vec<u8>, fence: u64, fresh: bool },
}

/// One replica's way to the store.
#[derive(Clone)]
pub(crate) struct Line {
    server: Server,
    state: Arc<watch::Sender<State>>,
    says: mpsc::UnboundedSender<Word>,
}

/// How a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// Nothing goes through, and that is noticed at once.
    pub(crate) is_cut: bool,
    /// Nothing goes through until it thaws.
    pub(crate) is_frozen: bool,
    /// How long a call takes each way.
    pub(crate) delay: Duration,
}

impl Server {
    /// A replica's store, what it says, and the line to it.
    pub(crate) fn store(&self) -> (Arc<Store>, Said, Line) {
        let (says, said) = mpsc::unbounded_channel();
        let state = State { is_cut: false, is_frozen: false, delay: Duration::ZERO };
        let line = Line { server: self.clone(), state: Arc::new(watch::Sender::new(state)), says };
        self.inner().lines.push(line.clone());
        let sealer = sealer();
        let way = Way::Pretended(line.clone());
        (Arc::new(Store::over(way, Arc::new(sealer.expect("a key")), "test:".to_owned())), said, line)
    }

    /// Forgets everything.
    pub(crate) fn wipe(&self) {
        self.inner().keys.clear();
    }

    /// Loses every so many news.
    pub(crate) fn loses(&self, every: u64) {
        self.inner().loses = every;
    }

    /// How many scripts ran.
    pub(crate) fn asked(&self) -> usize {
        self.inner().asked
    }

    /// The fence of the record whose name this is, and its sealed value.
    pub(crate) fn record(&self, name: &str) -> Option<(u64, Vec<u8>)> {
        match self.inner().live(&format!("test:{{{name}}}:record")) {
            Some((Kept::Record { value, fence, .. }, _)) => Some((fence, value)),
            _ => None,
        }
    }

    /// What a key holds that is no record.
    pub(crate) fn text(&self, key: &str) -> Option<Vec<u8>> {
        self.inner().text(key).map(|(text, _)| text)
    }

    /// Has a key hold this, whatever it held.
    pub(crate) fn put(&self, key: &str, text: &[u8], life: Duration) {
        self.inner().keep(key, Kept::Text(text.to_vec()), life.as_millis() as u64);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Changes how it is.
    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        let before = *self.state.borrow();
        self.state.send_modify(change);
        if before.is_cut && !self.state.borrow().is_cut {
            let _ = self.says.send(Word::Joined);
        }
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.state().is_cut.then(|| "cut".to_owned())
    }

    pub(super) async fn ask(&self, ask: Ask) -> Result<Value, Away> {
        self.passes().await?;
        let answer = self.server.inner().run(&ask);
        // What was done is done even if nobody hears of it.
        self.passes().await?;
        Ok(answer)
    }

    pub(super) fn tell(&self, news: &str) -> Result<(), Away> {
        if self.state().is_cut {
            return Err(Away);
        }
        self.server.inner().tell(news);
        Ok(())
    }

    /// One way.
    async fn passes(&self) -> Result<(), Away> {
        let mut state = self.state.subscribe();
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let passes = state.wait_for(|state| !state.is_frozen || state.is_cut).await;
        if passes.is_ok_and(|state| !state.is_cut) { Ok(()) } else { Err(Away) }
    }
}

impl Inner {
    fn live(&self, key: &str) -> Option<(Kept, Instant)> {
        self.keys.get(key).filter(|(_, until)| Instant::now() < *until).cloned()
    }

    fn text(&self, key: &str) -> Option<(Vec<u8>, Duration)> {
        match self.live(key)? {
            (Kept::Text(text), until) => Some((text, until - Instant::now())),
            _ => None,
        }
    }

    fn keep(&mut self, key: &str, kept: Kept, milliseconds: u64) {
        self.keys.insert(key.to_owned(), (kept, Instant::now() + Duration::from_millis(milliseconds)));
    }

    fn tell(&mut self, news: &str) {
        self.told += 1;
        if self.loses > 0 && self.told.is_multiple_of(self.loses) {
            return;
        }
        let sealer = sealer().expect("a key");
        for line in self.lines.iter().filter(|line| !line.state().is_cut) {
            if let Some(news) = News::parse(news, &sealer) {
                let _ = line.says.send(Word::News(news));
            }
        }
    }

    /// As the scripts in Lua do.
    fn run(&mut self, Ask { script, keys, arguments }: &Ask) -> Value {
        self.asked += 1;
        let text = |nth: usize| String::from_utf8_lossy(&arguments[nth]).into_owned();
        let number = |nth: usize| text(nth).parse::<u64>().expect("a number");
        let is_owner = |inner: &Self, key: &str, nth: usize| {
            inner.text(key).is_some_and(|(owner, _)| owner == arguments[nth])
        };
        match script {
            Script::Claim => self.claim(keys, number(0), &arguments[1], number(2), number(3), number(4) == 1),
            Script::Read => match self.live(&keys[0]) {
                Some((Kept::Record { value, fence, fresh }, until)) => {
                    answer(&[bulk(&value), int(fence), left(until), int(u64::from(fresh)), age(fence)])
                }
                _ => answer(&[bulk(b""), int(0), int(0), int(0), int(0)]),
            },
            Script::Put => {
                if is_owner(self, &keys[1], 3) {
                    self.keys.remove(&keys[1]);
                }
                if matches!(self.live(&keys[0]), Some((Kept::Record { fence, .. }, _)) if fence >= number(0))
                {
                    return int(0);
                }
                let record =
                    Kept::Record { value: arguments[1].clone(), fence: number(0), fresh: number(6) == 1 };
                self.keep(&keys[0], record, number(2));
                self.keys.remove(&keys[2]);
                self.tell(&text(5));
                int(1)
            }
            Script::End => {
                if !is_owner(self, &keys[0], 0) {
                    return int(0);
                }
                self.keys.remove(&keys[0]);
                if number(4) > 0 {
                    self.keep(&keys[1], Kept::Text(arguments[3].clone()), number(4));
                }
                self.tell(&text(2));
                int(1)
            }
            Script::Extend => {
                let is_owner = is_owner(self, &keys[0], 0);
                if is_owner {
                    self.keep(&keys[0], Kept::Text(arguments[0].clone()), number(1));
                }
                int(u64::from(is_owner))
            }
            Script::Count => answer(&vec![int(0); keys.len()]),
        }
    }

    fn claim(
        &mut self,
        keys: &[String],
        held: u64,
        owner: &[u8],
        lease: u64,
        remembered: u64,
        force: bool,
    ) -> Value {
        let record = self.live(&keys[0]);
        let mut last = 0;
        if let Some((Kept::Record { value, fence, fresh }, until)) = record {
            if fence > held {
                return answer(&[
                    bulk(b"record"),
                    bulk(&value),
                    int(fence),
                    left(until),
                    int(u64::from(fresh)),
                    age(fence),
                ]);
            }
            last = fence;
        }
        let failure = self.text(&keys[2]);
        if let Some((failure, left)) = failure.as_ref().filter(|_| !force) {
            let wait = left.saturating_sub(Duration::from_millis(remembered)).as_millis() as u64;
            if wait > 0 {
                return answer(&[
                    bulk(b"failed"),
                    bulk(failure),
                    int(0),
                    int(wait),
                    int(0),
                    int(microseconds()),
                ]);
            }
        }
        if let Some((_, until)) = self.live(&keys[1]) {
            return answer(&[bulk(b"taken"), bulk(b""), int(0), left(until), int(0), int(0)]);
        }
        self.keep(&keys[1], Kept::Text(owner.to_vec()), lease);
        let counter = self.text(&keys[3]).and_then(|(text, _)| String::from_utf8(text).ok()?.parse().ok());
        let next = microseconds().max(counter.unwrap_or(0) + 1).max(last.max(held) + 1);
        self.keep(&keys[3], Kept::Text(next.to_string().into_bytes()), 86_400_000);
        let failure = failure.map_or(Vec::new(), |(failure, _)| failure);
        answer(&[bulk(b"ours"), bulk(&failure), int(next), int(0), int(0), int(0)])
    }
}

fn microseconds() -> u64 {
    let since = crate::tokens::wall_clock().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    since.as_micros().try_into().expect("before the year 500000")
}

fn age(fence: u64) -> Value {
    int(microseconds().saturating_sub(fence))
}

fn sealer() -> Option<Sealer> {
    Sealer::new(&Masked::new("a key of the tests, long enough for it"), None)
}

fn answer(values: &[Value]) -> Value {
    Value::Array(values.to_vec())
}

fn bulk(text: &[u8]) -> Value {
    Value::BulkString(text.to_vec())
}

fn int(number: u64) -> Value {
    Value::Int(number.try_into().expect("no more than 2^63"))
}

fn left(until: Instant) -> Value {
    int(until.saturating_duration_since(Instant::now()).as_millis() as u64)
}

impl Store {
    /// A store that nothing leads to.
    pub(crate) fn nowhere() -> Arc<Self> {
        let (store, _, line) = Server::default().store();
        line.set(|state| state.is_cut = true);
        store
    }
}
