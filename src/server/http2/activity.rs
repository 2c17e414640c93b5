//! State that the streams of an HTTP/2 connection share with its transport (requests in flight, refusals,
//! write-blocked) and with their own task (write progress).

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

/// State of one connection that its streams, its transport and [`super::serve`] share; clones share it. It holds the
/// requests in flight, the refusals and their budget, the pause of reading, and the connection's permit.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<State>);

#[derive(Debug)]
struct State {
    created_at: Instant,
    permit: Arc<ConnectionPermit>,
    /// When the last request completed, in milliseconds since `created_at`, at least 1; 0 if none has.
    idle_since: AtomicU64,
    /// Requests in flight.
    active_requests: AtomicU32,
    /// Bytes wait to be written that the client does not read.
    write_blocked: AtomicBool,
    /// Responses to refused requests that wait for the client, and bodies of such requests that are being discarded.
    pending_refusals: AtomicU32,
    /// Streams that were reset because [`MAX_PENDING_REFUSALS`] was reached.
    stream_resets: AtomicU32,
    /// Until when nothing is read after these resets, in milliseconds since `created_at`.
    paused_until: AtomicU64,
    /// Refused requests have used up what a connection may send without an authorized request.
    budget_exhausted: AtomicBool,
    /// The graceful shutdown of hyper's connection has begun, so GOAWAY was sent or is about to be.
    graceful_shutdown: AtomicBool,
}

/// Maximum number of pending refusals while no request on the connection was authorized.
const MAX_PENDING_REFUSALS: u32 = 6;

/// Number of streams reset because of [`MAX_PENDING_REFUSALS`] after which reading pauses.
const RESETS_PER_PAUSE: u32 = 8;

/// How long reading pauses: longer than the second for which hyper remembers a stream that it has reset.
const RESET_PAUSE_INTERVAL: Duration = Duration::from_millis(1100);

/// Number of these resets after which the connection ends as soon as all that the client has sent was read.
const MAX_STREAM_RESETS: u32 = 40;

/// Number of these resets after which the connection ends in any case; larger than the number of concurrent streams, so
/// that no burst is cut off.
const MAX_RESET_BURST: u32 = 512;

/// Counts a pending refusal until dropped: any response on a connection without an authorized request, until hyper has
/// sent it, or the discarding of such a request's body.
#[derive(Debug)]
pub(super) struct PendingRefusal(Activity);

/// Counts a request in flight; dropped when its response was handed to hyper.
#[derive(Debug)]
pub(super) struct RequestGuard(Activity);

impl Activity {
    /// Creates the state of a new connection.
    pub(super) fn new(permit: Arc<ConnectionPermit>) -> Self {
        let created_at = Instant::now();
        Self(Arc::new(State {
            created_at,
            permit,
            idle_since: AtomicU64::new(0),
            active_requests: AtomicU32::new(0),
            write_blocked: AtomicBool::new(false),
            pending_refusals: AtomicU32::new(0),
            stream_resets: AtomicU32::new(0),
            paused_until: AtomicU64::new(0),
            budget_exhausted: AtomicBool::new(false),
            graceful_shutdown: AtomicBool::new(false),
        }))
    }

    /// The connection's permit.
    pub(super) fn permit(&self) -> &ConnectionPermit {
        &self.0.permit
    }

    /// Whether a request on the connection was authorized.
    pub(super) fn is_authorized(&self) -> bool {
        self.0.permit.is_authorized()
    }

    /// Counts a pending refusal; `None` if there are too many.
    pub(super) fn try_begin_refusal(&self) -> Option<PendingRefusal> {
        let waiting = self.0.pending_refusals.load(Ordering::Relaxed);
        (waiting < MAX_PENDING_REFUSALS).then(|| {
            self.0.pending_refusals.store(waiting + 1, Ordering::Relaxed);
            PendingRefusal(self.clone())
        })
    }

    /// Whether refusals are pending.
    pub(super) fn has_pending_refusals(&self) -> bool {
        self.0.pending_refusals.load(Ordering::Relaxed) > 0
    }

    /// Whether no further refusal may become pending.
    pub(super) fn has_max_pending_refusals(&self) -> bool {
        self.0.pending_refusals.load(Ordering::Relaxed) >= MAX_PENDING_REFUSALS
    }

