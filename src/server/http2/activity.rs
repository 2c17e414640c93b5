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

use crate::server::connection_limit::ConnectionPermit;

/// What the requests of a connection and its stream know of one another. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<State>);

#[derive(Debug)]
struct State {
    created_at: Instant,
    permit: Arc<ConnectionPermit>,
    /// When the last request was done, in milliseconds since `born`.
    idle_since: AtomicU64,
    /// Requests that are being served.
    active_requests: AtomicU32,
    /// The client does not take what is written.
    write_blocked: AtomicBool,
    /// Responses to refused requests that wait for the client, and bodies of such requests that wait for their end.
    pending_refusals: AtomicU32,
    /// Streams that were reset because there were too many.
    stream_resets: AtomicU32,
    /// Until when nothing is read because of the last of them, in milliseconds since `born`.
    paused_until: AtomicU64,
    /// Refused requests have used up what a connection may send without a good credential.
    budget_exhausted: AtomicBool,
    /// hyper was told to end the connection.
    ending: AtomicBool,
}

/// Most refused requests that wait for their client, as long as no request on the connection was authorized.
const MAX_PENDING_REFUSALS: u32 = 6;

/// After so many streams that are reset because of that, no more is read for [`RESET_INTERVAL`].
const MAX_RESETS_AT_ONCE: u32 = 8;

/// hyper forgets a stream that it has reset after a second.
const RESET_INTERVAL: Duration = Duration::from_millis(1100);

/// After so many the connection ends when its client has sent no more.
const MAX_STREAM_RESETS: u32 = 40;

/// After so many it ends in any case: more than may be open at once, so that no burst is cut off.
const MAX_RESETS_IN_A_BURST: u32 = 512;

/// A refused request that waits for its client.
#[derive(Debug)]
pub(super) struct RefusedRequestGuard(Activity);

/// A request is being served; dropped when its answer has been handed over.
#[derive(Debug)]
pub(super) struct RequestGuard(Activity);

impl Activity {
    /// The link of a new connection, which has this seat.
    pub(super) fn new(seat: Arc<ConnectionPermit>) -> Self {
        let born = Instant::now();
        seat.mark_idle(born);
        Self(Arc::new(State {
            created_at: born,
            permit: seat,
            idle_since: AtomicU64::new(0),
            active_requests: AtomicU32::new(0),
            write_blocked: AtomicBool::new(false),
            pending_refusals: AtomicU32::new(0),
            stream_resets: AtomicU32::new(0),
            paused_until: AtomicU64::new(0),
            budget_exhausted: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        }))
    }

    /// The connection's seat.
    pub(super) fn permit(&self) -> &ConnectionPermit {
        &self.0.permit
    }

    /// Whether a request on the connection was authorized.
    pub(super) fn is_authorized(&self) -> bool {
        self.0.permit.is_authorized()
    }

    /// A refused request that is to wait for its client; `None` where too many wait already.
    pub(super) fn try_refused_request_guard(&self) -> Option<RefusedRequestGuard> {
        let waiting = self.0.pending_refusals.load(Ordering::Relaxed);
        (waiting < MAX_PENDING_REFUSALS).then(|| {
            self.0.pending_refusals.store(waiting + 1, Ordering::Relaxed);
            RefusedRequestGuard(self.clone())
        })
    }

    /// Whether refused requests wait for the client.
    pub(super) fn has_refused(&self) -> bool {
        self.0.pending_refusals.load(Ordering::Relaxed) > 0
    }

    /// Whether no more of them may.
    pub(super) fn has_max_refused(&self) -> bool {
        self.0.pending_refusals.load(Ordering::Relaxed) >= MAX_PENDING_REFUSALS
    }

