//! An HTTP/2 client's byte stream with the deadlines that hyper leaves to us.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{
    activity::Activity,
    handshake::{self, Part, Repeated},
    staged_input::StagedInput,
};
use crate::server::Timeouts;
use crate::{http1::io::Stream, time::deadline::Deadline};

/// Turns in which a response of a refused request is written where its client takes it.
const TURNS: u32 = 16;

/// A client's byte stream with its deadlines.
pub(super) struct Http2Transport {
    stream: Stream,
    activity: Activity,
    timeouts: Timeouts,
    /// What was read and is still to be handed to hyper.
    staged: StagedInput,
    /// How often hyper is to go on with what it has before it gets more.
    turns: u32,
    idle_deadline: Deadline,
    /// A head has begun and not ended.
    header_deadline: Deadline,
    write_deadline: Deadline,
    /// Until hyper has forgotten the streams that it has reset.
    pause: Deadline,
    /// What hyper sends although the client has it.
    repeated: Repeated,
    /// The last thing that hyper gets of a connection that ends has been staged.
    has_ended: bool,
}

impl Http2Transport {
    pub(super) fn new(stream: Stream, first: BytesMut, activity: Activity, timeouts: Timeouts) -> Self {
        Self {
            stream,
            activity,
            timeouts,
            staged: StagedInput::new(first),
            turns: 0,
            idle_deadline: Deadline::unset(),
            header_deadline: Deadline::unset(),
            write_deadline: Deadline::unset(),
            pause: Deadline::unset(),
            repeated: Repeated::default(),
            has_ended: false,
        }
    }

