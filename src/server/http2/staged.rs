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

use super::{super::PREFACE, heads::Heads};
use crate::{buffers, io::Stream};

/// Most bytes of a connection's first head, as long as hyper has not begun: with the connection's task below 64 KiB.
const MAX_FIRST_BYTES: usize = 54 * 1024;
/// Most bytes of a later one as long as no request was authorized: hyper's buffers take 20 KiB beside it.
const MAX_UNAUTHORIZED_BYTES: usize = 32 * 1024;
/// More than this of one waits until refused requests no longer do.
const MAX_BESIDE_REFUSED_BYTES: usize = 2 * 1024;
/// After so many bytes of heads without an authorized request the connection ends when its client has sent no more.
const MAX_UNAUTHORIZED_HEADS: usize = 32 * 1024;
/// After so many it ends in any case.
const MAX_HEADS_IN_A_BURST: usize = 1024 * 1024;
/// Most bytes that come before a connection's first head without hyper.
const MAX_SETTINGS_BYTES: usize = 1024;
/// So many frames, or parts of them, are handed over at once beside heads: others have their turn between them.
const MAX_STEPS: usize = 32;
/// Read at once.
const READ: usize = 2 * 1024;
/// Steps in which the buffer grows, while it is small and later.
const GROWTH: [usize; 2] = [256, 2 * 1024];
/// What acknowledges the PING that hyper sends with its first GOAWAY: its next one names the last stream.
const SHUTDOWN_PONG: [u8; 17] = [0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// Bytes on their way to hyper.
#[derive(Debug)]
pub(super) struct Staged {
    bytes: BytesMut,
    /// So many of them were followed.
    followed: usize,
    /// So many of them may be handed over.
    ready: usize,
    heads: Heads,
}

impl Staged {
    /// What was read while finding out the protocol.
    pub(super) fn new(bytes: BytesMut) -> Self {
        Self { bytes, followed: 0, ready: 0, heads: Heads::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_within_head(&self) -> bool {
        self.heads.is_within()
    }

    /// Whether so many heads have come without an authorized request that there should be no more of them; `quiet` says that
    /// nothing else has come.
    pub(super) fn has_spent_its_heads(&self, quiet: bool) -> bool {
        let most = if quiet { MAX_UNAUTHORIZED_HEADS } else { MAX_HEADS_IN_A_BURST };
        self.ready == 0 && !self.heads.is_within() && self.heads.bytes() > most
    }

    /// Whether the connection's first head is larger than it may be.
    pub(super) fn is_first_too_large(&self) -> bool {
        self.bytes.len() > MAX_FIRST_BYTES
    }

    /// Whether a later head is larger than it may be without an authorized request.
    pub(super) fn is_too_large(&self) -> bool {
        self.bytes.len() > MAX_UNAUTHORIZED_BYTES
    }

    /// Whether it is so large that the rest of it waits until refused requests no longer do.
    pub(super) fn is_large(&self) -> bool {
        self.bytes.len() > MAX_BESIDE_REFUSED_BYTES
    }

    /// Whether more is here than a preface, settings and a part of a head; nothing may have been handed over.
    pub(super) fn has_more_than_settings(&self) -> bool {
        let common = self.bytes.len().min(PREFACE.len());
        self.bytes[..common] != PREFACE[..common]
            || self.has_first()
            || self.heads.has_others()
            || !self.heads.is_within() && self.bytes.len() > MAX_SETTINGS_BYTES
    }

    /// How many SETTINGS frames have come whole.
    pub(super) fn settings(&self) -> usize {
        self.heads.settings()
    }

    /// Follows what is here, to the end of the first head at most. Whether something may be handed over.
    pub(super) fn advance(&mut self) -> bool {
        let (mut ends_head, mut steps) = (self.ready > 0, 0);
        while !ends_head && self.followed < self.bytes.len() && (steps < MAX_STEPS || self.ready == 0) {
            steps += 1;
            ends_head = self.step();
        }
        self.ready > 0
    }

    /// Follows what is here to the end of a connection's first head, before anything is handed over.
    pub(super) fn advance_to_first(&mut self) {
        while !self.has_first() && self.followed < self.bytes.len() {
            self.step();
        }
    }

    /// Follows one frame, or a part of one. Whether a head ends there.
    fn step(&mut self) -> bool {
        let (taken, ends_head) = self.heads.step(&self.bytes[self.followed..]);
        self.followed += taken;
        if !self.heads.is_within() {
            self.ready = self.followed - self.heads.undecided();
        }
        ends_head
    }

    /// Whether a head has come whole.
    fn has_first(&self) -> bool {
        self.heads.bytes() > 0 && !self.heads.is_within()
    }

    /// Hands over what may be, as far as there is room.
    pub(super) fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let taken = self.ready.min(buf.remaining());
        buf.put_slice(&self.bytes[..taken]);
        self.bytes.advance(taken);
        (self.ready, self.followed) = (self.ready - taken, self.followed - taken);
        self.release();
    }

    /// Hands over whatever is here, as far as there is room.
    pub(super) fn hand_over_all(&mut self, buf: &mut ReadBuf<'_>) {
        while self.followed < self.bytes.len() {
            self.followed += self.heads.step(&self.bytes[self.followed..]).0;
        }
        self.ready = self.followed;
        self.hand_over(buf);
    }

    /// Follows bytes that hyper has got already; none may be staged.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.heads.step(bytes).0..];
        }
    }

    /// Reads once; 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let filled = buffers::with_tray(|tray| {
            let mut read = ReadBuf::new(&mut tray[..READ]);
            ready!(Pin::new(stream).poll_read(cx, &mut read))?;
            self.append(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        });
        if filled.is_pending() && self.bytes.capacity() > self.bytes.len() + GROWTH[1] {
            self.resize(0);
        }
        filled
    }

    /// The buffer is no larger than what is in it, and does not double: a head may be most of what the connection holds.
    fn append(&mut self, bytes: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            self.resize(bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Moves what is here into a buffer that has room for so much more.
    fn resize(&mut self, more: usize) {
        let needed = self.bytes.len() + more;
        let step = if needed > GROWTH[1] { GROWTH[1] } else { GROWTH[0] };
        let mut resized = BytesMut::with_capacity(needed.next_multiple_of(step));
        resized.extend_from_slice(&self.bytes);
        buffers::give(std::mem::replace(&mut self.bytes, resized));
    }

    /// Throws away what is here, and has hyper name the last stream that it got when it says that it goes away.
    pub(super) fn end_with_pong(&mut self) {
        self.clear();
        self.bytes.extend_from_slice(&SHUTDOWN_PONG);
        (self.followed, self.ready) = (SHUTDOWN_PONG.len(), SHUTDOWN_PONG.len());
    }

    /// Throws away what will not be handed over.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        (self.followed, self.ready) = (0, 0);
        self.release();
    }

    /// Gives the buffer back where there is nothing in it.
    fn release(&mut self) {
        if self.bytes.is_empty() {
            buffers::give(std::mem::take(&mut self.bytes));
        }
    }
}
