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

use super::listener::SimulatedConnection;
use super::state::InFlightGuard;

/// How long a connection lives after the last byte that is to arrive: enough for the socket to take it.
const FLUSH_DELAY: Duration = Duration::from_millis(10);
const CHUNK_BYTES: u64 = 64 * 1024;
/// A prime, so that a shift by any power of two shows.
const PATTERN_BYTES: usize = 65_521;

/// The connection is closed instead of an answer.
#[derive(Debug)]
pub(super) struct ConnectionDropped;

impl fmt::Display for ConnectionDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is closed, as ordered")
    }
}

impl std::error::Error for ConnectionDropped {}

impl From<Infallible> for ConnectionDropped {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A JSON object in WeCom's order: errcode, errmsg, the rest; or what leads, errcode, errmsg.
pub(super) struct ErrcodeJson {
    errcode: i64,
    errmsg: String,
    leading_members: String,
    trailing_members: String,
}

impl ErrcodeJson {
    pub(super) fn ok() -> Self {
        Self::new(0, "ok")
    }

    pub(super) fn new(errcode: i64, errmsg: impl Into<String>) -> Self {
        Self {
            errcode,
            errmsg: errmsg.into(),
            leading_members: String::new(),
            trailing_members: String::new(),
        }
    }

    /// Adds a member behind errcode and errmsg.
    pub(super) fn with(mut self, key: &str, value: impl Serialize) -> Self {
        self.trailing_members += &format!(",{}:{}", to_json_text(key), to_json_text(value));
        self
    }

    /// Adds a member in front of errcode.
    pub(super) fn with_leading(mut self, key: &str, value: impl Serialize) -> Self {
        self.leading_members += &format!("{}:{},", to_json_text(key), to_json_text(value));
        self
    }
}

fn to_json_text(value: impl Serialize) -> String {
    serde_json::to_string(&value).unwrap_or_else(|_| "null".to_owned())
}

/// An answer before it meets its fate.
pub(super) struct SimulatedResponse {
    pub(super) status: StatusCode,
    pub(super) errcode: Option<i64>,
    errmsg: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    content: BodyContent,
}

impl From<ErrcodeJson> for SimulatedResponse {
    fn from(json: ErrcodeJson) -> Self {
        let body = format!(
            "{{{}\"errcode\":{},\"errmsg\":{}{}}}",
            json.leading_members,
            json.errcode,
            to_json_text(&json.errmsg),
            json.trailing_members
        );
        let answer = Self::bytes(StatusCode::OK, body);
        let answer = answer.header(CONTENT_TYPE, "application/json; charset=UTF-8");
        Self { errcode: Some(json.errcode), errmsg: json.errmsg, ..answer }
    }
}

impl SimulatedResponse {
    pub(super) fn empty(status: StatusCode) -> Self {
        Self::bytes(status, Bytes::new())
    }

    pub(super) fn bytes(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, BodyContent::Bytes(body.into()))
    }

    /// The bytes `from..to` of a generated file.
    pub(super) fn generated(status: StatusCode, from: u64, to: u64) -> Self {
        Self::new(status, BodyContent::Generated { from, to })
    }

    fn new(status: StatusCode, content: BodyContent) -> Self {
        Self { status, errcode: None, errmsg: "ok".to_owned(), headers: Vec::new(), content }
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
    pub(super) fn with_errcode_ok(mut self) -> Self {
        self.errcode = Some(0);
        self
    }

    /// The answer as it goes out. `errcode_headers`: with WeCom's undocumented Error-Code and Error-Msg.
    pub(super) fn into_response(
        self,
        head_only: bool,
        errcode_headers: bool,
        manner: SendOptions,
    ) -> Response<SimulatedBody> {
        let total = self.content.remaining();
        let source = if head_only { BodyContent::Bytes(Bytes::new()) } else { self.content };
        let mut response = Response::new(SimulatedBody::new(source, manner));
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

enum BodyContent {
    Bytes(Bytes),
    Generated { from: u64, to: u64 },
}

impl BodyContent {
    fn remaining(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Generated { from, to } => to - from,
        }
    }

    fn next_chunk(&mut self, most: u64) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.split_to(bytes.len().min(most as usize)),
            Self::Generated { from, to } => {
                let bytes = generated_bytes(*from, most.min(*to - *from) as usize);
                *from += bytes.len() as u64;
                bytes
            }
        }
    }
}

/// The bytes of a generated file from `at` on: at most `most`, at least one where `most` is not 0. Those of
/// `media_id=generated-1000` are `generated(0, …)` and so on, until there are 1,000.
pub fn generated_bytes(at: u64, most: usize) -> Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    let pattern = BYTES.get_or_init(|| (0..PATTERN_BYTES as u32).map(|i| (i ^ (i >> 8)) as u8).collect());
    let from = (at % PATTERN_BYTES as u64) as usize;
    pattern.slice(from..PATTERN_BYTES.min(from.saturating_add(most)))
}

/// How a body goes out, besides its bytes.
pub(super) struct SendOptions {
    pub(super) connection: Arc<SimulatedConnection>,
    pub(super) _in_flight_guard: InFlightGuard,
    pub(super) body_end: BodyEnd,
    pub(super) chunk_bytes: Option<usize>,
}

/// How a body ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    Complete,
    /// The connection is closed before the first byte, or after half of them.
    Truncated {
        half: bool,
    },
    /// Nothing comes after half of the bytes, and the connection stays.
    Stall,
}

/// A body that streams, and may break off. It says its full length even then.
pub(super) struct SimulatedBody {
    content: BodyContent,
    options: SendOptions,
    bytes_until_break: u64,
    break_delay: Option<Pin<Box<Sleep>>>,
    yielded: bool,
}

impl SimulatedBody {
    fn new(content: BodyContent, options: SendOptions) -> Self {
        let bytes_until_break = match options.body_end {
            BodyEnd::Complete => u64::MAX,
            BodyEnd::Truncated { half: false } => 0,
            BodyEnd::Truncated { half: true } | BodyEnd::Stall => content.remaining() / 2,
        };
        Self { content, options, bytes_until_break, break_delay: None, yielded: false }
    }

    fn poll_break(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ConnectionDropped>>> {
        if self.options.body_end == BodyEnd::Stall {
            return Poll::Pending;
        }
        let sleep = self.break_delay.get_or_insert_with(|| Box::pin(tokio::time::sleep(FLUSH_DELAY)));
        std::task::ready!(sleep.as_mut().poll(cx));
        self.options.connection.close();
        Poll::Ready(Some(Err(ConnectionDropped)))
    }
}

impl http_body::Body for SimulatedBody {
    type Data = Bytes;
    type Error = ConnectionDropped;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if this.bytes_until_break == 0 {
            return this.poll_break(cx);
        }
        if this.content.remaining() == 0 {
            return Poll::Ready(None);
        }
        let most = this.options.chunk_bytes.map_or(CHUNK_BYTES, |bytes| bytes as u64);
        // Pending makes hyper write what it has: else many pieces would leave as one.
        if this.options.chunk_bytes.is_some() && !std::mem::replace(&mut this.yielded, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.yielded = false;
        let bytes = this.content.next_chunk(most.min(this.bytes_until_break));
        this.bytes_until_break -= bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.remaining() == 0 && self.options.body_end == BodyEnd::Complete
    }

    fn size_hint(&self) -> SizeHint {
        if self.options.chunk_bytes.is_some() {
            SizeHint::default()
        } else {
            SizeHint::with_exact(self.content.remaining())
        }
    }
}
