//! Byte stream of an HTTP/2 client, with the deadlines that h2 does not have, and with the output of all streams
//! collected for one write.
//!
//! h2 hides whether a header block has begun, and decodes one while it arrives. Its time-out, and the bound on what a
//! client without a key makes h2 decode, need [`StagedInput`], which looks at frame headers only.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    connection_state::ConnectionState,
    early_settings::{self, DuplicateFilter, FilterAction},
    staged_input::StagedInput,
};
use crate::{
    http1::{buffer_pool, io::Stream},
    time::deadline::Deadline,
};

/// Maximum number of slices in one write.
const MAX_SLICES: usize = 8;

/// The byte stream of one connection, shared by h2 and the connection's task.
#[derive(Clone)]
pub(super) struct Http2Transport(Rc<RefCell<TransportState>>);

struct TransportState {
    stream: Stream,
    connection: Rc<ConnectionState>,
    /// Bytes read that h2 has not got yet.
    staged: StagedInput,
    /// h2 has a complete head; reads pause until its stream was polled, see [`Http2Transport::resume_reading`].
    awaits_stream_poll: bool,
    /// Bytes to be written. Owns no memory while there are none.
    output: BytesMut,
    last_read_at: Instant,
    idle_deadline: Deadline,
    /// Runs while a header block is incomplete.
    header_deadline: Deadline,
    write_deadline: Deadline,
    /// Runs while reading pauses after streams were reset.
    pause: Deadline,
    /// Frames to be removed from h2's output.
    duplicates: DuplicateFilter,
}

impl Http2Transport {
    pub(super) fn new(stream: Stream, received: BytesMut, connection: Rc<ConnectionState>) -> Self {
        let staged = StagedInput::new(received, !stream.is_plaintext());
        Self(Rc::new(RefCell::new(TransportState {
            stream,
            connection,
            staged,
            awaits_stream_poll: false,
            output: BytesMut::new(),
            last_read_at: Instant::now(),
            idle_deadline: Deadline::unset(),
            header_deadline: Deadline::unset(),
            write_deadline: Deadline::unset(),
            pause: Deadline::unset(),
            duplicates: DuplicateFilter::default(),
        })))
    }

