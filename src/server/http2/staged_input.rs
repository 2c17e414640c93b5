//! Bytes that an HTTP/2 client has sent and h2 has not read yet.
//!
//! h2 decodes a header block while it arrives, and one that never ends may expand to many times its size. Until a
//! request was authorized h2 gets complete header blocks only.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    frame_splitter::{FrameSplitter, MAX_PART_BYTES},
    frame_tracker::FrameTracker,
};
use crate::http1::{buffer_pool, io::Stream};
use crate::secret::wipe;
use crate::server::{HTTP2_PREFACE, MAX_HEAD_BYTES, large_head::LargeHead};

/// Maximum number of bytes to the end of a header block while no request was authorized, with what comes before the
/// first: a header list of [`MAX_HEAD_BYTES`] takes no more.
const MAX_STAGED_BYTES: usize = MAX_HEAD_BYTES + MAX_SETTINGS_BYTES;
/// Up to this size a connection's first header block is staged on any connection: together with its task such a
/// connection takes less than 64 KiB. A larger one takes a [`LargeHead`].
const MAX_FIRST_HEAD_BYTES: usize = 54 * 1024;
/// The same for later header blocks: h2, its table of headers and untaken responses take more.
const MAX_LATER_HEAD_BYTES: usize = 12 * 1024;
/// So much less under TLS, whose state takes 8 KiB. What it holds of an incomplete record counts as staged.
const TLS_STATE_BYTES: usize = 8 * 1024;
/// The rest of a header block larger than this is read only when no rejection is pending.
const MAX_HEAD_DURING_REJECTIONS_BYTES: usize = 2 * 1024;
/// Budget: header blocks of this total size without an authorized request end the connection as soon as all that the
/// client has sent was read.
const MAX_HEADER_BYTES_WHEN_DRAINED: usize = 32 * 1024;
/// Hard budget: header blocks of this total size end the connection even if more waits in the socket.
const MAX_HEADER_BYTES: usize = 1024 * 1024;
/// Budget: this many frames other than DATA and header blocks without an authorized request end the connection. A client
/// sends a few; each costs h2 more than it costs the sender.
const MAX_UNAUTHORIZED_CONTROL_FRAMES: usize = 256;
/// Maximum number of bytes before a connection's first header block that do not need h2.
const MAX_SETTINGS_BYTES: usize = 1024;
/// Frames, or parts of them, that are released at once outside of header blocks, so that other tasks run in between.
const MAX_FRAMES_PER_READ: usize = 16;
/// Size of one read.
const READ_BYTES: usize = 2 * 1024;
/// Granularity of the buffer's size, while it is small and later.
const BUFFER_GROWTH_BYTES: [usize; 2] = [256, 2 * 1024];

/// Bytes on their way to h2.
#[derive(Debug)]
pub(super) struct StagedInput {
    buffer: BytesMut,
    /// Number of bytes in front of it that were consumed, and whose memory it still holds.
    consumed: usize,
    /// Number of bytes that were tracked.
    tracked: usize,
    /// Number of bytes that h2 may read.
    releasable: usize,
    frames: FrameTracker,
    splitter: FrameSplitter,
    /// Releasable bytes wait for the rest of a part.
    awaits_part: bool,
    /// [`TLS_STATE_BYTES`], or 0 without TLS.
    tls_bytes: usize,
    /// Held while a large header block is staged.
    large_head: Option<LargeHead>,
}

impl StagedInput {
    /// Starts with the bytes that were read while the protocol was detected.
    pub(super) fn new(buffer: BytesMut, under_tls: bool) -> Self {
        let tls_bytes = if under_tls { TLS_STATE_BYTES } else { 0 };
        Self {
            buffer,
            consumed: 0,
            tracked: 0,
            releasable: 0,
            frames: FrameTracker::default(),
            splitter: FrameSplitter::default(),
            awaits_part: false,
            tls_bytes,
            large_head: None,
        }
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
        let max_bytes = if input_drained { MAX_HEADER_BYTES_WHEN_DRAINED } else { MAX_HEADER_BYTES };
        (self.releasable == 0 || self.awaits_part)
            && !self.frames.is_in_header_block()
            && self.frames.header_bytes() > max_bytes
    }

    /// Whether more control frames came than a connection without an authorized request may send, or a large one.
    pub(super) fn has_too_many_control_frames(&self) -> bool {
        self.frames.control_frames() > MAX_UNAUTHORIZED_CONTROL_FRAMES
            || self.frames.has_large_control_frame()
    }

    /// Whether the bytes to the end of the connection's first header block are too many, with those of an incomplete
    /// TLS record.
    pub(super) fn first_head_exceeds_limit(&mut self, record_bytes: usize) -> bool {
        self.exceeds_limit(MAX_FIRST_HEAD_BYTES, record_bytes)
    }

    /// The same for a later header block without an authorized request.
    pub(super) fn later_head_exceeds_limit(&mut self, record_bytes: usize) -> bool {
        self.exceeds_limit(MAX_LATER_HEAD_BYTES, record_bytes)
    }

