//! Byte stream of one HTTP/1 connection, and the request bodies read from it.

use std::{
    cell::{RefCell, RefMut},
    io,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::disconnect::DisconnectWatch;
use crate::{
    http1::{
        buffer_pool,
        framing::{BodyEvent, Framing, FramingError},
        io::{FinalWrite, RegisteredWaker, Stream},
        write_buf::WriteBuf,
    },
    request_body::BodySourceError,
    secret::wipe,
    time::deadline::Deadline,
};

/// Maximum bytes buffered behind the request that is being handled (pipelined requests).
const MAX_READ_AHEAD_BYTES: usize = buffer_pool::BUFFER_BYTES;
/// Up to this size bytes are copied, so that the pool gets the buffer back.
const MAX_COPIED_BYTES: usize = buffer_pool::BUFFER_BYTES / 4;
/// Size of the reads of a large body.
const LARGE_READ_BYTES: usize = buffer_pool::LARGE_BUFFER_BYTES;
/// A body that has brought less than this since it last waited is slow: its buffer is released while it waits. A fast one
/// keeps it if bytes in it are still in use, as over HTTP/2: else another would be allocated for each read.
const SLOW_BODY_BYTES: u32 = 64 * 1024;
/// Interim response to `Expect: 100-continue` (RFC 9110 §15.2.1).
const CONTINUE_RESPONSE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The stream, shared by the connection's task and the reader of the request body. It is never borrowed across an
/// await.
pub(super) struct Transport(Rc<RefCell<TransportState>>);

/// See [`Transport::downgrade`].
pub(super) type WeakTransport = Weak<RefCell<TransportState>>;

/// The state that the task and the body reader share.
pub(super) struct TransportState {
    stream: Stream,
    /// Bytes read and not consumed. Owns no memory between two requests.
    pub(super) read_buf: BytesMut,
    /// Framing of the rest of the request body.
    pub(super) framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) continue_pending: bool,
    /// Number of the request whose body is being read: a reader of an earlier request may still exist and must get
    /// nothing of it.
    pub(super) request_seq: u64,
    next_read_bytes: usize,
    /// Bytes of the body since its reader last waited.
    received_since_wait: u32,
    read_waker: RegisteredWaker,
    /// Waker of the connection's task, called when the body has ended: from then on that task reads, and so notices a
    /// disconnect.
    body_end_waker: Option<Waker>,
    /// The body's reader has not asked for a chunk yet.
    pub(super) body_not_polled: bool,
    /// The end of the stream was read behind a complete request.
    fin_read: bool,
    /// Belongs to the current request.
    pub(super) disconnect_watch: Option<Box<DisconnectWatch>>,
    /// Waker of the task that waits for body bytes. `finish_body` calls it, because the connection's task then
    /// reads, and the stream keeps only the waker registered last.
    body_waker: Option<Waker>,
}

impl Transport {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Rc::new(RefCell::new(TransportState {
            stream,
            read_buf: BytesMut::new(),
            framing: Framing::Done,
            continue_pending: false,
            request_seq: 0,
            next_read_bytes: buffer_pool::BUFFER_BYTES,
            received_since_wait: 0,
            read_waker: RegisteredWaker::default(),
            body_end_waker: None,
            body_not_polled: false,
            fin_read: false,
            disconnect_watch: None,
            body_waker: None,
        })))
    }

    pub(super) fn state(&self) -> RefMut<'_, TransportState> {
        self.0.borrow_mut()
    }

    /// What a body reader has, so that it does not keep the connection open.
    pub(super) fn downgrade(&self) -> WeakTransport {
        Rc::downgrade(&self.0)
    }

    /// The transport of a body reader, unless the connection has ended.
    pub(super) fn upgrade(weak: &WeakTransport) -> Option<Self> {
        weak.upgrade().map(Self)
    }

    /// Whether a body reader exists.
    pub(super) fn has_body_reader(&self) -> bool {
        Rc::weak_count(&self.0) > 0
    }

    /// The stream and its unconsumed bytes, for another protocol.
    pub(super) fn into_parts(self) -> Option<(Stream, BytesMut)> {
        let state = Rc::into_inner(self.0)?.into_inner();
        Some((state.stream, state.read_buf))
    }
}

impl TransportState {
    /// The byte stream.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// See [`Stream::read_ahead`].
    pub(super) fn read_ahead(&mut self) {
        self.stream.read_ahead();
    }

