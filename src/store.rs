//! What replicas share in Redis or Valkey: records, leases to make the next record, notifications of both, and the
//! usage of rate limits.
//!
//! The module does not interpret values; only the kinds of notifications know gettoken and refusals. Each record has
//! a fence, a number that grows with every lease, so that a replica whose lease expired while it was suspended cannot
//! overwrite a newer record. No call waits for an unavailable store: it fails at once with [`Unavailable`], and the
//! caller goes on without the store.

mod backend;
mod claim;
mod connection_manager;
mod dialer;
mod error;
mod keys;
mod notification;
mod quota_counts;
mod script;
mod shared_state;
mod subscription;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::Future,
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

#[cfg(test)]
pub(crate) use self::tests::fake;
use self::{
    backend::Backend,
    claim::{ClaimParts, ClaimReply, RecordParts, RecordReply},
    connection_manager::ConnectionManager,
    dialer::Dialer,
    keys::{channel_name, failure_aad, limit_key, record_aad, store_key},
    script::{Script, ScriptCall},
    subscription::Subscriptions,
};
pub use self::{
    backend::DialerChange,
    claim::{Claim, Lease, StoreRecord},
    error::StoreError,
    notification::{Notification, NotificationKind, StoreEvent},
    quota_counts::QuotaCount,
    shared_state::{StateChanges, StateIndex, StateRow, StateWrite},
    subscription::Subscription,
};

use crate::{
    config::RedisConfig,
    secret::{random_u64, seal::Sealer},
};

/// Lifetime of a lease that is not extended: how long the others wait for a replica that died with a lease.
pub const LEASE_TTL: Duration = Duration::from_secs(3);
/// How long a failure is kept after its backoff, so that the next backoff is longer.
const FAILURE_TTL: Duration = Duration::from_secs(15 * 60);
/// Separates the store's keys from others that are derived from the same secret.
const SEALING_DOMAIN: &str = "store";

/// The store is unavailable or rejected the call; the caller goes on without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// Notifications, and changes of the connection.
pub type StoreEvents = mpsc::UnboundedReceiver<StoreEvent>;

/// A store shared with other replicas.
pub struct Store {
    backend: Arc<dyn Backend>,
    sealer: Arc<Sealer>,
    key_prefix: String,
    /// Random; distinguishes the leases of this process from those of others.
    replica_id: String,
    lease_counter: AtomicU64,
    subscriptions: Subscriptions,
}

/// The configured store before it is opened; creating it opens no connection.
pub struct PreparedStore {
    dialer: Dialer,
    sealer: Arc<Sealer>,
    key_prefix: String,
    event_sender: mpsc::UnboundedSender<StoreEvent>,
    events: StoreEvents,
}

impl PreparedStore {
    /// Checks the configuration and reads the CA file.
    pub fn new(redis: &RedisConfig) -> Result<Self, StoreError> {
        let sealer =
            Arc::new(Sealer::new(SEALING_DOMAIN, &redis.key, redis.old_key.as_ref()).ok_or(StoreError::Key)?);
        let (event_sender, events) = mpsc::unbounded_channel();
        let dialer = Dialer::new(redis, sealer.clone(), event_sender.clone())?;
        Ok(Self { dialer, sealer, key_prefix: redis.prefix.clone(), event_sender, events })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.key_prefix)
    }
}

impl Store {
    /// A store that connects on `runtime` in the background, and its events.
    pub fn open(prepared: PreparedStore, runtime: &Handle) -> (Arc<Self>, StoreEvents) {
        let PreparedStore { dialer, sealer, key_prefix, event_sender, events } = prepared;
        let connections = ConnectionManager::open(dialer, &key_prefix, runtime, event_sender);
        (Arc::new(Self::with_backend(connections, sealer, key_prefix)), events)
    }

    fn with_backend(backend: Arc<dyn Backend>, sealer: Arc<Sealer>, key_prefix: String) -> Self {
        Self {
            backend,
            sealer,
            key_prefix,
            replica_id: format!("{:016x}", random_u64()),
            lease_counter: AtomicU64::new(0),
            subscriptions: Subscriptions::default(),
        }
    }

