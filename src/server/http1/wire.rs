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
    buffers,
    deadline::Deadline,
    framing::{Framing, FramingError, Step},
    io::{Caller, CloseWatch, LastWord, Stream},
    outbox::Outbox,
    secret::wipe,
    upload::{Cut, Source},
};

/// How much a client may send ahead while its request is served.
const MOST_AHEAD: usize = buffers::SIZE;
/// So few bytes are copied rather than keep a buffer that others can use.
const FEW: usize = buffers::SIZE / 4;
/// Reads of a body that proved to be large.
const LARGE_READ: usize = 512 * 1024;
/// What a client is told that waits with its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The stream, shared by the task that talks over it and the body that is read from it. Nobody holds it while others run.
pub(super) struct Wire(Rc<RefCell<Inner>>);

/// What they share.
pub(super) struct Inner {
    stream: Stream,
    /// What was read and not yet used. Between two requests it has no memory of its own.
    pub(super) inbound: BytesMut,
    /// What is still to come of the request's body.
    pub(super) framing: Framing,
    /// The client waits for a word before it sends the body.
    pub(super) continue_due: bool,
    /// Whose body it is that comes: a reader of an earlier request's may still be there, and must get nothing of it.
    request: u64,
    next_read: usize,
    caller: Caller,
    /// Who wants to know when the client leaves, and cannot look while another task reads the body.
    watcher: Option<Waker>,
    /// Nobody has read any of the body yet.
    pub(super) body_unread: bool,
    /// The client has sent its last byte, and a write was to show whether it still reads.
    half_closed: bool,
    close_watch: Option<CloseWatch>,
    /// Who waits for more of the body. Nothing else tells that task when there will be no more: what the runtime called it
    /// by goes with the stream.
    reader: Option<Waker>,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            stream,
            inbound: BytesMut::new(),
            framing: Framing::Done,
            continue_due: false,
            request: 0,
            next_read: buffers::SIZE,
            caller: Caller::default(),
            watcher: None,
            body_unread: false,
            half_closed: false,
            close_watch: None,
            reader: None,
        })))
    }

    pub(super) fn inner(&self) -> RefMut<'_, Inner> {
        self.0.borrow_mut()
    }

    /// The body of the request that begins now. It does not keep the connection open.
    pub(super) fn body(&self, declared: Option<u64>) -> WireBody {
        WireBody { wire: Rc::downgrade(&self.0), request: self.inner().request, declared }
    }

    /// Whether somebody may still read a body from it.
    pub(super) fn has_reader(&self) -> bool {
        Rc::weak_count(&self.0) > 0
    }

    /// The stream and what was read from it, for another protocol.
    pub(super) fn into_parts(self) -> Option<(Stream, BytesMut)> {
        let inner = Rc::into_inner(self.0)?.into_inner();
        Some((inner.stream, inner.inbound))
    }
}

