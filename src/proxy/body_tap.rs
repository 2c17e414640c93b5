//! A request body that something else sees while it is read.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::request_body::{BodySource, BodySourceError, RequestBody};

struct TappedBody<F> {
    source: Box<dyn BodySource>,
    on_chunk: F,
}

/// The same body; `on_chunk` is called with each chunk, and with whether the body has ended.
pub(super) fn tap(source: Box<dyn BodySource>, on_chunk: impl FnMut(&Bytes, bool) + 'static) -> RequestBody {
    RequestBody::Streamed(Box::new(TappedBody { source, on_chunk }))
}

impl<F: FnMut(&Bytes, bool)> BodySource for TappedBody<F> {
    fn content_length(&self) -> Option<u64> {
        self.source.content_length()
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        let chunk = ready!(self.source.poll_chunk(cx));
        match &chunk {
            Ok(Some(chunk)) => (self.on_chunk)(chunk, self.source.is_ended()),
            Ok(None) => (self.on_chunk)(&Bytes::new(), true),
            Err(_) => {}
        }
        Poll::Ready(chunk)
    }

    fn is_ended(&self) -> bool {
        self.source.is_ended()
    }

    fn release_buffer(&mut self) {
        self.source.release_buffer();
    }
}
