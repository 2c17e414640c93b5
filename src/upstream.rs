//! The way out: requests to the one upstream that the configuration names, on connections that are used again.
//!
//! It knows nothing of tokens. One [`Upstream`] belongs to one runtime; what it sends is driven by the task that asks.

pub(crate) mod bench;
mod connection;
mod dial;
pub(crate) mod fuzz;
mod h1;
mod h2;
mod head;
mod pool;
mod settings;
mod trust;
mod unreachable;
mod whole;

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

use self::{connection::Connection, dial::Addresses, pool::Pool};
pub use self::{
    settings::{Settings, SettingsError},
    unreachable::Unreachable,
    whole::Whole,
};
use crate::{
    deadline::Deadline,
    fields::Fields,
    framing::FramingError,
    upload::{Upload, UploadError},
};

/// A request as it leaves. It has no `Debug`: the target carries a token.
pub struct Outgoing<'a> {
    /// The method, as the client sent it.
    pub method: &'a Method,
    /// Path and query, with the token in it, in pieces that belong together.
    pub target: &'a [&'a str],
    /// The client's header lines; those that stay here are left out when the head is written.
    pub fields: &'a Fields,
    /// How long the body is.
    pub body: BodyLength,
    /// Now: the caller has asked the clock, and asking costs.
    pub at: Instant,
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
    fn known(self) -> Option<u64> {
        match self {
            Self::Absent => Some(0),
            Self::Known(length) => Some(length),
            Self::Unknown => None,
        }
    }
}

/// Why there is no answer, or no whole one, and whether the upstream can have acted on the request.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong.
    pub flaw: Flaw,
    /// How much of the request was sent.
    pub sent: Sent,
}

/// How much of a request the upstream may have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Not a byte: it surely did nothing.
    Nothing,
    /// Some or all of it.
    Perhaps,
}

/// What went wrong. The texts name no URL, query or header of the request.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// No connection could be made.
    #[error("{0}")]
    Unreachable(Unreachable),
    /// The connection closed before a byte of the answer.
    #[error("it closed the connection without an answer")]
    Closed,
    /// The connection closed in the middle of the answer.
    #[error("it broke off in the middle of its answer")]
    Truncated,
    /// The connection failed in the middle of the answer.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// No head within `upstream.response_timeout`.
    #[error("no answer within upstream.response_timeout")]
    NoAnswer,
    /// A silence in the answer's body longer than `upstream.body_timeout`.
    #[error("its answer stalled for longer than upstream.body_timeout")]
    Stalled,
    /// The answer's head cannot be trusted.
    #[error("{0}")]
    Head(&'static str),
    /// The answer's body cannot be trusted to end where it seems to.
    #[error("{0}")]
    Framing(#[source] FramingError),
    /// It said over HTTP/2 that it did nothing with the request.
    #[error("it refused the request before it did anything")]
    Refused,
    /// The request failed over HTTP/2.
    #[error("{0}")]
    Http2(String),
    /// It was the client's side that failed.
    #[error("{0}")]
    Upload(UploadError),
}

/// An answer whose body is still to come.
pub struct Answer {
    /// The status, as the upstream sent it.
    pub status: StatusCode,
    /// Its header lines; those of its connection are left out when they are passed on.
    pub fields: Fields,
    /// How long its head says that the body is, or would be.
    pub length: Option<u64>,
    /// Its body.
    pub body: AnswerBody,
    /// When its head was there.
    pub came: Instant,
}

/// An answer's body.
pub struct AnswerBody(Source);

enum Source {
    Ended,
    /// All of it came with the head.
    Whole(Bytes),
    Http1(Box<h1::Exchange>),
    Http2(Box<h2::Answer>),
}

impl AnswerBody {
    /// A body of which nothing is to come.
    pub const fn ended() -> Self {
        Self(Source::Ended)
    }

    /// The next piece; `None` at the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let polled = match &mut self.0 {
            Source::Ended => Poll::Ready(None),
            Source::Whole(whole) => Poll::Ready(Some(Ok(std::mem::take(whole)))),
            Source::Http1(exchange) => exchange.poll_data(cx),
            Source::Http2(answer) => answer.poll_data(cx),
        };
        match polled {
            Poll::Ready(Some(Err(_))) => self.0 = Source::Ended,
            Poll::Ready(_) => self.finish_if_ended(),
            Poll::Pending => {}
        }
        polled
    }

    /// Takes the whole body, if it came with the head.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.0, Source::Ended) {
            Source::Whole(whole) => Some(whole),
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// How many bytes of framing came with what was taken so far of a body that has not ended.
    pub fn overhead(&self) -> u64 {
        match &self.0 {
            Source::Ended | Source::Whole(_) => 0,
            Source::Http1(exchange) => exchange.overhead(),
            Source::Http2(answer) => answer.overhead(),
        }
    }

    /// Goes on with the request's body, where it still comes. Over HTTP/2 that goes by itself.
    pub fn drive_upload(&mut self, cx: &mut Context<'_>) {
        if let Source::Http1(exchange) = &mut self.0 {
            exchange.drive_upload(cx);
        }
    }

    /// The next piece; `None` at the end.
    pub async fn data(&mut self) -> Option<Result<Bytes, Failure>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Whether all of it was taken. It may say no where the end is not yet known.
    pub fn is_ended(&self) -> bool {
        matches!(self.0, Source::Ended)
    }

    /// A connection is free for the next request as soon as the last byte was read, not when somebody asks once more.
    fn finish_if_ended(&mut self) {
        let ended = match &self.0 {
            Source::Ended => false,
            Source::Whole(whole) => whole.is_empty(),
            Source::Http1(exchange) => exchange.is_ended(),
            Source::Http2(answer) => answer.is_ended(),
        };
        if ended && let Source::Http1(exchange) = std::mem::replace(&mut self.0, Source::Ended) {
            exchange.finish(Instant::now());
        }
    }
}

