//! An HTTP/2 client's byte stream with the deadlines that hyper leaves to us.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{super::Timeouts, link::Link, staged::Staged};
use crate::{deadline::Deadline, io::Stream};

/// A client's byte stream with its deadlines.
pub(super) struct ClientStream {
    stream: Stream,
    link: Link,
    timeouts: Timeouts,
    /// What was read and is still to be handed to hyper.
    staged: Staged,
    /// hyper is to answer what it has before it gets more.
    pauses: bool,
    reading: Deadline,
    /// A head has begun and not ended.
    head: Deadline,
    writing: Deadline,
}

impl ClientStream {
    pub(super) fn new(stream: Stream, first: BytesMut, link: Link, timeouts: Timeouts) -> Self {
        let (reading, head, writing) = (Deadline::idle(), Deadline::idle(), Deadline::idle());
        let staged = Staged::new(first);
        Self { stream, link, timeouts, staged, pauses: false, reading, head, writing }
    }

    /// Takes notice of what was read.
    fn notice(&mut self, within_head: bool) {
        match within_head {
            true => self.head.set_if_idle(self.timeouts.head),
            false => self.head.clear(),
        }
    }

    /// Hands over what has been read, as long as no request was authorized: one head at a time, whole, and nothing while
    /// the client does not take what is written. What hyper makes of it is then gone before there is more.
    fn poll_staged(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.pauses) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.link.is_spent() {
            self.staged.clear();
            return Poll::Pending;
        }
        if self.link.is_stuck() {
            return Poll::Pending;
        }
        loop {
            let is_ready = self.staged.advance();
            self.notice(self.staged.is_within_head());
            if is_ready {
                self.staged.hand_over(buf);
                self.pauses = true;
                if self.staged.has_spent_its_heads() {
                    self.link.spend();
                    cx.waker().wake_by_ref();
                }
                return Poll::Ready(Ok(()));
            }
            if ready!(self.staged.poll_fill(&mut self.stream, cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads what is there, or has been read before.
    fn poll_read_now(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.link.is_authorized() {
            return self.poll_staged(cx, buf);
        }
        let before = buf.filled().len();
        if !self.staged.is_empty() {
            self.staged.hand_over_all(buf);
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            self.staged.follow(&buf.filled()[before..]);
        }
        self.notice(self.staged.is_within_head());
        Poll::Ready(Ok(()))
    }

    /// Whether there was no request for too long. What comes between two requests is no head: it may be a ping or a
    /// window.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let busy = self.link.is_busy();
            if busy {
                // Nobody calls when the request is done: the timer looks again, and then knows since when it is quiet.
                self.reading.set(self.timeouts.idle);
            } else {
                self.reading.set_after(self.link.quiet_since(), self.timeouts.idle);
            }
            ready!(self.reading.poll_passed(cx));
            if !busy {
                return Poll::Ready(());
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(read) = this.poll_read_now(cx, buf) {
            return Poll::Ready(read);
        }
        if this.head.poll_passed(cx).is_pending() {
            ready!(this.poll_idle(cx));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl ClientStream {
    /// Turns a write that stays pending for too long into an error.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.link.is_stuck() {
                // It is read on from the client.
                cx.waker().wake_by_ref();
            }
            self.link.set_stuck(false);
            self.writing.clear();
            return written;
        }
        self.link.set_stuck(true);
        self.writing.set_if_idle(self.timeouts.stall(self.link.seat()));
        ready!(self.writing.poll_passed(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(cx, shut)
    }
}
