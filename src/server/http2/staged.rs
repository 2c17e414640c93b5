//! What an HTTP/2 client has sent and hyper has not got yet.
//!
//! hyper decodes a head as it comes, and one that never ends may become many times as large as what was sent of it. Until a
//! request was authorized it gets whole heads only.

use std::{
    io,
    pin::pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, ReadBuf};

use super::{super::MAX_HEAD, heads::Heads};
use crate::{buffers, io::Stream};

/// More than this of one head is handed over although it has not ended: hyper refuses it.
const MAX_STAGED: usize = MAX_HEAD + buffers::SIZE;
/// So many bytes of heads may come before a request is authorized; the last of them to its end.
const MAX_UNAUTHORIZED_HEADS: usize = 32 * 1024;
/// So many frames, or parts of them, are handed over at once beside heads: others have their turn between them.
const MAX_STEPS: usize = 32;
/// Read at once.
const READ: usize = 4 * 1024;

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

    /// Whether no more heads are to come without an authorized request.
    pub(super) fn has_spent_its_heads(&self) -> bool {
        self.ready == 0 && !self.heads.is_within() && self.heads.bytes() > MAX_UNAUTHORIZED_HEADS
    }

    /// Follows what is here, to the end of the first head at most. Whether something may be handed over.
    pub(super) fn advance(&mut self) -> bool {
        let (mut ends_head, mut steps) = (self.ready > 0, 0);
        while !ends_head && self.followed < self.bytes.len() && (steps < MAX_STEPS || self.ready == 0) {
            steps += 1;
            let (taken, ends) = self.heads.step(&self.bytes[self.followed..]);
            self.followed += taken;
            ends_head = ends;
            if !self.heads.is_within() {
                self.ready = self.followed - self.heads.undecided();
            }
        }
        if self.bytes.len() > MAX_STAGED {
            self.ready = self.followed;
        }
        self.ready > 0
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
        if self.bytes.capacity() == 0 {
            self.bytes = buffers::take();
        }
        self.bytes.reserve(READ);
        let filled = pin!(stream.read_buf(&mut self.bytes)).poll(cx);
        if filled.is_pending() {
            self.release();
        }
        filled
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
