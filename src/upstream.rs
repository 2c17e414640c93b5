//! HTTP client for an upstream, with pooled connections.
//!
//! It does not handle tokens. One [`Upstream`] belongs to one runtime; the calling task drives each exchange.

mod ca_file_verifier;
mod connect_error;
mod connection;
mod connector;
mod dial;
mod egress;
mod egress_proxies;
mod error;
mod fetch;
mod h1;
mod h2;
pub(crate) mod head;
mod http1_only;
mod large_response;
mod open_connection;
mod pool;
mod resolver;
mod route;
mod settings;
mod suspects;
pub mod tcp;
mod trust;

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::Instant;

pub use self::{
    connect_error::ConnectError,
    connector::{Connector, root_cause, send_http1},
    error::{Delivery, UpstreamError, UpstreamErrorKind},
    fetch::Fetched,
    settings::Settings,
    trust::{UpstreamSetupError, client_tls, read_certificates, read_pem},
};
use self::{
    egress_proxies::TriedProxies,
    route::{Checkout, Route},
};
use crate::{
    http1::headers::Headers,
    request_body::{ReplayBody, RequestBodyError},
    time::deadline::Deadline,
};

/// The last attempt of a request, which is the first one on a new connection.
const LAST_ATTEMPT: u32 = 3;

/// A request to the upstream. No `Debug`: the target contains a token.
pub struct UpstreamRequest<'a> {
    /// Method as the client sent it.
    pub method: &'a Method,
    /// Which of several egress proxies it goes through depends on it; empty without an agent.
    pub corpid: &'a str,
    /// Path and query including the token, as parts to concatenate; the upstream's path prefix is put before them.
    pub target: &'a [&'a str],
    /// The client's headers; hop-by-hop headers and credentials are filtered out when the head is written.
    pub headers: &'a Headers,
    /// Length of the body.
    pub body_length: BodyLength,
    /// Current time, read by the caller, because a clock read costs.
    pub now: Instant,
    /// Set while something of the request may be at the upstream.
    pub maybe_sent: Option<&'a AtomicBool>,
}

impl UpstreamRequest<'_> {
    fn set_maybe_sent(&self, value: bool) {
        if let Some(maybe_sent) = self.maybe_sent {
            maybe_sent.store(value, Relaxed);
        }
    }
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

    /// Continues to send the request body. Over HTTP/2 a task of its own does that.
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
    settings: Arc<Settings>,
    /// One for each egress proxy; without any, a direct one.
    routes: Box<[Route]>,
}

impl Upstream {
    /// An upstream without open connections.
    pub fn new(settings: Arc<Settings>) -> Self {
        let count = settings.egress_proxies.len().max(1);
        let routes = (0..count).map(|nth| Route::new(&settings, nth)).collect();
        Self { settings, routes }
    }

    /// Total timeout of a small request: connect, over each route if need be, head, and one silence of the body.
    pub fn fetch_timeout(&self) -> Duration {
        let Settings { response_timeout, body_timeout, .. } = &*self.settings;
        self.settings.max_connect_time() + *response_timeout + *body_timeout
    }

    /// Sends a request and returns the response once its head is complete.
    ///
    /// Resends once, and only where that is safe: a pooled connection closed before the first byte of the response and
    /// the method is idempotent or nothing was sent, or the upstream reported that it did not process the request. A
    /// refused stream may begin again on the same connection (RFC 9113 §8.7): another one would only add to the load.
    /// Once more where HTTP/1.1 is required, and where the next HTTP/2 connection did not process it either: an upstream may
    /// end each in order after some requests (nginx: `keepalive_requests`), and those beyond share the next one.
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
        debug_assert!(deadline.at().is_none(), "the wait for the response would end early");
        let mut attempt = 1;
        loop {
            let mut nth = self.preferred_route(request);
            let pooled = if attempt > 1 { None } else { self.routes[nth].pooled(request) };
            let (checkout, is_reused) = match pooled {
                Some(checkout) => (checkout, true),
                // Boxed: rare, and the future is large.
                None => Box::pin(self.connect(&mut nth, request, attempt)).await?,
            };
            let route = &self.routes[nth];
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
            let is_http2 = connection_id.is_some();
            let now = is_reused.then_some(request.now);
            request.set_maybe_sent(true);
            let result = match checkout {
                Checkout::Http1(connection) => {
                    h1::send(connection, &route.pool, request, reader, now, deadline).await
                }
                Checkout::Http2(slot) => Box::pin(slot.send(&self.settings, request, reader, deadline)).await,
            };
            let error = match result {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            request.set_maybe_sent(error.delivery == Delivery::MaybeSent);
            use UpstreamErrorKind::{ClosedBeforeResponse, GoAway, Http11Required, RefusedStream};
            let closed = matches!(error.kind, ClosedBeforeResponse | GoAway(_));
            let requires_http1 = matches!(error.kind, Http11Required);
            if let Some(connection_id) = connection_id {
                if requires_http1 {
                    route.fall_back_to_http1(connection_id.peer());
                }
                if closed || requires_http1 || connection_id.is_dead() {
                    route.pool.mark_unusable(&connection_id);
                }
            }
            let is_stale = closed && is_reused || requires_http1 || matches!(error.kind, RefusedStream);
            let not_sent = error.delivery == Delivery::NotSent;
            let is_replayable = replay_body.is_none_or(ReplayBody::is_replayable);
            // HTTP_1_1_REQUIRED may come after a stale connection, and nothing was processed.
            let has_another = requires_http1 || closed && is_http2 && not_sent;
            let max_attempts = if has_another { LAST_ATTEMPT } else { 2 };
            if attempt >= max_attempts
                || !(is_stale && is_replayable && (not_sent || request.method.is_idempotent()))
            {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// The index of the route that the corp of a request uses now.
    fn preferred_route(&self, request: &UpstreamRequest<'_>) -> usize {
        if self.routes.len() == 1 {
            return 0;
        }
        self.settings.egress_proxies.choose(request.corpid, TriedProxies::default()).unwrap_or_default()
    }

    /// Connects over the route `nth`, and while that fails over the next one, which `nth` then is: nothing has been
    /// sent. Returns whether the connection has carried other requests already.
    async fn connect(
        &self,
        nth: &mut usize,
        request: &UpstreamRequest<'_>,
        attempt: u32,
    ) -> Result<(Checkout, bool), UpstreamError> {
        let proxies = &self.settings.egress_proxies;
        let mut tried = TriedProxies::default();
        loop {
            tried = tried.with(*nth);
            let next = proxies.choose(request.corpid, tried);
            let error = match self.routes[*nth].connect(next.is_none(), attempt == LAST_ATTEMPT).await {
                Ok((checkout, is_reused)) => {
                    if !is_reused {
                        proxies.mark_up(*nth);
                    }
                    return Ok((checkout, is_reused));
                }
                Err(error) => error,
            };
            proxies.mark_down(*nth, &(&error.kind).into());
            // Chosen again, because another request may have found one down meanwhile.
            let Some(next) = proxies.choose(request.corpid, tried) else { return Err(error) };
            *nth = next;
            if attempt == 1
                && let Some(checkout) = self.routes[next].pooled(request)
            {
                return Ok((checkout, true));
            }
        }
    }
}
