//! Response bodies as hyper takes them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::activity::{PendingRefusal, RequestGuard, WriteProgress};
use crate::{
    http1::framing::MIN_SLICE_BYTES,
    proxy::{ResponseAborted, ResponseBody},
};

/// Longest chunk that is handed to hyper at once: the default frame size. hyper asks for the next one when this one was
/// sent, which is the only sign that the client reads.
const MAX_CHUNK_BYTES: usize = 16 * 1024;

/// A response body as hyper takes it.
pub(super) struct Http2ResponseBody {
    pub(super) body: ResponseBody,
    /// There is no body, or no more of it.
    pub(super) ended: bool,
    /// Rest of a chunk that was longer than [`MAX_CHUNK_BYTES`].
    pub(super) pending: Bytes,
    /// The body was aborted after `pending`.
    pub(super) failed: bool,
    pub(super) progress: Arc<WriteProgress>,
    /// The request counts as in flight until the body was handed over.
    pub(super) _request_guard: Option<RequestGuard>,
    pub(super) _pending_refusal: Option<PendingRefusal>,
}

impl Http2ResponseBody {
    /// Appends further chunks that are available to a small one: each frame costs far more memory than one byte.
    fn coalesce_chunks(&mut self, first: Bytes, cx: &mut Context<'_>) -> Bytes {
        let mut coalesced = BytesMut::new();
        while first.len() + coalesced.len() < MIN_SLICE_BYTES && !self.body.is_ended() {
            match self.body.poll_chunk(cx) {
                Poll::Ready(Some(Ok(next))) => coalesced.extend_from_slice(&next),
                Poll::Ready(Some(Err(ResponseAborted))) => {
                    self.failed = true;
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if coalesced.is_empty() { first } else { [&first[..], &coalesced].concat().into() }
    }
}

impl http_body::Body for Http2ResponseBody {
    type Data = Bytes;
    type Error = ResponseAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.pending.is_empty() {
            if self.failed {
                return Poll::Ready(Some(Err(ResponseAborted)));
            }
            let polled = self.body.poll_chunk(cx);
            if polled.is_pending() {
                // The stream now waits for the upstream and not for the client.
                self.progress.drained();
            }
            match ready!(polled) {
                Some(Ok(chunk)) => self.pending = self.coalesce_chunks(chunk, cx),
                Some(Err(aborted)) => return Poll::Ready(Some(Err(aborted))),
                None => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
            }
        }
        self.progress.data_queued();
        let length = self.pending.len().min(MAX_CHUNK_BYTES);
        let chunk = self.pending.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.pending.is_empty() && self.body.is_ended() && !self.failed)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
