//! Caps the open connections of a listener. When full, evicts one in the order of [`eviction_order`], of one rank the
//! longest-idle one, or waits if none may be evicted. [`EvictionPolicy`] decides between the proxy's and the admin's.
//!
//! Each connection has a permit that records since when it has been idle. When the limit is reached, one scan finds the
//! connections to evict and asks them to close; no ordered list is kept, so the others pay nothing. An authorized one
//! with a request, or with one within [`MIN_IDLE`], stays; a partial head counts for [`PARTIAL_REQUEST_TIMEOUT`].
//!
//! Until a request on it was authorized, a connection counts as idle since its accept, because it can only be waiting
//! for its client. Clients without a key can displace idle connections of others only while they hold less than half
//! of the permits: from then on only connections without an authorized request are evicted.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, LazyLock, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;

use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::client_auth::ClientCertificate;

/// When idle times begin; kept once, because each connection has such a time. Before each clock of a test.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
});

/// Idle time below which an authorized connection is not evicted: a client that sends one request after another keeps
/// its connection.
const MIN_IDLE: Duration = Duration::from_millis(500);
/// Idle time below which an unauthorized connection is not evicted while unauthorized ones hold at least half of the
/// permits: long enough for the first request of a new connection to arrive.
const MIN_UNAUTHORIZED_IDLE: Duration = Duration::from_millis(25);
/// How long a partial head on an authorized connection counts as a request, and an unauthorized connection may take for
/// its handshake and first head before it is evicted ahead of the others.
const PARTIAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an accept that waits for a permit retries the eviction.
const EVICTION_INTERVAL: Duration = Duration::from_millis(25);
/// Candidates that one scan of all connections collects.
const EVICTION_BATCH: usize = 64;
/// Bit of `idle_since` while the connection is active. Sorted by it, active connections come after idle ones.
const ACTIVE: u64 = 1 << 63;

/// Which connections are evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// The proxy's: none with an authorized request in flight.
    KeepActive,
    /// The admin listener's, so that a health check, which needs no key, always gets a connection: all count as
    /// authorized, and when all are active, the one whose last byte is the oldest is evicted.
    EvictActive,
}

/// All connections of one listener or of all of the proxy's.
#[derive(Debug)]
pub struct ConnectionLimiter {
    policy: EvictionPolicy,
    semaphore: Arc<Semaphore>,
    max_connections: usize,
    open: Mutex<OpenConnections>,
    /// Result of the last scan, the longest idle last.
    eviction_candidates: Mutex<Vec<(u64, Weak<ConnectionPermit>)>>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    permits: Vec<Weak<ConnectionPermit>>,
    /// Length at which the entries of closed connections are removed.
    sweep_at: usize,
}