    /// Waits for what hyper has to see: the first head, whole, or a frame that no connection begins with.
    pub(super) async fn begin(&mut self) -> io::Result<()> {
        loop {
            self.staged.advance_to_first();
            if self.staged.has_more_than_settings() || self.staged.settings() > handshake::MAX_ACKS {
                return Ok(());
            }
            self.say_settings().await?;
            if self.staged.is_first_too_large() {
                let _ = self.stream.write_all(&handshake::GOAWAY).await;
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.update_header_deadline(self.staged.is_in_header_block());
            let filled = poll_fn(|cx| match self.staged.poll_read_buf(&mut self.stream, cx) {
                Poll::Pending => self.poll_late(cx),
                filled => filled,
            });
            if filled.await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Says what hyper would say so far.
    async fn say_settings(&mut self) -> io::Result<()> {
        let mut said = Vec::new();
        if self.repeated.settings == 0 {
            said = handshake::settings();
            self.repeated.settings = said.len();
        }
        while self.repeated.acks < self.staged.settings().min(handshake::MAX_ACKS) {
            self.repeated.acks += 1;
            said.extend(handshake::SETTINGS_ACK);
        }
        self.stream.write_all(&said).await
    }

    /// Fails when nothing has come for too long.
    fn poll_late<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.header_deadline.poll_elapsed(cx).is_pending() {
            ready!(self.poll_idle_timeout(cx));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Takes notice of what was read.
    fn update_header_deadline(&mut self, within_head: bool) {
        match within_head {
            true => self.header_deadline.set_if_unset(self.timeouts.header),
            false => self.header_deadline.clear(),
        }
    }

    /// Hands over what has been read, as long as no request was authorized: one head at a time, whole, and nothing while
    /// the client does not take what is written. What hyper makes of it is then gone before there is more.
    fn poll_read_staged(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turns == TURNS || self.turns > 0 && self.activity.has_max_refused() {
            self.turns -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.activity.is_budget_exhausted() {
            return self.poll_end(buf);
        }
        if self.activity.is_write_blocked() {
            return Poll::Pending;
        }
        if let Some(until) = self.activity.paused_until() {
            self.pause.set_from(until, Duration::ZERO);
            ready!(self.pause.poll_elapsed(cx));
        }
        loop {
            let is_ready = self.staged.track_staged();
            self.update_header_deadline(self.staged.is_in_header_block());
            if is_ready {
                self.staged.read_releasable(buf);
                self.turns = TURNS;
                self.end_if_spent(false, cx);
                return Poll::Ready(Ok(()));
            }
            if self.staged.is_large() && self.activity.has_refused() {
                return Poll::Pending;
            }
            if self.staged.is_too_large() {
                self.end(cx);
                return Poll::Pending;
            }
            match self.staged.poll_read_buf(&mut self.stream, cx)? {
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => {}
                Poll::Pending => {
                    self.end_if_spent(true, cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Ends the connection where it has had enough refused requests; `quiet` says that the client has sent no more.
    fn end_if_spent(&mut self, quiet: bool, cx: &Context<'_>) {
        if self.staged.is_header_budget_exhausted(quiet) || self.activity.has_reset_too_many(quiet) {
            self.end(cx);
        }
    }

    fn end(&mut self, cx: &Context<'_>) {
        self.activity.exhaust_budget();
        cx.waker().wake_by_ref();
    }

    /// Hands over nothing more but what has hyper name the last stream that it got.
    fn poll_end(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.activity.is_ending() {
            self.staged.clear();
        } else if !std::mem::replace(&mut self.has_ended, true) {
            self.staged.end_with_pong();
        }
        if self.staged.is_empty() {
            return Poll::Pending;
        }
        self.staged.read_releasable(buf);
        Poll::Ready(Ok(()))
    }

    /// Reads what is there, or has been read before.
    fn poll_read_available(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.activity.is_authorized() {
            return self.poll_read_staged(cx, buf);
        }
        let before = buf.filled().len();
        if !self.staged.is_empty() {
            self.staged.read_all(buf);
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            self.staged.track(&buf.filled()[before..]);
        }
        self.update_header_deadline(self.staged.is_in_header_block());
        Poll::Ready(Ok(()))
    }

    /// Whether there was no request for too long. What comes between two requests is no head: it may be a ping or a
    /// window.
    fn poll_idle_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let busy = self.activity.has_active_requests();
            if busy {
                // Nobody calls when the request is done: the timer looks again, and then knows since when it is quiet.
                self.idle_deadline.set(self.timeouts.idle);
            } else {
                self.idle_deadline.set_from(self.activity.idle_since(), self.timeouts.idle);
            }
            ready!(self.idle_deadline.poll_elapsed(cx));
            if !busy {
                return Poll::Ready(());
            }
        }
    }
}

impl AsyncRead for Http2Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(read) = this.poll_read_available(cx, buf) {
            return Poll::Ready(read);
        }
        this.poll_late(cx)
    }
}

impl Http2Transport {
    /// Writes what the client does not have yet.
    fn poll_write_new(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match self.repeated.split(buf)? {
            Part::Repeated(bytes) => Poll::Ready(Ok(bytes)),
            Part::New(bytes) => {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &buf[..bytes]))?;
                self.repeated.wrote(written);
                Poll::Ready(Ok(written))
            }
        }
    }

    /// Turns a write that stays pending for too long into an error.
    fn poll_with_write_timeout<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.activity.is_write_blocked() {
                // It is read on from the client.
                cx.waker().wake_by_ref();
            }
            self.activity.set_write_blocked(false);
            self.write_deadline.clear();
            return written;
        }
        self.activity.set_write_blocked(true);
        self.write_deadline.set_if_unset(self.timeouts.write_timeout(self.activity.permit()));
        ready!(self.write_deadline.poll_elapsed(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Http2Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.repeated.is_over() {
            true => Pin::new(&mut self.stream).poll_write(cx, buf),
            false => self.poll_write_new(cx, buf),
        };
        self.poll_with_write_timeout(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.repeated.is_over() {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |first| first));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.poll_with_write_timeout(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.poll_with_write_timeout(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.poll_with_write_timeout(cx, shut)
    }
}
