//! The response as passed to the server: head, and body with the resources it holds until its end.

use std::{
    fmt::Write as _,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use tokio::{sync::mpsc, time::Instant};

use super::{
    errcode_probe::{BufferedChunks, ProbedResponse},
    error::{ErrorKind, ProxyError},
    initial_response_headers::local_headers,
    request_context::RequestContext,
};
use crate::{
    http1::headers::HeaderBlock,
    limits::concurrency_limit::Permit,
    request_body::ReplayBody,
    tokens::ceil_seconds,
    upstream::{UpstreamBody, UpstreamError},
};

/// The response was aborted; the server aborts the client's connection (over HTTP/2, the stream) too, so that a
/// truncated body never looks complete.
#[derive(Debug, thiserror::Error)]
#[error("upstream response aborted")]
pub struct ResponseAborted;

/// A response to the client. No `Debug`: it may contain a pass.
pub struct Response {
    /// Status.
    pub status: StatusCode,
    /// Headers without those that frame the body.
    pub headers: HeaderBlock,
    /// Whether the headers contain `Date`.
    pub has_date: bool,
    /// Length of the body; for HEAD and 304 the length that it would have.
    pub content_length: Option<u64>,
    /// Body.
    pub body: ResponseBody,
    /// Whether it rejects a wrong key; the server then delays it.
    pub wrong_key: bool,
}

impl Response {
    /// A response of the proxy itself.
    pub(super) fn local(status: StatusCode, body: Bytes) -> Self {
        Self::with_type(status, "application/json; charset=UTF-8", body)
    }

    /// A response of the proxy itself with this content type.
    pub(super) fn with_type(status: StatusCode, content_type: &str, body: Bytes) -> Self {
        Self {
            status,
            headers: local_headers(content_type),
            has_date: false,
            content_length: Some(body.len() as u64),
            body: ResponseBody::complete(body),
            wrong_key: false,
        }
    }

    /// A response with server-sent events; it ends when the sender is dropped.
    pub(super) fn events(events: mpsc::Receiver<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: local_headers("text/event-stream"),
            has_date: false,
            content_length: None,
            body: ResponseBody { kind: ResponseBodyKind::Events(events), context: None },
            wrong_key: false,
        }
    }

    /// The response for an error; HTTP 200 for a client with `always_200`. The log has the details under the request
    /// id. `with_hint`: the client asked for `X-Wecom-Hint`.
    pub(super) fn from_error(
        error: &ProxyError,
        always_200: bool,
        request_id: &str,
        with_hint: bool,
    ) -> Self {
        let status = if always_200 { StatusCode::OK } else { error.status.unwrap_or(error.kind.status()) };
        let mut errmsg = format!("wecom-proxy: {}", error.message);
        // Client errors explain themselves; for server errors the id leads to the log.
        if error.kind.status().is_server_error() {
            let _ = write!(errmsg, " (request id {request_id})");
        }
        let body = serde_json::json!({ "errcode": error.errcode, "errmsg": errmsg });
        let mut response = Self::local(status, Bytes::from(body.to_string()));
        response.wrong_key = error.wrong_key;
        response.headers.append(b"x-wecom-proxy-error", error.kind.name().as_bytes());
        // Other errors say what to do, or have an errcode of WeCom's, which is explained.
        if with_hint && error.kind.status().is_server_error() && !error.has_wecom_errcode {
            let hint = format!("{errmsg}; retry later; the proxy's log has the cause under this id");
            response.headers.append(b"x-wecom-hint", hint.as_bytes());
        }
        if error.kind == ErrorKind::Unauthenticated {
            // One header per challenge, Basic first: many programs read only the first challenge of a header.
            for challenge in
                ["Basic realm=\"wecom-proxy\", charset=\"UTF-8\"", "Bearer realm=\"wecom-proxy\""]
            {
                response.headers.append(b"www-authenticate", challenge.as_bytes());
            }
        }
        if let Some(wait) = error.retry_after {
            let seconds = ceil_seconds(wait).max(1);
            response.headers.append(b"retry-after", itoa::Buffer::new().format(seconds).as_bytes());
        }
        response
    }

    /// The response from a probed one: the upstream's, or a cached ticket.
    pub(super) fn from_upstream(probed: ProbedResponse, replay_body: Option<ReplayBody>) -> Self {
        let ProbedResponse {
            status, headers, has_date, content_length, mut buffered, remaining, permit, ..
        } = probed;
        let complete_body = if remaining.is_ended() { buffered.take_single() } else { None };
        let (content_length, body) = match complete_body {
            // Without a body, `content-length` is forwarded as received (HEAD, 304).
            Some(complete_body) if complete_body.is_empty() => {
                (content_length, ResponseBody::complete(complete_body))
            }
            Some(complete_body) => (Some(complete_body.len() as u64), ResponseBody::complete(complete_body)),
            None => (
                content_length,
                ResponseBody::streamed(StreamedBody {
                    buffered,
                    remaining,
                    _request_body: replay_body,
                    _permit: permit,
                }),
            ),
        };
        Self { status, headers, has_date, content_length, body, wrong_key: false }
    }

    /// Drops the context of a complete response before it is sent, and counts it as sent. For connections without an
    /// authorized request, whose clients could hold a context by not reading. With `is_head_request` its byte count and
    /// completeness stay as they are.
    pub fn finish_context(&mut self, is_head_request: bool) {
        self.body.finish_context(is_head_request);
    }
}

