//! A request body as hyper sends it, and its progress.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{task::spawn_local, time::sleep};

use super::{OpenStreamGuard, activity::STUCK_TIMEOUT};
use crate::request_body::{BodyReader, RequestBodyError};

/// A request body as hyper reads it.
pub(super) struct Http2RequestBody {
    pub(super) content_length: Option<u64>,
    pub(super) progress: Rc<RequestProgress>,
}

/// Progress of a request body, read by the task that waits for the response. The stream counts as open until both
/// bodies are dropped.
pub(super) struct RequestProgress {
    pub(super) chunks: Cell<u64>,
    pub(super) awaits_client: Cell<bool>,
    reader: RefCell<RequestReader>,
    guard: OpenStreamGuard,
}

enum RequestReader {
    NoBody,
    Reading(BodyReader),
    /// The exchange is over.
    Released,
}

impl RequestProgress {
    pub(super) fn new(guard: OpenStreamGuard, reader: Option<BodyReader>) -> Self {
        let reader = RefCell::new(reader.map_or(RequestReader::NoBody, RequestReader::Reading));
        Self { chunks: Cell::new(0), awaits_client: Cell::new(false), reader, guard }
    }
}

/// Drops the reader at the end of the exchange. hyper's task for the body may wait for the upstream's flow control for
/// ever, and would keep the buffered body.
pub(super) struct ReleaseReader(pub(super) Rc<RequestProgress>);

impl Drop for ReleaseReader {
    fn drop(&mut self) {
        let reader = &mut *self.0.reader.borrow_mut();
        if matches!(reader, RequestReader::Reading(reader) if !reader.is_ended()) {
            *reader = RequestReader::Released;
            spawn_local(watch_stuck(Rc::downgrade(&self.0)));
        }
    }
}

/// Reports the stream as stuck if it is still open after a while: hyper's task for the body waits for the upstream.
async fn watch_stuck(progress: Weak<RequestProgress>) {
    sleep(STUCK_TIMEOUT).await;
    if let Some(progress) = progress.upgrade() {
        progress.guard.mark_stuck();
    }
}

impl Body for Http2RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let progress = &*self.progress;
        let chunk = match &mut *progress.reader.borrow_mut() {
            RequestReader::NoBody => return Poll::Ready(None),
            RequestReader::Reading(reader) => reader.poll_coalesced(cx),
            RequestReader::Released => return Poll::Ready(Some(Err(RequestBodyError::Superseded))),
        };
        progress.awaits_client.set(chunk.is_pending());
        progress.chunks.update(|chunks| chunks + 1);
        chunk.map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        match &*self.progress.reader.borrow() {
            RequestReader::NoBody => true,
            RequestReader::Reading(reader) => reader.is_ended(),
            RequestReader::Released => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.content_length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
