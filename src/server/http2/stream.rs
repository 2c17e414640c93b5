//! An HTTP/2 client's byte stream with the deadlines that hyper leaves to us.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::{PREFACE, Timeouts},
    link::Link,
};
use crate::{deadline::Deadline, io::Stream};

/// A client's byte stream with its deadlines.
pub(super) struct ClientStream {
    stream: Stream,
    link: Link,
    timeouts: Timeouts,
    /// Read while finding out the protocol, and still to be handed to hyper.
    first: BytesMut,
    heads: Heads,
    reading: Deadline,
    /// A head has begun and not ended.
    head: Deadline,
    writing: Deadline,
}

impl ClientStream {
    pub(super) fn new(stream: Stream, first: BytesMut, link: Link, timeouts: Timeouts) -> Self {
        let (reading, head, writing) = (Deadline::idle(), Deadline::idle(), Deadline::idle());
        Self { stream, link, timeouts, first, heads: Heads::default(), reading, head, writing }
    }

    /// Takes notice of what was read.
    fn notice(&mut self, bytes: &[u8]) {
        match self.heads.is_within_after(bytes) {
            true => self.head.set_if_idle(self.timeouts.head),
            false => self.head.clear(),
        }
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
        let before = buf.filled().len();
        if !this.first.is_empty() {
            let taken = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first[..taken]);
            this.first.advance(taken);
            this.notice(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            this.notice(&buf.filled()[before..]);
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
        self.link.set_stuck(written.is_pending());
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

/// Bytes before a frame's payload.
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows a client's frames, as far as it takes to know whether a request's head has begun and not ended. hyper has no
/// bound on that time.
#[derive(Debug)]
struct Heads {
    /// What is still to come of the preface, or of the current frame's payload.
    skip: usize,
    /// The next frame's head, as far as it has come.
    next: [u8; FRAME_HEAD],
    have: usize,
    /// The current frame is of a head that goes on behind it.
    goes_on: bool,
    /// The current frame is of a head.
    within: bool,
}

impl Default for Heads {
    fn default() -> Self {
        Self { skip: PREFACE.len(), next: [0; FRAME_HEAD], have: 0, goes_on: false, within: false }
    }
}

impl Heads {
    /// Whether a head has begun and not ended, once these bytes have come too.
    fn is_within_after(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            (self.skip, bytes) = (self.skip - skipped, &bytes[skipped..]);
            if self.skip > 0 {
                return self.within;
            }
            self.within = self.goes_on;
            let Some((first, rest)) = bytes.split_first() else { return self.within };
            (self.next[self.have], bytes) = (*first, rest);
            self.have += 1;
            if self.have == FRAME_HEAD {
                self.have = 0;
                let [long, middle, short, kind, flags, ..] = self.next;
                self.skip = u32::from_be_bytes([0, long, middle, short]) as usize;
                self.within = matches!(kind, HEADERS | CONTINUATION);
                self.goes_on = self.within && flags & END_HEADERS == 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], &vec![1; usize::from(length)][..]].concat()
    }

    #[test]
    fn a_head_is_followed_from_its_first_frame_to_its_last() {
        let wire = [
            (PREFACE.to_vec(), false),
            (frame(4, 0, 6), false),
            (frame(HEADERS, END_HEADERS, 20), false),
            (frame(0, 4, 9), false),
            (frame(HEADERS, 0, 5), true),
            (frame(CONTINUATION, 0, 0), true),
            (frame(CONTINUATION, END_HEADERS, 3), false),
            (frame(HEADERS, END_HEADERS, 0), false),
        ];
        let (mut whole, mut by_byte) = (Heads::default(), Heads::default());
        for (nth, (bytes, within)) in wire.iter().enumerate() {
            assert_eq!(whole.is_within_after(bytes), *within, "{nth}");
            let last = bytes.iter().map(|byte| by_byte.is_within_after(&[*byte])).last();
            assert_eq!(last, Some(*within), "{nth}");
        }
        assert!(!whole.is_within_after(&frame(HEADERS, END_HEADERS, 2)[..5]));
        assert!(whole.is_within_after(&frame(HEADERS, END_HEADERS, 2)[5..10]));
        assert!(!whole.is_within_after(&[1]));
    }
}
