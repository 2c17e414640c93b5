//! What the streams of an HTTP/2 connection tell its byte stream, that it is in use, and their own task: whether the
//! client takes what lies there for it.

use std::{
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use crate::server::house::Seat;

/// What the requests of a connection and its stream know of one another. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Link(Arc<State>);

#[derive(Debug)]
struct State {
    born: Instant,
    seat: Arc<Seat>,
    /// When the last request was done, in milliseconds since `born`.
    quiet_since: AtomicU64,
    /// Requests that are being served.
    requests: AtomicU32,
    /// The client does not take what is written.
    stuck: AtomicBool,
    /// Responses to refused requests that wait for the client, and bodies of such requests that wait for their end.
    refusals: AtomicU32,
    /// Streams that were reset because there were too many.
    resets: AtomicU32,
    /// Until when nothing is read because of the last of them, in milliseconds since `born`.
    paused_until: AtomicU64,
    /// Refused requests have used up what a connection may send without a good credential.
    spent: AtomicBool,
    /// hyper was told to end the connection.
    ending: AtomicBool,
}

/// Most refused requests that wait for their client, as long as no request on the connection was authorized.
const MAX_REFUSALS: u32 = 6;

/// After so many streams that are reset because of that, no more is read for [`RESET_INTERVAL`].
const MAX_RESETS_AT_ONCE: u32 = 8;

/// hyper forgets a stream that it has reset after a second.
const RESET_INTERVAL: Duration = Duration::from_millis(1100);

/// After so many the connection ends when its client has sent no more.
const MAX_RESETS: u32 = 40;

/// After so many it ends in any case: more than may be open at once, so that no burst is cut off.
const MAX_RESETS_IN_A_BURST: u32 = 512;

/// A refused request that waits for its client.
#[derive(Debug)]
pub(super) struct Refused(Link);

/// A request is being served; dropped when its answer has been handed over.
#[derive(Debug)]
pub(super) struct Busy(Link);

impl Link {
    /// The link of a new connection, which has this seat.
    pub(super) fn new(seat: Arc<Seat>) -> Self {
        let born = Instant::now();
        seat.rest_from(born);
        Self(Arc::new(State {
            born,
            seat,
            quiet_since: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            stuck: AtomicBool::new(false),
            refusals: AtomicU32::new(0),
            resets: AtomicU32::new(0),
            paused_until: AtomicU64::new(0),
            spent: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        }))
    }

    /// The connection's seat.
    pub(super) fn seat(&self) -> &Seat {
        &self.0.seat
    }

    /// Whether a request on the connection was authorized.
    pub(super) fn is_authorized(&self) -> bool {
        self.0.seat.is_authorized()
    }

    /// A refused request that is to wait for its client; `None` where too many wait already.
    pub(super) fn refused(&self) -> Option<Refused> {
        let waiting = self.0.refusals.load(Ordering::Relaxed);
        (waiting < MAX_REFUSALS).then(|| {
            self.0.refusals.store(waiting + 1, Ordering::Relaxed);
            Refused(self.clone())
        })
    }

    /// Whether refused requests wait for the client.
    pub(super) fn has_refused(&self) -> bool {
        self.0.refusals.load(Ordering::Relaxed) > 0
    }

    /// Whether no more of them may.
    pub(super) fn has_max_refused(&self) -> bool {
        self.0.refusals.load(Ordering::Relaxed) >= MAX_REFUSALS
    }

    /// A stream is reset because too many wait already.
    pub(super) fn reset_one(&self) {
        let resets = self.0.resets.fetch_add(1, Ordering::Relaxed) + 1;
        if resets.is_multiple_of(MAX_RESETS_AT_ONCE) {
            let until = (self.0.born.elapsed() + RESET_INTERVAL).as_millis();
            self.0.paused_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Whether so many streams were reset that the connection is to end; `quiet` says that the client has sent no more.
    pub(super) fn has_reset_too_many(&self, quiet: bool) -> bool {
        let most = if quiet { MAX_RESETS } else { MAX_RESETS_IN_A_BURST };
        self.0.resets.load(Ordering::Relaxed) >= most
    }

    /// Until when nothing is read, so that hyper forgets the streams that it has reset; `None` where that has passed.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        let until = self.0.paused_until.load(Ordering::Relaxed);
        let until = (until > 0).then(|| self.0.born + Duration::from_millis(until))?;
        (Instant::now() < until).then_some(until)
    }

    /// Nothing more is taken from the connection until a request that it has sent is authorized.
    pub(super) fn spend(&self) {
        self.0.spent.store(true, Ordering::Relaxed);
    }

    /// Passes when that is so; only on the connection's own task.
    pub(super) fn spent(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|_| if self.is_spent() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Whether that is so.
    pub(super) fn is_spent(&self) -> bool {
        self.0.spent.load(Ordering::Relaxed) && !self.is_authorized()
    }

    /// hyper was told to end the connection.
    pub(super) fn set_ending(&self) {
        self.0.ending.store(true, Ordering::Relaxed);
    }

    /// Whether hyper was told to end the connection.
    pub(super) fn is_ending(&self) -> bool {
        self.0.ending.load(Ordering::Relaxed)
    }

    /// Marks the connection as in use.
    pub(super) fn busy(&self) -> Busy {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.seat.stir();
        Busy(self.clone())
    }

    /// When the last request was done; when the connection came, if there was none.
    pub(super) fn quiet_since(&self) -> Instant {
        self.0.born + Duration::from_millis(self.0.quiet_since.load(Ordering::Relaxed))
    }

    /// Passes when a client that is told to leave has had this long without a request and without a byte that it does not
    /// take.
    pub(super) async fn deserted(&self, patience: Duration) {
        let mut since = Instant::now();
        loop {
            if self.is_busy() || self.is_stuck() {
                since = Instant::now();
            }
            since = since.max(self.quiet_since());
            if since.elapsed() >= patience {
                return;
            }
            sleep_until(since + patience).await;
        }
    }

    /// Says whether there are bytes that the client does not take. The last ones of an answer may be among them when its
    /// request is done.
    pub(super) fn set_stuck(&self, stuck: bool) {
        self.0.stuck.store(stuck, Ordering::Relaxed);
    }

    /// Whether there are such bytes.
    pub(super) fn is_stuck(&self) -> bool {
        self.0.stuck.load(Ordering::Relaxed)
    }

    /// Whether the connection's client would no longer be accepted.
    pub(super) fn is_revoked(&self) -> bool {
        self.0.seat.is_revoked()
    }

    /// Lets time pass in which the connection gives way to any other, unless it has requests that are being served.
    pub(super) async fn hold_back(&self, delay: Duration) {
        if !self.is_busy() {
            self.0.seat.give_way();
        }
        sleep(delay).await;
    }

    /// Whether no request has come yet.
    pub(super) fn is_fresh(&self) -> bool {
        !self.is_busy() && self.0.quiet_since.load(Ordering::Relaxed) == 0
    }

    /// Whether a request is being served.
    pub(super) fn is_busy(&self) -> bool {
        self.0.requests.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        let state = &self.0.0;
        if state.refusals.fetch_sub(1, Ordering::Relaxed) == 1 {
            // A large head may wait for that.
            state.seat.call();
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let state = &self.0.0;
        let age = state.born.elapsed();
        let now = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        state.quiet_since.store(now, Ordering::Relaxed);
        if state.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            state.seat.rest_from(state.born + age);
        }
    }
}

tokio::task_local! {
    static TURN: Arc<Turn>;
}

/// Whose turn it is on a stream. Odd while something lies there for the client; each piece has a number of its own.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU64);

impl Turn {
    /// Runs a stream's task with this as its turn.
    pub(super) fn scope<F: Future>(self: Arc<Self>, stream: F) -> impl Future<Output = F::Output> {
        TURN.scope(self, stream)
    }

    /// That of the stream whose task this is.
    pub(super) fn of_this_stream() -> Arc<Self> {
        TURN.try_with(Arc::clone).unwrap_or_default()
    }

    /// There is a new piece for the client.
    pub(super) fn offer(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + 1 + now % 2, Ordering::Relaxed);
    }

    /// There is nothing for the client.
    pub(super) fn owe(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + now % 2, Ordering::Relaxed);
    }

    /// The number of what lies there for the client.
    pub(super) fn offered(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|now| now % 2 == 1)
    }
}