    /// Waits until h2 is needed: for the first complete header block, or a frame that is not handled here.
    pub(super) async fn wait_until_h2_needed(&self) -> io::Result<()> {
        while !self.0.borrow_mut().advance_before_h2() {
            poll_fn(|cx| self.poll_flush_output(cx)).await?;
            if self.0.borrow_mut().staged.first_head_exceeds_limit() {
                self.0.borrow_mut().output.extend_from_slice(&early_settings::GOAWAY);
                poll_fn(|cx| self.poll_flush_output(cx)).await?;
                return Err(io::ErrorKind::InvalidData.into());
            }
            if poll_fn(|cx| self.0.borrow_mut().poll_read_early(cx)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Lets h2 read on: the streams that it had opened were served.
    pub(super) fn resume_reading(&self) {
        self.0.borrow_mut().awaits_stream_poll = false;
    }

    /// When bytes were last received.
    pub(super) fn last_read_at(&self) -> Instant {
        self.0.borrow().last_read_at
    }

    /// Writes what h2 has written. Fails if the client reads nothing for too long.
    pub(super) fn poll_flush_output(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_flush_output(cx)
    }
}

/// Reading.
impl TransportState {
    /// Before h2 is created: queues the SETTINGS and acknowledgements that are due, and starts or stops the header
    /// deadline. Returns whether h2 is needed now, for which nothing is done.
    fn advance_before_h2(&mut self) -> bool {
        self.staged.track_first_head();
        if self.staged.needs_h2() || self.staged.settings_frames() > early_settings::MAX_ACKS {
            return true;
        }
        if !self.duplicates.is_settings_sent() {
            let settings = early_settings::settings_frame();
            self.duplicates.record_settings_sent(settings.len());
            self.output.extend_from_slice(&settings);
        }
        while self.duplicates.acks_sent() < self.staged.settings_frames().min(early_settings::MAX_ACKS) {
            self.duplicates.record_ack_sent();
            self.output.extend_from_slice(&early_settings::SETTINGS_ACK);
        }
        self.update_header_deadline();
        false
    }

    /// Reads once before h2 is created; 0 is the end of the stream.
    fn poll_read_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self.staged.poll_read_buf(&mut self.stream, cx) {
            Poll::Pending => self.poll_read_timeout(cx),
            filled => filled,
        }
    }

    /// Fails when the header or idle time-out has elapsed.
    fn poll_read_timeout<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.header_deadline.poll_elapsed(cx).is_pending() {
            ready!(self.poll_idle_timeout(cx));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Starts or stops the header deadline.
    fn update_header_deadline(&mut self) {
        match self.staged.is_in_header_block() {
            true => self.header_deadline.set_if_unset(self.connection.timeouts().header),
            false => self.header_deadline.clear(),
        }
    }

    /// Passes staged bytes to h2 while no request was authorized: one complete header block at a time, and nothing
    /// while the client does not read what is written. h2 has then released what it made of one before it gets the
    /// next.
    fn poll_read_staged(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.awaits_stream_poll {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.connection.is_budget_exhausted() {
            self.staged.clear();
            return Poll::Pending;
        }
        if self.connection.is_write_blocked() {
            return Poll::Pending;
        }
        if let Some(until) = self.connection.paused_until() {
            self.pause.set_from(until, Duration::ZERO);
            ready!(self.pause.poll_elapsed(cx));
        }
        loop {
            let is_ready = self.staged.track_staged();
            self.update_header_deadline();
            if is_ready {
                self.staged.read_releasable(buf);
                self.awaits_stream_poll = true;
                self.end_if_budget_exhausted(false, cx);
                return Poll::Ready(Ok(()));
            }
            if self.staged.exceeds_rejections_limit() && self.connection.has_pending_rejections() {
                return Poll::Pending;
            }
            if self.staged.later_head_exceeds_limit() {
                self.exhaust_budget(cx);
                return Poll::Pending;
            }
            match self.staged.poll_read_buf(&mut self.stream, cx)? {
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => self.last_read_at = Instant::now(),
                Poll::Pending => {
                    self.end_if_budget_exhausted(true, cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Ends the connection if a budget without an authorized request is used up; `input_drained`: the client has sent no
    /// more.
    fn end_if_budget_exhausted(&mut self, input_drained: bool, cx: &Context<'_>) {
        if self.staged.is_header_budget_exhausted(input_drained)
            || self.staged.has_too_many_control_frames()
            || self.connection.has_reset_too_many(input_drained)
        {
            self.exhaust_budget(cx);
        }
    }

    fn exhaust_budget(&mut self, cx: &Context<'_>) {
        self.connection.exhaust_budget();
        cx.waker().wake_by_ref();
    }

    /// Reads staged bytes first, then from the stream.
    fn poll_read_available(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.connection.is_authorized() {
            return self.poll_read_staged(cx, buf);
        }
        let already_filled = buf.filled().len();
        let ends_head = if !self.staged.is_empty() {
            self.staged.read_all(buf)
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            self.last_read_at = Instant::now();
            self.staged.track(&buf.filled()[already_filled..])
        };
        if ends_head {
            // The next header block, which may have begun in the same read, has its own deadline.
            self.header_deadline.clear();
        }
        self.update_header_deadline();
        Poll::Ready(Ok(()))
    }

    /// Ready when no request was received for too long. Frames between two requests do not reset the time-out: they may
    /// be PING or WINDOW_UPDATE.
    fn poll_idle_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle_timeout = self.connection.timeouts().idle;
        loop {
            let has_active_requests = self.connection.has_active_requests();
            if has_active_requests {
                // The end of a request wakes no one here: the timer checks again and then knows the start of the idle
                // time.
                self.idle_deadline.set(idle_timeout);
            } else {
                self.idle_deadline.set_from(self.connection.idle_since(), idle_timeout);
            }
            ready!(self.idle_deadline.poll_elapsed(cx));
            if !has_active_requests {
                return Poll::Ready(());
            }
        }
    }
}

/// Writing.
impl TransportState {
    /// Appends h2's output without the frames that the client has received before.
    fn buffer_new(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.duplicates.is_done() {
            match self.duplicates.next_action(bytes)? {
                FilterAction::Skip(skipped) => bytes = &bytes[skipped..],
                FilterAction::Write(length) => {
                    let (written, rest) = bytes.split_at(length);
                    self.output.extend_from_slice(written);
                    self.duplicates.record_written(length);
                    bytes = rest;
                }
            }
        }
        self.output.extend_from_slice(bytes);
        Ok(())
    }

    /// Buffers a small write, which [`Self::poll_flush_output`] sends with others. A large one goes out at once,
    /// together with what is buffered.
    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if !self.duplicates.is_done() {
            ready!(self.poll_flush_output(cx))?;
            bufs.iter().try_for_each(|buf| self.buffer_new(buf))?;
            return Poll::Ready(Ok(length));
        }
        if self.output.len() + length <= buffer_pool::BUFFER_BYTES {
            if self.output.capacity() == 0 {
                self.output = buffer_pool::acquire();
            }
            bufs.iter().for_each(|buf| self.output.extend_from_slice(buf));
            return Poll::Ready(Ok(length));
        }
        loop {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = (bufs.len() + 1).min(MAX_SLICES);
            slices[0] = IoSlice::new(&self.output);
            slices[1..count].copy_from_slice(&bufs[..count - 1]);
            let written = Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]);
            let written = ready!(self.poll_with_write_timeout(cx, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let buffered = self.output.len();
            self.output.advance(written.min(buffered));
            if written > buffered {
                return Poll::Ready(Ok(written - buffered));
            }
        }
    }

    fn poll_flush_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.output);
            let written = ready!(self.poll_with_write_timeout(cx, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        if self.output.capacity() > 0 {
            buffer_pool::release(std::mem::take(&mut self.output));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.poll_with_write_timeout(cx, flushed)
    }

    /// Turns a write that stays pending for too long into an error.
    fn poll_with_write_timeout<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() && self.connection.is_write_blocked() {
            // Reading, which stops while writes block, continues.
            cx.waker().wake_by_ref();
        }
        self.connection.set_write_blocked(written.is_pending());
        self.write_deadline.bound_transfer(cx, written, self.connection.write_timeout())
    }
}

impl AsyncRead for Http2Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        match state.poll_read_available(cx, buf) {
            Poll::Pending => state.poll_read_timeout(cx),
            read => read,
        }
    }
}

impl AsyncWrite for Http2Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Ready at once: the connection's task flushes when all streams have written.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        ready!(state.poll_flush_output(cx))?;
        let shutdown = Pin::new(&mut state.stream).poll_shutdown(cx);
        state.poll_with_write_timeout(cx, shutdown)
    }
}
