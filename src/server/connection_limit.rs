//! The house of all connections: how many there may be, and who has to go for one that comes anew.
//!
//! Each connection has a seat, which says since when nothing has happened on it. When the house is full the one that has
//! been idle for longest is asked to leave; that costs the others nothing, for nobody keeps a list in order. Connections
//! with a request, and those that had one a moment ago, stay; half a head, or half a greeting, is none for long.
//!
//! Until a request on it was authorized, a connection is idle whatever it does: all that it can wait for is its client.
//! Callers without a key cannot take the places of those with one.

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

/// Who was busy within this time is not idle: a client that sends one request after the other is to keep its connection.
const MIN_IDLE: Duration = Duration::from_millis(500);
/// So long a connection on which no request was authorized is kept where these have half of the places, so that the request
/// of one that has just come can arrive.
const MIN_UNAUTHORIZED_IDLE: Duration = Duration::from_millis(25);
/// So long half a head or half a greeting is taken for the beginning of a request.
const PARTIAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a listener that waits for a place looks for an idle connection again.
const EVICTION_INTERVAL: Duration = Duration::from_millis(25);
/// So many are found with one look at all connections.
const EVICTION_BATCH: usize = 64;
/// The same trouble is in the log no more often than this.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// A seat on which something happens.
const ACTIVE: u64 = u64::MAX;

/// Descriptors for everything but connections: listeners, files, what the runtimes need.
const RESERVED_DESCRIPTORS: usize = 24;
/// Connections to the admin listener that may be open at once, and how many there may be at least where descriptors are few.
const MAX_ADMIN_CONNECTIONS: usize = 64;
const MIN_ADMIN_CONNECTIONS: usize = 4;

/// How many connections there may be where the configuration says so many. A quarter of the descriptors that the system
/// allows is for the way to the upstream: a connection that takes the last one cannot be served.
pub(super) fn effective_max_connections(max_connections: usize) -> usize {
    let Some(descriptors) = descriptor_limit() else { return max_connections };
    let others = RESERVED_DESCRIPTORS + admin_connections_for(descriptors);
    let room = (descriptors / 4 * 3).saturating_sub(others).max(1);
    if room < max_connections {
        tracing::warn!(
            max_connections,
            descriptors,
            room,
            "the system allows too few open files for max_connections; raise the limit (LimitNOFILE= or ulimit -n)"
        );
    }
    max_connections.min(room)
}

/// How many connections there may be to the admin listener: they take descriptors too.
pub fn max_admin_connections() -> usize {
    descriptor_limit().map_or(MAX_ADMIN_CONNECTIONS, admin_connections_for)
}

fn admin_connections_for(descriptors: usize) -> usize {
    (descriptors / 16).clamp(MIN_ADMIN_CONNECTIONS, MAX_ADMIN_CONNECTIONS)
}

/// Allows this process as many open files as the system lets it allow itself.
pub fn raise_descriptor_limit() {
    let allowed = getrlimit(Resource::Nofile);
    // Where it cannot be, the old limit holds.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: allowed.maximum, ..allowed });
}

fn descriptor_limit() -> Option<usize> {
    parse_descriptor_limit(&fs::read_to_string("/proc/self/limits").unwrap_or_default())
}

/// The soft limit on open files in what Linux says of a process; `None` where there is none.
fn parse_descriptor_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// All connections of one server.
#[derive(Debug)]
pub struct ConnectionLimiter {
    /// TLS handshakes that failed.
    pub(super) handshake_log: LogThrottle,
    semaphore: Arc<Semaphore>,
    max_connections: usize,
    epoch: Instant,
    open: Mutex<OpenConnections>,
    /// Found idle a while ago, the oldest last.
    eviction_candidates: Mutex<Vec<(u64, Weak<ConnectionPermit>)>>,
    full_logged_at: Mutex<Option<Instant>>,
    accept_error_logged_at: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    permits: Vec<Weak<ConnectionPermit>>,
    /// When there are so many, those that are empty are thrown out.
    sweep_at: usize,
}