/// Connections to the upstream, for the tasks of one runtime.
pub struct Upstream {
    pool: Rc<Pool>,
    addresses: Addresses,
    /// Whether the upstream spoke HTTP/2 when last asked; fresh connections are then made one at a time.
    speaks_http2: Cell<bool>,
    /// Held while a connection is made that may serve all; what failed last, and when.
    dialling: tokio::sync::Mutex<Option<(Instant, Unreachable)>>,
}

impl Upstream {
    /// An upstream without connections.
    pub fn new(settings: Arc<Settings>) -> Self {
        let speaks_http2 = Cell::new(settings.tls.is_some());
        Self {
            pool: Pool::new(settings),
            addresses: Addresses::default(),
            speaks_http2,
            dialling: Default::default(),
        }
    }

    /// How long a call with a small answer may take: to connect, to the head, and as long as its body may be silent.
    pub fn patience(&self) -> Duration {
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
        outgoing: &Outgoing<'_>,
        upload: Option<&Upload>,
        deadline: &mut Deadline,
    ) -> Result<Answer, Failure> {
        let mut fresh = false;
        loop {
            let kept = if fresh { None } else { self.kept_line(outgoing.at) };
            let (line, used_before) = match kept {
                Some(line) => (line, true),
                // Seldom, and it takes much room.
                None => Box::pin(self.fresh_line()).await?,
            };
            let reader = match upload.map(Upload::reader) {
                None => None,
                Some(Some(reader)) => Some(reader),
                Some(None) => {
                    return Err(Failure { flaw: Flaw::Upload(UploadError::Lost), sent: Sent::Perhaps });
                }
            };
            let mark = line.mark();
            let now = used_before.then_some(outgoing.at);
            let sent = match line {
                Line::Http1(connection) => {
                    h1::send(connection, &self.pool, outgoing, reader, now, deadline).await
                }
                Line::Http2(place) => Box::pin(place.send(&self.pool.settings, outgoing, reader)).await,
            };
            let failure = match sent {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let closed = matches!(failure.flaw, Flaw::Closed);
            if closed && let Some(mark) = mark {
                self.pool.shun(&mark);
            }
            let stale = closed && used_before || matches!(failure.flaw, Flaw::Refused);
            let harmless = failure.sent == Sent::Nothing || outgoing.method.is_idempotent();
            let sendable = upload.is_none_or(Upload::can_be_read_again);
            if fresh || !(stale && harmless && sendable) {
                return Err(failure);
            }
            fresh = true;
        }
    }

    /// A connection where there is none to use again, and whether it has carried other requests all the same.
    async fn fresh_line(&self) -> Result<(Line, bool), Failure> {
        if !self.speaks_http2.get() {
            return Ok((self.dial().await?, false));
        }
        // One HTTP/2 connection serves many: whoever comes while it is made waits for it, and shares its failure.
        let came = Instant::now();
        let mut last_failure = self.dialling.lock().await;
        if let Some(place) = self.pool.shared() {
            return Ok((Line::Http2(place), true));
        }
        if let Some((at, what)) = &*last_failure
            && *at >= came
        {
            let failure = Failure { flaw: Flaw::Unreachable(what.clone()), sent: Sent::Nothing };
            return self.crowded_line().ok_or(failure);
        }
        if !self.speaks_http2.get() {
            drop(last_failure);
            return Ok((self.dial().await?, false));
        }
        let dialled = self.dial().await;
        *last_failure = dialled.as_ref().err().map(|failure| (Instant::now(), (&failure.flaw).into()));
        match dialled {
            Ok(line) => Ok((line, false)),
            Err(failure) => self.crowded_line().ok_or(failure),
        }
    }

    /// Where no more connections can be made, a request waits for its turn on one that there is.
    fn crowded_line(&self) -> Option<(Line, bool)> {
        self.pool.crowded().map(|place| (Line::Http2(place), true))
    }

    fn kept_line(&self, now: Instant) -> Option<Line> {
        if self.speaks_http2.get()
            && let Some(place) = self.pool.shared()
        {
            return Some(Line::Http2(place));
        }
        self.pool.take(now).map(Line::Http1)
    }

    async fn dial(&self) -> Result<Line, Failure> {
        let nothing_sent = |flaw| Failure { flaw, sent: Sent::Nothing };
        let until = Instant::now() + self.pool.settings.connect_timeout;
        let dialled = dial::dial(&self.pool.settings, &self.addresses).await.map_err(nothing_sent)?;
        self.speaks_http2.set(dialled.http2);
        if !dialled.http2 {
            return Ok(Line::Http1(Box::new(Connection::new(dialled.stream))));
        }
        let greeted = tokio::time::timeout_at(until, h2::Sender::handshake(dialled.stream)).await;
        let silent = |_| {
            let what = "no hello in HTTP/2 within upstream.connect_timeout";
            Err(Flaw::Unreachable(Unreachable::general(what)))
        };
        let sender = greeted.unwrap_or_else(silent).map_err(nothing_sent)?;
        Ok(Line::Http2(self.pool.share(sender)))
    }
}

/// A connection that is about to carry a request.
enum Line {
    Http1(Box<Connection>),
    Http2(h2::Place),
}

impl Line {
    /// Which connection it is, where others use it too.
    fn mark(&self) -> Option<h2::Mark> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(place) => Some(place.mark()),
        }
    }
}
