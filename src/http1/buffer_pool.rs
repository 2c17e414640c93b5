//! Read and write buffers that are at hand on each thread: a connection between two requests needs none.

use std::cell::RefCell;

use bytes::BytesMut;

use crate::secret::wipe;

/// Room in a buffer: small requests and answers fit.
pub const BUFFER_BYTES: usize = 8 * 1024;
/// Most buffers that wait on one thread.
const MAX_POOLED: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Room for one read, of [`SIZE`], for as long as it takes to see how much came. What is in it means nothing.
pub fn with_scratch<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|tray| {
        if tray.is_empty() {
            tray.resize(BUFFER_BYTES, 0);
        }
        read(tray)
    })
}

/// Wipes what reads left in that room: a head may hold credentials.
pub fn wipe_scratch() {
    SCRATCH.with_borrow_mut(|tray| wipe(tray));
}

/// An empty buffer of [`SIZE`].
pub fn acquire() -> BytesMut {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Gives a buffer back, whatever is in it. One whose memory is still in use elsewhere, or that has grown, is let go.
pub fn release(mut buffer: BytesMut) {
    if buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    let is_whole = buffer.capacity() >= BUFFER_BYTES || buffer.try_reclaim(BUFFER_BYTES);
    if is_whole && buffer.capacity() <= 2 * BUFFER_BYTES {
        FREE.with_borrow_mut(|at_hand| {
            if at_hand.len() < MAX_POOLED {
                at_hand.push(buffer);
            }
        });
    }
}
