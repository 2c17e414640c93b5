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
    Store, StoreEvents, Unavailable,
    backend::{Backend, Script, ScriptCall},
    notification::{Notification, StoreEvent},
    seal::Sealer,
};
use crate::secret::Masked;

/// What all lines lead to.
#[derive(Clone, Default)]
pub(crate) struct FakeServer(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    keys: HashMap<String, (FakeValue, Instant)>,
    connections: Vec<FakeConnection>,
    /// How many scripts ran.
    script_calls: usize,
    /// Every so many news is lost; 0: none.
    drop_every: u64,
    published: u64,
}

#[derive(Clone)]
enum FakeValue {
    Text(Vec<u8>),
    Record { value: Vec<u8>, fence: u64, fresh: bool },
}

/// One replica's way to the store.
#[derive(Clone)]
pub(crate) struct FakeConnection {
    server: FakeServer,
    state: Arc<watch::Sender<State>>,
    event_sender: mpsc::UnboundedSender<StoreEvent>,
}

/// How a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// Nothing goes through, and that is noticed at once.
    pub(crate) is_disconnected: bool,
    /// Nothing goes through until it thaws.
    pub(crate) is_stalled: bool,
    /// How long a call takes each way.
    pub(crate) latency: Duration,
}

impl FakeServer {
    /// A replica's store, what it says, and the line to it.
    pub(crate) fn connect_store(&self) -> (Arc<Store>, StoreEvents, FakeConnection) {
        let (says, said) = mpsc::unbounded_channel();
        let state = State { is_disconnected: false, is_stalled: false, latency: Duration::ZERO };
        let line = FakeConnection {
            server: self.clone(),
            state: Arc::new(watch::Sender::new(state)),
            event_sender: says,
        };
        self.inner().connections.push(line.clone());
        let sealer = test_sealer();
        let way = Backend::Fake(line.clone());
        (Arc::new(Store::with_backend(way, Arc::new(sealer.expect("a key")), "test:".to_owned())), said, line)
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.inner().keys.clear();
    }

    /// Loses every so many news.
    pub(crate) fn set_drop_every(&self, every: u64) {
        self.inner().drop_every = every;
    }

    /// How many scripts ran.
    pub(crate) fn script_calls(&self) -> usize {
        self.inner().script_calls
    }

    /// The fence of the record whose name this is, and its sealed value.
    pub(crate) fn record(&self, name: &str) -> Option<(u64, Vec<u8>)> {
        match self.inner().unexpired(&format!("test:{{{name}}}:record")) {
            Some((FakeValue::Record { value, fence, .. }, _)) => Some((fence, value)),
            _ => None,
        }
    }

    /// What a key holds that is no record.
    pub(crate) fn string_value(&self, key: &str) -> Option<Vec<u8>> {
        self.inner().string_value(key).map(|(text, _)| text)
    }

