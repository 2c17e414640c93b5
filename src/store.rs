//! What replicas share, in Redis or Valkey: records that only a newer one replaces, the right to make the next one, and
//! news of both.
//!
//! It knows nothing of tokens. Each record has a fence, a number that grows with every lease, so that a replica which slept
//! through its lease cannot put its record over a newer one. Nobody waits for a store that is away: every call says so
//! at once, and the caller goes on by itself.

mod backend;
mod connection_manager;
mod dialer;
#[cfg(test)]
pub(crate) mod fake;
mod notification;
mod seal;
mod subscription;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::FromRedisValue;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use zeroize::Zeroizing;

use self::{
    backend::{Backend, Script, ScriptCall},
    connection_manager::ConnectionManager,
    dialer::Dialer,
    seal::Sealer,
    subscription::Subscriptions,
};
pub use self::{
    notification::{Notification, NotificationKind, StoreEvent},
    subscription::Subscription,
};

use crate::config::RedisConfig;

/// How long a lease lasts that nobody extends: so long do the others wait for a replica that died with one.
pub const LEASE_TTL: Duration = Duration::from_secs(3);
/// How long a failure is remembered beyond its wait, so that the next wait is longer.
const FAILURE_TTL: Duration = Duration::from_secs(15 * 60);

/// The configured store cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its address or settings make no sense to the client.
    #[error("tokens.store: {0}")]
    Settings(#[from] redis::RedisError),
    /// The roots cannot be read.
    #[error("tokens.store.ca_file: {path} cannot be read: {error}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The keys do not serve.
    #[error("tokens.store.key: cannot be used")]
    Key,
}

/// The store did not do it; whoever asked goes on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// A value in the store.
pub struct StoreRecord {
    /// What was put there.
    pub value: Zeroizing<Vec<u8>>,
    /// Which of two is the newer: at least the microseconds since 1970 when its lease was given, by the store's clock.
    pub fence: u64,
    /// How long ago that was, by the same clock.
    pub age: Duration,
    /// How long it will be there.
    pub ttl: Duration,
    /// Whether it was made for the lease of its fence, and not known to somebody before.
    pub is_from_lease: bool,
}

/// What came of asking for something newer than what one has.
pub enum Claim {
    /// There is.
    Newer(StoreRecord),
    /// The last one who tried failed, and it is too early for another try.
    Failed {
        /// What they put down.
        failure: Zeroizing<Vec<u8>>,
        /// How long it is too early.
        retry_after: Duration,
    },
    /// There is not, and nobody but the caller may make it now.
    Acquired {
        /// The lease, to be ended by [`Store::put`] or [`Store::end`].
        lease: Lease,
        /// What the last one who failed put down, if there was one.
        failure: Option<Zeroizing<Vec<u8>>>,
    },
    /// There is not, and somebody else makes it.
    Held {
        /// They will have done so by then, or their lease ends.
        remaining: Duration,
    },
}

/// The right to make the next record of a name, for [`LEASE`] at a time.
#[derive(Debug, Clone)]
pub struct Lease {
    /// What the record will be told apart by.
    pub fence: u64,
    owner: String,
    acquired_at: Instant,
}

impl Lease {
    /// The same for a record that was made so long before the lease was given, and after the record of the fence `before`.
    pub fn backdated(self, age: Duration, before: u64) -> Self {
        let made = self.fence.saturating_sub(as_microseconds(age));
        Self { fence: made.clamp(before.saturating_add(1), self.fence.max(before.saturating_add(1))), ..self }
    }
}

/// What the store says by itself: news, and that it is there again.
pub type StoreEvents = mpsc::UnboundedReceiver<StoreEvent>;

/// A store that is shared with other replicas.
pub struct Store {
    backend: Backend,
    sealer: Arc<Sealer>,
    key_prefix: String,
    /// Tells this process from all others.
    replica_id: String,
    lease_counter: AtomicU64,
    subscriptions: Subscriptions,
}

/// How to reach and use the configured store; making it connects to nothing.
pub struct Settings {
    dialer: Dialer,
    sealer: Arc<Sealer>,
    key_prefix: String,
    event_sender: mpsc::UnboundedSender<StoreEvent>,
    events: StoreEvents,
}

impl Settings {
    /// Reads what the configuration names.
    pub fn new(redis: &RedisConfig) -> Result<Self, StoreError> {
        let sealer = Arc::new(Sealer::new(&redis.key, redis.old_key.as_ref()).ok_or(StoreError::Key)?);
        let (says, said) = mpsc::unbounded_channel();
        let dialler = Dialer::new(redis, sealer.clone(), says.clone())?;
        Ok(Self {
            dialer: dialler,
            sealer,
            key_prefix: redis.prefix.clone(),
            event_sender: says,
            events: said,
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.key_prefix)
    }
}

impl Store {
    /// A store that begins to connect on `runtime`. With it comes what it says by itself, to be listened to.
    pub fn open(settings: Settings, runtime: &Handle) -> (Arc<Self>, StoreEvents) {
        let Settings { dialer: dialler, sealer, key_prefix: prefix, event_sender: says, events: said } =
            settings;
        let link = ConnectionManager::open(dialler, &prefix, runtime, says);
        let store = Arc::new(Self::with_backend(Backend::redis(link), sealer, prefix));
        (store, said)
    }

