//! Byte stream of an HTTP/2 client, with the deadlines that hyper does not have.

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
    early_settings::{self, DuplicateFilter, FilterAction},
    staged_input::StagedInput,
};
use crate::server::Timeouts;
use crate::{http1::io::Stream, time::deadline::Deadline};

/// After each header block hyper gets nothing for one poll, and for up to this many while the maximum number of
/// refusals is pending, so that it writes their responses first.
const MAX_YIELDS: u32 = 16;

/// Byte stream of one HTTP/2 connection.
pub(super) struct Http2Transport {
    stream: Stream,
    activity: Activity,
    timeouts: Timeouts,
    /// Bytes read that hyper has not got yet.
    staged: StagedInput,
    /// Polls for which hyper still gets nothing new.
    yields_left: u32,
    idle_deadline: Deadline,
    /// Runs while a header block is incomplete.
    header_deadline: Deadline,
    write_deadline: Deadline,
    /// Runs until hyper has forgotten the streams that it has reset.
    pause: Deadline,
    /// Frames to be removed from hyper's output.
    duplicates: DuplicateFilter,
    /// The last bytes that hyper gets of an ending connection have been staged.
    shutdown_staged: bool,
}

impl Http2Transport {
    pub(super) fn new(stream: Stream, received: BytesMut, activity: Activity, timeouts: Timeouts) -> Self {
        Self {
            stream,
            activity,
            timeouts,
            staged: StagedInput::new(received),
            yields_left: 0,
            idle_deadline: Deadline::unset(),
            header_deadline: Deadline::unset(),
            write_deadline: Deadline::unset(),
            pause: Deadline::unset(),
            duplicates: DuplicateFilter::default(),
            shutdown_staged: false,
        }
    }

    /// Waits until hyper is needed: for the first complete header block, or a frame that is not handled here.
    pub(super) async fn wait_until_hyper_needed(&mut self) -> io::Result<()> {
        loop {
            self.staged.track_first_head();
            if self.staged.needs_hyper() || self.staged.settings_frames() > early_settings::MAX_ACKS {
                return Ok(());
            }
            self.send_settings().await?;
            if self.staged.first_head_exceeds_limit() {
                let _ = self.stream.write_all(&early_settings::GOAWAY).await;
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.update_header_deadline(self.staged.is_in_header_block());
            let filled = poll_fn(|cx| match self.staged.poll_read_buf(&mut self.stream, cx) {
                Poll::Pending => self.poll_read_timeout(cx),
                filled => filled,
            });
            if filled.await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends SETTINGS and the acknowledgements that are due.
    async fn send_settings(&mut self) -> io::Result<()> {
        let mut output = Vec::new();
        if !self.duplicates.is_settings_sent() {
            output = early_settings::settings_frame();
            self.duplicates.record_settings_sent(output.len());
        }
        while self.duplicates.acks_sent() < self.staged.settings_frames().min(early_settings::MAX_ACKS) {
            self.duplicates.record_ack_sent();
            output.extend(early_settings::SETTINGS_ACK);
        }
        self.stream.write_all(&output).await
    }

    /// Fails when the header or idle time-out has elapsed.
    fn poll_read_timeout<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.header_deadline.poll_elapsed(cx).is_pending() {
            ready!(self.poll_idle_timeout(cx));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Starts or stops the header deadline.
    fn update_header_deadline(&mut self, in_header_block: bool) {
        match in_header_block {
            true => self.header_deadline.set_if_unset(self.timeouts.header),
            false => self.header_deadline.clear(),
        }
    }

    /// Passes staged bytes to hyper while no request was authorized: one complete header block at a time, and nothing
    /// while the client does not read what is written. hyper has then released what it made of one before it gets the
    /// next.
    fn poll_read_staged(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.yields_left == MAX_YIELDS || self.yields_left > 0 && self.activity.has_max_pending_refusals()
        {
            self.yields_left -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.activity.is_budget_exhausted() {
            return self.poll_read_shutdown(buf);
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
                self.yields_left = MAX_YIELDS;
                self.end_if_budget_exhausted(false, cx);
                return Poll::Ready(Ok(()));
            }
            if self.staged.exceeds_refusals_limit() && self.activity.has_pending_refusals() {
                return Poll::Pending;
            }
            if self.staged.exceeds_unauthorized_limit() {
                self.exhaust_budget(cx);
                return Poll::Pending;
            }
            match self.staged.poll_read_buf(&mut self.stream, cx)? {
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => {}
                Poll::Pending => {
                    self.end_if_budget_exhausted(true, cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Ends the connection if its budget for refused requests is used up; `input_drained`: the client has sent no more.
    fn end_if_budget_exhausted(&mut self, input_drained: bool, cx: &Context<'_>) {
        if self.staged.is_header_budget_exhausted(input_drained)
            || self.activity.has_reset_too_many(input_drained)
        {
            self.exhaust_budget(cx);
        }
    }

    fn exhaust_budget(&mut self, cx: &Context<'_>) {
        self.activity.exhaust_budget();
        cx.waker().wake_by_ref();
    }

    /// Passes nothing more to hyper but the bytes that make it name the last stream in its GOAWAY.
    fn poll_read_shutdown(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.activity.is_in_graceful_shutdown() {
            self.staged.clear();
        } else if !std::mem::replace(&mut self.shutdown_staged, true) {
            self.staged.stage_shutdown_ping_ack();
        }
        if self.staged.is_empty() {
            return Poll::Pending;
        }
        self.staged.read_releasable(buf);
        Poll::Ready(Ok(()))
    }

    /// Reads staged bytes first, then from the stream.
    fn poll_read_available(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.activity.is_authorized() {
            return self.poll_read_staged(cx, buf);
        }
        let already_filled = buf.filled().len();
        if !self.staged.is_empty() {
            self.staged.read_all(buf);
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            if self.staged.track(&buf.filled()[already_filled..]) {
                // The next header block, which may have begun in the same read, has its own deadline.
                self.header_deadline.clear();
            }
        }
        self.update_header_deadline(self.staged.is_in_header_block());
        Poll::Ready(Ok(()))
    }

    /// Ready when no request was received for too long. Frames between two requests do not reset the time-out: they may
    /// be PING or WINDOW_UPDATE.
    fn poll_idle_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let has_active_requests = self.activity.has_active_requests();
            if has_active_requests {
                // The end of a request wakes no one here: the timer checks again and then knows the start of the idle
                // time.
                self.idle_deadline.set(self.timeouts.idle);
            } else {
                self.idle_deadline.set_from(self.activity.idle_since(), self.timeouts.idle);
            }
            ready!(self.idle_deadline.poll_elapsed(cx));
            if !has_active_requests {
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
        this.poll_read_timeout(cx)
    }
}

impl Http2Transport {
    /// Writes hyper's output without the frames that the client has received before.
    fn poll_write_new(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match self.duplicates.next_action(buf)? {
            FilterAction::Skip(bytes) => Poll::Ready(Ok(bytes)),
            FilterAction::Write(bytes) => {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &buf[..bytes]))?;
                self.duplicates.record_written(written);
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
                // Reading, which stops while writes block, continues.
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
        let written = match self.duplicates.is_done() {
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
        if !self.duplicates.is_done() {
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
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.poll_with_write_timeout(cx, shutdown)
    }
}