    /// Records a stream reset caused by too many pending refusals.
    pub(super) fn record_stream_reset(&self) {
        let resets = self.0.stream_resets.fetch_add(1, Ordering::Relaxed) + 1;
        if resets.is_multiple_of(RESETS_PER_PAUSE) {
            let until = (self.0.created_at.elapsed() + RESET_PAUSE_INTERVAL).as_millis();
            self.0.paused_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Whether the connection is to end because of streams reset for too many pending refusals; `input_drained`: the
    /// client has sent no more.
    pub(super) fn has_reset_too_many(&self, input_drained: bool) -> bool {
        let max_resets = if input_drained { MAX_STREAM_RESETS } else { MAX_RESET_BURST };
        self.0.stream_resets.load(Ordering::Relaxed) >= max_resets
    }

    /// Until when reading pauses so that hyper forgets the streams that it has reset; `None` if not paused.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        let until = self.0.paused_until.load(Ordering::Relaxed);
        let until = (until > 0).then(|| self.0.created_at + Duration::from_millis(until))?;
        (Instant::now() < until).then_some(until)
    }

    /// Records that refused requests have used up the connection's budget. Nothing more is read and GOAWAY follows,
    /// unless a request that was already read is authorized.
    pub(super) fn exhaust_budget(&self) {
        self.0.budget_exhausted.store(true, Ordering::Relaxed);
    }

    /// Waits until the budget is exhausted; only on the connection's own task.
    pub(super) fn budget_exhausted(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|_| if self.is_budget_exhausted() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Whether the budget is exhausted and no request was authorized.
    pub(super) fn is_budget_exhausted(&self) -> bool {
        self.0.budget_exhausted.load(Ordering::Relaxed) && !self.is_authorized()
    }

    /// Records that the graceful shutdown of hyper's connection has begun.
    pub(super) fn set_graceful_shutdown(&self) {
        self.0.graceful_shutdown.store(true, Ordering::Relaxed);
    }

    /// Whether the graceful shutdown of hyper's connection has begun.
    pub(super) fn is_in_graceful_shutdown(&self) -> bool {
        self.0.graceful_shutdown.load(Ordering::Relaxed)
    }

    /// Counts a request in flight.
    pub(super) fn request_guard(&self) -> RequestGuard {
        self.0.active_requests.fetch_add(1, Ordering::Relaxed);
        self.0.permit.mark_active();
        RequestGuard(self.clone())
    }

    /// When the last request completed; without any, when `http2::serve` began with the connection.
    pub(super) fn idle_since(&self) -> Instant {
        self.0.created_at + Duration::from_millis(self.0.idle_since.load(Ordering::Relaxed))
    }

    /// After GOAWAY: waits until the connection has had no request in flight and no unread response bytes for `grace`.
    pub(super) async fn wait_idle(&self, grace: Duration) {
        let mut since = Instant::now();
        loop {
            if self.has_active_requests() || self.is_write_blocked() {
                since = Instant::now();
            }
            since = since.max(self.idle_since());
            if since.elapsed() >= grace {
                return;
            }
            sleep_until(since + grace).await;
        }
    }

    /// Records whether written bytes wait for the client. They may include the end of a response whose request has
    /// completed.
    pub(super) fn set_write_blocked(&self, blocked: bool) {
        self.0.write_blocked.store(blocked, Ordering::Relaxed);
    }

    /// Whether written bytes wait for the client.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.0.write_blocked.load(Ordering::Relaxed)
    }

    /// Whether the current TLS settings no longer accept the client.
    pub(super) fn is_revoked(&self) -> bool {
        self.0.permit.is_revoked()
    }

    /// Waits for `delay`. Without requests in flight the connection becomes the first of its rank to be evicted.
    pub(super) async fn delay_wrong_key(&self, delay: Duration) {
        if !self.has_active_requests() {
            self.0.permit.mark_evictable();
        }
        sleep(delay).await;
    }

    /// Whether no request is in flight and none has completed. A revoked client's requests do not count.
    pub(super) fn is_new(&self) -> bool {
        !self.has_active_requests() && self.0.idle_since.load(Ordering::Relaxed) == 0
    }

    /// Whether a request is in flight.
    pub(super) fn has_active_requests(&self) -> bool {
        self.0.active_requests.load(Ordering::Relaxed) > 0
    }
}

impl Drop for PendingRefusal {
    fn drop(&mut self) {
        let state = &self.0.0;
        if state.pending_refusals.fetch_sub(1, Ordering::Relaxed) == 1 {
            // The transport may wait for this before it reads the rest of a large head.
            state.permit.wake();
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let state = &self.0.0;
        let age = state.created_at.elapsed();
        let idle_since = u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1);
        state.idle_since.store(idle_since, Ordering::Relaxed);
        if state.active_requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            state.permit.mark_idle(state.created_at + age);
        }
    }
}

tokio::task_local! {
    static WRITE_PROGRESS: Arc<WriteProgress>;
}

/// Write progress of a stream, a counter. Odd: hyper was given the head or a chunk, and has not asked for the next
/// chunk yet, as while the client's window is closed. Even: the stream waits for the upstream. The value changes with
/// each chunk, so a stall shows as an unchanged odd value.
#[derive(Debug, Default)]
pub(super) struct WriteProgress(AtomicU64);

impl WriteProgress {
    /// Runs a stream's task with this as its [`WriteProgress::current`].
    pub(super) fn scope<F: Future>(self: Arc<Self>, stream: F) -> impl Future<Output = F::Output> {
        WRITE_PROGRESS.scope(self, stream)
    }

    /// The progress of the stream whose task is running.
    pub(super) fn current() -> Arc<Self> {
        WRITE_PROGRESS.try_with(Arc::clone).unwrap_or_default()
    }

    /// Records that a new chunk waits for the client.
    pub(super) fn data_queued(&self) {
        let seq = self.0.load(Ordering::Relaxed);
        self.0.store(seq + 1 + seq % 2, Ordering::Relaxed);
    }

    /// Records that nothing waits for the client.
    pub(super) fn drained(&self) {
        let seq = self.0.load(Ordering::Relaxed);
        self.0.store(seq + seq % 2, Ordering::Relaxed);
    }

    /// The number of the waiting chunk; `None` if none waits.
    pub(super) fn queued_seq(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|seq| seq % 2 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connection_limit::ConnectionLimiter;

    #[test]
    fn connection_whose_request_took_no_time_is_not_new() {
        let permit = ConnectionLimiter::new(1).try_acquire().expect("a permit");
        let activity = Activity::new(permit);
        assert!(activity.is_new());
        let request = activity.request_guard();
        assert!(!activity.is_new());
        drop(request);
        assert!(!activity.is_new());
    }
}