    /// Whether more than `max_bytes` are held without a [`LargeHead`], or more are staged than any connection may. Without
    /// a part of a header block, one record fits in any case.
    fn exceeds_limit(&mut self, max_bytes: usize, record_bytes: usize) -> bool {
        if self.buffer.len() + record_bytes <= max_bytes - self.tls_bytes
            || self.has_no_head() && record_bytes > 0
        {
            return false;
        }
        if self.large_head.is_none() {
            self.large_head = LargeHead::try_acquire();
        }
        self.large_head.is_none() || self.buffer.len() > MAX_STAGED_BYTES
    }

    /// Whether nothing is staged but an incomplete part of a large frame, which is no header block.
    fn has_no_head(&self) -> bool {
        self.buffer.is_empty() || self.awaits_part && self.buffer.len() < 2 * MAX_PART_BYTES
    }

    /// The largest TLS record that may be read into what the limit leaves; 0: any.
    pub(super) fn max_record_bytes(&self, is_first_head: bool) -> usize {
        let max_bytes = if is_first_head { MAX_FIRST_HEAD_BYTES } else { MAX_LATER_HEAD_BYTES };
        match self.has_no_head() || self.large_head.is_some() {
            true => 0,
            false => (max_bytes - self.tls_bytes).saturating_sub(self.buffer.len()).max(1),
        }
    }

    /// Whether the header block is so large that the rest of it waits until no rejection is pending.
    pub(super) fn exceeds_rejections_limit(&self) -> bool {
        self.buffer.len() > MAX_HEAD_DURING_REJECTIONS_BYTES
    }