    /// Reads once into the buffer; 0 is the end of the stream.
    pub(super) fn poll_read_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Reads only what the spare capacity holds, unless that is small: a pipelined request needs no second buffer.
        let spare = self.read_buf.capacity() - self.read_buf.len();
        let max_bytes = if spare < self.next_read_bytes / 8 {
            self.next_read_bytes
        } else {
            spare.min(self.next_read_bytes)
        };
        if max_bytes > spare && self.framing == Framing::Done && !self.read_buf.is_empty() {
            self.grow_read_buf(max_bytes);
        }
        if max_bytes >= LARGE_READ_BYTES && self.read_buf.capacity() == 0 {
            self.read_buf = buffer_pool::acquire_large();
        }
        self.stream.poll_read_buf(cx, &mut self.read_buf, max_bytes, &mut self.read_waker)
    }

    /// Moves a partial head to a buffer with `more` spare bytes. `BytesMut` growing by itself would leave an unwiped
    /// copy behind.
    fn grow_read_buf(&mut self, more: usize) {
        let mut moved = BytesMut::with_capacity((self.read_buf.len() + more).max(buffer_pool::BUFFER_BYTES));
        moved.extend_from_slice(&self.read_buf);
        wipe(&mut self.read_buf);
        buffer_pool::release(std::mem::replace(&mut self.read_buf, moved));
    }

    /// Returns the buffer to the pool and wipes unconsumed bytes, which may be a partial head.
    pub(super) fn release_buffer(&mut self) {
        wipe(&mut self.read_buf);
        buffer_pool::release(std::mem::take(&mut self.read_buf));
        self.next_read_bytes = buffer_pool::BUFFER_BYTES;
    }

    /// Releases the memory of a head that was taken off the buffer, and keeps the bytes behind it.
    pub(super) fn shrink_buffer(&mut self) {
        if self.read_buf.is_empty() {
            self.release_buffer();
        } else if self.read_buf.len() <= buffer_pool::BUFFER_BYTES {
            let mut copy = buffer_pool::acquire();
            copy.extend_from_slice(&self.read_buf);
            buffer_pool::release(std::mem::replace(&mut self.read_buf, copy));
        }
    }

    /// Ready when the client has disconnected. Bytes that it sends ahead are buffered, up to a bound. While a body is
    /// being read, its reader notices the end; while the request waits (`is_waiting`) before that, the end is detected
    /// behind the unread bytes.
    ///
    /// FIN after a complete request ends only the client's sending (RFC 9112 §9.6): the response is still written,
    /// unless the request then waits longer than [`DisconnectWatch`] allows. A client that has closed its socket
    /// replies to the response with RST, which is a disconnect, as any read error is.
    pub(super) fn poll_disconnected(&mut self, cx: &mut Context<'_>, is_waiting: bool) -> Poll<()> {
        if self.poll_read_ahead(cx).is_ready() {
            return Poll::Ready(());
        }
        let is_unread = match self.framing {
            Framing::Done => self.read_buf.len() >= MAX_READ_AHEAD_BYTES,
            _ => self.body_not_polled,
        };
        if self.fin_read || (is_waiting && is_unread) {
            let watch = self.disconnect_watch.get_or_insert_default();
            if watch.poll(cx, &self.stream, self.fin_read, is_waiting).is_ready() {
                return Poll::Ready(());
            }
        }
        if self.framing != Framing::Done {
            self.body_end_waker = Some(cx.waker().clone());
        } else if self.read_buf.capacity() > 2 * buffer_pool::BUFFER_BYTES {
            // The response may take long.
            self.release_body_buffer();
        }
        Poll::Pending
    }

    /// Buffers bytes behind a complete request, up to a bound. Ready when reading fails.
    pub(super) fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.fin_read && self.framing == Framing::Done && self.read_buf.len() < MAX_READ_AHEAD_BYTES {
            match self.poll_read_buf(cx) {
                Poll::Ready(Ok(read)) => self.fin_read = read == 0,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Whether no further request can come: FIN and everything before it was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.fin_read && self.read_buf.is_empty()
    }

    /// Sends `100 Continue`; false if it cannot be written completely.
    fn send_continue(&mut self, cx: &mut Context<'_>) -> bool {
        self.continue_pending = false;
        // 25 bytes fit into the send buffer unless the client reads nothing; then its request is aborted.
        let sent = Pin::new(&mut self.stream).poll_write(cx, CONTINUE_RESPONSE);
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
        matches!(sent, Poll::Ready(Ok(written)) if written == CONTINUE_RESPONSE.len())
    }

    /// Releases spare capacity before a wait that may be long and that thousands of connections may share.
    pub(super) fn release_spare_capacity(&mut self) {
        let (used, capacity) = (self.read_buf.len(), self.read_buf.capacity());
        let is_large = capacity > 2 * buffer_pool::BUFFER_BYTES;
        let release = if is_large { buffer_pool::release_large } else { buffer_pool::release };
        if used == 0 {
            release(std::mem::take(&mut self.read_buf));
        } else if used <= MAX_COPIED_BYTES && capacity > 2 * MAX_COPIED_BYTES {
            let copy = BytesMut::from(&self.read_buf[..]);
            let mut copied = std::mem::replace(&mut self.read_buf, copy);
            // It may be the head of the next request, with a key.
            wipe(&mut copied);
            release(copied);
        }
    }

    /// Releases the buffer of a body that waits or has ended, unless it was fast and bytes of it are still in use.
    pub(super) fn release_body_buffer(&mut self) {
        let is_slow = std::mem::take(&mut self.received_since_wait) < SLOW_BODY_BYTES;
        // Only of an empty buffer: bytes of the next head would be moved, and stay in their old place too.
        if is_slow || self.read_buf.is_empty() && self.read_buf.try_reclaim(LARGE_READ_BYTES) {
            self.release_spare_capacity();
        }
    }

    /// Ends the current body: its reader gets no more bytes.
    pub(super) fn finish_body(&mut self) {
        self.request_seq += 1;
        if self.framing != Framing::Done
            && let Some(waker) = self.body_waker.take()
        {
            waker.wake();
        }
    }

    /// Discards the buffered bytes of an unread body; returns whether that was all of it.
    pub(super) fn discard_buffered_body(&mut self) -> bool {
        while let Ok(BodyEvent::Data(_)) = self.framing.decode(&mut self.read_buf) {}
        self.framing == Framing::Done
    }

    /// The next chunk of the request body; `None` at its end.
    pub(super) fn poll_body_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        self.body_not_polled = false;
        if !self.fin_read {
            self.disconnect_watch = None;
        }
        loop {
            let event = self.framing.decode(&mut self.read_buf);
            if self.framing == Framing::Done {
                self.next_read_bytes = buffer_pool::BUFFER_BYTES;
                self.body_end_waker.take().into_iter().for_each(Waker::wake);
            }
            match event {
                Ok(BodyEvent::Data(chunk)) => return Poll::Ready(Ok(Some(chunk))),
                Ok(BodyEvent::End) => return Poll::Ready(Ok(None)),
                Ok(BodyEvent::NeedMore) => {}
                Err(FramingError::ChunkOverhead) => return Poll::Ready(Err(BodySourceError::ChunkOverhead)),
                Err(_) => return Poll::Ready(Err(BodySourceError::Aborted)),
            }
            if self.continue_pending && !self.send_continue(cx) {
                return Poll::Ready(Err(BodySourceError::Aborted));
            }
            let Poll::Ready(filled) = self.poll_read_buf(cx) else {
                self.release_body_buffer();
                if !self.body_waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    self.body_waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            };
            let received = *filled.as_ref().unwrap_or(&0);
            self.received_since_wait = self.received_since_wait.saturating_add(received as u32);
            match filled {
                Ok(0) | Err(_) => return Poll::Ready(Err(BodySourceError::Aborted)),
                // A read into the rest of a buffer may be smaller and yet have left bytes in the socket.
                Ok(read)
                    if read >= self.next_read_bytes || self.read_buf.len() == self.read_buf.capacity() =>
                {
                    self.next_read_bytes = LARGE_READ_BYTES;
                }
                // A slow client does not fill a larger read.
                Ok(read) if read < buffer_pool::BUFFER_BYTES => {
                    self.next_read_bytes = buffer_pool::BUFFER_BYTES
                }
                Ok(_) => {}
            }
        }
    }

    /// Writes once. After the final write (`is_final`) the stream must be shut down.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        write_buf: &mut WriteBuf,
        is_final: bool,
    ) -> Poll<io::Result<()>> {
        match is_final {
            true => write_buf.poll_write(&mut FinalWrite(&mut self.stream), cx),
            false => write_buf.poll_write(&mut self.stream, cx),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Reads and discards until the client stops sending or a bound is reached.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        deadline: &mut Deadline,
        remaining_bytes: &mut u64,
    ) -> Poll<()> {
        let mut buffer = [0; 16 * 1024];
        while *remaining_bytes > 0 && deadline.poll_elapsed(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    *remaining_bytes = remaining_bytes.saturating_sub(buffer.filled().len() as u64);
                    wipe(buffer.filled_mut());
                }
                _ => break,
            }
        }
        Poll::Ready(())
    }

    /// Makes the close of the connection a reset.
    pub(super) fn reset_on_close(&self) {
        if let Some(tcp) = self.stream.tcp() {
            let _ = tcp.set_zero_linger();
        }
    }
}

#[cfg(test)]
mod tests;
