//! An in-memory store for tests in paused time: the scripts in Rust, and for each replica a connection that can
//! be disconnected, stalled and delayed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};

use redis::Value;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::super::{
    Store, StoreError, StoreEvents, Unavailable,
    backend::{Backend, DialerChange, MakeDialer, Reply},
    notification::{Notification, StoreEvent},
    script::{Script, ScriptCall},
};
use crate::secret::{Masked, seal::Sealer};

/// The server that all connections share.
#[derive(Clone, Default)]
pub(crate) struct FakeServer(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    keys: HashMap<String, (FakeValue, Instant)>,
    connections: Vec<FakeConnection>,
    /// Script calls so far.
    script_calls: usize,
    /// Every n-th notification is lost; 0: none.
    drop_every: u64,
    published: u64,
}

#[derive(Clone)]
enum FakeValue {
    Text(Vec<u8>),
    Record { value: Vec<u8>, fence: u64, fresh: bool },
}

/// One replica's connection.
#[derive(Clone)]
pub(crate) struct FakeConnection {
    server: FakeServer,
    state: Arc<watch::Sender<State>>,
    event_sender: mpsc::UnboundedSender<StoreEvent>,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// Calls fail at once.
    pub(crate) is_disconnected: bool,
    /// Calls wait until this ends.
    pub(crate) is_stalled: bool,
    /// One-way delay of a call.
    pub(crate) latency: Duration,
}

impl FakeServer {
    /// A replica's store, its events, and its connection.
    pub(crate) fn connect_store(&self) -> (Arc<Store>, StoreEvents, FakeConnection) {
        let (event_sender, events) = mpsc::unbounded_channel();
        let state = State { is_disconnected: false, is_stalled: false, latency: Duration::ZERO };
        let connection =
            FakeConnection { server: self.clone(), state: Arc::new(watch::Sender::new(state)), event_sender };
        self.inner().connections.push(connection.clone());
        let store =
            Store::with_backend(Arc::new(connection.clone()), Arc::new(test_sealer()), "test:".to_owned());
        (Arc::new(store), events, connection)
    }

    /// Removes all keys.
    pub(crate) fn clear(&self) {
        self.inner().keys.clear();
    }

    /// Loses every n-th notification.
    pub(crate) fn set_drop_every(&self, n: u64) {
        self.inner().drop_every = n;
    }

    /// Script calls so far.
    pub(crate) fn script_calls(&self) -> usize {
        self.inner().script_calls
    }

    /// The fence and the sealed value of a name's record.
    pub(crate) fn record(&self, name: &str) -> Option<(u64, Vec<u8>)> {
        match self.inner().unexpired(&format!("test:{{{name}}}:record")) {
            Some((FakeValue::Record { value, fence, .. }, _)) => Some((fence, value)),
            _ => None,
        }
    }

    /// The value of a string key.
    pub(crate) fn string_value(&self, key: &str) -> Option<Vec<u8>> {
        self.inner().string_value(key).map(|(text, _)| text)
    }

    /// Overwrites a key with a string.
    pub(crate) fn set_string(&self, key: &str, text: &[u8], life: Duration) {
        self.inner().insert(key, FakeValue::Text(text.to_vec()), life.as_millis() as u64);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

impl FakeConnection {
    /// Changes the state; a reconnect sends [`StoreEvent::Connected`].
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

    /// Delays a call one way, and fails it if the connection is down.
    async fn transfer(&self) -> Result<(), Unavailable> {
        let mut state = self.state.subscribe();
        let delay = state.borrow().latency;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let state = state.wait_for(|state| !state.is_stalled || state.is_disconnected).await;
        if state.is_ok_and(|state| !state.is_disconnected) { Ok(()) } else { Err(Unavailable) }
    }
}

impl Backend for FakeConnection {
    fn call(&self, script_call: ScriptCall) -> Reply<'_, Value> {
        Box::pin(async move {
            self.transfer().await?;
            let reply = self.server.inner().run_script(&script_call);
            // The script has run even if its reply is lost.
            self.transfer().await?;
            Ok(reply)
        })
    }

    fn publish(&self, _channel: String, message: String) -> Reply<'_, ()> {
        Box::pin(async move {
            if self.state().is_disconnected {
                return Err(Unavailable);
            }
            self.server.inner().publish(&message);
            Ok(())
        })
    }