    fn with_backend(backend: Backend, sealer: Arc<Sealer>, key_prefix: String) -> Self {
        Self {
            backend,
            sealer,
            key_prefix,
            replica_id: format!("{:016x}", getrandom::u64().unwrap_or_default()),
            lease_counter: AtomicU64::new(0),
            subscriptions: Subscriptions::default(),
        }
    }

    /// Why the store is away; `None` while it is there. Names no secret.
    pub fn last_error(&self) -> Option<String> {
        self.backend.last_error()
    }

    /// Whether it was tried yet to reach it.
    pub fn was_attempted(&self) -> bool {
        self.backend.was_attempted()
    }

    /// Asks for a record newer than `held`, the fence of the one that the caller has (0: none), or for the lease to make
    /// it. `force` asks whatever failed before. What cannot be understood counts as nothing.
    pub async fn claim(&self, name: &str, held: u64, force: bool) -> Result<Claim, Unavailable> {
        let (mut held, mut force) = (held, force);
        loop {
            let lease = format!("{}:{}", self.replica_id, self.lease_counter.fetch_add(1, Ordering::Relaxed));
            let mut claim = ScriptCall::new(Script::Claim);
            claim.key(self.key(name, "record")).key(self.key(name, "lease"));
            claim.key(self.key(name, "failure")).key(self.key(name, "counter"));
            claim.arg(held).arg(&lease).arg(as_milliseconds(LEASE_TTL));
            claim.arg(as_milliseconds(FAILURE_TTL)).arg(u8::from(force));
            let (what, value, fence, time, fresh, age) =
                self.call::<(String, Vec<u8>, u64, u64, u8, u64)>(claim).await?;
            let time = Duration::from_millis(time);
            return Ok(match what.as_str() {
                "record" => match self.open_record(name, &value, fence, time, fresh, age) {
                    Some(record) => Claim::Newer(record),
                    None => {
                        tracing::warn!(
                            name,
                            "the store holds a value of another version or key; it is replaced"
                        );
                        held = fence;
                        continue;
                    }
                },
                // For a failure the last is the time: one that is over was put there again.
                "failed" => match self.open_failure(name, &value) {
                    Some((until, failure)) if until > age => {
                        Claim::Failed { failure, retry_after: time.min(Duration::from_micros(until - age)) }
                    }
                    _ => {
                        force = true;
                        continue;
                    }
                },
                "ours" => {
                    let failure = self.open_failure(name, &value).map(|(_, failure)| failure);
                    Claim::Acquired {
                        lease: Lease { fence, owner: lease, acquired_at: Instant::now() },
                        failure,
                    }
                }
                _ => Claim::Held { remaining: time },
            });
        }
    }

    /// The record of a name, if there is one that can be understood.
    pub async fn read(&self, name: &str) -> Result<Option<StoreRecord>, Unavailable> {
        let mut read = ScriptCall::new(Script::Read);
        read.key(self.key(name, "record"));
        let (value, fence, time, fresh, age) = self.call::<(Vec<u8>, u64, u64, u8, u64)>(read).await?;
        Ok(self.open_record(name, &value, fence, Duration::from_millis(time), fresh, age))
    }

    /// A failure, and until when it holds the others back, in microseconds since 1970 by the store's clock.
    fn open_failure(&self, name: &str, value: &[u8]) -> Option<(u64, Zeroizing<Vec<u8>>)> {
        let mut failure = self.sealer.open(&failure_aad(name), value)?;
        let until = u64::from_be_bytes(*failure.first_chunk()?);
        failure.drain(..size_of::<u64>());
        Some((until, failure))
    }

    /// Whether what lies under a name can be understood; `None` where there is nothing.
    pub async fn is_readable(&self, name: &str) -> Result<Option<bool>, Unavailable> {
        let mut read = ScriptCall::new(Script::Read);
        read.key(self.key(name, "record"));
        let (value, fence, ..) = self.call::<(Vec<u8>, u64, u64, u8, u64)>(read).await?;
        Ok((!value.is_empty()).then(|| self.sealer.open(&record_aad(name, fence), &value).is_some()))
    }

    fn open_record(
        &self,
        name: &str,
        value: &[u8],
        fence: u64,
        life: Duration,
        fresh: u8,
        age: u64,
    ) -> Option<StoreRecord> {
        let value = self.sealer.open(&record_aad(name, fence), value)?;
        Some(StoreRecord {
            value,
            fence,
            ttl: life,
            age: Duration::from_micros(age),
            is_from_lease: fresh == 1,
        })
    }

