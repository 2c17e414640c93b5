//! The way out: requests to the one upstream that the configuration names, on connections that are used again.
//!
//! It knows nothing of tokens. One [`Upstream`] belongs to one runtime; what it sends is driven by the task that asks.

pub(crate) mod bench;
mod ca_file_verifier;
mod connect_error;
mod connection;
mod dial;
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
    io,
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
    fetch::Fetched,
    settings::{Settings, UpstreamSetupError},
};
use self::{connection::UpstreamConnection, dial::AddressCache, pool::Pool};
use crate::{
    http1::{framing::FramingError, headers::Headers},
    request_body::{ReplayBody, RequestBodyError},
    time::deadline::Deadline,
};

/// A request as it leaves. It has no `Debug`: the target carries a token.
pub struct UpstreamRequest<'a> {
    /// The method, as the client sent it.
    pub method: &'a Method,
    /// Path and query, with the token in it, in pieces that belong together.
    pub target: &'a [&'a str],
    /// The client's header lines; those that stay here are left out when the head is written.
    pub headers: &'a Headers,
    /// How long the body is.
    pub body_length: BodyLength,
    /// Now: the caller has asked the clock, and asking costs.
    pub now: Instant,
}

/// What is known of a request's body before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none, and nothing is said of it.
    Absent,
    /// This many bytes, none included.
    Known(u64),
    /// It ends when it ends.
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

/// Why there is no answer, or no whole one, and whether the upstream can have acted on the request.
#[derive(Debug)]
pub struct UpstreamError {
    /// What went wrong.
    pub kind: UpstreamErrorKind,
    /// How much of the request was sent.
    pub delivery: Delivery,
}

/// How much of a request the upstream may have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Not a byte: it surely did nothing.
    NotSent,
    /// Some or all of it.
    MaybeSent,
}