    fn last_error(&self) -> Option<String> {
        self.state().is_disconnected.then(|| "disconnected".to_owned())
    }

    fn was_attempted(&self) -> bool {
        true
    }

    fn request_probe(&self) {}

    fn prepare_dialer(&self, _make: MakeDialer<'_>) -> Result<DialerChange<'_>, StoreError> {
        Ok(Box::new(|| false))
    }
}

impl Inner {
    fn unexpired(&self, key: &str) -> Option<(FakeValue, Instant)> {
        self.keys.get(key).filter(|(_, expires_at)| Instant::now() < *expires_at).cloned()
    }

    fn string_value(&self, key: &str) -> Option<(Vec<u8>, Duration)> {
        match self.unexpired(key)? {
            (FakeValue::Text(text), expires_at) => Some((text, expires_at - Instant::now())),
            _ => None,
        }
    }

    fn insert(&mut self, key: &str, value: FakeValue, milliseconds: u64) {
        self.keys.insert(key.to_owned(), (value, Instant::now() + Duration::from_millis(milliseconds)));
    }

    fn publish(&mut self, message: &str) {
        self.published += 1;
        if self.drop_every > 0 && self.published.is_multiple_of(self.drop_every) {
            return;
        }
        let sealer = test_sealer();
        for connection in self.connections.iter().filter(|connection| !connection.state().is_disconnected) {
            if let Some(message) = Notification::parse(message, &sealer) {
                let _ = connection.event_sender.send(StoreEvent::Notification(message));
            }
        }
    }

    /// Does what the Lua scripts do.
    fn run_script(&mut self, call: &ScriptCall) -> Value {
        self.script_calls += 1;
        match call.script {
            Script::Claim => self.claim(call),
            Script::Read => self.read(call),
            Script::Put => self.put(call),
            Script::Forget => {
                let found = call.keys.iter().filter(|key| self.keys.remove(*key).is_some()).count();
                int_reply(found as u64)
            }
            Script::EndLease => self.end_lease(call),
            Script::ExtendLease => self.extend_lease(call),
            Script::StateWrite
            | Script::StateRead
            | Script::StateScan
            | Script::StateScanSince
            | Script::StateChanges
            | Script::StateExpire
            | Script::StateReseal
            | Script::StateSummarize => unreachable!("the state has a server of its own"),
            Script::ConsumeLimits | Script::CountQuotas => array_reply(&vec![int_reply(0); call.keys.len()]),
        }
    }

    fn read(&self, call: &ScriptCall) -> Value {
        match self.unexpired(&call.keys[0]) {
            Some((FakeValue::Record { value, fence, fresh }, expires_at)) => array_reply(&[
                bulk_reply(&value),
                int_reply(fence),
                ttl_reply(expires_at),
                int_reply(u64::from(fresh)),
                age_reply(fence),
            ]),
            _ => array_reply(&[bulk_reply(b""), int_reply(0), int_reply(0), int_reply(0), int_reply(0)]),
        }
    }

    fn put(&mut self, call: &ScriptCall) -> Value {
        let [record_key, lease_key, failure_key] = &call.keys[..] else { panic!("three keys") };
        let (fence, value, ttl_ms) = (number(call, 0), call.arguments[1].clone(), number(call, 2));
        if self.is_owner(lease_key, &call.arguments[3]) {
            self.keys.remove(lease_key);
        }
        if matches!(self.unexpired(record_key), Some((FakeValue::Record { fence: known, .. }, _)) if known >= fence)
        {
            return int_reply(0);
        }
        let record = FakeValue::Record { value, fence, fresh: number(call, 6) == 1 };
        self.insert(record_key, record, ttl_ms);
        self.keys.remove(failure_key);
        self.publish(&text(call, 5));
        int_reply(1)
    }

    fn end_lease(&mut self, call: &ScriptCall) -> Value {
        let [lease_key, failure_key] = &call.keys[..] else { panic!("two keys") };
        if !self.is_owner(lease_key, &call.arguments[0]) {
            return int_reply(0);
        }
        self.keys.remove(lease_key);
        let failure_ttl_ms = number(call, 4);
        if failure_ttl_ms > 0 {
            self.insert(failure_key, FakeValue::Text(call.arguments[3].clone()), failure_ttl_ms);
        }
        self.publish(&text(call, 2));
        int_reply(1)
    }