/// One connection's seat.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    epoch: Instant,
    /// In microseconds since `born`, or [`BUSY`].
    idle_since: AtomicU64,
    /// A request on it showed a good credential.
    authorized: AtomicBool,
    close_requested: AtomicBool,
    /// Its client would no longer be accepted: no request is served any more.
    revoked: AtomicBool,
    /// What its client has shown under TLS.
    pub(super) client_certificate: ClientCertificate,
    task_waker: OnceLock<Waker>,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionLimiter {
    /// A house for so many connections.
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

    /// How many seats are taken.
    pub fn open_connections(&self) -> usize {
        self.max_connections.saturating_sub(self.semaphore.available_permits())
    }

    /// Waits until nobody is there any more.
    pub async fn wait_drained(&self) {
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let _ = self.semaphore.acquire_many(all).await;
    }

    /// A seat for a new connection. Where the house is full somebody else has to leave, or there is a wait.
    pub(super) async fn acquire(&self) -> Option<Arc<ConnectionPermit>> {
        if let Some(seat) = self.try_acquire() {
            return Some(seat);
        }
        if is_log_due(&self.full_logged_at) {
            tracing::warn!(
                max_connections = self.max_connections,
                "max_connections is reached; idle connections are closed for new ones, and where there are none these wait"
            );
        }
        let mut place = pin!(self.semaphore.clone().acquire_owned());
        loop {
            self.evict_one();
            if let Ok(place) = timeout(EVICTION_INTERVAL, place.as_mut()).await {
                return place.ok().map(|place| self.admit(place));
            }
        }
    }

    /// A seat if there is a free one.
    pub(super) fn try_acquire(&self) -> Option<Arc<ConnectionPermit>> {
        let place = self.semaphore.clone().try_acquire_owned().ok()?;
        Some(self.admit(place))
    }

    /// Accepting failed, and not because of the one that was to be accepted: the system is out of descriptors or memory.
    pub(super) fn on_accept_error(&self, error: &io::Error) {
        if is_log_due(&self.accept_error_logged_at) {
            tracing::error!(%error, "no connection can be accepted; trying again, and closing idle ones");
        }
        self.evict_one();
    }

    fn admit(&self, place: OwnedSemaphorePermit) -> Arc<ConnectionPermit> {
        let seat = Arc::new(ConnectionPermit {
            epoch: self.epoch,
            idle_since: AtomicU64::new(as_micros(self.epoch.elapsed())),
            authorized: AtomicBool::new(false),
            close_requested: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            client_certificate: ClientCertificate::default(),
            task_waker: OnceLock::new(),
            _permit: place,
        });
        let mut seats = lock(&self.open);
        if seats.permits.len() >= seats.sweep_at {
            seats.permits.retain(|seat| seat.strong_count() > 0);
            seats.sweep_at = 2 * seats.permits.len() + EVICTION_BATCH;
        }
        seats.permits.push(Arc::downgrade(&seat));
        seat
    }

    /// Wakes every connection's task.
    pub(super) fn wake_all(&self) {
        let all = lock(&self.open).permits.clone();
        all.iter().filter_map(Weak::upgrade).for_each(|seat| seat.wake());
    }

    /// Closes the connections whose client `accepts` does not accept, each when the request that it serves is answered.
    /// Returns how many.
    pub(super) fn revoke(&self, accepts: impl Fn(Option<&[CertificateDer<'static>]>) -> bool) -> usize {
        let all = lock(&self.open).permits.clone();
        let seats = all.iter().filter_map(Weak::upgrade);
        seats
            .filter(|seat| !seat.client_certificate.is_accepted_by(&accepts))
            .map(|seat| seat.revoke())
            .count()
    }

    fn evict_one(&self) {
        let mut idle = lock(&self.eviction_candidates);
        for looked in [false, true] {
            if looked {
                *idle = self.find_eviction_candidates();
            }
            while let Some((since, seat)) = idle.pop() {
                if seat.upgrade().is_some_and(|seat| seat.request_close(since)) {
                    return;
                }
            }
        }
    }

    /// Those that are to leave first, the first one last.
    fn find_eviction_candidates(&self) -> Vec<(u64, Weak<ConnectionPermit>)> {
        let all: Vec<_> = {
            let seats = lock(&self.open);
            let state = |weak: &Weak<ConnectionPermit>| {
                let seat = weak.upgrade()?;
                let since = if seat.is_close_requested() { ACTIVE } else { seat.idle_since.load(Relaxed) };
                Some((seat.is_authorized(), since, weak.clone()))
            };
            seats.permits.iter().filter_map(state).collect()
        };
        let age = as_micros(self.epoch.elapsed());
        let unauthorized = all.iter().filter(|(is_authorized, ..)| !is_authorized).count();
        let order = eviction_order(2 * unauthorized >= self.max_connections);
        let place = |is_authorized, since: u64| {
            let idle = Duration::from_micros(age.checked_sub(since)?);
            order.iter().position(|(authorized, least)| *authorized == is_authorized && idle >= *least)
        };
        let mut found: Vec<_> = all
            .into_iter()
            .filter_map(|(is_authorized, since, seat)| Some((place(is_authorized, since)?, since, seat)))
            .collect();
        found.sort_unstable_by_key(|(place, since, _)| std::cmp::Reverse((*place, *since)));
        let first = found.split_off(found.len().saturating_sub(EVICTION_BATCH));
        first.into_iter().map(|(_, since, seat)| (since, seat)).collect()
    }
}

/// Which connections leave before which: whether they are authorized ones, and how long they must have been idle. Where
/// unauthorized ones have half of the places, no other has to go for more of them; where they have few, one that has just
/// come gets the time that its first request takes.
fn eviction_order(crowded: bool) -> &'static [(bool, Duration)] {
    match crowded {
        true => &[(false, MIN_UNAUTHORIZED_IDLE)],
        false => &[(false, PARTIAL_REQUEST_TIMEOUT), (true, MIN_IDLE), (false, MIN_IDLE)],
    }
}

impl ConnectionPermit {
    /// Must be called once on the connection's own task, which is woken when it is to leave.
    pub(super) async fn register_waker(&self) {
        poll_fn(|cx| {
            let _ = self.task_waker.set(cx.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// Nothing has happened since then. Whether the connection is to leave. Without an authorized request it has been idle
    /// since it came: refused requests make it no younger.
    pub(super) fn mark_idle(&self, moment: Instant) -> bool {
        if self.is_authorized() {
            self.idle_since.store(as_micros(moment.saturating_duration_since(self.epoch)), Relaxed);
        }
        self.is_close_requested()
    }

    /// Something began then and is not whole yet. Whether the connection is to leave.
    pub(super) fn mark_partial(&self, moment: Instant) -> bool {
        self.mark_idle(moment + PARTIAL_REQUEST_TIMEOUT)
    }

    /// Nothing happens that is worth its place: it goes before any that is idle.
    pub(super) fn mark_evictable(&self) {
        self.idle_since.store(0, Relaxed);
    }

    /// Something happens. Without an authorized request it keeps no other connection out.
    pub(super) fn mark_active(&self) {
        if self.is_authorized() {
            self.idle_since.store(ACTIVE, Relaxed);
        }
    }

    /// A request on the connection, which is being served, was authorized.
    pub(super) fn mark_authorized(&self) {
        self.authorized.store(true, Relaxed);
        self.mark_active();
    }

    /// Whether a request on the connection was authorized.
    pub(super) fn is_authorized(&self) -> bool {
        self.authorized.load(Relaxed)
    }

    /// Whether the connection is to leave at once, whatever its client still has to take or to send.
    pub(super) fn is_abort_requested(&self) -> bool {
        self.is_close_requested() && !self.is_authorized()
    }

    /// Whether the connection is to leave as soon as it is idle.
    pub(super) fn is_close_requested(&self) -> bool {
        self.close_requested.load(Relaxed)
    }

    /// Whether its client would no longer be accepted.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Relaxed)
    }

    fn revoke(&self) {
        self.revoked.store(true, Relaxed);
        self.close_requested.store(true, Relaxed);
        self.wake();
    }

    /// Waits until the connection is to leave; only on its own task.
    pub(super) fn close_requested(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|_| if self.is_close_requested() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Asks a connection to leave that has been idle since then.
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

/// Whether something is to be said again.
fn is_log_due(said: &Mutex<Option<Instant>>) -> bool {
    let mut said = lock(said);
    let due = said.is_none_or(|said| said.elapsed() >= LOG_INTERVAL);
    if due {
        *said = Some(Instant::now());
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