    /// Whether h2 is needed: the bytes are no HTTP/2 preface, a header block is complete, a frame came that only
    /// h2 handles, or more than [`MAX_SETTINGS_BYTES`] came outside of a header block. Must be called before
    /// anything is released.
    pub(super) fn needs_h2(&self) -> bool {
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
    /// outside of one. Returns whether h2 may read any.
    pub(super) fn track_staged(&mut self) -> bool {
        let (mut ends_head, mut frames) = (self.releasable > 0 && !self.awaits_part, 0);
        while !ends_head
            && self.tracked < self.buffer.len()
            && (frames < MAX_FRAMES_PER_READ || self.releasable == 0 || self.awaits_part)
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

    /// Moves releasable bytes into `buf`, as far as they fit and make up parts. Returns whether there were any.
    pub(super) fn read_releasable(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let already_filled = buf.filled().len();
        let consumed = self.splitter.pass(&self.buffer[..self.releasable], buf);
        self.consume(consumed);
        self.awaits_part = buf.filled().len() == already_filled;
        !self.awaits_part
    }

    /// Moves any staged bytes into `buf`, as far as they fit. Returns whether a header block ends in those that were not
    /// tracked before.
    pub(super) fn read_all(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let ends_head = track_all(&mut self.frames, &self.buffer[self.tracked..]);
        self.tracked = self.buffer.len();
        self.releasable = self.tracked;
        let consumed = self.splitter.pass_all(&self.buffer, buf);
        self.consume(consumed);
        ends_head
    }

    /// Whether [`StagedInput::read_all`] has something for h2.
    pub(super) fn has_rest(&self) -> bool {
        !self.is_empty() || self.splitter.owes_header()
    }

    /// Removes bytes that were passed to h2.
    fn consume(&mut self, bytes: usize) {
        // Bytes of a head may be a credential, and after `advance` nothing reaches them.
        wipe(&mut self.buffer[..bytes]);
        self.buffer.advance(bytes);
        self.consumed += bytes;
        (self.releasable, self.tracked) = (self.releasable - bytes, self.tracked - bytes);
        self.release_buffer();
    }

    /// Tracks bytes that h2 has read directly; none may be staged. Returns whether a header block ends in them.
    pub(super) fn track(&mut self, bytes: &[u8]) -> bool {
        track_all(&mut self.frames, bytes)
    }

    /// Reads once; 0 is the end of the stream. Under TLS all that is decrypted is taken, because a part would not release the
    /// rest, and no more: a read that is larger than that would decrypt another record.
    pub(super) fn poll_read_buf(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let max_bytes = stream_read_bytes(stream.buffered_plaintext());
        let filled = self.poll_read_once(stream, cx, max_bytes);
        if filled.is_pending() {
            self.release_spare_memory();
        }
        let mut read = ready!(filled)?;
        let mut rest = if read > 0 { stream.buffered_plaintext() } else { 0 };
        while rest > 0 {
            match self.poll_read_once(stream, cx, stream_read_bytes(rest)) {
                Poll::Ready(Ok(more)) if more > 0 => {
                    read += more;
                    rest = rest.saturating_sub(more);
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(read))
    }

    fn poll_read_once(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        max_bytes: usize,
    ) -> Poll<io::Result<usize>> {
        buffer_pool::with_scratch(|scratch| {
            let mut read = ReadBuf::new(&mut scratch[..max_bytes]);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
            self.append(read.filled(), stream.buffered_plaintext());
            Poll::Ready(Ok(read.filled().len()))
        })
    }

    /// The buffer is sized to its content and does not double: a header block may be most of what the connection holds.
    /// `more`: bytes that will follow at once.
    fn append(&mut self, bytes: &[u8], more: usize) {
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.resize(bytes.len() + more);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Releases memory in the buffer before and behind the staged bytes.
    pub(super) fn release_spare_memory(&mut self) {
        if self.consumed + self.buffer.capacity() > self.buffer.len() + BUFFER_GROWTH_BYTES[1] {
            self.resize(0);
        }
    }

    /// Moves the staged bytes into a buffer with `additional` spare bytes.
    fn resize(&mut self, additional: usize) {
        let needed = self.buffer.len() + additional;
        let step =
            if needed > BUFFER_GROWTH_BYTES[1] { BUFFER_GROWTH_BYTES[1] } else { BUFFER_GROWTH_BYTES[0] };
        let mut resized = BytesMut::with_capacity(needed.next_multiple_of(step));
        resized.extend_from_slice(&self.buffer);
        wipe(&mut self.buffer);
        buffer_pool::release(std::mem::replace(&mut self.buffer, resized));
        self.consumed = 0;
    }

    /// Discards the staged bytes.
    pub(super) fn clear(&mut self) {
        wipe(&mut self.buffer);
        self.buffer.clear();
        (self.tracked, self.releasable) = (0, 0);
        self.release_buffer();
    }

    /// Returns an empty buffer to the pool.
    fn release_buffer(&mut self) {
        if self.buffer.is_empty() {
            buffer_pool::release(std::mem::take(&mut self.buffer));
            self.large_head = None;
            self.consumed = 0;
        }
    }
}

impl Drop for StagedInput {
    fn drop(&mut self) {
        wipe(&mut self.buffer);
    }
}

/// Size of a read, with so much decrypted plaintext that waits.
fn stream_read_bytes(plaintext_bytes: usize) -> usize {
    if plaintext_bytes > 0 { plaintext_bytes.min(READ_BYTES) } else { READ_BYTES }
}

/// Tracks bytes. Returns whether a header block ends in them.
fn track_all(frames: &mut FrameTracker, mut bytes: &[u8]) -> bool {
    let mut ends_head = false;
    while !bytes.is_empty() {
        let (consumed, ends_here) = frames.advance(bytes);
        bytes = &bytes[consumed..];
        ends_head |= ends_here;
    }
    ends_head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_head_that_ends_is_reported_and_wiped() {
        // HEADERS with END_HEADERS and END_STREAM on stream 1, then the begin of one on stream 3.
        let first = b"\0\0\x04\x01\x05\0\0\0\x01abcd";
        let second = b"\0\0\x04\x01\x05\0\0\0\x03ab";
        let bytes = [HTTP2_PREFACE, first, second].concat();
        let mut staged = StagedInput::new(BytesMut::from(&bytes[..HTTP2_PREFACE.len() + 9]), false);
        staged.track_first_head();
        assert!(staged.is_in_header_block());
        staged.append(&bytes[HTTP2_PREFACE.len() + 9..], 0);
        let mut space = vec![0; bytes.len()];
        let mut buf = ReadBuf::new(&mut space);
        assert!(staged.read_all(&mut buf), "the block on stream 1 ends");
        assert_eq!(buf.filled(), bytes);
        assert!(staged.is_in_header_block() && staged.is_empty());
    }

    #[test]
    fn less_of_a_head_is_staged_under_tls_without_a_slot() {
        // Those of other connections.
        let _slots: Vec<_> = std::iter::from_fn(LargeHead::try_acquire).collect();
        for (under_tls, tls_bytes) in [(false, 0), (true, TLS_STATE_BYTES)] {
            for extra in [0, 1] {
                let exceeds = |max_bytes, limit: fn(&mut StagedInput, usize) -> bool, record_bytes| {
                    let bytes = BytesMut::zeroed(max_bytes - tls_bytes - record_bytes + extra);
                    limit(&mut StagedInput::new(bytes, under_tls), record_bytes)
                };
                for record_bytes in [0, 10] {
                    let first = StagedInput::first_head_exceeds_limit;
                    assert_eq!(exceeds(MAX_FIRST_HEAD_BYTES, first, record_bytes), extra > 0);
                    let later = StagedInput::later_head_exceeds_limit;
                    assert_eq!(exceeds(MAX_LATER_HEAD_BYTES, later, record_bytes), extra > 0);
                }
            }
        }
        let mut empty = StagedInput::new(BytesMut::new(), true);
        assert!(!empty.later_head_exceeds_limit(MAX_LATER_HEAD_BYTES));
        assert_eq!(empty.max_record_bytes(false), 0);
        let mut staged = StagedInput::new(BytesMut::zeroed(100), true);
        let max_bytes = staged.max_record_bytes(false);
        assert!(
            !staged.later_head_exceeds_limit(max_bytes) && staged.later_head_exceeds_limit(max_bytes + 1)
        );
    }
}
