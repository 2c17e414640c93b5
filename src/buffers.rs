//! Read and write buffers that are at hand on each thread: a connection between two requests needs none.

use std::cell::RefCell;

use bytes::BytesMut;

use crate::secret::wipe;

/// Room in a buffer: small requests and answers fit.
pub const SIZE: usize = 8 * 1024;
/// Most buffers that wait on one thread.
const MOST: usize = 64;

thread_local! {
    static AT_HAND: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static TRAY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Room for one read, of [`SIZE`], for as long as it takes to see how much came. What is in it means nothing.
pub fn with_tray<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    TRAY.with_borrow_mut(|tray| {
        if tray.is_empty() {
            tray.resize(SIZE, 0);
        }
        read(tray)
    })
}

/// Wipes what reads left in that room: a head may hold credentials.
pub fn wipe_tray() {
    TRAY.with_borrow_mut(|tray| wipe(tray));
}

/// An empty buffer of [`SIZE`].
pub fn take() -> BytesMut {
    AT_HAND.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(SIZE))
}

/// Gives a buffer back, whatever is in it. One whose memory is still in use elsewhere, or that has grown, is let go.
pub fn give(mut buffer: BytesMut) {
    if buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    let is_whole = buffer.capacity() >= SIZE || buffer.try_reclaim(SIZE);
    if is_whole && buffer.capacity() <= 2 * SIZE {
        AT_HAND.with_borrow_mut(|at_hand| {
            if at_hand.len() < MOST {
                at_hand.push(buffer);
            }
        });
    }
}
