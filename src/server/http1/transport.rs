//! The byte stream of one HTTP/1 connection, and a request's body read from it.

use std::{
    cell::{RefCell, RefMut},
    io,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    http1::{
        buffer_pool,
        framing::{BodyEvent, Framing, FramingError},
        io::{CloseWatch, FinalWrite, RegisteredWaker, Stream},
        write_buf::WriteBuf,
    },
    request_body::{BodySource, BodySourceError},
    secret::wipe,
    time::deadline::Deadline,
};

/// How much a client may send ahead while its request is served.
const MAX_READ_AHEAD_BYTES: usize = buffer_pool::BUFFER_BYTES;
/// So few bytes are copied rather than keep a buffer that others can use.
const MAX_COPIED_BYTES: usize = buffer_pool::BUFFER_BYTES / 4;
/// Reads of a body that proved to be large.
const LARGE_READ_BYTES: usize = 512 * 1024;
/// What a client is told that waits with its body.
const CONTINUE_RESPONSE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The stream, shared by the task that talks over it and the body that is read from it. Nobody holds it while others run.
pub(super) struct Transport(Rc<RefCell<Shared>>);

/// What they share.
pub(super) struct Shared {
    stream: Stream,
    /// What was read and not yet used. Between two requests it has no memory of its own.
    pub(super) read_buf: BytesMut,
    /// What is still to come of the request's body.
    pub(super) framing: Framing,
    /// The client waits for a word before it sends the body.
    pub(super) continue_pending: bool,
    /// Whose body it is that comes: a reader of an earlier request's may still be there, and must get nothing of it.
    request_seq: u64,
    next_read_bytes: usize,
    read_waker: RegisteredWaker,
    /// Who wants to know when the client leaves, and cannot look while another task reads the body.
    disconnect_waker: Option<Waker>,
    /// Nobody has read any of the body yet.
    pub(super) body_unread: bool,
    /// The client has sent its last byte, and a write was to show whether it still reads.
    half_closed: bool,
    close_watch: Option<CloseWatch>,
    /// Who waits for more of the body. Nothing else tells that task when there will be no more: what the runtime called it
    /// by goes with the stream.
    body_waker: Option<Waker>,
}

impl Transport {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            stream,
            read_buf: BytesMut::new(),
            framing: Framing::Done,
            continue_pending: false,
            request_seq: 0,
            next_read_bytes: buffer_pool::BUFFER_BYTES,
            read_waker: RegisteredWaker::default(),
            disconnect_waker: None,
            body_unread: false,
            half_closed: false,
            close_watch: None,
            body_waker: None,
        })))
    }

    pub(super) fn shared(&self) -> RefMut<'_, Shared> {
        self.0.borrow_mut()
    }

    /// The body of the request that begins now. It does not keep the connection open.
    pub(super) fn incoming_body(&self, declared: Option<u64>) -> Http1IncomingBody {
        Http1IncomingBody {
            transport: Rc::downgrade(&self.0),
            request_seq: self.shared().request_seq,
            content_length: declared,
        }
    }

    /// Whether somebody may still read a body from it.
    pub(super) fn has_body_reader(&self) -> bool {
        Rc::weak_count(&self.0) > 0
    }

    /// The stream and what was read from it, for another protocol.
    pub(super) fn into_parts(self) -> Option<(Stream, BytesMut)> {
        let inner = Rc::into_inner(self.0)?.into_inner();
        Some((inner.stream, inner.read_buf))
    }
}

