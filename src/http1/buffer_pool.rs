//! Per-thread pool of read and write buffers, so that a connection between two requests owns none.

use std::cell::RefCell;

use bytes::BytesMut;

use crate::secret::wipe;

/// Capacity of a buffer: a small request or response fits.
pub const BUFFER_BYTES: usize = 8 * 1024;
/// Maximum number of pooled buffers per thread.
const MAX_POOLED: usize = 64;
/// Capacity of a buffer for the reads of a large body.
pub const LARGE_BUFFER_BYTES: usize = 512 * 1024;
/// The same for these.
const MAX_POOLED_LARGE: usize = 4;

thread_local! {
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static FREE_LARGE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends this thread's scratch read buffer ([`BUFFER_BYTES`], unspecified contents).
pub fn with_scratch<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.is_empty() {
            scratch.resize(BUFFER_BYTES, 0);
        }
        read(scratch)
    })
}

/// Wipes the scratch buffer: a head may contain credentials.
pub fn wipe_scratch() {
    SCRATCH.with_borrow_mut(|scratch| wipe(scratch));
}

/// Takes an empty buffer of [`BUFFER_BYTES`] from the pool, or allocates one.
pub fn acquire() -> BytesMut {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Takes an empty buffer of [`LARGE_BUFFER_BYTES`] from the pool, or allocates one.
pub fn acquire_large() -> BytesMut {
    FREE_LARGE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(LARGE_BUFFER_BYTES))
}

/// Returns a buffer of that size to the pool, if there is room and its memory is not shared; else it is dropped.
pub fn release_large(mut buffer: BytesMut) {
    buffer.clear();
    let is_reusable = buffer.capacity() >= LARGE_BUFFER_BYTES || buffer.try_reclaim(LARGE_BUFFER_BYTES);
    if is_reusable {
        FREE_LARGE.with_borrow_mut(|free| {
            if free.len() < MAX_POOLED_LARGE {
                free.push(buffer);
            }
        });
    }
}

/// Returns a buffer to the pool. Its length is reset, but its bytes are not wiped: the caller wipes what may be a
/// credential. A buffer whose memory is shared, or that has grown, is dropped.
pub fn release(mut buffer: BytesMut) {
    if buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    let is_reusable = buffer.capacity() >= BUFFER_BYTES || buffer.try_reclaim(BUFFER_BYTES);
    if is_reusable && buffer.capacity() <= 2 * BUFFER_BYTES {
        FREE.with_borrow_mut(|free| {
            if free.len() < MAX_POOLED {
                free.push(buffer);
            }
        });
    }
}
