//! Writes a request body to its stream, piece by piece: while the upstream's windows are closed, the rest waits in the
//! replay buffer or at the client.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use ::h2::{Reason, SendStream, client::SendRequest};
use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_local};

use crate::request_body::{BodyReader, RequestBodyError};

/// Largest piece that h2 gets once the window allows any of it. h2 frames a piece as the windows open; pieces of what is
/// open just now would be frames of some bytes where many streams share a small window.
const MAX_PIECE_BYTES: usize = 64 * 1024;

/// Progress of a request body, read by the task that waits for the response.
#[derive(Default)]
pub(super) struct BodyProgress {
    /// Pieces handed to h2.
    pub(super) pieces: Cell<u64>,
    pub(super) awaits_client: Cell<bool>,
    /// Why the body could not be read to its end.
    pub(super) error: Cell<Option<RequestBodyError>>,
}

/// Writes one request body.
pub(super) struct RequestWriter {
    /// The handle that opened the stream, until it is open: afterwards it reports GOAWAY, with which the stream goes on.
    opening: Option<SendRequest<Bytes>>,
    stream: SendStream<Bytes>,
    reader: BodyReader,
    /// What of the body waits for the upstream's window.
    pending: Bytes,
    /// The end of the body was handed to h2.
    ended: bool,
    progress: Rc<BodyProgress>,
}

/// A [`RequestWriter`] that goes on while the response is received. Dropped, it ends.
pub(super) struct WriterTask(JoinHandle<()>);

impl Drop for WriterTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RequestWriter {
    /// `send_request`: the handle that opened `stream`.
    pub(super) fn new(
        send_request: SendRequest<Bytes>,
        stream: SendStream<Bytes>,
        reader: BodyReader,
        progress: Rc<BodyProgress>,
    ) -> Self {
        Self { opening: Some(send_request), stream, reader, pending: Bytes::new(), ended: false, progress }
    }

    /// Polls once, and spawns a task only if something is left.
    pub(super) async fn start(mut self) -> Option<WriterTask> {
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut self).poll(cx))).await;
        polled.is_pending().then(|| WriterTask(spawn_local(self)))
    }

    /// The next chunk to send, `None` at the end. Fails if the body cannot be read.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RequestBodyError>> {
        let chunk = self.reader.poll_coalesced(cx);
        self.progress.awaits_client.set(chunk.is_pending());
        chunk
    }
}

impl Future for RequestWriter {
    type Output = ();

    /// Ready when the whole body was handed to h2, or when the stream or the body has failed.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let writer = &mut *self;
        // A stream beyond the upstream's maximum opens later.
        if let Some(send_request) = &mut writer.opening {
            if ready!(send_request.poll_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            writer.opening = None;
        }
        if writer.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            if writer.pending.is_empty() {
                match ready!(writer.poll_chunk(cx)) {
                    Ok(Some(chunk)) if chunk.is_empty() => continue,
                    Ok(Some(chunk)) => writer.pending = chunk,
                    Ok(None) => {
                        writer.ended = writer.stream.send_data(Bytes::new(), true).is_ok();
                        return Poll::Ready(());
                    }
                    Err(error) => {
                        writer.progress.error.set(Some(error));
                        return Poll::Ready(());
                    }
                }
            }
            // Only for bytes at hand: capacity reserved for a slow client would be taken from other streams.
            writer.stream.reserve_capacity(1);
            if writer.stream.capacity() == 0 {
                match ready!(writer.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    _ => return Poll::Ready(()),
                }
            }
            let piece = writer.pending.split_to(MAX_PIECE_BYTES.min(writer.pending.len()));
            let is_last = writer.pending.is_empty() && writer.reader.is_ended();
            let sent = writer.stream.send_data(piece, is_last);
            writer.progress.pieces.update(|pieces| pieces + 1);
            if sent.is_err() || is_last {
                writer.ended = sent.is_ok();
                return Poll::Ready(());
            }
        }
    }
}

impl Drop for RequestWriter {
    /// Resets the stream if the body was not sent to its end; h2 discards what it holds of it.
    fn drop(&mut self) {
        if !self.ended {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}

#[cfg(test)]
mod tests {
    use ::h2::{client, server};
    use http::Request;
    use tokio::{io::duplex, task::LocalSet, time::timeout};

    use super::*;
    use crate::request_body::{BodyLimits, ReplayBody, RequestBody};

    /// Such a body stands for one that was read before, as the messages whose members are counted.
    #[tokio::test]
    async fn empty_complete_body_ends_the_stream() {
        let (near, far) = duplex(1024);
        let limits = BodyLimits { max_bytes: 1, idle_timeout: std::time::Duration::from_secs(1) };
        let body = ReplayBody::new(RequestBody::Complete(Bytes::new()), limits, None)
            .expect("a body")
            .expect("a body");
        let local = LocalSet::new();
        local.spawn_local(async move {
            let (mut send_request, connection) = client::handshake(near).await.expect("a handshake");
            spawn_local(connection);
            let (_response, stream) = send_request.send_request(Request::new(()), false).expect("sent");
            let writer =
                RequestWriter::new(send_request, stream, body.reader().expect("a reader"), Rc::default());
            let _task = writer.start().await;
            std::future::pending::<()>().await;
        });
        let received = local.run_until(async move {
            let mut connection = server::handshake(far).await.expect("a handshake");
            let (mut request, _respond) = connection.accept().await.expect("a request").expect("a request");
            spawn_local(async move { connection.accept().await.is_none() });
            timeout(std::time::Duration::from_secs(5), request.body_mut().data()).await
        });
        assert!(received.await.expect("an end").is_none_or(|data| data.expect("no error").is_empty()));
    }
}