    fn extend_lease(&mut self, call: &ScriptCall) -> Value {
        let (lease_key, owner) = (&call.keys[0], &call.arguments[0]);
        let is_owner = self.is_owner(lease_key, owner);
        if is_owner {
            self.insert(lease_key, FakeValue::Text(owner.clone()), number(call, 1));
        }
        int_reply(u64::from(is_owner))
    }

    fn is_owner(&self, lease_key: &str, owner: &[u8]) -> bool {
        self.string_value(lease_key).is_some_and(|(known, _)| known == owner)
    }

    fn claim(&mut self, call: &ScriptCall) -> Value {
        let [record_key, lease_key, failure_key, counter_key] = &call.keys[..] else { panic!("four keys") };
        let (known_fence, owner, lease_ttl_ms) = (number(call, 0), &call.arguments[1], number(call, 2));
        let (failure_ttl, force) = (Duration::from_millis(number(call, 3)), number(call, 4) == 1);
        let mut record_fence = 0;
        if let Some((FakeValue::Record { value, fence, fresh }, expires_at)) = self.unexpired(record_key) {
            if fence > known_fence {
                return claim_reply(
                    b"record",
                    &value,
                    [int_reply(fence), ttl_reply(expires_at), int_reply(u64::from(fresh)), age_reply(fence)],
                );
            }
            record_fence = fence;
        }
        let failure = self.string_value(failure_key);
        if let Some((failure, left)) = failure.as_ref().filter(|_| !force) {
            let wait = left.saturating_sub(failure_ttl).as_millis() as u64;
            if wait > 0 {
                let numbers = [int_reply(0), int_reply(wait), int_reply(0), int_reply(now_micros())];
                return claim_reply(b"failed", failure, numbers);
            }
        }
        if let Some((_, expires_at)) = self.unexpired(lease_key) {
            let numbers = [int_reply(0), ttl_reply(expires_at), int_reply(0), int_reply(0)];
            return claim_reply(b"taken", b"", numbers);
        }
        self.insert(lease_key, FakeValue::Text(owner.clone()), lease_ttl_ms);
        let counter =
            self.string_value(counter_key).and_then(|(text, _)| String::from_utf8(text).ok()?.parse().ok());
        let next = now_micros().max(counter.unwrap_or(0) + 1).max(record_fence.max(known_fence) + 1);
        self.insert(counter_key, FakeValue::Text(next.to_string().into_bytes()), 86_400_000);
        let failure = failure.map_or(Vec::new(), |(failure, _)| failure);
        claim_reply(b"ours", &failure, [int_reply(next), int_reply(0), int_reply(0), int_reply(0)])
    }
}

fn text(call: &ScriptCall, nth: usize) -> String {
    String::from_utf8_lossy(&call.arguments[nth]).into_owned()
}

fn number(call: &ScriptCall, nth: usize) -> u64 {
    text(call, nth).parse().expect("a number")
}

fn claim_reply(kind: &[u8], value: &[u8], [fence, time, fresh, last]: [Value; 4]) -> Value {
    array_reply(&[bulk_reply(kind), bulk_reply(value), fence, time, fresh, last])
}

fn now_micros() -> u64 {
    let since = crate::time::clock::wall_clock().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    since.as_micros().try_into().expect("before the year 500000")
}

fn age_reply(fence: u64) -> Value {
    int_reply(now_micros().saturating_sub(fence))
}

fn test_sealer() -> Sealer {
    Sealer::new("store", &Masked::new("a key of the tests, long enough for it"), None).expect("a key")
}

fn array_reply(values: &[Value]) -> Value {
    Value::Array(values.to_vec())
}

fn bulk_reply(text: &[u8]) -> Value {
    Value::BulkString(text.to_vec())
}

fn int_reply(number: u64) -> Value {
    Value::Int(number.try_into().expect("less than 2^63"))
}

fn ttl_reply(expires_at: Instant) -> Value {
    int_reply(expires_at.saturating_duration_since(Instant::now()).as_millis() as u64)
}

impl Store {
    /// A store whose connection is down.
    pub(crate) fn disconnected() -> Arc<Self> {
        let (store, _, connection) = FakeServer::default().connect_store();
        connection.update_state(|state| state.is_disconnected = true);
        store
    }
}
