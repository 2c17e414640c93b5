//! Caps open connections (`max_connections`). When full, evicts one in the order of [`eviction_order`], of one rank the
//! longest-idle one, or waits if none may be evicted.
//!
//! Each connection has a permit that records since when it has been idle. When the limit is reached, one scan finds the
//! connections to evict and asks them to close; no ordered list is kept, so the others pay nothing. An authorized one
//! with a request, or with one within [`MIN_IDLE`], stays; a partial head counts for [`PARTIAL_REQUEST_TIMEOUT`].
//!
//! Until a request on it was authorized, a connection counts as idle since its accept, because it can only be waiting
//! for its client. Clients without a key can displace idle connections of others only while they hold less than half
//! of the permits: from then on only connections without an authorized request are evicted.

use std::{
    fs,
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::{client_auth::ClientCertificate, log_throttle::LogThrottle};

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
/// Minimum time between two log messages about the same condition.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Value of `idle_since` while the connection is active.
const ACTIVE: u64 = u64::MAX;

/// Descriptors reserved for everything but connections: listeners, files, the runtimes.
const RESERVED_DESCRIPTORS: usize = 24;
/// Bounds of the admin listener's connections; the lower one applies where descriptors are scarce.
const MAX_ADMIN_CONNECTIONS: usize = 64;
const MIN_ADMIN_CONNECTIONS: usize = 4;

/// `max_connections`, lowered to what the descriptor limit allows. A quarter of the descriptors is reserved for
/// upstream connections: a request that cannot reach the upstream is useless.
pub(super) fn effective_max_connections(max_connections: usize) -> usize {
    let Some(descriptors) = descriptor_limit() else { return max_connections };
    let others = RESERVED_DESCRIPTORS + admin_connections_for(descriptors);
    let effective = (descriptors / 4 * 3).saturating_sub(others).max(1);
    if effective < max_connections {
        tracing::warn!(
            max_connections,
            descriptors,
            effective,
            "max_connections lowered to fit the limit on open files; raise that limit (LimitNOFILE= or ulimit -n)"
        );
    }
    max_connections.min(effective)
}

/// Maximum number of connections to the admin listener, which need descriptors too.
pub fn max_admin_connections() -> usize {
    descriptor_limit().map_or(MAX_ADMIN_CONNECTIONS, admin_connections_for)
}

fn admin_connections_for(descriptors: usize) -> usize {
    (descriptors / 16).clamp(MIN_ADMIN_CONNECTIONS, MAX_ADMIN_CONNECTIONS)
}

/// Raises the soft limit on open files to the hard limit.
pub fn raise_descriptor_limit() {
    let allowed = getrlimit(Resource::Nofile);
    // On failure the old limit stays in force.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: allowed.maximum, ..allowed });
}

fn descriptor_limit() -> Option<usize> {
    parse_descriptor_limit(&fs::read_to_string("/proc/self/limits").unwrap_or_default())
}

/// The soft limit on open files in `/proc/self/limits`; `None` if it is unlimited or missing.
fn parse_descriptor_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// All connections of one server.
#[derive(Debug)]
pub struct ConnectionLimiter {
    /// Throttles the log of failed TLS handshakes.
    pub(super) handshake_log: LogThrottle,
    semaphore: Arc<Semaphore>,
    max_connections: usize,
    epoch: Instant,
    open: Mutex<OpenConnections>,
    /// Result of the last scan, the longest idle last.
    eviction_candidates: Mutex<Vec<(u64, Weak<ConnectionPermit>)>>,
    full_logged_at: Mutex<Option<Instant>>,
    accept_error_logged_at: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    permits: Vec<Weak<ConnectionPermit>>,
    /// Length at which the entries of closed connections are removed.
    sweep_at: usize,
}

/// State of one open connection that its task shares with the limiter, and the semaphore's permit.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    epoch: Instant,
    /// In microseconds since `epoch`, or [`ACTIVE`]; 0 after `mark_evictable`, in the future after `mark_partial`.
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
    pub fn new(max_connections: usize) -> Self {
        Self {
            handshake_log: LogThrottle::default(),
            semaphore: Arc::new(Semaphore::new(max_connections)),
            max_connections,
            epoch: Instant::now(),
            open: Mutex::default(),
            eviction_candidates: Mutex::default(),
            full_logged_at: Mutex::default(),
            accept_error_logged_at: Mutex::default(),
        }
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
    pub(super) async fn acquire(&self) -> Option<Arc<ConnectionPermit>> {
        if let Some(permit) = self.try_acquire() {
            return Some(permit);
        }
        if is_log_due(&self.full_logged_at) {
            tracing::warn!(
                max_connections = self.max_connections,
                "max_connections reached, each new connection closes an idle one, or waits while none is idle"
            );
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

    /// Handles an accept error that does not concern one connection alone (no descriptors or memory): logs it and
    /// evicts an idle connection.
    pub(super) fn on_accept_error(&self, error: &io::Error) {
        if is_log_due(&self.accept_error_logged_at) {
            tracing::error!(%error, "accept failed, closing one idle connection and retrying");
        }
        self.evict_one();
    }

    fn admit(&self, owned_permit: OwnedSemaphorePermit) -> Arc<ConnectionPermit> {
        let permit = Arc::new(ConnectionPermit {
            epoch: self.epoch,
            idle_since: AtomicU64::new(as_micros(self.epoch.elapsed())),
            authorized: AtomicBool::new(false),
            close_requested: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            client_certificate: ClientCertificate::default(),
            task_waker: OnceLock::new(),
            _permit: owned_permit,
        });
        let mut open = lock(&self.open);
        if open.permits.len() >= open.sweep_at {
            open.permits.retain(|permit| permit.strong_count() > 0);
            open.sweep_at = 2 * open.permits.len() + EVICTION_BATCH;
        }
        open.permits.push(Arc::downgrade(&permit));
        permit
    }

    /// Wakes the task of every connection.
    pub(super) fn wake_all(&self) {
        let permits = lock(&self.open).permits.clone();
        permits.iter().filter_map(Weak::upgrade).for_each(|permit| permit.wake());
    }

    /// Closes the connections whose client `accepts` does not accept, each when its request in flight has completed.
    /// Returns how many.
    pub(super) fn revoke(&self, accepts: impl Fn(Option<&[CertificateDer<'static>]>) -> bool) -> usize {
        let permits = lock(&self.open).permits.clone();
        let permits = permits.iter().filter_map(Weak::upgrade);
        permits
            .filter(|permit| !permit.client_certificate.is_accepted_by(&accepts))
            .map(|permit| permit.revoke())
            .count()
    }

    fn evict_one(&self) {
        let mut candidates = lock(&self.eviction_candidates);
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
            let open = lock(&self.open);
            let state = |weak: &Weak<ConnectionPermit>| {
                let permit = weak.upgrade()?;
                let since =
                    if permit.is_close_requested() { ACTIVE } else { permit.idle_since.load(Relaxed) };
                Some((permit.is_authorized(), since, weak.clone()))
            };
            open.permits.iter().filter_map(state).collect()
        };
        let age = as_micros(self.epoch.elapsed());
        let unauthorized = permits.iter().filter(|(is_authorized, ..)| !is_authorized).count();
        let order = eviction_order(2 * unauthorized >= self.max_connections);
        let rank = |is_authorized, since: u64| {
            let idle = Duration::from_micros(age.checked_sub(since)?);
            order.iter().position(|(authorized, min_idle)| *authorized == is_authorized && idle >= *min_idle)
        };
        let mut found: Vec<_> = permits
            .into_iter()
            .filter_map(|(is_authorized, since, permit)| Some((rank(is_authorized, since)?, since, permit)))
            .collect();
        found.sort_unstable_by_key(|(rank, since, _)| std::cmp::Reverse((*rank, *since)));
        let first = found.split_off(found.len().saturating_sub(EVICTION_BATCH));
        first.into_iter().map(|(_, since, permit)| (since, permit)).collect()
    }
}

/// Pairs of "is authorized" and minimum idle time, in the order of eviction: unauthorized connections older than
/// [`PARTIAL_REQUEST_TIMEOUT`], then authorized ones, then younger unauthorized ones. While unauthorized ones hold at
/// least half of the permits, only they are evicted.
fn eviction_order(unauthorized_fill_half: bool) -> &'static [(bool, Duration)] {
    match unauthorized_fill_half {
        true => &[(false, MIN_UNAUTHORIZED_IDLE)],
        false => &[(false, PARTIAL_REQUEST_TIMEOUT), (true, MIN_IDLE), (false, MIN_IDLE)],
    }
}

impl ConnectionPermit {
    /// Must be called once on the connection's own task, which is woken when the connection is to close.
    pub(super) async fn register_waker(&self) {
        poll_fn(|cx| {
            let _ = self.task_waker.set(cx.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// Records that the connection has been idle since `since`, and returns whether it is to close. Without an
    /// authorized request the idle time counts from the accept: refused requests do not reset it.
    pub(super) fn mark_idle(&self, since: Instant) -> bool {
        if self.is_authorized() {
            self.idle_since.store(as_micros(since.saturating_duration_since(self.epoch)), Relaxed);
        }
        self.is_close_requested()
    }

    /// Records that a request began at `since` and is incomplete; returns whether the connection is to close.
    pub(super) fn mark_partial(&self, since: Instant) -> bool {
        self.mark_idle(since + PARTIAL_REQUEST_TIMEOUT)
    }

    /// Makes this connection the first of its rank to be evicted.
    pub(super) fn mark_evictable(&self) {
        self.idle_since.store(0, Relaxed);
    }

    /// Records activity, so that the connection is not evicted; no effect until a request was authorized.
    pub(super) fn mark_active(&self) {
        if self.is_authorized() {
            self.idle_since.store(ACTIVE, Relaxed);
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
    pub(super) fn is_abort_requested(&self) -> bool {
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
    pub(super) fn close_requested(&self) -> impl Future<Output = ()> + '_ {
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

/// Whether the condition is to be logged again; if so, records the time.
fn is_log_due(logged_at: &Mutex<Option<Instant>>) -> bool {
    let mut logged_at = lock(logged_at);
    let due = logged_at.is_none_or(|logged_at| logged_at.elapsed() >= LOG_INTERVAL);
    if due {
        *logged_at = Some(Instant::now());
    }
    due
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_limit_is_parsed_from_proc_limits() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             127                  127                  processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(parse_descriptor_limit(limits), Some(1024));
        assert_eq!(parse_descriptor_limit(&limits.replace("1024  ", "unlimited")), None);
        assert_eq!(parse_descriptor_limit(""), None);
        assert!(
            fs::read_to_string("/proc/self/limits")
                .is_ok_and(|limits| parse_descriptor_limit(&limits).is_some())
        );
        assert_eq!([64, 160, 1024, 65536].map(admin_connections_for), [4, 10, 64, 64]);
    }
}
