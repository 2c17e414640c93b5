//! HTTP client for the one configured upstream, with pooled connections.
//!
//! It does not handle tokens. One [`Upstream`] belongs to one runtime; the calling task drives each exchange.

pub(crate) mod bench;
mod ca_file_verifier;
mod connect_error;
mod connection;
mod dial;
mod error;
mod fetch;
pub(crate) mod fuzz;
mod h1;
mod h2;
mod head;
mod pool;
mod settings;

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::Instant;

pub use self::{
    connect_error::ConnectError,
    error::{Delivery, UpstreamError, UpstreamErrorKind},
    fetch::Fetched,
    settings::{Settings, UpstreamSetupError},
};
use self::{connection::UpstreamConnection, dial::AddressCache, pool::Pool};
use crate::{
    http1::headers::Headers,
    request_body::{ReplayBody, RequestBodyError},
    time::deadline::Deadline,
};

/// A request to the upstream. No `Debug`: the target contains a token.
pub struct UpstreamRequest<'a> {
    /// Method as the client sent it.
    pub method: &'a Method,
    /// Path and query including the token, as parts to concatenate.
    pub target: &'a [&'a str],
    /// The client's headers; hop-by-hop headers and credentials are filtered out when the head is written.
    pub headers: &'a Headers,
    /// Length of the body.
    pub body_length: BodyLength,
    /// Current time, read by the caller, because a clock read costs.
    pub now: Instant,
}

/// Length of a request body before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// No body and no `content-length`.
    Absent,
    /// This many bytes; 0 sends `content-length: 0`.
    Known(u64),
    /// Unknown: sent chunked (RFC 9112 §7.1) over HTTP/1.1.
    Unknown,
}

impl BodyLength {
    fn content_length(self) -> Option<u64> {
        match self {
            Self::Absent => Some(0),
            Self::Known(length) => Some(length),
            Self::Unknown => None,
        }
    }
}

/// A response head; the body is still to be read.
pub struct UpstreamResponse {
    /// Status as the upstream sent it.
    pub status: StatusCode,
    /// Response headers, including hop-by-hop ones, which are filtered when they are forwarded.
    pub headers: Headers,
    /// `content-length` of the head; for HEAD and 304 the length that the body would have.
    pub content_length: Option<u64>,
    /// The response body.
    pub body: UpstreamBody,
    /// When the head was complete.
    pub received_at: Instant,
}

/// A response body.
pub struct UpstreamBody(UpstreamBodyKind);

enum UpstreamBodyKind {
    Ended,
    /// The body arrived completely with the head.
    Buffered(Bytes),
    Http1(Box<h1::Http1Exchange>),
    Http2(Box<h2::Http2UpstreamBody>),
}

impl UpstreamBody {
    /// An empty body that has ended.
    pub const fn empty() -> Self {
        Self(UpstreamBodyKind::Ended)
    }

