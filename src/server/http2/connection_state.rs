//! State that a connection's task, its streams and its transport share: requests in flight, rejections and their budget,
//! and whether the client reads.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use h2::RecvStream;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    server::{Timeouts, connection_limit::ConnectionPermit},
    time::deadline::Deadline,
};

/// Maximum number of pending rejections while no request on the connection was authorized.
const MAX_PENDING_REJECTIONS: u32 = 3;

/// Maximum number of requests that are received without any on the connection being authorized: messages for callbacks,
/// whose signature is verified only when their body is complete.
const MAX_UNVERIFIED_REQUESTS: u32 = 4;

/// Number of streams reset because of [`MAX_PENDING_REJECTIONS`] after which the connection ends as soon as all that the
/// client has sent was read.
const MAX_RESETS_WHEN_DRAINED: u32 = 40;

/// Number of these resets after which the connection ends in any case; larger than the number of concurrent streams, so
/// that no burst is cut off.
const MAX_RESETS: u32 = 512;

/// Maximum number of deadlines that a connection keeps for later requests.
const MAX_SPARE_DEADLINES: usize = 16;

/// State of one connection.
pub(super) struct ConnectionState {
    permit: Arc<ConnectionPermit>,
    timeouts: Timeouts,
    created_at: Instant,
    /// When the last request completed.
    completed_at: Cell<Option<Instant>>,
    /// Requests in flight.
    active_requests: Cell<u32>,
    /// Bytes wait to be written that the client does not read.
    write_blocked: Cell<bool>,
    /// Responses to rejected requests that wait for the client, and bodies of such requests that are being discarded.
    pending_rejections: Cell<u32>,
    /// Requests that are received without being authorized.
    unverified_requests: Cell<u32>,
    /// Streams that were reset because [`MAX_PENDING_REJECTIONS`] or [`MAX_UNVERIFIED_REQUESTS`] was reached.
    stream_resets: Cell<u32>,
    /// Rejected requests have used up what a connection may send without an authorized request.
    budget_exhausted: Cell<bool>,
    /// Bodies to be discarded; `None` once the connection has ended.
    unread_bodies: RefCell<Option<Vec<UnreadBody>>>,
    /// A response has begun.
    has_responded: Cell<bool>,
    /// Deadlines of earlier requests, whose timers the next ones reuse.
    spare_deadlines: RefCell<Vec<Deadline>>,
}

/// The rest of a request body that is to be discarded.
pub(super) struct UnreadBody {
    pub(super) stream: RecvStream,
    pub(super) _pending_rejection: Option<PendingRejection>,
}

/// Counts a pending rejection until dropped: any response on a connection without an authorized request, until the
/// client's window lets it out, or the discarding of such a request's body.
pub(super) struct PendingRejection(Rc<ConnectionState>);

/// Counts a request that is received without being authorized, until dropped.
pub(super) struct UnverifiedRequest(Rc<ConnectionState>);

/// Counts a request in flight; dropped when its response was handed to h2.
pub(super) struct RequestGuard(Rc<ConnectionState>);

impl ConnectionState {
    /// Creates the state of a new connection.
    pub(super) fn new(permit: Arc<ConnectionPermit>, timeouts: Timeouts) -> Rc<Self> {
        Rc::new(Self {
            permit,
            timeouts,
            created_at: Instant::now(),
            completed_at: Cell::new(None),
            active_requests: Cell::new(0),
            write_blocked: Cell::new(false),
            pending_rejections: Cell::new(0),
            unverified_requests: Cell::new(0),
            stream_resets: Cell::new(0),
            budget_exhausted: Cell::new(false),
            unread_bodies: RefCell::new(Some(Vec::new())),
            has_responded: Cell::new(false),
            spare_deadlines: RefCell::default(),
        })
    }

    /// The connection's permit.
    pub(super) fn permit(&self) -> &ConnectionPermit {
        &self.permit
    }

    /// The connection's time-outs.
    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Longest time in which the client accepts no response bytes.
    pub(super) fn write_timeout(&self) -> Duration {
        self.timeouts.write_timeout(&self.permit)
    }

    /// Whether a request on the connection was authorized.
    pub(super) fn is_authorized(&self) -> bool {
        self.permit.is_authorized()
    }

    /// Counts a pending rejection; `None` if there are too many.
    pub(super) fn try_begin_rejection(self: &Rc<Self>) -> Option<PendingRejection> {
        (self.pending_rejections.get() < MAX_PENDING_REJECTIONS).then(|| {
            self.pending_rejections.update(|pending| pending + 1);
            PendingRejection(self.clone())
        })
    }

    /// Counts a request that waits without being authorized; `None` if there are too many.
    pub(super) fn try_begin_unverified(self: &Rc<Self>) -> Option<UnverifiedRequest> {
        (self.unverified_requests.get() < MAX_UNVERIFIED_REQUESTS).then(|| {
            self.unverified_requests.update(|requests| requests + 1);
            UnverifiedRequest(self.clone())
        })
    }

