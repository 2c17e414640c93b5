//! An answer as the server takes it: its head, and a body with what must last until its end.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use super::{
    errcode_probe::{Buffered, ProbedResponse},
    error::ErrorKind,
    request_context::RequestContext,
    response_headers::local_headers,
};
use crate::{
    http1::headers::HeaderBlock,
    limits::concurrency_limit::Permit,
    request_body::ReplayBody,
    upstream::{UpstreamBody, UpstreamError},
};

/// The answer broke off; the caller's connection is broken off too, so that no short body looks whole.
#[derive(Debug, thiserror::Error)]
#[error("the upstream broke off in the middle of its answer")]
pub struct ResponseAborted;

/// An answer to a caller. It has no `Debug`: it may hold a pass.
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The header lines, but for those that frame the body.
    pub headers: HeaderBlock,
    /// Whether there is a `Date` among them.
    pub has_date: bool,
    /// How long the body is; to a HEAD, how long it would be.
    pub content_length: Option<u64>,
    /// The body.
    pub body: ResponseBody,
    /// It refuses a key that is none: the server may hold it back.
    pub wrong_key: bool,
}

impl Response {
    /// An answer of the proxy's own.
    pub(super) fn local(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            headers: local_headers(),
            has_date: false,
            content_length: Some(body.len() as u64),
            body: ResponseBody::buffered(body),
            wrong_key: false,
        }
    }

    /// The upstream's answer.
    pub(super) fn from_upstream(answer: Box<ProbedResponse>, upload: Option<ReplayBody>) -> Self {
        let ProbedResponse {
            status,
            headers,
            has_date,
            content_length: length,
            buffered: mut held,
            remaining: rest,
            permit: place,
            ..
        } = *answer;
        let whole = if rest.is_ended() { held.take_single() } else { None };
        let (content_length, body) = match whole {
            // What is said of a body that is not there goes through as it was said: to a HEAD, and with a 304.
            Some(whole) if whole.is_empty() => (length, ResponseBody::buffered(whole)),
            Some(whole) => (Some(whole.len() as u64), ResponseBody::buffered(whole)),
            None => (
                length,
                ResponseBody::streamed(StreamedBody {
                    buffered: held,
                    remaining: rest,
                    _request_body: upload,
                    _permit: place,
                }),
            ),
        };
        Self { status, headers, has_date, content_length, body, wrong_key: false }
    }

    /// Ends the record of a response that is whole, as if its client had taken it: of a request that was refused, nothing
    /// is kept for as long as its client leaves the response lying. `is_head`: the body will not be sent.
    pub fn finish_context(&mut self, is_head: bool) {
        self.body.finish_context(is_head);
    }
}

/// A body towards the caller.
pub struct ResponseBody {
    kind: ResponseBodyKind,
    context: Option<Box<RequestContext>>,
}

enum ResponseBodyKind {
    Buffered(Bytes),
    Streamed(Box<StreamedBody>),
}

/// What is still on its way from the upstream.
struct StreamedBody {
    buffered: Buffered,
    remaining: UpstreamBody,
    /// The upload may go on beside the answer.
    _request_body: Option<ReplayBody>,
    /// The request counts as in flight until here.
    _permit: Option<Permit>,
}

impl ResponseBody {
    fn buffered(body: Bytes) -> Self {
        Self { kind: ResponseBodyKind::Buffered(body), context: None }
    }

    fn streamed(streamed: StreamedBody) -> Self {
        Self { kind: ResponseBodyKind::Streamed(Box::new(streamed)), context: None }
    }

    /// Holds the record until the body has ended.
    pub(super) fn attach_context(&mut self, mut record: Box<RequestContext>) {
        record.complete = self.is_ended();
        self.context = Some(record);
    }

    fn finish_context(&mut self, is_head: bool) {
        if let ResponseBodyKind::Buffered(body) = &self.kind
            && let Some(mut record) = self.context.take()
            && !is_head
        {
            (record.response_bytes, record.complete) = (body.len() as u64, true);
        }
    }

    /// All of it was handed over, or never will be, by this moment.
    pub fn mark_ended(&mut self, now: Instant) {
        if let Some(record) = &mut self.context {
            record.ended = Some(now);
        }
    }

    /// The next piece; `None` at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ResponseAborted>>> {
        let piece = ready!(self.poll_inner(cx));
        let ended = self.is_ended();
        let Some(record) = &mut self.context else {
            return Poll::Ready(piece.map(|piece| piece.map_err(|_| ResponseAborted)));
        };
        match &piece {
            Some(Ok(piece)) => {
                (record.response_bytes, record.complete) =
                    (record.response_bytes + piece.len() as u64, ended);
                if let Some(look) = &mut record.capture {
                    look.record_response_chunk(piece);
                }
            }
            Some(Err(failure)) => record.error = Some((ErrorKind::UpstreamFailed, failure.kind.to_string())),
            None => record.complete = ended,
        }
        Poll::Ready(piece.map(|piece| piece.map_err(|_| ResponseAborted)))
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        match &mut self.kind {
            ResponseBodyKind::Buffered(body) if body.is_empty() => Poll::Ready(None),
            ResponseBodyKind::Buffered(body) => Poll::Ready(Some(Ok(std::mem::take(body)))),
            ResponseBodyKind::Streamed(streamed) => match streamed.buffered.pop() {
                Some(piece) => Poll::Ready(Some(Ok(piece))),
                None => streamed.remaining.poll_data(cx),
            },
        }
    }

    /// Goes on with the request's body, where it still comes, though nobody takes the answer's. A failure shows with the
    /// next piece.
    pub fn drive_request_body(&mut self, cx: &mut Context<'_>) {
        if let ResponseBodyKind::Streamed(streamed) = &mut self.kind {
            streamed.remaining.drive_request_body(cx);
        }
    }

    /// Whether all of it was taken. It may say no where the end is not yet known.
    pub fn is_ended(&self) -> bool {
        match &self.kind {
            ResponseBodyKind::Buffered(body) => body.is_empty(),
            ResponseBodyKind::Streamed(streamed) => {
                streamed.buffered.is_empty() && streamed.remaining.is_ended()
            }
        }
    }
}