impl Inner {
    /// The byte stream itself.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Reads once into the buffer; 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Not more than there is room for, as long as that is something: a pipelined request needs no second buffer.
        let room = self.inbound.capacity() - self.inbound.len();
        let most = if room < self.next_read / 8 { self.next_read } else { room.min(self.next_read) };
        if most > room && self.framing == Framing::Done && !self.inbound.is_empty() {
            self.move_inbound(most);
        }
        self.stream.poll_fill(cx, &mut self.inbound, most, &mut self.caller)
    }

    /// Moves a part of a head to a buffer with room for so much more. By itself the buffer would leave an unwiped copy where
    /// it was.
    fn move_inbound(&mut self, more: usize) {
        let mut moved = BytesMut::with_capacity((self.inbound.len() + more).max(buffers::SIZE));
        moved.extend_from_slice(&self.inbound);
        wipe(&mut self.inbound);
        buffers::give(std::mem::replace(&mut self.inbound, moved));
    }

    /// Gives the buffer back. What was not used of it is wiped: it may be half a head.
    pub(super) fn let_go(&mut self) {
        wipe(&mut self.inbound);
        buffers::give(std::mem::take(&mut self.inbound));
        self.next_read = buffers::SIZE;
    }

    /// Gives up the memory of a head that was taken off the buffer, whatever came behind it.
    pub(super) fn shrink(&mut self) {
        if self.inbound.is_empty() {
            self.let_go();
        } else if self.inbound.len() <= buffers::SIZE {
            let mut copy = buffers::take();
            copy.extend_from_slice(&self.inbound);
            buffers::give(std::mem::replace(&mut self.inbound, copy));
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
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>, may_probe: bool, waits: bool) -> Poll<()> {
        while !self.half_closed && self.framing == Framing::Done && self.inbound.len() < MOST_AHEAD {
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) if may_probe && self.probe(cx) => {}
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let is_unread = match self.framing {
            Framing::Done => self.inbound.len() >= MOST_AHEAD,
            _ => self.body_unread,
        };
        if (self.half_closed || (waits && is_unread)) && self.poll_closed(cx, may_probe).is_ready() {
            return Poll::Ready(());
        }
        if self.framing != Framing::Done {
            self.watcher = Some(cx.waker().clone());
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
        self.continue_due = false;
        // A few bytes on a connection that has sent nothing since: they fit, or the client is none.
        let sent = Pin::new(&mut self.stream).poll_write(cx, CONTINUE);
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
        matches!(sent, Poll::Ready(Ok(written)) if written == CONTINUE.len())
    }

    /// Gives back what the buffer has beyond what is in it: a wait may be long, and thousands may wait. A buffer that has grown
    /// for a large body stays.
    pub(super) fn release_unused(&mut self) {
        let (used, capacity) = (self.inbound.len(), self.inbound.capacity());
        if capacity > 2 * buffers::SIZE {
            return;
        }
        if used == 0 {
            buffers::give(std::mem::take(&mut self.inbound));
        } else if used <= FEW && capacity > 2 * FEW {
            let few = BytesMut::from(&self.inbound[..]);
            buffers::give(std::mem::replace(&mut self.inbound, few));
        }
    }

    /// Nobody gets any more of the body that came.
    pub(super) fn end_body(&mut self) {
        self.request += 1;
        self.close_watch = None;
        if self.framing != Framing::Done
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }

    /// Throws away what is already here of a body that nobody reads. Whether that was all of it.
    pub(super) fn discard_body(&mut self) -> bool {
        while let Ok(Step::Data(_)) = self.framing.step(&mut self.inbound) {}
        self.framing == Framing::Done
    }

    /// The next piece of the request's body; `None` at its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        self.body_unread = false;
        if !self.half_closed {
            self.close_watch = None;
        }
        loop {
            let step = self.framing.step(&mut self.inbound);
            if self.framing == Framing::Done
                && let Some(watcher) = self.watcher.take()
            {
                watcher.wake();
            }
            match step {
                Ok(Step::Data(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(Step::End) => return Poll::Ready(Ok(None)),
                Ok(Step::Starved) => {}
                Err(FramingError::Overhead) => return Poll::Ready(Err(Cut::Overhead)),
                Err(_) => return Poll::Ready(Err(Cut::Broken)),
            }
            if self.continue_due && !self.send_continue(cx) {
                return Poll::Ready(Err(Cut::Broken));
            }
            let Poll::Ready(filled) = self.poll_fill(cx) else {
                if !self.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                    self.reader = Some(cx.waker().clone());
                }
                return Poll::Pending;
            };
            match filled {
                Ok(0) | Err(_) => return Poll::Ready(Err(Cut::Broken)),
                Ok(read) if read >= self.next_read => self.next_read = LARGE_READ,
                // A client that is slow needs no more.
                Ok(read) if read < buffers::SIZE => self.next_read = buffers::SIZE,
                Ok(_) => {}
            }
        }
    }

    /// Writes once. Where it is the `last` that will be said, the stream must be shut down when it is written.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outbox,
        last: bool,
    ) -> Poll<io::Result<()>> {
        match last {
            true => out.poll_write(&mut LastWord(&mut self.stream), cx),
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
        while *left > 0 && deadline.poll_passed(cx).is_pending() {
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
    pub(super) fn sever(&self) {
        if let Some(tcp) = self.stream.tcp() {
            let _ = tcp.set_zero_linger();
        }
    }
}

/// The body of the request that is being served.
pub(super) struct WireBody {
    wire: Weak<RefCell<Inner>>,
    request: u64,
    declared: Option<u64>,
}

impl WireBody {
    fn wire(&self) -> Option<Wire> {
        self.wire.upgrade().map(Wire)
    }
}

impl Source for WireBody {
    fn declared(&self) -> Option<u64> {
        self.declared
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        let Some(wire) = self.wire() else { return Poll::Ready(Err(Cut::Broken)) };
        let mut wire = wire.inner();
        if wire.request != self.request {
            return Poll::Ready(Err(Cut::Broken));
        }
        wire.poll_body(cx)
    }

    fn is_ended(&self) -> bool {
        self.wire().is_some_and(|wire| {
            let wire = wire.inner();
            wire.request == self.request && wire.framing == Framing::Done
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

    fn piece(body: &mut WireBody) -> impl Future<Output = Result<Option<Bytes>, Cut>> {
        poll_fn(|cx| body.poll_piece(cx))
    }

    #[tokio::test]
    async fn a_reader_that_outlives_its_request_gets_nothing_of_the_next() {
        let (mut client, ours) = UnixStream::pair().expect("a pair");
        let wire = Wire::new(Stream::Unix(ours));
        wire.inner().framing = Framing::Length(6);
        let mut first = wire.body(Some(6));
        client.write_all(b"onetwo").await.expect("it is taken");
        assert_eq!(piece(&mut first).await, Ok(Some(Bytes::from_static(b"onetwo"))));

        wire.inner().end_body();
        wire.inner().framing = Framing::Length(5);
        let mut second = wire.body(Some(5));
        client.write_all(b"three").await.expect("it is taken");
        assert_eq!((piece(&mut first).await, first.is_ended()), (Err(Cut::Broken), false));
        assert_eq!(piece(&mut second).await, Ok(Some(Bytes::from_static(b"three"))));
        assert!(second.is_ended());
    }

    #[tokio::test]
    async fn a_reader_does_not_keep_the_connection_open() {
        let (mut client, ours) = UnixStream::pair().expect("a pair");
        let wire = Wire::new(Stream::Unix(ours));
        wire.inner().framing = Framing::Length(6);
        let mut body = wire.body(Some(6));
        drop(wire);
        assert_eq!(client.read(&mut [0; 1]).await.expect("the end"), 0);
        assert_eq!(piece(&mut body).await, Err(Cut::Broken));
    }
}