    /// Whether rejections are pending.
    pub(super) fn has_pending_rejections(&self) -> bool {
        self.pending_rejections.get() > 0
    }

    /// Records a stream reset caused by too many pending rejections.
    pub(super) fn record_stream_reset(&self) {
        self.stream_resets.update(|resets| resets + 1);
    }

    /// Whether the connection is to end because of streams reset for too many pending rejections; `input_drained`: the
    /// client has sent no more.
    pub(super) fn has_reset_too_many(&self, input_drained: bool) -> bool {
        let max_resets = if input_drained { MAX_RESETS_WHEN_DRAINED } else { MAX_RESETS };
        self.stream_resets.get() >= max_resets
    }

    /// Records that rejected requests have used up the connection's budget. Nothing more is read and GOAWAY follows,
    /// unless a request that was already read is authorized.
    pub(super) fn exhaust_budget(&self) {
        self.budget_exhausted.set(true);
    }

    /// Whether the budget is exhausted and no request was authorized.
    pub(super) fn is_budget_exhausted(&self) -> bool {
        self.budget_exhausted.get() && !self.is_authorized()
    }

    /// Counts a request in flight.
    pub(super) fn request_guard(self: &Rc<Self>) -> RequestGuard {
        self.active_requests.update(|active| active + 1);
        self.permit.mark_active();
        RequestGuard(self.clone())
    }

    /// When the last request completed; without any, when `http2::serve` began with the connection.
    pub(super) fn idle_since(&self) -> Instant {
        self.completed_at.get().unwrap_or(self.created_at)
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

    /// Records that a response begins. Returns whether it is the first.
    pub(super) fn begins_first_response(&self) -> bool {
        !self.has_responded.replace(true)
    }

    /// A deadline for a request.
    pub(super) fn take_deadline(&self) -> Deadline {
        self.spare_deadlines.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps the deadline of a request for another one.
    pub(super) fn put_deadline(&self, mut deadline: Deadline) {
        let mut spare = self.spare_deadlines.borrow_mut();
        if spare.len() < MAX_SPARE_DEADLINES && self.is_authorized() {
            deadline.clear();
            spare.push(deadline);
        }
    }

    /// Records whether written bytes wait for the client. They may include the end of a response whose request has
    /// completed.
    pub(super) fn set_write_blocked(&self, blocked: bool) {
        self.write_blocked.set(blocked);
    }

    /// Whether written bytes wait for the client.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.write_blocked.get()
    }

    /// Whether the current TLS settings no longer accept the client.
    pub(super) fn is_revoked(&self) -> bool {
        self.permit.is_revoked()
    }

    /// Waits for `delay`. Without requests in flight the connection becomes the first of its rank to be evicted.
    pub(super) async fn delay_wrong_key(&self, delay: Duration) {
        if !self.has_active_requests() {
            self.permit.mark_evictable();
        }
        sleep(delay).await;
    }

    /// Whether no request is in flight and none has completed. A revoked client's requests do not count.
    pub(super) fn is_new(&self) -> bool {
        !self.has_active_requests() && self.completed_at.get().is_none()
    }

    /// Whether a request is in flight.
    pub(super) fn has_active_requests(&self) -> bool {
        self.active_requests.get() > 0
    }

    /// Has the connection's task discard the rest of a body. After the end of the connection there is none.
    pub(super) fn discard_body(&self, body: UnreadBody) {
        if let Some(unread) = &mut *self.unread_bodies.borrow_mut() {
            unread.push(body);
            // The body may have been dropped by another task.
            self.permit.wake();
        }
    }

    /// Takes the next body that is to be discarded.
    pub(super) fn next_unread_body(&self) -> Option<UnreadBody> {
        self.unread_bodies.borrow_mut().as_mut().and_then(Vec::pop)
    }

    /// Records that the connection has ended.
    pub(super) fn end(&self) {
        // Taken out first: the drop of a body may come back here.
        let unread = self.unread_bodies.borrow_mut().take();
        drop(unread);
    }
}

impl Drop for UnverifiedRequest {
    fn drop(&mut self) {
        self.0.unverified_requests.update(|requests| requests - 1);
    }
}

impl Drop for PendingRejection {
    fn drop(&mut self) {
        self.0.pending_rejections.update(|pending| pending - 1);
        if !self.0.has_pending_rejections() {
            // The transport may wait for this before it reads the rest of a large head.
            self.0.permit.wake();
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        self.0.completed_at.set(Some(now));
        self.0.active_requests.update(|active| active - 1);
        if !self.0.has_active_requests() {
            self.0.permit.mark_idle(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connection_limit::{ConnectionLimiter, EvictionPolicy};

    #[test]
    fn connection_whose_request_took_no_time_is_not_new() {
        let permit = ConnectionLimiter::new(1, EvictionPolicy::KeepActive).try_acquire().expect("a permit");
        let second = Duration::from_secs(1);
        let state = ConnectionState::new(permit, Timeouts { header: second, idle: second, write: second });
        assert!(state.is_new());
        let request = state.request_guard();
        assert!(!state.is_new());
        drop(request);
        assert!(!state.is_new());
    }
}