/// State of one open connection that its task shares with the limiter, and the semaphore's permit.
#[derive(Debug)]
pub struct ConnectionPermit {
    /// In microseconds since [`EPOCH`]; 0 after `mark_evictable`, in the future after `mark_partial`. Has the bit
    /// [`ACTIVE`] while the connection is active. Stored by the connection's own task only.
    idle_since: AtomicU64,
    /// A request on it presented a valid credential, or the proxy is open (`Request::authorized`).
    authorized: AtomicBool,
    close_requested: AtomicBool,
    /// The current TLS settings no longer accept its client: no further request is served.
    revoked: AtomicBool,
    /// The client's certificate under TLS.
    pub(super) client_certificate: ClientCertificate,
    task_waker: OnceLock<Waker>,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionLimiter {
    /// Creates a limiter for `max_connections`.
    pub fn new(max_connections: usize, policy: EvictionPolicy) -> Self {
        Self {
            policy,
            semaphore: Arc::new(Semaphore::new(max_connections)),
            max_connections,
            open: Mutex::default(),
            eviction_candidates: Mutex::default(),
        }
    }

    /// Maximum number of open connections.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Number of open connections.
    pub fn open_connections(&self) -> usize {
        self.max_connections.saturating_sub(self.semaphore.available_permits())
    }

    /// Waits until all connections are closed.
    pub async fn wait_drained(&self) {
        let permits = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let _ = self.semaphore.acquire_many(permits).await;
    }

    /// Acquires a permit. When the limit is reached, evicts an idle connection or waits until one closes; `None` if the
    /// semaphore was closed.
    pub async fn acquire(&self) -> Option<Arc<ConnectionPermit>> {
        if let Some(permit) = self.try_acquire() {
            return Some(permit);
        }
        let mut owned_permit = pin!(self.semaphore.clone().acquire_owned());
        loop {
            self.evict_one();
            if let Ok(owned_permit) = timeout(EVICTION_INTERVAL, owned_permit.as_mut()).await {
                return owned_permit.ok().map(|owned_permit| self.admit(owned_permit));
            }
        }
    }

    /// Acquires a permit without waiting.
    pub(super) fn try_acquire(&self) -> Option<Arc<ConnectionPermit>> {
        let owned_permit = self.semaphore.clone().try_acquire_owned().ok()?;
        Some(self.admit(owned_permit))
    }

    fn admit(&self, owned_permit: OwnedSemaphorePermit) -> Arc<ConnectionPermit> {
        let permit = Arc::new(ConnectionPermit {
            idle_since: AtomicU64::new(as_micros(EPOCH.elapsed())),
            authorized: AtomicBool::new(self.policy == EvictionPolicy::EvictActive),
            close_requested: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            client_certificate: ClientCertificate::default(),
            task_waker: OnceLock::new(),
            _permit: owned_permit,
        });
        let mut open = self.open.lock();
        if open.permits.len() >= open.sweep_at {
            open.permits.retain(|permit| permit.strong_count() > 0);
            open.sweep_at = 2 * open.permits.len() + EVICTION_BATCH;
        }
        open.permits.push(Arc::downgrade(&permit));
        permit
    }

    /// Wakes the task of every connection.
    pub(super) fn wake_all(&self) {
        let permits = self.open.lock().permits.clone();
        permits.iter().filter_map(Weak::upgrade).for_each(|permit| permit.wake());
    }

    /// Closes the connections whose client `accepts` does not accept, each when its request in flight has completed.
    /// Returns how many.
    pub(super) fn revoke(&self, accepts: impl Fn(Option<&[CertificateDer<'static>]>) -> bool) -> usize {
        let permits = self.open.lock().permits.clone();
        let permits = permits.iter().filter_map(Weak::upgrade);
        permits
            .filter(|permit| !permit.client_certificate.is_accepted_by(&accepts))
            .map(|permit| permit.revoke())
            .count()
    }

    /// Evicts the first connection in the order of eviction, if there is one.
    pub fn evict_one(&self) {
        let mut candidates = self.eviction_candidates.lock();
        for rescanned in [false, true] {
            if rescanned {
                *candidates = self.find_eviction_candidates();
            }
            while let Some((since, permit)) = candidates.pop() {
                if permit.upgrade().is_some_and(|permit| permit.request_close(since)) {
                    return;
                }
            }
        }
    }

    /// The connections to evict, the first one last.
    fn find_eviction_candidates(&self) -> Vec<(u64, Weak<ConnectionPermit>)> {
        let permits: Vec<_> = {
            let open = self.open.lock();
            let state = |weak: &Weak<ConnectionPermit>| {
                let permit = weak.upgrade().filter(|permit| !permit.is_close_requested())?;
                Some((permit.is_authorized(), permit.idle_since.load(Relaxed), weak.clone()))
            };
            open.permits.iter().filter_map(state).collect()
        };
        let age = as_micros(EPOCH.elapsed());
        let unauthorized = permits.iter().filter(|(is_authorized, ..)| !is_authorized).count();
        let order = eviction_order(self.policy, 2 * unauthorized >= self.max_connections);
        let rank = |is_authorized, since: u64| match age.checked_sub(since).map(Duration::from_micros) {
            Some(idle) => order
                .iter()
                .position(|(authorized, min_idle)| *authorized == is_authorized && idle >= *min_idle),
            None => (self.policy == EvictionPolicy::EvictActive).then_some(order.len()),
        };
        let mut found: Vec<_> = permits
            .into_iter()
            .filter_map(|(is_authorized, since, permit)| Some((rank(is_authorized, since)?, since, permit)))
            .collect();
        found.sort_unstable_by_key(|(rank, since, _)| std::cmp::Reverse((*rank, *since)));
        // An active one must not be left for the next eviction: by then another may be idle.
        let batch = if self.policy == EvictionPolicy::EvictActive { 1 } else { EVICTION_BATCH };
        let first = found.split_off(found.len().saturating_sub(batch));
        first.into_iter().map(|(_, since, permit)| (since, permit)).collect()
    }
}

/// Pairs of "is authorized" and minimum idle time, in the order of eviction: unauthorized connections older than
/// [`PARTIAL_REQUEST_TIMEOUT`], then authorized ones, then younger unauthorized ones. While unauthorized ones hold at
/// least half of the permits, only they are evicted. Of the admin listener's connections, any idle one.
fn eviction_order(policy: EvictionPolicy, unauthorized_fill_half: bool) -> &'static [(bool, Duration)] {
    match (policy, unauthorized_fill_half) {
        (EvictionPolicy::EvictActive, _) => &[(true, Duration::ZERO)],
        (EvictionPolicy::KeepActive, true) => &[(false, MIN_UNAUTHORIZED_IDLE)],
        (EvictionPolicy::KeepActive, false) => {
            &[(false, PARTIAL_REQUEST_TIMEOUT), (true, MIN_IDLE), (false, MIN_IDLE)]
        }
    }
}

impl ConnectionPermit {
    /// Must be called once on the connection's own task, which is woken when the connection is to close.
    pub async fn register_waker(&self) {
        poll_fn(|cx| {
            let _ = self.task_waker.set(cx.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// Records that the connection has been idle since `since`, and returns whether it is to close. Without an
    /// authorized request the idle time counts from the accept: rejected requests do not reset it.
    pub fn mark_idle(&self, since: Instant) -> bool {
        if self.is_authorized() {
            self.idle_since.store(as_micros(since.saturating_duration_since(*EPOCH)), Relaxed);
        }
        self.is_close_requested()
    }

    /// Records that a request began at `since` and is incomplete; returns whether the connection is to close.
    pub(super) fn mark_partial(&self, since: Instant) -> bool {
        self.mark_idle(since + PARTIAL_REQUEST_TIMEOUT)
    }

    /// Records that bytes were read or written just now, on an active or an idle connection.
    pub fn mark_transferred(&self) {
        let active = self.idle_since.load(Relaxed) & ACTIVE;
        self.idle_since.store(active | as_micros(EPOCH.elapsed()), Relaxed);
    }

    /// Makes this connection the first of its rank to be evicted.
    pub(super) fn mark_evictable(&self) {
        self.idle_since.store(0, Relaxed);
    }

    /// Records activity, so that the connection is not evicted; no effect until a request was authorized.
    pub fn mark_active(&self) {
        if self.is_authorized() {
            self.idle_since.store(self.idle_since.load(Relaxed) | ACTIVE, Relaxed);
        }
    }

    /// Records that the request in flight was authorized.
    pub(super) fn mark_authorized(&self) {
        self.authorized.store(true, Relaxed);
        self.mark_active();
    }

    /// Whether a request on the connection was authorized.
    pub(super) fn is_authorized(&self) -> bool {
        self.authorized.load(Relaxed)
    }

    /// Whether the connection is to close at once, even with bytes still to send or to receive.
    pub(super) fn must_close_now(&self) -> bool {
        self.is_close_requested() && !self.is_authorized()
    }

    /// Whether the connection is to close as soon as it is idle.
    pub(super) fn is_close_requested(&self) -> bool {
        self.close_requested.load(Relaxed)
    }

    /// Whether the current TLS settings no longer accept its client.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Relaxed)
    }

    fn revoke(&self) {
        self.revoked.store(true, Relaxed);
        self.close_requested.store(true, Relaxed);
        self.wake();
    }

    /// Waits until the connection is to close; only on its own task.
    pub fn close_requested(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|_| if self.is_close_requested() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Requests the close of a connection that has been idle since `since`; false if it was active meanwhile or a close
    /// was requested before.
    fn request_close(&self, since: u64) -> bool {
        if self.idle_since.load(Relaxed) != since || self.close_requested.swap(true, Relaxed) {
            return false;
        }
        self.wake();
        true
    }

    /// Wakes the connection's task.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.task_waker.get() {
            waker.wake_by_ref();
        }
    }
}

fn as_micros(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000 + u64::from(duration.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn admin_limit_evicts_idle_before_active() {
        let limiter = ConnectionLimiter::new(2, EvictionPolicy::EvictActive);
        let pause = async || tokio::time::advance(Duration::from_millis(1)).await;
        let permits = [limiter.acquire().await, limiter.acquire().await].map(|permit| permit.expect("room"));
        let evicted = || permits.each_ref().map(|permit| permit.is_close_requested());
        permits[0].mark_active();
        pause().await;
        permits[1].mark_transferred();
        limiter.evict_one();
        assert_eq!(evicted(), [false, true], "the idle one, though its last byte is newer");
        limiter.evict_one();
        assert_eq!(evicted(), [true, true], "the active one when no other is left");
    }

    #[tokio::test(start_paused = true)]
    async fn full_admin_limit_closes_the_longest_silent() {
        for is_active in [false, true] {
            let limiter = ConnectionLimiter::new(2, EvictionPolicy::EvictActive);
            let mut permits = Vec::new();
            for _ in 0..2 {
                let permit = limiter.acquire().await.expect("room");
                if is_active {
                    permit.mark_active();
                }
                permits.push(permit);
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            permits[0].mark_transferred();
            let second = permits.pop().expect("two permits");
            let close_second = async {
                second.register_waker().await;
                second.close_requested().await;
                drop(second);
            };
            let (third, ()) = tokio::join!(limiter.acquire(), close_second);
            assert!(third.is_some() && !permits[0].is_close_requested(), "active: {is_active}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn proxy_limit_keeps_active_connections() {
        let limiter = ConnectionLimiter::new(1, EvictionPolicy::KeepActive);
        let permit = limiter.acquire().await.expect("room");
        permit.mark_authorized();
        tokio::time::advance(Duration::from_secs(60)).await;
        limiter.evict_one();
        assert!(!permit.is_close_requested());
        permit.mark_idle(Instant::now());
        tokio::time::advance(MIN_IDLE).await;
        limiter.evict_one();
        assert!(permit.is_close_requested());
    }
}