    /// Has a key hold this, whatever it held.
    pub(crate) fn set_string(&self, key: &str, text: &[u8], life: Duration) {
        self.inner().insert(key, FakeValue::Text(text.to_vec()), life.as_millis() as u64);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeConnection {
    /// Changes how it is.
    pub(crate) fn update_state(&self, change: impl FnOnce(&mut State)) {
        let before = *self.state.borrow();
        self.state.send_modify(change);
        if before.is_disconnected && !self.state.borrow().is_disconnected {
            let _ = self.event_sender.send(StoreEvent::Connected);
        }
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.state().is_disconnected.then(|| "cut".to_owned())
    }

    pub(super) async fn call(&self, ask: ScriptCall) -> Result<Value, Unavailable> {
        self.transfer().await?;
        let answer = self.server.inner().run_script(&ask);
        // What was done is done even if nobody hears of it.
        self.transfer().await?;
        Ok(answer)
    }

    pub(super) fn publish(&self, news: &str) -> Result<(), Unavailable> {
        if self.state().is_disconnected {
            return Err(Unavailable);
        }
        self.server.inner().publish(news);
        Ok(())
    }

    /// One way.
    async fn transfer(&self) -> Result<(), Unavailable> {
        let mut state = self.state.subscribe();
        let delay = state.borrow().latency;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let passes = state.wait_for(|state| !state.is_stalled || state.is_disconnected).await;
        if passes.is_ok_and(|state| !state.is_disconnected) { Ok(()) } else { Err(Unavailable) }
    }
}

impl Inner {
    fn unexpired(&self, key: &str) -> Option<(FakeValue, Instant)> {
        self.keys.get(key).filter(|(_, until)| Instant::now() < *until).cloned()
    }

    fn string_value(&self, key: &str) -> Option<(Vec<u8>, Duration)> {
        match self.unexpired(key)? {
            (FakeValue::Text(text), until) => Some((text, until - Instant::now())),
            _ => None,
        }
    }

    fn insert(&mut self, key: &str, kept: FakeValue, milliseconds: u64) {
        self.keys.insert(key.to_owned(), (kept, Instant::now() + Duration::from_millis(milliseconds)));
    }

    fn publish(&mut self, news: &str) {
        self.published += 1;
        if self.drop_every > 0 && self.published.is_multiple_of(self.drop_every) {
            return;
        }
        let sealer = test_sealer().expect("a key");
        for line in self.connections.iter().filter(|line| !line.state().is_disconnected) {
            if let Some(news) = Notification::parse(news, &sealer) {
                let _ = line.event_sender.send(StoreEvent::Notification(news));
            }
        }
    }

    /// As the scripts in Lua do.
    fn run_script(&mut self, ScriptCall { script, keys, arguments }: &ScriptCall) -> Value {
        self.script_calls += 1;
        let text = |nth: usize| String::from_utf8_lossy(&arguments[nth]).into_owned();
        let number = |nth: usize| text(nth).parse::<u64>().expect("a number");
        let is_owner = |inner: &Self, key: &str, nth: usize| {
            inner.string_value(key).is_some_and(|(owner, _)| owner == arguments[nth])
        };
        match script {
            Script::Claim => self.claim(keys, number(0), &arguments[1], number(2), number(3), number(4) == 1),
            Script::Read => match self.unexpired(&keys[0]) {
                Some((FakeValue::Record { value, fence, fresh }, until)) => array_reply(&[
                    bulk_reply(&value),
                    int_reply(fence),
                    ttl_reply(until),
                    int_reply(u64::from(fresh)),
                    age_reply(fence),
                ]),
                _ => array_reply(&[bulk_reply(b""), int_reply(0), int_reply(0), int_reply(0), int_reply(0)]),
            },
            Script::Put => {
                if is_owner(self, &keys[1], 3) {
                    self.keys.remove(&keys[1]);
                }
                if matches!(self.unexpired(&keys[0]), Some((FakeValue::Record { fence, .. }, _)) if fence >= number(0))
                {
                    return int_reply(0);
                }
                let record = FakeValue::Record {
                    value: arguments[1].clone(),
                    fence: number(0),
                    fresh: number(6) == 1,
                };
                self.insert(&keys[0], record, number(2));
                self.keys.remove(&keys[2]);
                self.publish(&text(5));
                int_reply(1)
            }
            Script::EndLease => {
                if !is_owner(self, &keys[0], 0) {
                    return int_reply(0);
                }
                self.keys.remove(&keys[0]);
                if number(4) > 0 {
                    self.insert(&keys[1], FakeValue::Text(arguments[3].clone()), number(4));
                }
                self.publish(&text(2));
                int_reply(1)
            }
            Script::ExtendLease => {
                let is_owner = is_owner(self, &keys[0], 0);
                if is_owner {
                    self.insert(&keys[0], FakeValue::Text(arguments[0].clone()), number(1));
                }
                int_reply(u64::from(is_owner))
            }
            Script::ConsumeLimits => array_reply(&vec![int_reply(0); keys.len()]),
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
        let record = self.unexpired(&keys[0]);
        let mut last = 0;
        if let Some((FakeValue::Record { value, fence, fresh }, until)) = record {
            if fence > held {
                return array_reply(&[
                    bulk_reply(b"record"),
                    bulk_reply(&value),
                    int_reply(fence),
                    ttl_reply(until),
                    int_reply(u64::from(fresh)),
                    age_reply(fence),
                ]);
            }
            last = fence;
        }
        let failure = self.string_value(&keys[2]);
        if let Some((failure, left)) = failure.as_ref().filter(|_| !force) {
            let wait = left.saturating_sub(Duration::from_millis(remembered)).as_millis() as u64;
            if wait > 0 {
                return array_reply(&[
                    bulk_reply(b"failed"),
                    bulk_reply(failure),
                    int_reply(0),
                    int_reply(wait),
                    int_reply(0),
                    int_reply(now_micros()),
                ]);
            }
        }
        if let Some((_, until)) = self.unexpired(&keys[1]) {
            return array_reply(&[
                bulk_reply(b"taken"),
                bulk_reply(b""),
                int_reply(0),
                ttl_reply(until),
                int_reply(0),
                int_reply(0),
            ]);
        }
        self.insert(&keys[1], FakeValue::Text(owner.to_vec()), lease);
        let counter =
            self.string_value(&keys[3]).and_then(|(text, _)| String::from_utf8(text).ok()?.parse().ok());
        let next = now_micros().max(counter.unwrap_or(0) + 1).max(last.max(held) + 1);
        self.insert(&keys[3], FakeValue::Text(next.to_string().into_bytes()), 86_400_000);
        let failure = failure.map_or(Vec::new(), |(failure, _)| failure);
        array_reply(&[
            bulk_reply(b"ours"),
            bulk_reply(&failure),
            int_reply(next),
            int_reply(0),
            int_reply(0),
            int_reply(0),
        ])
    }
}

fn now_micros() -> u64 {
    let since = crate::tokens::wall_clock().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    since.as_micros().try_into().expect("before the year 500000")
}

fn age_reply(fence: u64) -> Value {
    int_reply(now_micros().saturating_sub(fence))
}

fn test_sealer() -> Option<Sealer> {
    Sealer::new(&Masked::new("a key of the tests, long enough for it"), None)
}

fn array_reply(values: &[Value]) -> Value {
    Value::Array(values.to_vec())
}

fn bulk_reply(text: &[u8]) -> Value {
    Value::BulkString(text.to_vec())
}

fn int_reply(number: u64) -> Value {
    Value::Int(number.try_into().expect("no more than 2^63"))
}

fn ttl_reply(until: Instant) -> Value {
    int_reply(until.saturating_duration_since(Instant::now()).as_millis() as u64)
}

impl Store {
    /// A store that nothing leads to.
    pub(crate) fn disconnected() -> Arc<Self> {
        let (store, _, line) = FakeServer::default().connect_store();
        line.update_state(|state| state.is_disconnected = true);
        store
    }
}
