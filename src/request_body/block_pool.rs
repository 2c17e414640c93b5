//! Free blocks of replay buffers, for the next bodies: in memory new to the process, a large body took a third more CPU
//! time, for page faults.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

/// Capacity of the blocks that are kept.
pub(super) const BLOCK_BYTES: u64 = 64 * 1024;

/// The free blocks of one memory budget. They are part of its bound, but do not count as used.
#[derive(Debug)]
pub(super) struct BlockPool {
    max_bytes: u64,
    /// Bytes of `blocks`.
    bytes: AtomicU64,
    blocks: Mutex<Vec<BytesMut>>,
}

impl BlockPool {
    /// Keeps at most `max_bytes`.
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, bytes: AtomicU64::new(0), blocks: Mutex::default() }
    }

    /// Bytes of the free blocks.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// An empty block of this capacity.
    pub(super) fn acquire(&self, capacity: u64) -> BytesMut {
        let free = if capacity == BLOCK_BYTES && self.bytes() > 0 { self.pop() } else { None };
        free.unwrap_or_else(|| BytesMut::with_capacity(capacity as usize))
    }

    /// Takes those of the blocks that have the right size and that nothing else reads, while they fit into what is free;
    /// the others are dropped.
    pub(super) fn release(&self, blocks: impl Iterator<Item = Bytes>, free_bytes: impl Fn() -> u64) {
        for block in blocks.filter(|block| block.len() as u64 == BLOCK_BYTES) {
            let Ok(mut block) = block.try_into_mut() else { continue };
            block.clear();
            if block.capacity() as u64 != BLOCK_BYTES {
                continue;
            }
            let mut kept = self.blocks.lock();
            if self.bytes() + BLOCK_BYTES <= self.max_bytes.min(free_bytes()) {
                self.bytes.fetch_add(BLOCK_BYTES, Ordering::Relaxed);
                kept.push(block);
            }
        }
    }

    /// Drops blocks until at most `max_bytes` are left.
    pub(super) fn shrink_to(&self, max_bytes: u64) {
        while self.bytes() > max_bytes {
            let Some(block) = self.pop() else { return };
            drop(block);
        }
    }

    fn pop(&self) -> Option<BytesMut> {
        let mut blocks = self.blocks.lock();
        let block = blocks.pop()?;
        self.bytes.fetch_sub(BLOCK_BYTES, Ordering::Relaxed);
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_kept_within_the_bound_and_given_out_again() {
        let pool = BlockPool::new(3 * BLOCK_BYTES);
        let full = || {
            let mut block = pool.acquire(BLOCK_BYTES);
            block.resize(BLOCK_BYTES as usize, b'a');
            block.freeze()
        };
        let blocks: Vec<_> = (0..5).map(|_| full()).collect();
        let addresses: Vec<_> = blocks.iter().map(|block| block.as_ptr().addr()).collect();
        let shared = blocks[0].slice(1..);
        let small = Bytes::from(vec![0; 100]);
        pool.release(blocks.into_iter().chain([small]), || 2 * BLOCK_BYTES);
        assert_eq!(pool.bytes(), 2 * BLOCK_BYTES, "what is free bounds it");
        assert_eq!((&shared[..3], pool.acquire(100).capacity()), (&b"aaa"[..], 100));
        let again = full();
        assert_eq!((again.as_ptr().addr(), pool.bytes()), (addresses[2], BLOCK_BYTES));
        pool.release((0..5).map(|_| full()).collect::<Vec<_>>().into_iter(), || u64::MAX);
        assert_eq!(pool.bytes(), 3 * BLOCK_BYTES);
        pool.shrink_to(BLOCK_BYTES);
        assert_eq!((pool.bytes(), pool.blocks.lock().len()), (BLOCK_BYTES, 1));
    }
}
