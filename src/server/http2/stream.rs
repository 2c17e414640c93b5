//! An HTTP/2 client's byte stream with the deadlines that hyper leaves to us.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{super::Timeouts, link::Link};
use crate::{deadline::Deadline, io::Stream};

/// A client's byte stream with its deadlines.
pub(super) struct ClientStream {
    stream: Stream,
    link: Link,
    timeouts: Timeouts,
    /// Read while finding out the protocol, and still to be handed to hyper.
    first: BytesMut,
    reading: Deadline,
    writing: Deadline,
}

impl ClientStream {
    pub(super) fn new(stream: Stream, first: BytesMut, link: Link, timeouts: Timeouts) -> Self {
        Self { stream, link, timeouts, first, reading: Deadline::idle(), writing: Deadline::idle() }
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
        if !this.first.is_empty() {
            let taken = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first[..taken]);
            this.first.advance(taken);
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            return Poll::Ready(read);
        }
        ready!(this.poll_idle(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl ClientStream {
    /// Turns a write that stays pending for too long into an error.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.writing.clear();
            return written;
        }
        self.writing.set_if_idle(self.timeouts.stall);
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
