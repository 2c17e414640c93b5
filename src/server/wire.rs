//! One client's byte stream: the deadlines that hyper leaves to us, and a close that loses no answer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::{
    deadline::Deadline,
    io::Stream,
    link::{LINGER, LINGER_BYTES, Link},
};

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From a head's first byte to its last; the TLS handshake too.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// To take the next bytes of an answer.
    pub stall: Duration,
}

/// A client's byte stream with its deadlines.
pub(super) struct ClientStream {
    stream: Stream,
    link: Link,
    timeouts: Timeouts,
    /// Read while finding out the protocol, and still to be handed to hyper.
    first: Vec<u8>,
    first_taken: usize,
    /// Requests that were begun when last looked.
    begun: u32,
    in_head: bool,
    /// What comes over HTTP/2 between two requests is no head: it may be a ping or a window.
    http2: bool,
    reading: Deadline,
    writing: Deadline,
    lingering: Deadline,
    shut: bool,
    lingered: u64,
}

impl ClientStream {
    pub(super) fn new(stream: Stream, link: Link, timeouts: Timeouts) -> Self {
        Self {
            stream,
            link,
            timeouts,
            first: Vec::new(),
            first_taken: 0,
            begun: 0,
            in_head: false,
            http2: false,
            reading: Deadline::idle(),
            writing: Deadline::idle(),
            lingering: Deadline::idle(),
            shut: false,
            lingered: 0,
        }
    }

    /// Whether the client's first bytes are `preface`. What was read to find out is read again by hyper.
    pub(super) async fn begins_with(&mut self, preface: &[u8]) -> io::Result<bool> {
        let mut buffer = [0; 1024];
        let first = self.stream.read(&mut buffer).await?;
        self.first.extend_from_slice(&buffer[..first]);
        self.in_head = first > 0;
        let head = self.timeouts.head;
        let rest = async {
            while !self.first.is_empty()
                && self.first.len() < preface.len()
                && preface.starts_with(&self.first)
            {
                let read = self.stream.read(&mut buffer).await?;
                self.first.extend_from_slice(&buffer[..read]);
                if read == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
            }
            io::Result::Ok(())
        };
        tokio::time::timeout(head, rest).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(self.first.starts_with(preface))
    }

    /// Says that the client speaks HTTP/2.
    pub(super) fn speak_http2(&mut self) {
        (self.http2, self.in_head) = (true, false);
    }

    /// Whether a request is being served. A head that has become a request is over, also where it was served between
    /// two looks.
    fn is_busy(&mut self) -> bool {
        let (busy, begun) = (self.link.is_busy(), self.link.begun());
        if busy || begun != self.begun {
            (self.begun, self.in_head) = (begun, false);
            self.reading.clear();
        }
        busy
    }

    /// Whether the client has taken too long over its next head, or over beginning one.
    fn poll_head_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let busy = self.is_busy();
            if busy {
                // Nobody calls when the request is done: the timer looks again, and then knows since when it is quiet.
                self.reading.set(self.timeouts.idle);
            } else if self.in_head {
                self.reading.set_if_idle(self.timeouts.head);
            } else {
                self.reading.set_after(self.link.quiet_since(), self.timeouts.idle);
            }
            ready!(self.reading.poll_passed(cx));
            if !busy {
                return Poll::Ready(());
            }
        }
    }

    /// Reads on after the last answer until the client stops sending, so that the answer is not lost in a reset.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.lingering.set_if_idle(LINGER);
        let mut buffer = [0; 16 * 1024];
        while self.lingered < LINGER_BYTES && self.lingering.poll_passed(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.lingered += buffer.filled().len() as u64,
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.first_taken < this.first.len() {
            let rest = &this.first[this.first_taken..];
            let taken = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..taken]);
            this.first_taken += taken;
            if this.first_taken == this.first.len() {
                (this.first, this.first_taken) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                if buf.filled().len() > before && !this.is_busy() && !this.http2 && !this.in_head {
                    this.in_head = true;
                    this.reading.clear();
                }
                Poll::Ready(read)
            }
            Poll::Pending => {
                ready!(this.poll_head_late(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
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
        if !self.shut {
            let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
            ready!(self.bounded(cx, shut))?;
            self.shut = true;
        }
        if self.link.lingers() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.link.is_severed()
            && !self.http2
            && let Some(tcp) = self.stream.tcp()
        {
            let _ = tcp.set_zero_linger();
        }
    }
}
