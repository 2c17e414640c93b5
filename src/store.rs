//! What replicas share, in Redis or Valkey: records that only a newer one replaces, the right to make the next one, and
//! news of both.
//!
//! It knows nothing of tokens. Each record has a fence, a number that grows with every lease, so that a replica which slept
//! through its lease cannot put its record over a newer one. Nobody waits for a store that is away: every call says so
//! at once, and the caller goes on by itself.

mod dial;
mod link;
mod news;
#[cfg(test)]
pub(crate) mod pretended;
mod seal;
#[cfg(test)]
mod tests;
mod watch;
mod way;

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
    dial::Dialler,
    link::Link,
    seal::Sealer,
    watch::Watches,
    way::{Ask, Script, Way},
};
pub use self::{
    news::{Event, News, Word},
    watch::Watch,
};

use crate::config::Redis;

/// How long a lease lasts that nobody extends: so long do the others wait for a replica that died with one.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long a failure is remembered beyond its wait, so that the next wait is longer.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// The configured store cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its address or settings make no sense to the client.
    #[error("tokens.store: {0}")]
    Settings(#[from] redis::RedisError),
    /// The roots cannot be read.
    #[error("tokens.store.ca_file: {path} cannot be read: {error}")]
    Roots {
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
pub struct Away;

/// A value in the store.
pub struct Record {
    /// What was put there.
    pub value: Zeroizing<Vec<u8>>,
    /// Which of two is the newer: at least the microseconds since 1970 when its lease was given, by the store's clock.
    pub fence: u64,
    /// How long ago that was, by the same clock.
    pub age: Duration,
    /// How long it will be there.
    pub life: Duration,
    /// Whether it was made for the lease of its fence, and not known to somebody before.
    pub is_fresh: bool,
}

/// What came of asking for something newer than what one has.
pub enum Claim {
    /// There is.
    Record(Record),
    /// The last one who tried failed, and it is too early for another try.
    Failed {
        /// What they put down.
        failure: Zeroizing<Vec<u8>>,
        /// How long it is too early.
        wait: Duration,
    },
    /// There is not, and nobody but the caller may make it now.
    Ours {
        /// The lease, to be ended by [`Store::put`] or [`Store::end`].
        lease: Lease,
        /// What the last one who failed put down, if there was one.
        failure: Option<Zeroizing<Vec<u8>>>,
    },
    /// There is not, and somebody else makes it.
    Taken {
        /// They will have done so by then, or their lease ends.
        left: Duration,
    },
}

/// The right to make the next record of a name, for [`LEASE`] at a time.
#[derive(Debug, Clone)]
pub struct Lease {
    /// What the record will be told apart by.
    pub fence: u64,
    owner: String,
    given: Instant,
}

impl Lease {
    /// The same for a record that was made so long before the lease was given, and after the record of the fence `before`.
    pub fn made_before(self, age: Duration, before: u64) -> Self {
        let made = self.fence.saturating_sub(microseconds(age));
        Self { fence: made.clamp(before.saturating_add(1), self.fence.max(before.saturating_add(1))), ..self }
    }
}

/// What the store says by itself: news, and that it is there again.
pub type Said = mpsc::UnboundedReceiver<Word>;

/// A store that is shared with other replicas.
pub struct Store {
    way: Way,
    sealer: Arc<Sealer>,
    prefix: String,
    /// Tells this process from all others.
    replica: String,
    leases: AtomicU64,
    watches: Watches,
}

/// How to reach and use the configured store; making it connects to nothing.
pub struct Settings {
    dialler: Dialler,
    sealer: Arc<Sealer>,
    prefix: String,
    says: mpsc::UnboundedSender<Word>,
    said: Said,
}

impl Settings {
    /// Reads what the configuration names.
    pub fn new(redis: &Redis) -> Result<Self, StoreError> {
        let sealer = Arc::new(Sealer::new(&redis.key, redis.old_key.as_ref()).ok_or(StoreError::Key)?);
        let (says, said) = mpsc::unbounded_channel();
        let dialler = Dialler::new(redis, sealer.clone(), says.clone())?;
        Ok(Self { dialler, sealer, prefix: redis.prefix.clone(), says, said })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.prefix)
    }
}

impl Store {
    /// A store that begins to connect on `runtime`. With it comes what it says by itself, to be listened to.
    pub fn open(settings: Settings, runtime: &Handle) -> (Arc<Self>, Said) {
        let Settings { dialler, sealer, prefix, says, said } = settings;
        let link = Link::open(dialler, &prefix, runtime, says);
        let store = Arc::new(Self::over(Way::redis(link), sealer, prefix));
        (store, said)
    }

    fn over(way: Way, sealer: Arc<Sealer>, prefix: String) -> Self {
        Self {
            way,
            sealer,
            prefix,
            replica: format!("{:016x}", getrandom::u64().unwrap_or_default()),
            leases: AtomicU64::new(0),
            watches: Watches::default(),
        }
    }

    /// Why the store is away; `None` while it is there. Names no secret.
    pub fn trouble(&self) -> Option<String> {
        self.way.trouble()
    }

    /// Whether it was tried yet to reach it.
    pub fn is_tried(&self) -> bool {
        self.way.is_tried()
    }

    /// Asks for a record newer than `held`, the fence of the one that the caller has (0: none), or for the lease to make
    /// it. `force` asks whatever failed before. What cannot be understood counts as nothing.
    pub async fn claim(&self, name: &str, held: u64, force: bool) -> Result<Claim, Away> {
        let (mut held, mut force) = (held, force);
        loop {
            let lease = format!("{}:{}", self.replica, self.leases.fetch_add(1, Ordering::Relaxed));
            let mut claim = Ask::new(Script::Claim);
            claim.key(self.key(name, "record")).key(self.key(name, "lease"));
            claim.key(self.key(name, "failure")).key(self.key(name, "counter"));
            claim.arg(held).arg(&lease).arg(milliseconds(LEASE));
            claim.arg(milliseconds(REMEMBERED)).arg(u8::from(force));
            let (what, value, fence, time, fresh, age) =
                self.ask::<(String, Vec<u8>, u64, u64, u8, u64)>(claim).await?;
            let time = Duration::from_millis(time);
            return Ok(match what.as_str() {
                "record" => match self.record(name, &value, fence, time, fresh, age) {
                    Some(record) => Claim::Record(record),
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
                "failed" => match self.failure(name, &value) {
                    Some((until, failure)) if until > age => {
                        Claim::Failed { failure, wait: time.min(Duration::from_micros(until - age)) }
                    }
                    _ => {
                        force = true;
                        continue;
                    }
                },
                "ours" => {
                    let failure = self.failure(name, &value).map(|(_, failure)| failure);
                    Claim::Ours { lease: Lease { fence, owner: lease, given: Instant::now() }, failure }
                }
                _ => Claim::Taken { left: time },
            });
        }
    }

    /// The record of a name, if there is one that can be understood.
    pub async fn read(&self, name: &str) -> Result<Option<Record>, Away> {
        let mut read = Ask::new(Script::Read);
        read.key(self.key(name, "record"));
        let (value, fence, time, fresh, age) = self.ask::<(Vec<u8>, u64, u64, u8, u64)>(read).await?;
        Ok(self.record(name, &value, fence, Duration::from_millis(time), fresh, age))
    }

    /// A failure, and until when it holds the others back, in microseconds since 1970 by the store's clock.
    fn failure(&self, name: &str, value: &[u8]) -> Option<(u64, Zeroizing<Vec<u8>>)> {
        let mut failure = self.sealer.open(&failure_of(name), value)?;
        let until = u64::from_be_bytes(*failure.first_chunk()?);
        failure.drain(..size_of::<u64>());
        Some((until, failure))
    }

    /// Whether what lies under a name can be understood; `None` where there is nothing.
    pub async fn understands(&self, name: &str) -> Result<Option<bool>, Away> {
        let mut read = Ask::new(Script::Read);
        read.key(self.key(name, "record"));
        let (value, fence, ..) = self.ask::<(Vec<u8>, u64, u64, u8, u64)>(read).await?;
        Ok((!value.is_empty()).then(|| self.sealer.open(&record_of(name, fence), &value).is_some()))
    }

    fn record(
        &self,
        name: &str,
        value: &[u8],
        fence: u64,
        life: Duration,
        fresh: u8,
        age: u64,
    ) -> Option<Record> {
        let value = self.sealer.open(&record_of(name, fence), value)?;
        Some(Record { value, fence, life, age: Duration::from_micros(age), is_fresh: fresh == 1 })
    }

    /// Puts down what was made under a lease, or what the caller has had for longer, for as long as it lives, and tells the
    /// others. False where somebody else has put down something newer meanwhile.
    pub async fn put(
        &self,
        name: &str,
        lease: &Lease,
        value: &[u8],
        life: Duration,
        event: Event,
    ) -> Result<bool, Away> {
        let sealed = self.sealer.seal(&record_of(name, lease.fence), value).ok_or(Away)?;
        let news = News { event, fence: lease.fence, name: name.to_owned() };
        let news = news.to_text(&self.sealer).ok_or(Away)?;
        let mut put = Ask::new(Script::Put);
        put.key(self.key(name, "record")).key(self.key(name, "lease")).key(self.key(name, "failure"));
        put.arg(lease.fence).arg(sealed).arg(milliseconds(life).max(1)).arg(&lease.owner);
        put.arg(self.channel()).arg(news).arg(u8::from(event != Event::Known));
        self.ask::<u8>(put).await.map(|done| done == 1)
    }

    /// Ends a lease that brought nothing. With a failure the others leave it alone for as long.
    pub async fn end(
        &self,
        name: &str,
        lease: &Lease,
        failure: Option<(&[u8], Duration)>,
    ) -> Result<(), Away> {
        let (value, time) = match failure {
            Some((value, wait)) => {
                let until = lease.fence.saturating_add(microseconds(lease.given.elapsed() + wait));
                let value = [&until.to_be_bytes(), value].concat();
                (self.sealer.seal(&failure_of(name), &value).ok_or(Away)?, milliseconds(wait + REMEMBERED))
            }
            None => (Vec::new(), 0),
        };
        let news = News { event: Event::Ended, fence: 0, name: name.to_owned() };
        let news = news.to_text(&self.sealer).ok_or(Away)?;
        let mut end = Ask::new(Script::End);
        end.key(self.key(name, "lease")).key(self.key(name, "failure"));
        end.arg(&lease.owner).arg(self.channel()).arg(news).arg(value).arg(time);
        self.ask::<u8>(end).await.map(|_| ())
    }

    /// Makes a lease last for [`LEASE`] from now. False where it was lost.
    pub async fn extend(&self, name: &str, lease: &Lease) -> Result<bool, Away> {
        let mut extend = Ask::new(Script::Extend);
        extend.key(self.key(name, "lease")).arg(&lease.owner).arg(milliseconds(LEASE));
        self.ask::<u8>(extend).await.map(|done| done == 1)
    }

    /// Keeps a lease as long as `making` takes.
    pub async fn while_extending<T>(&self, name: &str, lease: &Lease, making: impl Future<Output = T>) -> T {
        let mut making = pin!(making);
        let mut ticks = interval(LEASE / 3);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                made = &mut making => return made,
                _ = ticks.tick() => {
                    // Whoever lost it goes on: its record comes too late, or in time all the same.
                    let _ = self.extend(name, lease).await;
                }
            }
        }
    }

    /// Takes from buckets that are refilled evenly, each by its name and how many microseconds what was taken within `since`
    /// takes to refill; answers in how many microseconds each is full, which may be less than none.
    pub async fn count(&self, taken: &[(&str, u64)], since: Duration) -> Result<Vec<i64>, Away> {
        let mut count = Ask::new(Script::Count);
        count.arg(microseconds(since));
        for (name, taken) in taken {
            // All in one slot of a cluster, for they are counted together.
            count.key(format!("{}{{limits}}:{name}", self.prefix)).arg(*taken);
        }
        self.ask(count).await
    }

    /// Hears the news of a name from now on.
    pub fn watch(&self, name: &str) -> Watch<'_> {
        self.watches.of(name)
    }

    /// Wakes whoever watches this name.
    pub fn wake(&self, name: &str) {
        self.watches.wake(name);
    }

    /// Tells the others; nobody waits for it.
    pub async fn tell(&self, news: &News) -> Result<(), Away> {
        self.way.tell(self.channel(), &news.to_text(&self.sealer).ok_or(Away)?).await
    }

    /// Has the connection looked at, for something said that it broke.
    pub fn doubt(&self) {
        self.way.doubt();
    }

    fn key(&self, name: &str, what: &str) -> String {
        key(&self.prefix, name, what)
    }

    fn channel(&self) -> String {
        channel(&self.prefix)
    }

    async fn ask<T: FromRedisValue>(&self, ask: Ask) -> Result<T, Away> {
        self.way.ask(ask).await
    }
}

/// The braces keep what belongs to one name in one slot of a cluster.
fn key(prefix: &str, name: &str, what: &str) -> String {
    format!("{prefix}{{{name}}}:{what}")
}

fn channel(prefix: &str) -> String {
    format!("{prefix}news")
}

/// What a record is sealed for: it can be moved to no other name, and made no newer than it is.
fn record_of(name: &str, fence: u64) -> String {
    format!("{name}:record:{fence}")
}

fn failure_of(name: &str) -> String {
    format!("{name}:failure")
}

fn microseconds(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
