//! Request bodies received over HTTP/2.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use tokio::time::timeout;

use super::connection_state::{ConnectionState, UnreadBody};
use crate::server::{LINGER_TIMEOUT, MAX_LINGER_BYTES};
use crate::{
    http1::framing::copy_if_small,
    http2::poll_data,
    request_body::{BodySource, BodySourceError, RequestBody},
};

/// A request body as h2 receives it.
pub(super) struct Http2IncomingBody {
    /// `None` once the end was read.
    stream: Option<RecvStream>,
    content_length: Option<u64>,
    continue_signal: Option<Rc<ContinueSignal>>,
    connection: Rc<ConnectionState>,
}

/// Tells the stream's future that the body is being read, for `Expect: 100-continue`.
#[derive(Default)]
pub(super) struct ContinueSignal {
    due: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl ContinueSignal {
    /// Whether the interim response is due; true once.
    pub(super) fn take_due(&self, cx: &Context<'_>) -> bool {
        let due = self.due.take();
        *self.waker.borrow_mut() = (!due).then(|| cx.waker().clone());
        due
    }

    fn set_due(&self) {
        self.due.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Http2IncomingBody {
    /// Wraps the body of a request on this connection. `continue_signal`: the client waits for `100 Continue`.
    pub(super) fn wrap(
        stream: RecvStream,
        content_length: Option<u64>,
        continue_signal: Option<Rc<ContinueSignal>>,
        connection: &Rc<ConnectionState>,
    ) -> RequestBody {
        if stream.is_end_stream() {
            return RequestBody::None;
        }
        let body =
            Self { stream: Some(stream), content_length, continue_signal, connection: connection.clone() };
        RequestBody::Streamed(Box::new(body))
    }
}

/// The next chunk of a body that is not empty; `None` at its end.
fn poll_chunk(stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
    loop {
        let data = ready!(poll_data(stream, cx)).map_err(|_| BodySourceError::Aborted)?;
        if data.as_ref().is_none_or(|data| !data.is_empty()) {
            return Poll::Ready(Ok(data));
        }
    }
}

impl BodySource for Http2IncomingBody {
    fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(None)) };
        let Poll::Ready(data) = poll_chunk(stream, cx) else {
            if let Some(signal) = self.continue_signal.take() {
                signal.set_due();
            }
            return Poll::Pending;
        };
        self.continue_signal = None;
        let data = data?;
        if data.is_none() {
            self.stream = None;
        }
        Poll::Ready(Ok(data.map(copy_if_small)))
    }

    fn is_ended(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }
}

impl Drop for Http2IncomingBody {
    /// Discards the rest of an unread body: clients take a reset stream for a failure even if the response has arrived.
    fn drop(&mut self) {
        if self.is_ended() {
            return;
        }
        let Some(stream) = self.stream.take() else { return };
        // Without an authorized request the number of such bodies is bounded.
        let is_authorized = self.connection.is_authorized();
        let pending_rejection = if is_authorized { None } else { self.connection.try_begin_rejection() };
        if is_authorized || pending_rejection.is_some() {
            self.connection.discard_body(UnreadBody { stream, _pending_rejection: pending_rejection });
        }
    }
}

/// Reads and discards the rest of a body, within bounds.
pub(super) async fn discard(mut body: UnreadBody) {
    let discard_all = async {
        let mut discarded_bytes = 0;
        while let Ok(Some(data)) = poll_fn(|cx| poll_chunk(&mut body.stream, cx)).await {
            discarded_bytes += data.len() as u64;
            if discarded_bytes > MAX_LINGER_BYTES {
                return;
            }
        }
    };
    let _ = timeout(LINGER_TIMEOUT, discard_all).await;
}
