//! What an HTTP/2 client has sent and hyper has not got yet.
//!
//! hyper decodes a head as it comes, and one that never ends may become many times as large as what was sent of it. Until a
//! request was authorized it gets whole heads only.

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

/// Most bytes of a connection's first head, as long as hyper has not begun: with the connection's task below 64 KiB.
const MAX_FIRST_BYTES: usize = 54 * 1024;
/// Most bytes of a later one as long as no request was authorized: hyper's buffers take 20 KiB beside it.
const MAX_UNAUTHORIZED_BYTES: usize = 32 * 1024;
/// More than this of one waits until refused requests no longer do.
const MAX_BESIDE_REFUSED_BYTES: usize = 2 * 1024;
/// After so many bytes of heads without an authorized request the connection ends when its client has sent no more.
const MAX_UNAUTHORIZED_HEADER_BYTES: usize = 32 * 1024;
/// After so many it ends in any case.
const MAX_HEADS_IN_A_BURST: usize = 1024 * 1024;
/// Most bytes that come before a connection's first head without hyper.
const MAX_SETTINGS_BYTES: usize = 1024;
/// So many frames, or parts of them, are handed over at once beside heads: others have their turn between them.
const MAX_FRAMES_PER_READ: usize = 32;
/// Read at once.
const READ_BYTES: usize = 2 * 1024;
/// Steps in which the buffer grows, while it is small and later.
const GROWTH: [usize; 2] = [256, 2 * 1024];
/// What acknowledges the PING that hyper sends with its first GOAWAY: its next one names the last stream.
const SHUTDOWN_PONG: [u8; 17] = [0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// Bytes on their way to hyper.
#[derive(Debug)]
pub(super) struct StagedInput {
    buffer: BytesMut,
    /// So many of them were followed.
    tracked: usize,
    /// So many of them may be handed over.
    releasable: usize,
    frames: FrameTracker,
}

impl StagedInput {
    /// What was read while finding out the protocol.
    pub(super) fn new(buffer: BytesMut) -> Self {
        Self { buffer, tracked: 0, releasable: 0, frames: FrameTracker::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_in_header_block(&self) -> bool {
        self.frames.is_in_header_block()
    }

    /// Whether so many heads have come without an authorized request that there should be no more of them; `quiet` says that
    /// nothing else has come.
    pub(super) fn is_header_budget_exhausted(&self, quiet: bool) -> bool {
        let most = if quiet { MAX_UNAUTHORIZED_HEADER_BYTES } else { MAX_HEADS_IN_A_BURST };
        self.releasable == 0 && !self.frames.is_in_header_block() && self.frames.header_bytes() > most
    }

    /// Whether the connection's first head is larger than it may be.
    pub(super) fn is_first_too_large(&self) -> bool {
        self.buffer.len() > MAX_FIRST_BYTES
    }

    /// Whether a later head is larger than it may be without an authorized request.
    pub(super) fn is_too_large(&self) -> bool {
        self.buffer.len() > MAX_UNAUTHORIZED_BYTES
    }

    /// Whether it is so large that the rest of it waits until refused requests no longer do.
    pub(super) fn is_large(&self) -> bool {
        self.buffer.len() > MAX_BESIDE_REFUSED_BYTES
    }

    /// Whether more is here than a preface, settings and a part of a head; nothing may have been handed over.
    pub(super) fn has_more_than_settings(&self) -> bool {
        let common = self.buffer.len().min(HTTP2_PREFACE.len());
        self.buffer[..common] != HTTP2_PREFACE[..common]
            || self.has_first()
            || self.frames.has_others()
            || !self.frames.is_in_header_block() && self.buffer.len() > MAX_SETTINGS_BYTES
    }

    /// How many SETTINGS frames have come whole.
    pub(super) fn settings(&self) -> usize {
        self.frames.settings()
    }

    /// Follows what is here, to the end of the first head at most. Whether something may be handed over.
    pub(super) fn track_staged(&mut self) -> bool {
        let (mut ends_head, mut steps) = (self.releasable > 0, 0);
        while !ends_head
            && self.tracked < self.buffer.len()
            && (steps < MAX_FRAMES_PER_READ || self.releasable == 0)
        {
            steps += 1;
            ends_head = self.step();
        }
        self.releasable > 0
    }

    /// Follows what is here to the end of a connection's first head, before anything is handed over.
    pub(super) fn advance_to_first(&mut self) {
        while !self.has_first() && self.tracked < self.buffer.len() {
            self.step();
        }
    }

    /// Follows one frame, or a part of one. Whether a head ends there.
    fn step(&mut self) -> bool {
        let (taken, ends_head) = self.frames.advance(&self.buffer[self.tracked..]);
        self.tracked += taken;
        if !self.frames.is_in_header_block() {
            self.releasable = self.tracked - self.frames.partial_frame_header_bytes();
        }
        ends_head
    }

    /// Whether a head has come whole.
    fn has_first(&self) -> bool {
        self.frames.header_bytes() > 0 && !self.frames.is_in_header_block()
    }

    /// Hands over what may be, as far as there is room.
    pub(super) fn read_releasable(&mut self, buf: &mut ReadBuf<'_>) {
        let taken = self.releasable.min(buf.remaining());
        buf.put_slice(&self.buffer[..taken]);
        self.buffer.advance(taken);
        (self.releasable, self.tracked) = (self.releasable - taken, self.tracked - taken);
        self.release_buffer();
    }

    /// Hands over whatever is here, as far as there is room.
    pub(super) fn read_all(&mut self, buf: &mut ReadBuf<'_>) {
        while self.tracked < self.buffer.len() {
            self.tracked += self.frames.advance(&self.buffer[self.tracked..]).0;
        }
        self.releasable = self.tracked;
        self.read_releasable(buf);
    }

    /// Follows bytes that hyper has got already; none may be staged.
    pub(super) fn track(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.frames.advance(bytes).0..];
        }
    }

    /// Reads once; 0 is the end of the stream.
    pub(super) fn poll_read_buf(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let filled = buffer_pool::with_scratch(|tray| {
            let mut read = ReadBuf::new(&mut tray[..READ_BYTES]);
            ready!(Pin::new(stream).poll_read(cx, &mut read))?;
            self.append(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        });
        if filled.is_pending() && self.buffer.capacity() > self.buffer.len() + GROWTH[1] {
            self.resize(0);
        }
        filled
    }

    /// The buffer is no larger than what is in it, and does not double: a head may be most of what the connection holds.
    fn append(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.resize(bytes.len());
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Moves what is here into a buffer that has room for so much more.
    fn resize(&mut self, more: usize) {
        let needed = self.buffer.len() + more;
        let step = if needed > GROWTH[1] { GROWTH[1] } else { GROWTH[0] };
        let mut resized = BytesMut::with_capacity(needed.next_multiple_of(step));
        resized.extend_from_slice(&self.buffer);
        buffer_pool::release(std::mem::replace(&mut self.buffer, resized));
    }

    /// Throws away what is here, and has hyper name the last stream that it got when it says that it goes away.
    pub(super) fn end_with_pong(&mut self) {
        self.clear();
        self.buffer.extend_from_slice(&SHUTDOWN_PONG);
        (self.tracked, self.releasable) = (SHUTDOWN_PONG.len(), SHUTDOWN_PONG.len());
    }

    /// Throws away what will not be handed over.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        (self.tracked, self.releasable) = (0, 0);
        self.release_buffer();
    }

    /// Gives the buffer back where there is nothing in it.
    fn release_buffer(&mut self) {
        if self.buffer.is_empty() {
            buffer_pool::release(std::mem::take(&mut self.buffer));
        }
    }
}