    /// Reads the trusted certificates of a configuration that was read again; later connections use them once the change
    /// is carried out.
    pub fn prepare_ca(&self, redis: &RedisConfig) -> Result<DialerChange<'_>, StoreError> {
        self.backend.prepare_dialer(&|event_sender| Dialer::new(redis, self.sealer.clone(), event_sender))
    }

    /// Why the store is unavailable; `None` while it is connected. Contains no secret.
    pub fn last_error(&self) -> Option<String> {
        self.backend.last_error()
    }

    /// Whether the first connection attempt has ended.
    pub fn was_attempted(&self) -> bool {
        self.backend.was_attempted()
    }

    /// Asks for a record whose fence is greater than `fence`, that of the caller's own (0: none), or for the lease to
    /// make it. `force` ignores the backoff of an earlier failure. Values that cannot be opened count as absent.
    pub async fn claim(&self, name: &str, fence: u64, force: bool) -> Result<Claim, Unavailable> {
        let (mut known_fence, mut force) = (fence, force);
        loop {
            let owner = format!("{}:{}", self.replica_id, self.lease_counter.fetch_add(1, Ordering::Relaxed));
            let mut claim = ScriptCall::new(Script::Claim);
            claim.key(self.key(name, "record")).key(self.key(name, "lease"));
            claim.key(self.key(name, "failure")).key(self.key(name, "counter"));
            claim.arg(known_fence).arg(&owner).arg(as_milliseconds(LEASE_TTL));
            claim.arg(as_milliseconds(FAILURE_TTL)).arg(u8::from(force));
            match ClaimReply::new(self.call::<ClaimParts>(claim).await?) {
                ClaimReply::Record(reply) => match self.open_record(name, &reply) {
                    Some(record) => return Ok(Claim::Newer(record)),
                    None => {
                        tracing::warn!(
                            name,
                            "cannot decrypt a stored value (other tokens.store.key or version), replacing it"
                        );
                        known_fence = reply.fence;
                    }
                },
                // A failure contains the end of its backoff. If that has passed but the Redis key still lives,
                // an old value was written back: it is ignored.
                ClaimReply::Failed { failure, wait, now_us } => match self.open_failure(name, &failure) {
                    Some((retry_at_us, failure)) if retry_at_us > now_us => {
                        let remaining = Duration::from_micros(retry_at_us - now_us);
                        return Ok(Claim::Failed { failure, retry_after: wait.min(remaining) });
                    }
                    _ => force = true,
                },
                ClaimReply::Acquired { failure, fence } => {
                    let failure = self.open_failure(name, &failure).map(|(_, failure)| failure);
                    let lease = Lease { fence, owner, acquired_at: Instant::now() };
                    return Ok(Claim::Acquired { lease, failure });
                }
                ClaimReply::Held { remaining } => return Ok(Claim::Held { remaining }),
            }
        }
    }

    /// The record of a name, if there is one that can be opened.
    pub async fn read(&self, name: &str) -> Result<Option<StoreRecord>, Unavailable> {
        Ok(self.open_record(name, &self.read_sealed(name).await?))
    }

    /// Whether the record of a name can be opened; `None` where there is no record.
    pub async fn is_readable(&self, name: &str) -> Result<Option<bool>, Unavailable> {
        let reply = self.read_sealed(name).await?;
        Ok((!reply.value.is_empty())
            .then(|| self.sealer.open(&record_aad(name, reply.fence), &reply.value).is_some()))
    }

    async fn read_sealed(&self, name: &str) -> Result<RecordReply, Unavailable> {
        let mut read = ScriptCall::new(Script::Read);
        read.key(self.key(name, "record"));
        self.call::<RecordParts>(read).await.map(RecordReply::new)
    }

    fn open_record(&self, name: &str, reply: &RecordReply) -> Option<StoreRecord> {
        let value = self.sealer.open(&record_aad(name, reply.fence), &reply.value)?;
        let RecordReply { fence, ttl, is_from_lease, age, .. } = *reply;
        Some(StoreRecord { value, fence, ttl, age, is_from_lease })
    }

    /// A failure, and the end of its backoff in microseconds since 1970 by the store's clock.
    fn open_failure(&self, name: &str, value: &[u8]) -> Option<(u64, Zeroizing<Vec<u8>>)> {
        let mut failure = self.sealer.open(&failure_aad(name), value)?;
        let retry_at_us = u64::from_be_bytes(*failure.first_chunk()?);
        failure.drain(..size_of::<u64>());
        Some((retry_at_us, failure))
    }

    /// Replaces an older record by `value`, ends the lease and notifies the other replicas. `value` was fetched
    /// under this lease, or, with [`NotificationKind::Restored`], is one that the caller has had for longer.
    /// False where a newer record exists.
    pub async fn put(
        &self,
        name: &str,
        lease: &Lease,
        value: &[u8],
        ttl: Duration,
        event: NotificationKind,
    ) -> Result<bool, Unavailable> {
        let sealed = self.sealer.seal(&record_aad(name, lease.fence), value).ok_or(Unavailable)?;
        let notification = Notification { kind: event, fence: lease.fence, name: name.to_owned() };
        let notification = notification.encode(&self.sealer).ok_or(Unavailable)?;
        let mut put = ScriptCall::new(Script::Put);
        put.key(self.key(name, "record")).key(self.key(name, "lease")).key(self.key(name, "failure"));
        put.arg(lease.fence).arg(sealed).arg(as_milliseconds(ttl).max(1)).arg(&lease.owner);
        put.arg(self.channel()).arg(notification).arg(u8::from(event != NotificationKind::Restored));
        self.call::<u8>(put).await.map(|done| done == 1)
    }

    /// Deletes what the store has of a name.
    pub async fn forget(&self, name: &str) -> Result<(), Unavailable> {
        let mut forget = ScriptCall::new(Script::Forget);
        forget.key(self.key(name, "record")).key(self.key(name, "lease")).key(self.key(name, "failure"));
        self.call::<u8>(forget).await.map(drop)
    }

    /// Ends a lease without a record. With a failure and its backoff, no claim without `force` gets the lease before
    /// the backoff has ended.
    pub async fn end_lease(
        &self,
        name: &str,
        lease: &Lease,
        failure: Option<(&[u8], Duration)>,
    ) -> Result<(), Unavailable> {
        let (value, ttl_ms) = match failure {
            Some((value, backoff)) => {
                // The fence is the time of the claim in microseconds by the store's clock, or a little more; so
                // this is the end of the backoff by that clock.
                let retry_at_us =
                    lease.fence.saturating_add(as_microseconds(lease.acquired_at.elapsed() + backoff));
                let value = [&retry_at_us.to_be_bytes(), value].concat();
                (
                    self.sealer.seal(&failure_aad(name), &value).ok_or(Unavailable)?,
                    as_milliseconds(backoff + FAILURE_TTL),
                )
            }
            None => (Vec::new(), 0),
        };
        let notification =
            Notification { kind: NotificationKind::LeaseEnded, fence: 0, name: name.to_owned() };
        let notification = notification.encode(&self.sealer).ok_or(Unavailable)?;
        let mut end = ScriptCall::new(Script::EndLease);
        end.key(self.key(name, "lease")).key(self.key(name, "failure"));
        end.arg(&lease.owner).arg(self.channel()).arg(notification).arg(value).arg(ttl_ms);
        self.call::<u8>(end).await.map(|_| ())
    }

    /// Extends a lease to [`LEASE_TTL`] from now. False where the lease was lost.
    pub async fn extend_lease(&self, name: &str, lease: &Lease) -> Result<bool, Unavailable> {
        let mut extend = ScriptCall::new(Script::ExtendLease);
        extend.key(self.key(name, "lease")).arg(&lease.owner).arg(as_milliseconds(LEASE_TTL));
        self.call::<u8>(extend).await.map(|done| done == 1)
    }

    /// Extends a lease until `work` completes.
    pub async fn extend_lease_while<T>(&self, name: &str, lease: &Lease, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut ticks = interval(LEASE_TTL / 3);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                output = &mut work => return output,
                _ = ticks.tick() => {
                    // A lost lease does not stop the work: its record is rejected if there is a newer one.
                    let _ = self.extend_lease(name, lease).await;
                }
            }
        }
    }

    /// Takes from shared rate limits (GCRA). `usage_us` has for each the name, and the refill time in microseconds
    /// of the requests that were collected over `collected_over`. Returns for each in how many microseconds all
    /// usage is refilled; negative if it was already.
    pub async fn consume_limits(
        &self,
        usage_us: &[(&str, u64)],
        collected_over: Duration,
    ) -> Result<Vec<i64>, Unavailable> {
        let mut consume = ScriptCall::new(Script::ConsumeLimits);
        consume.arg(as_microseconds(collected_over));
        for (name, usage_us) in usage_us {
            consume.key(limit_key(&self.key_prefix, name)).arg(*usage_us);
        }
        self.call(consume).await
    }

    /// Subscribes to the notifications of a name.
    pub fn subscribe(&self, name: &str) -> Subscription<'_> {
        self.subscriptions.subscribe(name)
    }

    /// Wakes all subscriptions of a name.
    pub fn wake_subscribers(&self, name: &str) {
        self.subscriptions.wake(name);
    }

    /// Sends a notification to the other replicas; no retry.
    pub async fn publish(&self, notification: &Notification) -> Result<(), Unavailable> {
        self.backend.publish(self.channel(), notification.encode(&self.sealer).ok_or(Unavailable)?).await
    }

    /// Probes the connection now, after a sign that it broke.
    pub fn request_probe(&self) {
        self.backend.request_probe();
    }

    fn key(&self, name: &str, kind: &str) -> String {
        store_key(&self.key_prefix, name, kind)
    }

    fn channel(&self) -> String {
        channel_name(&self.key_prefix)
    }

    async fn call<T: FromRedisValue>(&self, call: ScriptCall) -> Result<T, Unavailable> {
        T::from_redis_value(self.backend.call(call).await?).map_err(|_| {
            // It concerns only this name, so the connection is kept.
            tracing::warn!("redis response has an unexpected type");
            Unavailable
        })
    }
}

fn as_microseconds(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}

fn as_milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
