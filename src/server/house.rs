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

use super::{client_auth::Presented, hushed::Hushed};

/// Who was busy within this time is not idle: a client that sends one request after the other is to keep its connection.
const LEAST_IDLE: Duration = Duration::from_millis(500);
/// So long a connection on which no request was authorized is kept where these have half of the places, so that the request
/// of one that has just come can arrive.
const LEAST_UNAUTHORIZED: Duration = Duration::from_millis(25);
/// So long half a head or half a greeting is taken for the beginning of a request.
const BEGINNING: Duration = Duration::from_secs(2);
/// How often a listener that waits for a place looks for an idle connection again.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// So many are found with one look at all connections.
const AT_ONCE: usize = 64;
/// The same trouble is in the log no more often than this.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// A seat on which something happens.
const BUSY: u64 = u64::MAX;

/// Descriptors for everything but connections: listeners, files, what the runtimes need.
const OTHER_DESCRIPTORS: usize = 24;
/// Connections to the admin listener that may be open at once, and how many there may be at least where descriptors are few.
const ADMIN_CONNECTIONS: usize = 64;
const LEAST_ADMIN_CONNECTIONS: usize = 4;

/// How many connections there may be where the configuration says so many. A quarter of the descriptors that the system
/// allows is for the way to the upstream: a connection that takes the last one cannot be served.
pub(super) fn room_for(max_connections: usize) -> usize {
    let Some(descriptors) = descriptors() else { return max_connections };
    let others = OTHER_DESCRIPTORS + admin_share(descriptors);
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
pub fn admin_room() -> usize {
    descriptors().map_or(ADMIN_CONNECTIONS, admin_share)
}

fn admin_share(descriptors: usize) -> usize {
    (descriptors / 16).clamp(LEAST_ADMIN_CONNECTIONS, ADMIN_CONNECTIONS)
}

/// Allows this process as many open files as the system lets it allow itself.
pub fn raise_descriptors() {
    let allowed = getrlimit(Resource::Nofile);
    // Where it cannot be, the old limit holds.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: allowed.maximum, ..allowed });
}

fn descriptors() -> Option<usize> {
    descriptors_allowed(&fs::read_to_string("/proc/self/limits").unwrap_or_default())
}

/// The soft limit on open files in what Linux says of a process; `None` where there is none.
fn descriptors_allowed(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// All connections of one server.
#[derive(Debug)]
pub struct House {
    /// TLS handshakes that failed.
    pub(super) handshakes: Hushed,
    places: Arc<Semaphore>,
    most: usize,
    born: Instant,
    seats: Mutex<Seats>,
    /// Found idle a while ago, the oldest last.
    idle: Mutex<Vec<(u64, Weak<Seat>)>>,
    full_said: Mutex<Option<Instant>>,
    failure_said: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Seats {
    all: Vec<Weak<Seat>>,
    /// When there are so many, those that are empty are thrown out.
    sweep_at: usize,
}

/// One connection's seat.
#[derive(Debug)]
pub(super) struct Seat {
    born: Instant,
    /// In microseconds since `born`, or [`BUSY`].
    idle_since: AtomicU64,
    /// A request on it showed a good credential.
    authorized: AtomicBool,
    asked: AtomicBool,
    /// Its client would no longer be accepted: no request is served any more.
    revoked: AtomicBool,
    /// What its client has shown under TLS.
    pub(super) presented: Presented,
    waker: OnceLock<Waker>,
    _place: OwnedSemaphorePermit,
}

impl House {
    /// A house for so many connections.
    pub fn new(most: usize) -> Self {
        Self {
            handshakes: Hushed::default(),
            places: Arc::new(Semaphore::new(most)),
            most,
            born: Instant::now(),
            seats: Mutex::default(),
            idle: Mutex::default(),
            full_said: Mutex::default(),
            failure_said: Mutex::default(),
        }
    }

    /// How many seats are taken.
    pub fn taken(&self) -> usize {
        self.most.saturating_sub(self.places.available_permits())
    }

    /// Waits until nobody is there any more.
    pub async fn emptied(&self) {
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }

    /// A seat for a new connection. Where the house is full somebody else has to leave, or there is a wait.
    pub(super) async fn seat(&self) -> Option<Arc<Seat>> {
        if let Some(seat) = self.free_seat() {
            return Some(seat);
        }
        if is_due(&self.full_said) {
            tracing::warn!(
                max_connections = self.most,
                "max_connections is reached; idle connections are closed for new ones, and where there are none these wait"
            );
        }
        let mut place = pin!(self.places.clone().acquire_owned());
        loop {
            self.ask_one_to_leave();
            if let Ok(place) = timeout(LOOK_AGAIN, place.as_mut()).await {
                return place.ok().map(|place| self.sit_down(place));
            }
        }
    }

    /// A seat if there is a free one.
    pub(super) fn free_seat(&self) -> Option<Arc<Seat>> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        Some(self.sit_down(place))
    }

    /// Accepting failed, and not because of the one that was to be accepted: the system is out of descriptors or memory.
    pub(super) fn cannot_accept(&self, error: &io::Error) {
        if is_due(&self.failure_said) {
            tracing::error!(%error, "no connection can be accepted; trying again, and closing idle ones");
        }
        self.ask_one_to_leave();
    }

    fn sit_down(&self, place: OwnedSemaphorePermit) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            born: self.born,
            idle_since: AtomicU64::new(microseconds(self.born.elapsed())),
            authorized: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            presented: Presented::default(),
            waker: OnceLock::new(),
            _place: place,
        });
        let mut seats = locked(&self.seats);
        if seats.all.len() >= seats.sweep_at {
            seats.all.retain(|seat| seat.strong_count() > 0);
            seats.sweep_at = 2 * seats.all.len() + AT_ONCE;
        }
        seats.all.push(Arc::downgrade(&seat));
        seat
    }

    /// Wakes every connection's task.
    pub(super) fn call_all(&self) {
        let all = locked(&self.seats).all.clone();
        all.iter().filter_map(Weak::upgrade).for_each(|seat| seat.call());
    }

    /// Closes the connections whose client `accepts` does not accept, each when the request that it serves is answered.
    /// Returns how many.
    pub(super) fn revoke(&self, accepts: impl Fn(Option<&[CertificateDer<'static>]>) -> bool) -> usize {
        let all = locked(&self.seats).all.clone();
        let seats = all.iter().filter_map(Weak::upgrade);
        seats.filter(|seat| !seat.presented.is_covered(&accepts)).map(|seat| seat.revoke()).count()
    }

    fn ask_one_to_leave(&self) {
        let mut idle = locked(&self.idle);
        for looked in [false, true] {
            if looked {
                *idle = self.longest_idle();
            }
            while let Some((since, seat)) = idle.pop() {
                if seat.upgrade().is_some_and(|seat| seat.ask_to_leave(since)) {
                    return;
                }
            }
        }
    }

    /// Those that are to leave first, the first one last.
    fn longest_idle(&self) -> Vec<(u64, Weak<Seat>)> {
        let all: Vec<_> = {
            let seats = locked(&self.seats);
            let state = |weak: &Weak<Seat>| {
                let seat = weak.upgrade()?;
                let since = if seat.is_asked() { BUSY } else { seat.idle_since.load(Relaxed) };
                Some((seat.is_authorized(), since, weak.clone()))
            };
            seats.all.iter().filter_map(state).collect()
        };
        let age = microseconds(self.born.elapsed());
        let unauthorized = all.iter().filter(|(is_authorized, ..)| !is_authorized).count();
        let order = order(2 * unauthorized >= self.most);
        let place = |is_authorized, since: u64| {
            let idle = Duration::from_micros(age.checked_sub(since)?);
            order.iter().position(|(authorized, least)| *authorized == is_authorized && idle >= *least)
        };
        let mut found: Vec<_> = all
            .into_iter()
            .filter_map(|(is_authorized, since, seat)| Some((place(is_authorized, since)?, since, seat)))
            .collect();
        found.sort_unstable_by_key(|(place, since, _)| std::cmp::Reverse((*place, *since)));
        let first = found.split_off(found.len().saturating_sub(AT_ONCE));
        first.into_iter().map(|(_, since, seat)| (since, seat)).collect()
    }
}

/// Which connections leave before which: whether they are authorized ones, and how long they must have been idle. Where
/// unauthorized ones have half of the places, no other has to go for more of them; where they have few, one that has just
/// come gets the time that its first request takes.
fn order(crowded: bool) -> &'static [(bool, Duration)] {
    match crowded {
        true => &[(false, LEAST_UNAUTHORIZED)],
        false => &[(false, BEGINNING), (true, LEAST_IDLE), (false, LEAST_IDLE)],
    }
}