    /// Puts down what was made under a lease, or what the caller has had for longer, for as long as it lives, and tells the
    /// others. False where somebody else has put down something newer meanwhile.
    pub async fn put(
        &self,
        name: &str,
        lease: &Lease,
        value: &[u8],
        life: Duration,
        event: NotificationKind,
    ) -> Result<bool, Unavailable> {
        let sealed = self.sealer.seal(&record_aad(name, lease.fence), value).ok_or(Unavailable)?;
        let news = Notification { kind: event, fence: lease.fence, name: name.to_owned() };
        let news = news.encode(&self.sealer).ok_or(Unavailable)?;
        let mut put = ScriptCall::new(Script::Put);
        put.key(self.key(name, "record")).key(self.key(name, "lease")).key(self.key(name, "failure"));
        put.arg(lease.fence).arg(sealed).arg(as_milliseconds(life).max(1)).arg(&lease.owner);
        put.arg(self.channel()).arg(news).arg(u8::from(event != NotificationKind::Restored));
        self.call::<u8>(put).await.map(|done| done == 1)
    }

    /// Ends a lease that brought nothing. With a failure the others leave it alone for as long.
    pub async fn end_lease(
        &self,
        name: &str,
        lease: &Lease,
        failure: Option<(&[u8], Duration)>,
    ) -> Result<(), Unavailable> {
        let (value, time) = match failure {
            Some((value, wait)) => {
                let until = lease.fence.saturating_add(as_microseconds(lease.acquired_at.elapsed() + wait));
                let value = [&until.to_be_bytes(), value].concat();
                (
                    self.sealer.seal(&failure_aad(name), &value).ok_or(Unavailable)?,
                    as_milliseconds(wait + FAILURE_TTL),
                )
            }
            None => (Vec::new(), 0),
        };
        let news = Notification { kind: NotificationKind::LeaseEnded, fence: 0, name: name.to_owned() };
        let news = news.encode(&self.sealer).ok_or(Unavailable)?;
        let mut end = ScriptCall::new(Script::EndLease);
        end.key(self.key(name, "lease")).key(self.key(name, "failure"));
        end.arg(&lease.owner).arg(self.channel()).arg(news).arg(value).arg(time);
        self.call::<u8>(end).await.map(|_| ())
    }

    /// Makes a lease last for [`LEASE`] from now. False where it was lost.
    pub async fn extend_lease(&self, name: &str, lease: &Lease) -> Result<bool, Unavailable> {
        let mut extend = ScriptCall::new(Script::ExtendLease);
        extend.key(self.key(name, "lease")).arg(&lease.owner).arg(as_milliseconds(LEASE_TTL));
        self.call::<u8>(extend).await.map(|done| done == 1)
    }

    /// Keeps a lease as long as `making` takes.
    pub async fn extend_lease_while<T>(
        &self,
        name: &str,
        lease: &Lease,
        making: impl Future<Output = T>,
    ) -> T {
        let mut making = pin!(making);
        let mut ticks = interval(LEASE_TTL / 3);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                made = &mut making => return made,
                _ = ticks.tick() => {
                    // Whoever lost it goes on: its record comes too late, or in time all the same.
                    let _ = self.extend_lease(name, lease).await;
                }
            }
        }
    }

    /// Takes from buckets that are refilled evenly, each by its name and how many microseconds what was taken within `since`
    /// takes to refill; answers in how many microseconds each is full, which may be less than none.
    pub async fn consume_limits(
        &self,
        taken: &[(&str, u64)],
        since: Duration,
    ) -> Result<Vec<i64>, Unavailable> {
        let mut count = ScriptCall::new(Script::ConsumeLimits);
        count.arg(as_microseconds(since));
        for (name, taken) in taken {
            // All in one slot of a cluster, for they are counted together.
            count.key(format!("{}{{limits}}:{name}", self.key_prefix)).arg(*taken);
        }
        self.call(count).await
    }

    /// Hears the news of a name from now on.
    pub fn subscribe(&self, name: &str) -> Subscription<'_> {
        self.subscriptions.subscribe(name)
    }

    /// Wakes whoever watches this name.
    pub fn wake_subscribers(&self, name: &str) {
        self.subscriptions.wake(name);
    }

    /// Tells the others; nobody waits for it.
    pub async fn publish(&self, news: &Notification) -> Result<(), Unavailable> {
        self.backend.publish(self.channel(), &news.encode(&self.sealer).ok_or(Unavailable)?).await
    }

    /// Has the connection looked at, for something said that it broke.
    pub fn request_probe(&self) {
        self.backend.request_probe();
    }

    fn key(&self, name: &str, what: &str) -> String {
        store_key(&self.key_prefix, name, what)
    }

    fn channel(&self) -> String {
        channel_name(&self.key_prefix)
    }

    async fn call<T: FromRedisValue>(&self, ask: ScriptCall) -> Result<T, Unavailable> {
        self.backend.call(ask).await
    }
}

/// The braces keep what belongs to one name in one slot of a cluster.
fn store_key(prefix: &str, name: &str, what: &str) -> String {
    format!("{prefix}{{{name}}}:{what}")
}

fn channel_name(prefix: &str) -> String {
    format!("{prefix}news")
}

/// What a record is sealed for: it can be moved to no other name, and made no newer than it is.
fn record_aad(name: &str, fence: u64) -> String {
    format!("{name}:record:{fence}")
}

fn failure_aad(name: &str) -> String {
    format!("{name}:failure")
}

fn as_microseconds(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

fn as_milliseconds(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
