//! Byte stream of an HTTP/2 client, with the deadlines that h2 does not have, and with the output of all streams
//! collected for one write.
//!
//! h2 hides whether a header block has begun, and decodes one while it arrives. Its time-out, and the bound on what a
//! client without a key makes h2 decode, need [`StagedInput`], which looks at frame headers only.

mod output;

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    connection_state::ConnectionState,
    early_settings::{self, DuplicateFilter},
    staged_input::StagedInput,
};
use crate::{http1::io::Stream, time::deadline::Deadline};

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
    /// Frames to be removed from h2's output.
    duplicates: DuplicateFilter,
}

/// What a read before h2 is created has found.
enum EarlyRead {
    Bytes,
    End,
    /// The header block is larger than this connection may stage.
    TooLarge,
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
            duplicates: DuplicateFilter::default(),
        })))
    }

    /// Waits until h2 is needed: for the first complete header block, or a frame that is not handled here.
    pub(super) async fn wait_until_h2_needed(&self) -> io::Result<()> {
        while !self.0.borrow_mut().advance_before_h2() {
            poll_fn(|cx| self.poll_flush_output(cx)).await?;
            match poll_fn(|cx| self.0.borrow_mut().poll_read_early(cx)).await? {
                EarlyRead::Bytes => {}
                EarlyRead::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                EarlyRead::TooLarge => {
                    self.0.borrow_mut().output.extend_from_slice(&early_settings::GOAWAY);
                    poll_fn(|cx| self.poll_flush_output(cx)).await?;
                    return Err(io::ErrorKind::InvalidData.into());
                }
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

    /// Reads once before h2 is created.
    fn poll_read_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<EarlyRead>> {
        if self.staged.first_head_exceeds_limit(0) {
            return Poll::Ready(Ok(EarlyRead::TooLarge));
        }
        match self.poll_read_limited(cx, true)? {
            Poll::Ready(Some(0)) => Poll::Ready(Ok(EarlyRead::End)),
            Poll::Ready(Some(_)) => Poll::Ready(Ok(EarlyRead::Bytes)),
            Poll::Ready(None) => Poll::Ready(Ok(EarlyRead::TooLarge)),
            Poll::Pending => self.poll_read_timeout(cx),
        }
    }

    /// Reads once, but no TLS record with which the connection would stage more than it may: then `None`.
    fn poll_read_limited(
        &mut self,
        cx: &mut Context<'_>,
        is_first_head: bool,
    ) -> Poll<io::Result<Option<usize>>> {
        self.stream.limit_records(self.staged.max_record_bytes(is_first_head));
        let mut filled = self.staged.poll_read_buf(&mut self.stream, cx);
        let record_bytes = self.stream.incomplete_record_bytes();
        if filled.is_pending() && record_bytes > 0 {
            let exceeds_limit = match is_first_head {
                true => self.staged.first_head_exceeds_limit(record_bytes),
                false => self.staged.later_head_exceeds_limit(record_bytes),
            };
            if exceeds_limit {
                return Poll::Ready(Ok(None));
            }
            self.stream.limit_records(self.staged.max_record_bytes(is_first_head));
            filled = self.staged.poll_read_buf(&mut self.stream, cx);
        }
        filled.map_ok(Some)
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
        loop {
            let is_ready = self.staged.track_staged();
            self.update_header_deadline();
            if is_ready && self.staged.read_releasable(buf) {
                self.awaits_stream_poll = true;
                self.end_if_budget_exhausted(false, cx);
                return Poll::Ready(Ok(()));
            }
            if self.staged.later_head_exceeds_limit(0) {
                self.exhaust_budget(cx);
                return Poll::Pending;
            }
            if self.staged.exceeds_rejections_limit() && self.connection.has_pending_rejections() {
                self.staged.release_spare_memory();
                return Poll::Pending;
            }
            match self.poll_read_limited(cx, false)? {
                Poll::Ready(Some(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(_)) => self.last_read_at = Instant::now(),
                Poll::Ready(None) => {
                    self.exhaust_budget(cx);
                    return Poll::Pending;
                }
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
        let ends_head = if self.staged.has_rest() {
            self.staged.read_all(buf)
        } else {
            self.stream.read_ahead();
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
