//! Bytes that an HTTP/2 client has sent and hyper has not read yet.
//!
//! hyper decodes a header block while it arrives, and one that never ends may expand to many times its size. Until a
//! request was authorized hyper gets complete header blocks only.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::frame_tracker::FrameTracker;
use crate::http1::{buffer_pool, io::Stream};
use crate::server::HTTP2_PREFACE;

/// Maximum number of bytes to the end of a connection's first header block, with preface and SETTINGS, before hyper is
/// created. Together with its task such a connection takes less than 64 KiB.
const MAX_FIRST_HEAD_BYTES: usize = 54 * 1024;
/// Maximum size of a later header block while no request was authorized: hyper's buffers take another 20 KiB.
const MAX_UNAUTHORIZED_HEAD_BYTES: usize = 32 * 1024;
/// The rest of a header block larger than this is read only when no refusal is pending.
const MAX_HEAD_DURING_REFUSALS_BYTES: usize = 2 * 1024;
/// Budget: header blocks of this total size without an authorized request end the connection as soon as all that the
/// client has sent was read.
const MAX_UNAUTHORIZED_BUDGET_BYTES: usize = 32 * 1024;
/// Hard budget: header blocks of this total size end the connection even if more waits in the socket.
const MAX_BURST_BUDGET_BYTES: usize = 1024 * 1024;
/// Maximum number of bytes before a connection's first header block that do not need hyper.
const MAX_SETTINGS_BYTES: usize = 1024;
/// Frames, or parts of them, that are released at once outside of header blocks, so that other tasks run in between.
const MAX_FRAMES_PER_READ: usize = 32;
/// Size of one read.
const READ_BYTES: usize = 2 * 1024;
/// Granularity of the buffer's size, while it is small and later.
const BUFFER_GROWTH_BYTES: [usize; 2] = [256, 2 * 1024];
/// The client's acknowledgement of the PING that hyper sends with its first GOAWAY, made up by the proxy: hyper then
/// sends its final GOAWAY, which names the last stream, without waiting for the client. The payload is h2's private
/// constant `SHUTDOWN_PAYLOAD` (h2/src/frame/ping.rs).
const SHUTDOWN_PING_ACK: [u8; 17] =
    [0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// Bytes on their way to hyper.
#[derive(Debug)]
pub(super) struct StagedInput {
    buffer: BytesMut,
    /// Number of bytes that were tracked.
    tracked: usize,
    /// Number of bytes that hyper may read.
    releasable: usize,
    frames: FrameTracker,
}

impl StagedInput {
    /// Starts with the bytes that were read while the protocol was detected.
    pub(super) fn new(buffer: BytesMut) -> Self {
        Self { buffer, tracked: 0, releasable: 0, frames: FrameTracker::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether a header block has begun and not ended.
    pub(super) fn is_in_header_block(&self) -> bool {
        self.frames.is_in_header_block()
    }

    /// Whether the budget for header blocks without an authorized request is used up; `input_drained`: the client has
    /// sent no more.
    pub(super) fn is_header_budget_exhausted(&self, input_drained: bool) -> bool {
        let max_bytes = if input_drained { MAX_UNAUTHORIZED_BUDGET_BYTES } else { MAX_BURST_BUDGET_BYTES };
        self.releasable == 0 && !self.frames.is_in_header_block() && self.frames.header_bytes() > max_bytes
    }

    /// Whether the bytes to the end of the connection's first header block are too many.
    pub(super) fn first_head_exceeds_limit(&self) -> bool {
        self.buffer.len() > MAX_FIRST_HEAD_BYTES
    }

    /// Whether a later header block is too large without an authorized request.
    pub(super) fn exceeds_unauthorized_limit(&self) -> bool {
        self.buffer.len() > MAX_UNAUTHORIZED_HEAD_BYTES
    }

    /// Whether the header block is so large that the rest of it waits until no refusal is pending.
    pub(super) fn exceeds_refusals_limit(&self) -> bool {
        self.buffer.len() > MAX_HEAD_DURING_REFUSALS_BYTES
    }

    /// Whether hyper is needed: the bytes are no HTTP/2 preface, a header block is complete, a frame came that only
    /// hyper handles, or more than [`MAX_SETTINGS_BYTES`] came outside of a header block. Must be called before
    /// anything is released.
    pub(super) fn needs_hyper(&self) -> bool {
        let common = self.buffer.len().min(HTTP2_PREFACE.len());
        self.buffer[..common] != HTTP2_PREFACE[..common]
            || self.has_first_head()
            || self.frames.has_other_frames()
            || !self.frames.is_in_header_block() && self.buffer.len() > MAX_SETTINGS_BYTES
    }

    /// Number of complete SETTINGS frames.
    pub(super) fn settings_frames(&self) -> usize {
        self.frames.settings_frames()
    }

    /// Tracks the staged bytes, to the end of the next header block at most, or for [`MAX_FRAMES_PER_READ`] frames
    /// outside of one. Returns whether hyper may read any.
    pub(super) fn track_staged(&mut self) -> bool {
        let (mut ends_head, mut frames) = (self.releasable > 0, 0);
        while !ends_head
            && self.tracked < self.buffer.len()
            && (frames < MAX_FRAMES_PER_READ || self.releasable == 0)
        {
            frames += 1;
            ends_head = self.track_frame();
        }
        self.releasable > 0
    }

    /// Tracks the staged bytes to the end of the connection's first header block, before anything is released.
    pub(super) fn track_first_head(&mut self) {
        while !self.has_first_head() && self.tracked < self.buffer.len() {
            self.track_frame();
        }
    }

    /// Tracks a frame header or a payload, or a part of one. Returns whether a header block ends there.
    fn track_frame(&mut self) -> bool {
        let (consumed, ends_head) = self.frames.advance(&self.buffer[self.tracked..]);
        self.tracked += consumed;
        if !self.frames.is_in_header_block() {
            self.releasable = self.tracked - self.frames.partial_frame_header_bytes();
        }
        ends_head
    }

    /// Whether the connection's first header block is complete.
    fn has_first_head(&self) -> bool {
        self.frames.header_bytes() > 0 && !self.frames.is_in_header_block()
    }

    /// Moves releasable bytes into `buf`, as far as they fit.
    pub(super) fn read_releasable(&mut self, buf: &mut ReadBuf<'_>) {
        let consumed = self.releasable.min(buf.remaining());
        buf.put_slice(&self.buffer[..consumed]);
        self.buffer.advance(consumed);
        (self.releasable, self.tracked) = (self.releasable - consumed, self.tracked - consumed);
        self.release_buffer();
    }

    /// Moves any staged bytes into `buf`, as far as they fit.
    pub(super) fn read_all(&mut self, buf: &mut ReadBuf<'_>) {
        while self.tracked < self.buffer.len() {
            self.tracked += self.frames.advance(&self.buffer[self.tracked..]).0;
        }
        self.releasable = self.tracked;
        self.read_releasable(buf);
    }

    /// Tracks bytes that hyper has read directly; none may be staged. Returns whether a header block ends in them.
    pub(super) fn track(&mut self, mut bytes: &[u8]) -> bool {
        let mut ends_head = false;
        while !bytes.is_empty() {
            let (consumed, ends_here) = self.frames.advance(bytes);
            bytes = &bytes[consumed..];
            ends_head |= ends_here;
        }
        ends_head
    }

    /// Reads once; 0 is the end of the stream.
    pub(super) fn poll_read_buf(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let filled = buffer_pool::with_scratch(|scratch| {
            let mut read = ReadBuf::new(&mut scratch[..READ_BYTES]);
            ready!(Pin::new(stream).poll_read(cx, &mut read))?;
            self.append(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        });
        if filled.is_pending() && self.buffer.capacity() > self.buffer.len() + BUFFER_GROWTH_BYTES[1] {
            self.resize(0);
        }
        filled
    }

    /// The buffer is sized to its content and does not double: a header block may be most of what the connection holds.
    fn append(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.resize(bytes.len());
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Moves the staged bytes into a buffer with `additional` spare bytes.
    fn resize(&mut self, additional: usize) {
        let needed = self.buffer.len() + additional;
        let step =
            if needed > BUFFER_GROWTH_BYTES[1] { BUFFER_GROWTH_BYTES[1] } else { BUFFER_GROWTH_BYTES[0] };
        let mut resized = BytesMut::with_capacity(needed.next_multiple_of(step));
        resized.extend_from_slice(&self.buffer);
        buffer_pool::release(std::mem::replace(&mut self.buffer, resized));
    }

    /// Replaces the staged bytes by the PING acknowledgement that makes hyper name the last stream in its final GOAWAY.
    pub(super) fn stage_shutdown_ping_ack(&mut self) {
        self.clear();
        self.buffer.extend_from_slice(&SHUTDOWN_PING_ACK);
        (self.tracked, self.releasable) = (SHUTDOWN_PING_ACK.len(), SHUTDOWN_PING_ACK.len());
    }

    /// Discards the staged bytes.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        (self.tracked, self.releasable) = (0, 0);
        self.release_buffer();
    }

    /// Returns an empty buffer to the pool.
    fn release_buffer(&mut self) {
        if self.buffer.is_empty() {
            buffer_pool::release(std::mem::take(&mut self.buffer));
        }
    }
}