impl Seat {
    /// Must be called once on the connection's own task, which is woken when it is to leave.
    pub(super) async fn take(&self) {
        poll_fn(|cx| {
            let _ = self.waker.set(cx.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// Nothing has happened since then. Whether the connection is to leave. Without an authorized request it has been idle
    /// since it came: refused requests make it no younger.
    pub(super) fn rest_from(&self, moment: Instant) -> bool {
        if self.is_authorized() {
            self.idle_since.store(microseconds(moment.saturating_duration_since(self.born)), Relaxed);
        }
        self.is_asked()
    }

    /// Something began then and is not whole yet. Whether the connection is to leave.
    pub(super) fn begins_from(&self, moment: Instant) -> bool {
        self.rest_from(moment + BEGINNING)
    }

    /// Nothing happens that is worth its place: it goes before any that is idle.
    pub(super) fn give_way(&self) {
        self.idle_since.store(0, Relaxed);
    }

    /// Something happens. Without an authorized request it keeps no other connection out.
    pub(super) fn stir(&self) {
        if self.is_authorized() {
            self.idle_since.store(BUSY, Relaxed);
        }
    }

    /// A request on the connection, which is being served, was authorized.
    pub(super) fn authorize(&self) {
        self.authorized.store(true, Relaxed);
        self.stir();
    }

    /// Whether a request on the connection was authorized.
    pub(super) fn is_authorized(&self) -> bool {
        self.authorized.load(Relaxed)
    }

    /// Whether the connection is to leave at once, whatever its client still has to take or to send.
    pub(super) fn is_cut(&self) -> bool {
        self.is_asked() && !self.is_authorized()
    }

    /// Whether the connection is to leave as soon as it is idle.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Whether its client would no longer be accepted.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Relaxed)
    }

    fn revoke(&self) {
        self.revoked.store(true, Relaxed);
        self.asked.store(true, Relaxed);
        self.call();
    }

    /// Waits until the connection is to leave; only on its own task.
    pub(super) fn asked(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|_| if self.is_asked() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Asks a connection to leave that has been idle since then.
    fn ask_to_leave(&self, since: u64) -> bool {
        if self.idle_since.load(Relaxed) != since || self.asked.swap(true, Relaxed) {
            return false;
        }
        self.call();
        true
    }

    /// Wakes the connection's task.
    pub(super) fn call(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

fn microseconds(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000 + u64::from(duration.subsec_micros())
}

/// Whether something is to be said again.
fn is_due(said: &Mutex<Option<Instant>>) -> bool {
    let mut said = locked(said);
    let due = said.is_none_or(|said| said.elapsed() >= SAY_AGAIN);
    if due {
        *said = Some(Instant::now());
    }
    due
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_open_files_is_found() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             127                  127                  processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(descriptors_allowed(limits), Some(1024));
        assert_eq!(descriptors_allowed(&limits.replace("1024  ", "unlimited")), None);
        assert_eq!(descriptors_allowed(""), None);
        assert!(
            fs::read_to_string("/proc/self/limits")
                .is_ok_and(|limits| descriptors_allowed(&limits).is_some())
        );
        assert_eq!([64, 160, 1024, 65536].map(admin_share), [4, 10, 64, 64]);
    }
}