impl Shared {
    /// The byte stream itself.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Reads once into the buffer; 0 is the end of the stream.
    pub(super) fn poll_read_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Not more than there is room for, as long as that is something: a pipelined request needs no second buffer.
        let room = self.read_buf.capacity() - self.read_buf.len();
        let most = if room < self.next_read_bytes / 8 {
            self.next_read_bytes
        } else {
            room.min(self.next_read_bytes)
        };
        if most > room && self.framing == Framing::Done && !self.read_buf.is_empty() {
            self.grow_read_buf(most);
        }
        self.stream.poll_read_buf(cx, &mut self.read_buf, most, &mut self.read_waker)
    }

    /// Moves a part of a head to a buffer with room for so much more. By itself the buffer would leave an unwiped copy where
    /// it was.
    fn grow_read_buf(&mut self, more: usize) {
        let mut moved = BytesMut::with_capacity((self.read_buf.len() + more).max(buffer_pool::BUFFER_BYTES));
        moved.extend_from_slice(&self.read_buf);
        wipe(&mut self.read_buf);
        buffer_pool::release(std::mem::replace(&mut self.read_buf, moved));
    }

    /// Gives the buffer back. What was not used of it is wiped: it may be half a head.
    pub(super) fn release_buffer(&mut self) {
        wipe(&mut self.read_buf);
        buffer_pool::release(std::mem::take(&mut self.read_buf));
        self.next_read_bytes = buffer_pool::BUFFER_BYTES;
    }

    /// Gives up the memory of a head that was taken off the buffer, whatever came behind it.
    pub(super) fn shrink_buffer(&mut self) {
        if self.read_buf.is_empty() {
            self.release_buffer();
        } else if self.read_buf.len() <= buffer_pool::BUFFER_BYTES {
            let mut copy = buffer_pool::acquire();
            copy.extend_from_slice(&self.read_buf);
            buffer_pool::release(std::mem::replace(&mut self.read_buf, copy));
        }
    }

    /// Ready when the client has gone away. What it sends ahead is kept for later, within bounds. While a body is on its
    /// way, its reader notices; while the request `waits` for something before that, the end is watched for behind the
    /// unread bytes.
    ///
    /// After FIN a client may have closed the connection, or have shut down its sending side alone and wait for the
    /// response (RFC 9112 section 9.6). Only a write tells them apart: a closed socket answers it with RST. So an interim
    /// response is sent, which every HTTP/1.1 client must take (RFC 9110 section 15.2), and the request goes on until RST
    /// comes. To HTTP/1.0 and behind the head of a response none `may_probe`; there FIN counts as closed, as in nginx.
    pub(super) fn poll_disconnected(
        &mut self,
        cx: &mut Context<'_>,
        may_probe: bool,
        waits: bool,
    ) -> Poll<()> {
        while !self.half_closed && self.framing == Framing::Done && self.read_buf.len() < MAX_READ_AHEAD_BYTES
        {
            match self.poll_read_buf(cx) {
                Poll::Ready(Ok(0)) if may_probe && self.probe(cx) => {}
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let is_unread = match self.framing {
            Framing::Done => self.read_buf.len() >= MAX_READ_AHEAD_BYTES,
            _ => self.body_unread,
        };
        if (self.half_closed || (waits && is_unread)) && self.poll_closed(cx, may_probe).is_ready() {
            return Poll::Ready(());
        }
        if self.framing != Framing::Done {
            self.disconnect_waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Ready when the socket says that the client has gone, whatever is unread.
    fn poll_closed(&mut self, cx: &mut Context<'_>, may_probe: bool) -> Poll<()> {
        if self.close_watch.is_none() {
            // Without a descriptor for it, the body's reader notices.
            self.close_watch = CloseWatch::new(&self.stream).ok();
        }
        let Some(watch) = &self.close_watch else { return Poll::Pending };
        if !self.half_closed {
            ready!(watch.poll_read_closed(cx));
            if !may_probe || !self.probe(cx) {
                return Poll::Ready(());
            }
        }
        self.close_watch.as_ref().map_or(Poll::Pending, |watch| watch.poll_write_closed(cx))
    }

    /// Writes to a client that has sent FIN; false where the client counts as gone.
    fn probe(&mut self, cx: &mut Context<'_>) -> bool {
        self.half_closed = self.send_continue(cx);
        self.half_closed
    }

    /// Sends an interim response; false where it cannot be sent as a whole.
    fn send_continue(&mut self, cx: &mut Context<'_>) -> bool {
        self.continue_pending = false;
        // A few bytes on a connection that has sent nothing since: they fit, or the client is none.
        let sent = Pin::new(&mut self.stream).poll_write(cx, CONTINUE_RESPONSE);
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
        matches!(sent, Poll::Ready(Ok(written)) if written == CONTINUE_RESPONSE.len())
    }

    /// Gives back what the buffer has beyond what is in it: a wait may be long, and thousands may wait. A buffer that has grown
    /// for a large body stays.
    pub(super) fn release_spare_capacity(&mut self) {
        let (used, capacity) = (self.read_buf.len(), self.read_buf.capacity());
        if capacity > 2 * buffer_pool::BUFFER_BYTES {
            return;
        }
        if used == 0 {
            buffer_pool::release(std::mem::take(&mut self.read_buf));
        } else if used <= MAX_COPIED_BYTES && capacity > 2 * MAX_COPIED_BYTES {
            let few = BytesMut::from(&self.read_buf[..]);
            buffer_pool::release(std::mem::replace(&mut self.read_buf, few));
        }
    }

    /// Nobody gets any more of the body that came.
    pub(super) fn finish_body(&mut self) {
        self.request_seq += 1;
        self.close_watch = None;
        if self.framing != Framing::Done
            && let Some(reader) = self.body_waker.take()
        {
            reader.wake();
        }
    }

    /// Throws away what is already here of a body that nobody reads. Whether that was all of it.
    pub(super) fn discard_buffered_body(&mut self) -> bool {
        while let Ok(BodyEvent::Data(_)) = self.framing.decode(&mut self.read_buf) {}
        self.framing == Framing::Done
    }

    /// The next piece of the request's body; `None` at its end.
    fn poll_body_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        self.body_unread = false;
        if !self.half_closed {
            self.close_watch = None;
        }
        loop {
            let step = self.framing.decode(&mut self.read_buf);
            if self.framing == Framing::Done
                && let Some(watcher) = self.disconnect_waker.take()
            {
                watcher.wake();
            }
            match step {
                Ok(BodyEvent::Data(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(BodyEvent::End) => return Poll::Ready(Ok(None)),
                Ok(BodyEvent::NeedMore) => {}
                Err(FramingError::ChunkOverhead) => return Poll::Ready(Err(BodySourceError::ChunkOverhead)),
                Err(_) => return Poll::Ready(Err(BodySourceError::Aborted)),
            }
            if self.continue_pending && !self.send_continue(cx) {
                return Poll::Ready(Err(BodySourceError::Aborted));
            }
            let Poll::Ready(filled) = self.poll_read_buf(cx) else {
                if !self.body_waker.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                    self.body_waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            };
            match filled {
                Ok(0) | Err(_) => return Poll::Ready(Err(BodySourceError::Aborted)),
                Ok(read) if read >= self.next_read_bytes => self.next_read_bytes = LARGE_READ_BYTES,
                // A client that is slow needs no more.
                Ok(read) if read < buffer_pool::BUFFER_BYTES => {
                    self.next_read_bytes = buffer_pool::BUFFER_BYTES
                }
                Ok(_) => {}
            }
        }
    }

    /// Writes once. Where it is the `last` that will be said, the stream must be shut down when it is written.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut WriteBuf,
        last: bool,
    ) -> Poll<io::Result<()>> {
        match last {
            true => out.poll_write(&mut FinalWrite(&mut self.stream), cx),
            false => out.poll_write(&mut self.stream, cx),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Reads on and throws away, until the client stops sending or a bound is reached.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        deadline: &mut Deadline,
        left: &mut u64,
    ) -> Poll<()> {
        let mut buffer = [0; 16 * 1024];
        while *left > 0 && deadline.poll_elapsed(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    *left = left.saturating_sub(buffer.filled().len() as u64);
                    wipe(buffer.filled_mut());
                }
                _ => break,
            }
        }
        Poll::Ready(())
    }

    /// Makes the connection end with a reset.
    pub(super) fn reset_on_close(&self) {
        if let Some(tcp) = self.stream.tcp() {
            let _ = tcp.set_zero_linger();
        }
    }
}

/// The body of the request that is being served.
pub(super) struct Http1IncomingBody {
    transport: Weak<RefCell<Shared>>,
    request_seq: u64,
    content_length: Option<u64>,
}

impl Http1IncomingBody {
    fn transport(&self) -> Option<Transport> {
        self.transport.upgrade().map(Transport)
    }
}

impl BodySource for Http1IncomingBody {
    fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        let Some(wire) = self.transport() else { return Poll::Ready(Err(BodySourceError::Aborted)) };
        let mut wire = wire.shared();
        if wire.request_seq != self.request_seq {
            return Poll::Ready(Err(BodySourceError::Aborted));
        }
        wire.poll_body_chunk(cx)
    }

    fn is_ended(&self) -> bool {
        self.transport().is_some_and(|wire| {
            let wire = wire.shared();
            wire.request_seq == self.request_seq && wire.framing == Framing::Done
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;

    fn next_chunk(
        body: &mut Http1IncomingBody,
    ) -> impl Future<Output = Result<Option<Bytes>, BodySourceError>> {
        poll_fn(|cx| body.poll_chunk(cx))
    }

    #[tokio::test]
    async fn body_reader_of_finished_request_gets_no_later_bytes() {
        let (mut client, ours) = UnixStream::pair().expect("a pair");
        let wire = Transport::new(Stream::Unix(ours));
        wire.shared().framing = Framing::Length(6);
        let mut first = wire.incoming_body(Some(6));
        client.write_all(b"onetwo").await.expect("it is taken");
        assert_eq!(next_chunk(&mut first).await, Ok(Some(Bytes::from_static(b"onetwo"))));

        wire.shared().finish_body();
        wire.shared().framing = Framing::Length(5);
        let mut second = wire.incoming_body(Some(5));
        client.write_all(b"three").await.expect("it is taken");
        assert_eq!((next_chunk(&mut first).await, first.is_ended()), (Err(BodySourceError::Aborted), false));
        assert_eq!(next_chunk(&mut second).await, Ok(Some(Bytes::from_static(b"three"))));
        assert!(second.is_ended());
    }

    #[tokio::test]
    async fn body_reader_does_not_keep_connection_open() {
        let (mut client, ours) = UnixStream::pair().expect("a pair");
        let wire = Transport::new(Stream::Unix(ours));
        wire.shared().framing = Framing::Length(6);
        let mut body = wire.incoming_body(Some(6));
        drop(wire);
        assert_eq!(client.read(&mut [0; 1]).await.expect("the end"), 0);
        assert_eq!(next_chunk(&mut body).await, Err(BodySourceError::Aborted));
    }
}
