//! What goes back: WeCom's JSON in its order of keys, files, and bodies that break off when told to.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::time::Sleep;

use super::listen::Line;
use super::state::InFlight;

/// How long a connection lives after the last byte that is to arrive: enough for the socket to take it.
const FLUSH: Duration = Duration::from_millis(10);
const CHUNK: u64 = 64 * 1024;
/// A prime, so that a shift by any power of two shows.
const PATTERN: usize = 65_521;

/// The connection is closed instead of an answer.
#[derive(Debug)]
pub(super) struct Severed;

impl fmt::Display for Severed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is closed, as ordered")
    }
}

impl std::error::Error for Severed {}

impl From<Infallible> for Severed {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A JSON object in WeCom's order: errcode, errmsg, the rest; or what leads, errcode, errmsg.
pub(super) struct Json {
    errcode: i64,
    errmsg: String,
    lead: String,
    tail: String,
}

impl Json {
    pub(super) fn ok() -> Self {
        Self::new(0, "ok")
    }

    pub(super) fn new(errcode: i64, errmsg: impl Into<String>) -> Self {
        Self { errcode, errmsg: errmsg.into(), lead: String::new(), tail: String::new() }
    }

    /// Adds a member behind errcode and errmsg.
    pub(super) fn with(mut self, key: &str, value: impl Serialize) -> Self {
        self.tail += &format!(",{}:{}", text(key), text(value));
        self
    }

    /// Adds a member in front of errcode.
    pub(super) fn led_by(mut self, key: &str, value: impl Serialize) -> Self {
        self.lead += &format!("{}:{},", text(key), text(value));
        self
    }
}

fn text(value: impl Serialize) -> String {
    serde_json::to_string(&value).unwrap_or_else(|_| "null".to_owned())
}

/// An answer before it meets its fate.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) errcode: Option<i64>,
    errmsg: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    source: Source,
}

impl From<Json> for Answer {
    fn from(json: Json) -> Self {
        let body = format!(
            "{{{}\"errcode\":{},\"errmsg\":{}{}}}",
            json.lead,
            json.errcode,
            text(&json.errmsg),
            json.tail
        );
        let answer = Self::bytes(StatusCode::OK, body);
        let answer = answer.header(CONTENT_TYPE, "application/json; charset=UTF-8");
        Self { errcode: Some(json.errcode), errmsg: json.errmsg, ..answer }
    }
}

impl Answer {
    pub(super) fn empty(status: StatusCode) -> Self {
        Self::bytes(status, Bytes::new())
    }

    pub(super) fn bytes(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::of(status, Source::Bytes(body.into()))
    }

    /// The bytes `from..to` of a generated file.
    pub(super) fn generated(status: StatusCode, from: u64, to: u64) -> Self {
        Self::of(status, Source::Generated { from, to })
    }

    fn of(status: StatusCode, source: Source) -> Self {
        Self { status, errcode: None, errmsg: "ok".to_owned(), headers: Vec::new(), source }
    }

    /// Adds a header; a value that no header can carry is left out.
    pub(super) fn header(mut self, name: HeaderName, value: impl AsRef<[u8]>) -> Self {
        if let Ok(value) = HeaderValue::from_bytes(value.as_ref()) {
            self.headers.push((name, value));
        }
        self
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Puts an errcode on a file's answer, which has none in its body.
    pub(super) fn fine(mut self) -> Self {
        self.errcode = Some(0);
        self
    }

    /// The answer as it goes out. `errcode_headers`: with WeCom's undocumented Error-Code and Error-Msg.
    pub(super) fn into_response(
        self,
        head_only: bool,
        errcode_headers: bool,
        manner: Manner,
    ) -> Response<Body> {
        let total = self.source.left();
        let source = if head_only { Source::Bytes(Bytes::new()) } else { self.source };
        let mut response = Response::new(Body::new(source, manner));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.extend(self.headers);
        if head_only {
            headers.insert(hyper::header::CONTENT_LENGTH, HeaderValue::from(total));
        }
        if let (Some(errcode), true) = (self.errcode, errcode_headers) {
            headers.insert(HeaderName::from_static("error-code"), HeaderValue::from(errcode));
            if let Ok(errmsg) = HeaderValue::from_bytes(self.errmsg.as_bytes()) {
                headers.insert(HeaderName::from_static("error-msg"), errmsg);
            }
        }
        response
    }
}

enum Source {
    Bytes(Bytes),
    Generated { from: u64, to: u64 },
}

impl Source {
    fn left(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Generated { from, to } => to - from,
        }
    }

    fn next(&mut self, most: u64) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.split_to(bytes.len().min(most as usize)),
            Self::Generated { from, to } => {
                let bytes = generated(*from, most.min(*to - *from) as usize);
                *from += bytes.len() as u64;
                bytes
            }
        }
    }
}

/// The bytes of a generated file from `at` on: at most `most`, at least one where `most` is not 0. Those of
/// `media_id=generated-1000` are `generated(0, …)` and so on, until there are 1,000.
pub fn generated(at: u64, most: usize) -> Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    let pattern = BYTES.get_or_init(|| (0..PATTERN as u32).map(|i| (i ^ (i >> 8)) as u8).collect());
    let from = (at % PATTERN as u64) as usize;
    pattern.slice(from..PATTERN.min(from.saturating_add(most)))
}

/// How a body goes out, besides its bytes.
pub(super) struct Manner {
    pub(super) line: Arc<Line>,
    pub(super) _in_flight: InFlight,
    pub(super) ending: Ending,
    pub(super) pieces: Option<usize>,
}

/// How a body ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// The connection is closed before the first byte, or after half of them.
    Cut {
        half: bool,
    },
    /// Nothing comes after half of the bytes, and the connection stays.
    Stall,
}

/// A body that streams, and may break off. It says its full length even then.
pub(super) struct Body {
    source: Source,
    manner: Manner,
    before_the_break: u64,
    breaking: Option<Pin<Box<Sleep>>>,
    paused: bool,
}

impl Body {
    fn new(source: Source, manner: Manner) -> Self {
        let before_the_break = match manner.ending {
            Ending::Whole => u64::MAX,
            Ending::Cut { half: false } => 0,
            Ending::Cut { half: true } | Ending::Stall => source.left() / 2,
        };
        Self { source, manner, before_the_break, breaking: None, paused: false }
    }

    fn poll_break(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Severed>>> {
        if self.manner.ending == Ending::Stall {
            return Poll::Pending;
        }
        let sleep = self.breaking.get_or_insert_with(|| Box::pin(tokio::time::sleep(FLUSH)));
        std::task::ready!(sleep.as_mut().poll(cx));
        self.manner.line.cut();
        Poll::Ready(Some(Err(Severed)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Severed;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if this.before_the_break == 0 {
            return this.poll_break(cx);
        }
        if this.source.left() == 0 {
            return Poll::Ready(None);
        }
        let most = this.manner.pieces.map_or(CHUNK, |bytes| bytes as u64);
        // Pending makes hyper write what it has: else many pieces would leave as one.
        if this.manner.pieces.is_some() && !std::mem::replace(&mut this.paused, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.paused = false;
        let bytes = this.source.next(most.min(this.before_the_break));
        this.before_the_break -= bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.source.left() == 0 && self.manner.ending == Ending::Whole
    }

    fn size_hint(&self) -> SizeHint {
        if self.manner.pieces.is_some() {
            SizeHint::default()
        } else {
            SizeHint::with_exact(self.source.left())
        }
    }
}
