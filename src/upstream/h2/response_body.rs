//! A response body as h2 receives it.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use ::h2::{Reason, RecvStream};
use bytes::Bytes;

use super::{activity::OpenStreamGuard, error::describe, request_writer::WriterTask};
use crate::{
    http1::framing::copy_if_small,
    http2,
    time::deadline::Deadline,
    upstream::{Delivery, UpstreamError, UpstreamErrorKind},
};

/// Frame header (RFC 9113 §4.1).
const FRAME_HEADER_BYTES: u64 = 9;

/// A response body.
pub(in crate::upstream) struct Http2UpstreamBody {
    stream: RecvStream,
    idle_deadline: Deadline,
    body_timeout: Duration,
    /// Bytes of framing so far.
    framing_overhead: u64,
    /// What is left of the request body is not sent once the exchange is over.
    _writer_task: Option<WriterTask>,
    _guard: OpenStreamGuard,
}

impl Http2UpstreamBody {
    pub(super) fn new(
        stream: RecvStream,
        body_timeout: Duration,
        writer_task: Option<WriterTask>,
        guard: OpenStreamGuard,
    ) -> Self {
        let idle_deadline = Deadline::unset();
        Self {
            stream,
            idle_deadline,
            body_timeout,
            framing_overhead: 0,
            _writer_task: writer_task,
            _guard: guard,
        }
    }

    /// Polls for the next chunk; `None` at the end.
    pub(in crate::upstream) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let fail = |kind| Poll::Ready(Some(Err(UpstreamError { kind, delivery: Delivery::MaybeSent })));
        let Poll::Ready(data) = http2::poll_data(&mut self.stream, cx) else {
            ready!(self.idle_deadline.poll_stalled(cx, self.body_timeout));
            return fail(UpstreamErrorKind::BodyTimeout);
        };
        self.idle_deadline.clear();
        match data {
            Ok(None) => Poll::Ready(None),
            Ok(Some(data)) => {
                self.framing_overhead += FRAME_HEADER_BYTES;
                Poll::Ready(Some(Ok(copy_if_small(data))))
            }
            // RFC 9113 §8.1: NO_ERROR says that the response is complete, which only END_STREAM does.
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => fail(UpstreamErrorKind::Truncated),
            Err(error) => fail(UpstreamErrorKind::Http2(describe(&error))),
        }
    }

    /// Bytes of frame headers received so far, without padding.
    pub(in crate::upstream) fn framing_overhead(&self) -> u64 {
        self.framing_overhead
    }

    pub(in crate::upstream) fn is_ended(&self) -> bool {
        self.stream.is_end_stream()
    }
}
