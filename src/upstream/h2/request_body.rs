//! A request body as hyper sends it, and its progress.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::OpenStreamGuard;
use crate::request_body::{BodyReader, RequestBodyError};

/// A request body as hyper reads it.
pub(super) struct Http2RequestBody {
    pub(super) reader: Option<BodyReader>,
    pub(super) content_length: Option<u64>,
    pub(super) progress: Rc<RequestProgress>,
}

/// Progress of a request body, read by the task that waits for the response. The stream counts as open until both
/// bodies are dropped.
pub(super) struct RequestProgress {
    pub(super) chunks: Cell<u64>,
    pub(super) awaits_client: Cell<bool>,
    _guard: OpenStreamGuard,
}

impl RequestProgress {
    pub(super) fn new(guard: OpenStreamGuard) -> Self {
        Self { chunks: Cell::new(0), awaits_client: Cell::new(false), _guard: guard }
    }
}

impl Body for Http2RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = &mut *self;
        let Some(reader) = &mut this.reader else { return Poll::Ready(None) };
        let chunk = reader.poll_coalesced(cx);
        this.progress.awaits_client.set(chunk.is_pending());
        this.progress.chunks.update(|chunks| chunks + 1);
        chunk.map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(BodyReader::is_ended)
    }

    fn size_hint(&self) -> SizeHint {
        self.content_length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
