//! Responses: WeCom's JSON with its order of members, files, and bodies that faults truncate or stall.

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
use super::routes::HandlerResult;
use super::state::InFlightGuard;

/// Delay between the last byte to deliver and the close, so that the socket can send this byte.
const FLUSH_DELAY: Duration = Duration::from_millis(10);
const CHUNK_BYTES: u64 = 64 * 1024;
/// A prime, so that a shift by a power of two yields other bytes.
const PATTERN_BYTES: usize = 65_521;

/// The connection was closed instead of a complete response.
#[derive(Debug, thiserror::Error)]
#[error("connection dropped by an injected fault")]
pub(super) struct ConnectionDropped;

/// A JSON object in WeCom's order: the leading members, errcode, errmsg, the trailing members.
#[derive(Default)]
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
        Self { errcode, errmsg: errmsg.into(), ..Self::default() }
    }

    /// Adds a member after errcode and errmsg.
    pub(super) fn with(mut self, key: &str, value: impl Serialize) -> Self {
        self.trailing_members += &format!(",{}:{}", to_json_text(key), to_json_text(value));
        self
    }

    /// Adds a member before errcode.
    pub(super) fn with_leading(mut self, key: &str, value: impl Serialize) -> Self {
        self.leading_members += &format!("{}:{},", to_json_text(key), to_json_text(value));
        self
    }
}

fn to_json_text(value: impl Serialize) -> String {
    serde_json::to_string(&value).unwrap_or_else(|_| "null".to_owned())
}

/// A response before faults are applied.
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
        let response = Self::bytes(StatusCode::OK, body);
        let response = response.header(CONTENT_TYPE, "application/json; charset=UTF-8");
        Self { errcode: Some(json.errcode), errmsg: json.errmsg, ..response }
    }
}

impl From<ErrcodeJson> for HandlerResult {
    fn from(json: ErrcodeJson) -> Self {
        Ok(json.into())
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

    /// Counts as a call that succeeded although its JSON has no errcode.
    pub(super) fn with_errcode_zero(self) -> Self {
        Self { errcode: Some(0), ..self }
    }

    /// Adds a header; ignores a value that is invalid in HTTP.
    pub(super) fn header(mut self, name: HeaderName, value: impl AsRef<[u8]>) -> Self {
        if let Ok(value) = HeaderValue::from_bytes(value.as_ref()) {
            self.headers.push((name, value));
        }
        self
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Sets errcode 0 for a file response, which has none in its body.
    pub(super) fn with_errcode_ok(mut self) -> Self {
        self.errcode = Some(0);
        self
    }

    /// The HTTP response. `errcode_headers` adds WeCom's undocumented Error-Code and Error-Msg.
    pub(super) fn into_response(
        self,
        head_only: bool,
        errcode_headers: bool,
        options: SendOptions,
    ) -> Response<SimulatedBody> {
        let total = self.content.remaining();
        let content = if head_only { BodyContent::Bytes(Bytes::new()) } else { self.content };
        let mut response = Response::new(SimulatedBody::new(content, options));
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

    fn next_chunk(&mut self, max: u64) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.split_to(bytes.len().min(max as usize)),
            Self::Generated { from, to } => {
                let bytes = generated_bytes(*from, max.min(*to - *from) as usize);
                *from += bytes.len() as u64;
                bytes
            }
        }
    }
}

/// The bytes of a generated file from `offset` on: at most `max`, at least one unless `max` is 0. The file
/// `media_id=generated-1000` has the bytes of `generated_bytes(0, …)` and the following calls, 1,000 in total.
pub fn generated_bytes(offset: u64, max: usize) -> Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    let pattern = BYTES.get_or_init(|| (0..PATTERN_BYTES as u32).map(|i| (i ^ (i >> 8)) as u8).collect());
    let from = (offset % PATTERN_BYTES as u64) as usize;
    pattern.slice(from..PATTERN_BYTES.min(from.saturating_add(max)))
}

/// How a body is sent.
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
    /// The connection closes before the first byte, or after half of the bytes.
    Truncated {
        half: bool,
    },
    /// Nothing follows half of the bytes; the connection stays open.
    Stall,
}

/// A streamed body that faults may break off. Its size hint is the full length even then.
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
        let max = this.options.chunk_bytes.map_or(CHUNK_BYTES, |bytes| bytes as u64);
        // Pending makes hyper flush; otherwise several chunks would be sent in one write.
        if this.options.chunk_bytes.is_some() && !std::mem::replace(&mut this.yielded, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.yielded = false;
        let bytes = this.content.next_chunk(max.min(this.bytes_until_break));
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