/// What went wrong. The texts name no URL, query or header of the request.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamErrorKind {
    /// No connection could be made.
    #[error("{0}")]
    Unreachable(ConnectError),
    /// The connection closed before a byte of the answer.
    #[error("it closed the connection without an answer")]
    ClosedBeforeResponse,
    /// The connection closed in the middle of the answer.
    #[error("it broke off in the middle of its answer")]
    Truncated,
    /// The connection failed in the middle of the answer.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// No head within `upstream.response_timeout`.
    #[error("no answer within upstream.response_timeout")]
    ResponseTimeout,
    /// A silence in the answer's body longer than `upstream.body_timeout`.
    #[error("its answer stalled for longer than upstream.body_timeout")]
    BodyTimeout,
    /// The answer's head cannot be trusted.
    #[error("{0}")]
    InvalidHead(&'static str),
    /// The answer's body cannot be trusted to end where it seems to.
    #[error("{0}")]
    Framing(#[source] FramingError),
    /// It said over HTTP/2 that it did nothing with the request.
    #[error("it refused the request before it did anything")]
    RefusedStream,
    /// The request failed over HTTP/2.
    #[error("{0}")]
    Http2(String),
    /// It was the client's side that failed.
    #[error("{0}")]
    RequestBody(RequestBodyError),
}

/// An answer whose body is still to come.
pub struct UpstreamResponse {
    /// The status, as the upstream sent it.
    pub status: StatusCode,
    /// Its header lines; those of its connection are left out when they are passed on.
    pub headers: Headers,
    /// How long its head says that the body is, or would be.
    pub content_length: Option<u64>,
    /// Its body.
    pub body: UpstreamBody,
    /// When its head was there.
    pub received_at: Instant,
}

/// An answer's body.
pub struct UpstreamBody(UpstreamBodyKind);

enum UpstreamBodyKind {
    Ended,
    /// All of it came with the head.
    Buffered(Bytes),
    Http1(Box<h1::Http1Exchange>),
    Http2(Box<h2::Http2UpstreamBody>),
}

impl UpstreamBody {
    /// A body of which nothing is to come.
    pub const fn empty() -> Self {
        Self(UpstreamBodyKind::Ended)
    }

    /// The next piece; `None` at the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let polled = match &mut self.0 {
            UpstreamBodyKind::Ended => Poll::Ready(None),
            UpstreamBodyKind::Buffered(whole) => Poll::Ready(Some(Ok(std::mem::take(whole)))),
            UpstreamBodyKind::Http1(exchange) => exchange.poll_data(cx),
            UpstreamBodyKind::Http2(answer) => answer.poll_data(cx),
        };
        match polled {
            Poll::Ready(Some(Err(_))) => self.0 = UpstreamBodyKind::Ended,
            Poll::Ready(_) => self.release_if_ended(),
            Poll::Pending => {}
        }
        polled
    }

    /// Takes the whole body, if it came with the head.
    pub fn take_buffered(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.0, UpstreamBodyKind::Ended) {
            UpstreamBodyKind::Buffered(whole) => Some(whole),
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// How many bytes of framing came with what was taken so far of a body that has not ended.
    pub fn framing_overhead(&self) -> u64 {
        match &self.0 {
            UpstreamBodyKind::Ended | UpstreamBodyKind::Buffered(_) => 0,
            UpstreamBodyKind::Http1(exchange) => exchange.framing_overhead(),
            UpstreamBodyKind::Http2(answer) => answer.framing_overhead(),
        }
    }

    /// Goes on with the request's body, where it still comes. Over HTTP/2 that goes by itself.
    pub fn drive_request_body(&mut self, cx: &mut Context<'_>) {
        if let UpstreamBodyKind::Http1(exchange) = &mut self.0 {
            exchange.drive_request_body(cx);
        }
    }

    /// The next piece; `None` at the end.
    pub async fn data(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Whether all of it was taken. It may say no where the end is not yet known.
    pub fn is_ended(&self) -> bool {
        matches!(self.0, UpstreamBodyKind::Ended)
    }

    /// A connection is free for the next request as soon as the last byte was read, not when somebody asks once more.
    fn release_if_ended(&mut self) {
        let ended = match &self.0 {
            UpstreamBodyKind::Ended => false,
            UpstreamBodyKind::Buffered(whole) => whole.is_empty(),
            UpstreamBodyKind::Http1(exchange) => exchange.is_ended(),
            UpstreamBodyKind::Http2(answer) => answer.is_ended(),
        };
        if ended
            && let UpstreamBodyKind::Http1(exchange) = std::mem::replace(&mut self.0, UpstreamBodyKind::Ended)
        {
            exchange.finish(Instant::now());
        }
    }
}

/// Connections to the upstream, for the tasks of one runtime.
pub struct Upstream {
    pool: Rc<Pool>,
    addresses: AddressCache,
    /// Whether the upstream spoke HTTP/2 when last asked; fresh connections are then made one at a time.
    speaks_http2: Cell<bool>,
    /// Held while a connection is made that may serve all; what failed last, and when.
    dial_lock: tokio::sync::Mutex<Option<(Instant, ConnectError)>>,
}

impl Upstream {
    /// An upstream without connections.
    pub fn new(settings: Arc<Settings>) -> Self {
        let speaks_http2 = Cell::new(settings.tls.is_some());
        Self {
            pool: Pool::new(settings),
            addresses: AddressCache::default(),
            speaks_http2,
            dial_lock: Default::default(),
        }
    }

    /// How long a call with a small answer may take: to connect, to the head, and as long as its body may be silent.
    pub fn fetch_timeout(&self) -> Duration {
        let Settings { connect_timeout, response_timeout, body_timeout, .. } = &*self.pool.settings;
        *connect_timeout + *response_timeout + *body_timeout
    }

    /// Sends a request and returns its answer once the head is there.
    ///
    /// It is sent a second time only where that does no harm: a kept connection proved closed before a byte of the
    /// answer, and the method is idempotent or nothing had been sent; or the upstream said that it did nothing.
    ///
    /// `deadline` is the caller's, not running: whoever waits for one answer after the other needs no timer for each.
    pub async fn send(
        &self,
        outgoing: &UpstreamRequest<'_>,
        upload: Option<&ReplayBody>,
        deadline: &mut Deadline,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut fresh = false;
        loop {
            let kept = if fresh { None } else { self.pooled(outgoing.now) };
            let (line, used_before) = match kept {
                Some(line) => (line, true),
                // Seldom, and it takes much room.
                None => Box::pin(self.connect()).await?,
            };
            let reader = match upload.map(ReplayBody::reader) {
                None => None,
                Some(Some(reader)) => Some(reader),
                Some(None) => {
                    return Err(UpstreamError {
                        kind: UpstreamErrorKind::RequestBody(RequestBodyError::ReplayLost),
                        delivery: Delivery::MaybeSent,
                    });
                }
            };
            let mark = line.connection_id();
            let now = used_before.then_some(outgoing.now);
            let sent = match line {
                Checkout::Http1(connection) => {
                    h1::send(connection, &self.pool, outgoing, reader, now, deadline).await
                }
                Checkout::Http2(place) => Box::pin(place.send(&self.pool.settings, outgoing, reader)).await,
            };
            let failure = match sent {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let closed = matches!(failure.kind, UpstreamErrorKind::ClosedBeforeResponse);
            if closed && let Some(mark) = mark {
                self.pool.mark_unusable(&mark);
            }
            let stale = closed && used_before || matches!(failure.kind, UpstreamErrorKind::RefusedStream);
            let harmless = failure.delivery == Delivery::NotSent || outgoing.method.is_idempotent();
            let sendable = upload.is_none_or(ReplayBody::is_replayable);
            if fresh || !(stale && harmless && sendable) {
                return Err(failure);
            }
            fresh = true;
        }
    }

    /// A connection where there is none to use again, and whether it has carried other requests all the same.
    async fn connect(&self) -> Result<(Checkout, bool), UpstreamError> {
        if !self.speaks_http2.get() {
            return Ok((self.dial().await?, false));
        }
        // One HTTP/2 connection serves many: whoever comes while it is made waits for it, and shares its failure.
        let came = Instant::now();
        let mut last_failure = self.dial_lock.lock().await;
        if let Some(place) = self.pool.http2_slot() {
            return Ok((Checkout::Http2(place), true));
        }
        if let Some((at, what)) = &*last_failure
            && *at >= came
        {
            let failure = UpstreamError {
                kind: UpstreamErrorKind::Unreachable(what.clone()),
                delivery: Delivery::NotSent,
            };
            return self.overflow().ok_or(failure);
        }
        if !self.speaks_http2.get() {
            drop(last_failure);
            return Ok((self.dial().await?, false));
        }
        let dialled = self.dial().await;
        *last_failure = dialled.as_ref().err().map(|failure| (Instant::now(), (&failure.kind).into()));
        match dialled {
            Ok(line) => Ok((line, false)),
            Err(failure) => self.overflow().ok_or(failure),
        }
    }

    /// Where no more connections can be made, a request waits for its turn on one that there is.
    fn overflow(&self) -> Option<(Checkout, bool)> {
        self.pool.overflow_slot().map(|place| (Checkout::Http2(place), true))
    }

    fn pooled(&self, now: Instant) -> Option<Checkout> {
        if self.speaks_http2.get()
            && let Some(place) = self.pool.http2_slot()
        {
            return Some(Checkout::Http2(place));
        }
        self.pool.take_idle(now).map(Checkout::Http1)
    }

    async fn dial(&self) -> Result<Checkout, UpstreamError> {
        let nothing_sent = |flaw| UpstreamError { kind: flaw, delivery: Delivery::NotSent };
        let until = Instant::now() + self.pool.settings.connect_timeout;
        let dialled = dial::dial(&self.pool.settings, &self.addresses).await.map_err(nothing_sent)?;
        self.speaks_http2.set(dialled.http2);
        if !dialled.http2 {
            return Ok(Checkout::Http1(Box::new(UpstreamConnection::new(dialled.stream))));
        }
        let greeted = tokio::time::timeout_at(until, h2::Http2Sender::handshake(dialled.stream)).await;
        let silent = |_| {
            let what = "no hello in HTTP/2 within upstream.connect_timeout";
            Err(UpstreamErrorKind::Unreachable(ConnectError::new(what)))
        };
        let sender = greeted.unwrap_or_else(silent).map_err(nothing_sent)?;
        Ok(Checkout::Http2(self.pool.add_http2(sender)))
    }
}

/// A connection that is about to carry a request.
enum Checkout {
    Http1(Box<UpstreamConnection>),
    Http2(h2::StreamSlot),
}

impl Checkout {
    /// Which connection it is, where others use it too.
    fn connection_id(&self) -> Option<h2::ConnectionId> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(place) => Some(place.connection_id()),
        }
    }
}