/// A response body.
pub struct ResponseBody {
    kind: ResponseBodyKind,
    context: Option<Box<RequestContext>>,
}

enum ResponseBodyKind {
    Complete(Bytes),
    Streamed(Box<StreamedBody>),
    Events(mpsc::Receiver<Bytes>),
}

/// A body still being received from the upstream.
struct StreamedBody {
    buffered: BufferedChunks,
    remaining: UpstreamBody,
    /// Keeps the source of the request body, because the upstream may respond before it has received all of it.
    _request_body: Option<ReplayBody>,
    /// The request counts as in flight until the body is dropped.
    _permit: Option<Permit>,
}

impl ResponseBody {
    fn complete(body: Bytes) -> Self {
        Self { kind: ResponseBodyKind::Complete(body), context: None }
    }

    fn streamed(streamed: StreamedBody) -> Self {
        Self { kind: ResponseBodyKind::Streamed(Box::new(streamed)), context: None }
    }

    /// Holds the context until the body has ended.
    pub(super) fn attach_context(&mut self, mut context: Box<RequestContext>) {
        context.complete = self.is_ended();
        self.context = Some(context);
    }

    fn finish_context(&mut self, is_head_request: bool) {
        if let ResponseBodyKind::Complete(body) = &self.kind
            && let Some(mut context) = self.context.take()
            && !is_head_request
        {
            (context.response_bytes, context.complete) = (body.len() as u64, true);
        }
    }

    /// Sets when the response ended: completely written, or aborted.
    pub fn mark_ended(&mut self, now: Instant) {
        if let Some(context) = &mut self.context {
            context.ended = Some(now);
        }
    }

    /// Polls for the next chunk; `None` at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ResponseAborted>>> {
        let chunk = ready!(self.poll_inner(cx));
        let ended = self.is_ended();
        let Some(context) = &mut self.context else {
            return Poll::Ready(chunk.map(|chunk| chunk.map_err(|_| ResponseAborted)));
        };
        match &chunk {
            Some(Ok(chunk)) => {
                (context.response_bytes, context.complete) =
                    (context.response_bytes + chunk.len() as u64, ended);
                if let Some(capture) = &mut context.capture {
                    capture.record_response_chunk(chunk);
                }
            }
            Some(Err(error)) => context.error = Some((ErrorKind::UpstreamFailed, error.kind.to_string())),
            None => context.complete = ended,
        }
        Poll::Ready(chunk.map(|chunk| chunk.map_err(|_| ResponseAborted)))
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        match &mut self.kind {
            ResponseBodyKind::Complete(body) if body.is_empty() => Poll::Ready(None),
            ResponseBodyKind::Complete(body) => Poll::Ready(Some(Ok(std::mem::take(body)))),
            ResponseBodyKind::Events(events) => events.poll_recv(cx).map(|event| event.map(Ok)),
            ResponseBodyKind::Streamed(streamed) => match streamed.buffered.pop() {
                Some(chunk) => Poll::Ready(Some(Ok(chunk))),
                None => streamed.remaining.poll_data(cx),
            },
        }
    }

    /// Continues to send the request body while the client does not read the response. An error recurs in the next
    /// poll for a chunk.
    pub fn drive_request_body(&mut self, cx: &mut Context<'_>) {
        if let ResponseBodyKind::Streamed(streamed) = &mut self.kind {
            streamed.remaining.drive_request_body(cx);
        }
    }

    /// Whether the body was read to its end. May be false at the end while that is not known yet.
    pub fn is_ended(&self) -> bool {
        match &self.kind {
            ResponseBodyKind::Complete(body) => body.is_empty(),
            ResponseBodyKind::Events(events) => events.is_closed() && events.is_empty(),
            ResponseBodyKind::Streamed(streamed) => {
                streamed.buffered.is_empty() && streamed.remaining.is_ended()
            }
        }
    }
}