    /// Polls for the next chunk; `None` at the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let polled = match &mut self.0 {
            UpstreamBodyKind::Ended => Poll::Ready(None),
            UpstreamBodyKind::Buffered(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            UpstreamBodyKind::Http1(exchange) => exchange.poll_data(cx),
            UpstreamBodyKind::Http2(body) => body.poll_data(cx),
        };
        match polled {
            Poll::Ready(Some(Err(_))) => self.0 = UpstreamBodyKind::Ended,
            Poll::Ready(_) => self.release_if_ended(),
            Poll::Pending => {}
        }
        polled
    }

    /// Takes the body if it arrived completely with the head.
    pub fn take_buffered(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.0, UpstreamBodyKind::Ended) {
            UpstreamBodyKind::Buffered(bytes) => Some(bytes),
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// Bytes of framing received so far for a body that has not ended.
    pub fn framing_overhead(&self) -> u64 {
        match &self.0 {
            UpstreamBodyKind::Ended | UpstreamBodyKind::Buffered(_) => 0,
            UpstreamBodyKind::Http1(exchange) => exchange.framing_overhead(),
            UpstreamBodyKind::Http2(body) => body.framing_overhead(),
        }
    }

    /// Continues to send the request body. Over HTTP/2 hyper's connection task does that.
    pub fn drive_request_body(&mut self, cx: &mut Context<'_>) {
        if let UpstreamBodyKind::Http1(exchange) = &mut self.0 {
            exchange.drive_request_body(cx);
        }
    }

    /// The next chunk; `None` at the end.
    pub async fn data(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Whether the body has been read to its end. May be false at the end while that is not known yet.
    pub fn is_ended(&self) -> bool {
        matches!(self.0, UpstreamBodyKind::Ended)
    }

    /// Returns the connection to the pool right after the last byte, not on the next poll.
    fn release_if_ended(&mut self) {
        let ended = match &self.0 {
            UpstreamBodyKind::Ended => false,
            UpstreamBodyKind::Buffered(bytes) => bytes.is_empty(),
            UpstreamBodyKind::Http1(exchange) => exchange.is_ended(),
            UpstreamBodyKind::Http2(body) => body.is_ended(),
        };
        if ended
            && let UpstreamBodyKind::Http1(exchange) = std::mem::replace(&mut self.0, UpstreamBodyKind::Ended)
        {
            exchange.finish(Instant::now());
        }
    }
}

/// Pooled connections to the upstream, for the tasks of one runtime.
pub struct Upstream {
    pool: Rc<Pool>,
    addresses: AddressCache,
    /// Whether ALPN last chose HTTP/2; then connections are dialled one at a time.
    speaks_http2: Cell<bool>,
    /// Held while dialling a connection that others can share; holds the time and error of the last failed dial.
    dial_lock: tokio::sync::Mutex<Option<(Instant, ConnectError)>>,
}

impl Upstream {
    /// An upstream without open connections.
    pub fn new(settings: Arc<Settings>) -> Self {
        let speaks_http2 = Cell::new(settings.tls.is_some());
        Self {
            pool: Pool::new(settings),
            addresses: AddressCache::default(),
            speaks_http2,
            dial_lock: Default::default(),
        }
    }

    /// Total timeout of a small request: connect, head, and one silence of the body.
    pub fn fetch_timeout(&self) -> Duration {
        let Settings { connect_timeout, response_timeout, body_timeout, .. } = &*self.pool.settings;
        *connect_timeout + *response_timeout + *body_timeout
    }

    /// Sends a request and returns the response once its head is complete.
    ///
    /// Resends at most once, and only where that is safe: a pooled connection closed before the first byte of the
    /// response and the method is idempotent or nothing was sent, or the upstream reported that it did not process
    /// the request.
    ///
    /// `deadline` is the caller's and must not be running; reusing it saves a timer per response.
    ///
    /// Errors: [`UpstreamError`], with the cause and whether anything was sent.
    pub async fn send(
        &self,
        request: &UpstreamRequest<'_>,
        replay_body: Option<&ReplayBody>,
        deadline: &mut Deadline,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut dial_new = false;
        loop {
            let pooled = if dial_new { None } else { self.pooled(request.now) };
            let (checkout, is_reused) = match pooled {
                Some(checkout) => (checkout, true),
                // Boxed: rare, and the future is large.
                None => Box::pin(self.connect()).await?,
            };
            let reader = match replay_body.map(ReplayBody::reader) {
                None => None,
                Some(Some(reader)) => Some(reader),
                Some(None) => {
                    return Err(UpstreamError {
                        kind: UpstreamErrorKind::RequestBody(RequestBodyError::ReplayLost),
                        delivery: Delivery::MaybeSent,
                    });
                }
            };
            let connection_id = checkout.connection_id();
            let now = is_reused.then_some(request.now);
            let result = match checkout {
                Checkout::Http1(connection) => {
                    h1::send(connection, &self.pool, request, reader, now, deadline).await
                }
                Checkout::Http2(slot) => Box::pin(slot.send(&self.pool.settings, request, reader)).await,
            };
            let error = match result {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let closed = matches!(error.kind, UpstreamErrorKind::ClosedBeforeResponse);
            if closed && let Some(connection_id) = connection_id {
                self.pool.mark_unusable(&connection_id);
            }
            let is_stale = closed && is_reused || matches!(error.kind, UpstreamErrorKind::RefusedStream);
            let is_safe = error.delivery == Delivery::NotSent || request.method.is_idempotent();
            let is_replayable = replay_body.is_none_or(ReplayBody::is_replayable);
            if dial_new || !(is_stale && is_safe && is_replayable) {
                return Err(error);
            }
            dial_new = true;
        }
    }

    /// Returns a connection when none is pooled, and whether it has carried other requests already.
    async fn connect(&self) -> Result<(Checkout, bool), UpstreamError> {
        if !self.speaks_http2.get() {
            return Ok((self.dial().await?, false));
        }
        // One HTTP/2 connection serves many requests: those that arrive during the dial wait for it and share its
        // failure.
        let arrived_at = Instant::now();
        let mut last_failure = self.dial_lock.lock().await;
        if let Some(slot) = self.pool.http2_slot() {
            return Ok((Checkout::Http2(slot), true));
        }
        if let Some((failed_at, connect_error)) = &*last_failure
            && *failed_at >= arrived_at
        {
            let error = UpstreamError {
                kind: UpstreamErrorKind::Unreachable(connect_error.clone()),
                delivery: Delivery::NotSent,
            };
            return self.overflow().ok_or(error);
        }
        if !self.speaks_http2.get() {
            drop(last_failure);
            return Ok((self.dial().await?, false));
        }
        let result = self.dial().await;
        *last_failure = result.as_ref().err().map(|error| (Instant::now(), (&error.kind).into()));
        match result {
            Ok(checkout) => Ok((checkout, false)),
            Err(error) => self.overflow().ok_or(error),
        }
    }

    /// When no connection can be opened, queues the request on the least loaded HTTP/2 connection.
    fn overflow(&self) -> Option<(Checkout, bool)> {
        self.pool.overflow_slot().map(|slot| (Checkout::Http2(slot), true))
    }

    fn pooled(&self, now: Instant) -> Option<Checkout> {
        if self.speaks_http2.get()
            && let Some(slot) = self.pool.http2_slot()
        {
            return Some(Checkout::Http2(slot));
        }
        self.pool.take_idle(now).map(Checkout::Http1)
    }

    async fn dial(&self) -> Result<Checkout, UpstreamError> {
        let not_sent = |kind| UpstreamError { kind, delivery: Delivery::NotSent };
        let deadline = Instant::now() + self.pool.settings.connect_timeout;
        let dialed = dial::dial(&self.pool.settings, &self.addresses).await.map_err(not_sent)?;
        self.speaks_http2.set(dialed.http2);
        if !dialed.http2 {
            return Ok(Checkout::Http1(Box::new(UpstreamConnection::new(dialed.stream))));
        }
        let handshake = tokio::time::timeout_at(deadline, h2::Http2Sender::handshake(dialed.stream)).await;
        let timed_out = |_| {
            let message = "HTTP/2 handshake exceeded upstream.connect_timeout";
            Err(UpstreamErrorKind::Unreachable(ConnectError::new(message)))
        };
        let sender = handshake.unwrap_or_else(timed_out).map_err(not_sent)?;
        Ok(Checkout::Http2(self.pool.add_http2(sender)))
    }
}

/// A connection checked out for one request.
enum Checkout {
    Http1(Box<UpstreamConnection>),
    Http2(h2::StreamSlot),
}

impl Checkout {
    /// The connection's id if other requests share it.
    fn connection_id(&self) -> Option<h2::ConnectionId> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(slot) => Some(slot.connection_id()),
        }
    }
}