    /// A stream is reset because too many wait already.
    pub(super) fn record_stream_reset(&self) {
        let resets = self.0.stream_resets.fetch_add(1, Ordering::Relaxed) + 1;
        if resets.is_multiple_of(MAX_RESETS_AT_ONCE) {
            let until = (self.0.created_at.elapsed() + RESET_INTERVAL).as_millis();
            self.0.paused_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Whether so many streams were reset that the connection is to end; `quiet` says that the client has sent no more.
    pub(super) fn has_reset_too_many(&self, quiet: bool) -> bool {
        let most = if quiet { MAX_STREAM_RESETS } else { MAX_RESETS_IN_A_BURST };
        self.0.stream_resets.load(Ordering::Relaxed) >= most
    }

    /// Until when nothing is read, so that hyper forgets the streams that it has reset; `None` where that has passed.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        let until = self.0.paused_until.load(Ordering::Relaxed);
        let until = (until > 0).then(|| self.0.created_at + Duration::from_millis(until))?;
        (Instant::now() < until).then_some(until)
    }

    /// Nothing more is taken from the connection until a request that it has sent is authorized.
    pub(super) fn exhaust_budget(&self) {
        self.0.budget_exhausted.store(true, Ordering::Relaxed);
    }

    /// Passes when that is so; only on the connection's own task.
    pub(super) fn budget_exhausted(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|_| if self.is_budget_exhausted() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Whether that is so.
    pub(super) fn is_budget_exhausted(&self) -> bool {
        self.0.budget_exhausted.load(Ordering::Relaxed) && !self.is_authorized()
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
    pub(super) fn request_guard(&self) -> RequestGuard {
        self.0.active_requests.fetch_add(1, Ordering::Relaxed);
        self.0.permit.mark_active();
        RequestGuard(self.clone())
    }

    /// When the last request was done; when the connection came, if there was none.
    pub(super) fn idle_since(&self) -> Instant {
        self.0.created_at + Duration::from_millis(self.0.idle_since.load(Ordering::Relaxed))
    }

    /// Passes when a client that is told to leave has had this long without a request and without a byte that it does not
    /// take.
    pub(super) async fn wait_idle(&self, patience: Duration) {
        let mut since = Instant::now();
        loop {
            if self.has_active_requests() || self.is_write_blocked() {
                since = Instant::now();
            }
            since = since.max(self.idle_since());
            if since.elapsed() >= patience {
                return;
            }
            sleep_until(since + patience).await;
        }
    }

    /// Says whether there are bytes that the client does not take. The last ones of an answer may be among them when its
    /// request is done.
    pub(super) fn set_write_blocked(&self, stuck: bool) {
        self.0.write_blocked.store(stuck, Ordering::Relaxed);
    }

    /// Whether there are such bytes.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.0.write_blocked.load(Ordering::Relaxed)
    }

    /// Whether the connection's client would no longer be accepted.
    pub(super) fn is_revoked(&self) -> bool {
        self.0.permit.is_revoked()
    }

    /// Lets time pass in which the connection gives way to any other, unless it has requests that are being served.
    pub(super) async fn delay_wrong_key(&self, delay: Duration) {
        if !self.has_active_requests() {
            self.0.permit.mark_evictable();
        }
        sleep(delay).await;
    }

    /// Whether no request has come yet.
    pub(super) fn is_new(&self) -> bool {
        !self.has_active_requests() && self.0.idle_since.load(Ordering::Relaxed) == 0
    }

    /// Whether a request is being served.
    pub(super) fn has_active_requests(&self) -> bool {
        self.0.active_requests.load(Ordering::Relaxed) > 0
    }
}

impl Drop for RefusedRequestGuard {
    fn drop(&mut self) {
        let state = &self.0.0;
        if state.pending_refusals.fetch_sub(1, Ordering::Relaxed) == 1 {
            // A large head may wait for that.
            state.permit.wake();
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let state = &self.0.0;
        let age = state.created_at.elapsed();
        let now = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        state.idle_since.store(now, Ordering::Relaxed);
        if state.active_requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            state.permit.mark_idle(state.created_at + age);
        }
    }
}

tokio::task_local! {
    static WRITE_PROGRESS: Arc<WriteProgress>;
}

/// Whose turn it is on a stream. Odd while something lies there for the client; each piece has a number of its own.
#[derive(Debug, Default)]
pub(super) struct WriteProgress(AtomicU64);

impl WriteProgress {
    /// Runs a stream's task with this as its turn.
    pub(super) fn scope<F: Future>(self: Arc<Self>, stream: F) -> impl Future<Output = F::Output> {
        WRITE_PROGRESS.scope(self, stream)
    }

    /// That of the stream whose task this is.
    pub(super) fn current() -> Arc<Self> {
        WRITE_PROGRESS.try_with(Arc::clone).unwrap_or_default()
    }

    /// There is a new piece for the client.
    pub(super) fn data_queued(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + 1 + now % 2, Ordering::Relaxed);
    }

    /// There is nothing for the client.
    pub(super) fn drained(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + now % 2, Ordering::Relaxed);
    }

    /// The number of what lies there for the client.
    pub(super) fn queued_seq(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|now| now % 2 == 1)
    }
}
