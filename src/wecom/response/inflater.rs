//! Per-thread pool of decompressors. Allocating and clearing the 40 KiB of a new one costs more than all other
//! work on a small response.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use flate2::Decompress;

/// Most pooled decompressors per thread. A response is usually complete before the next one needs a
/// decompressor.
const MAX_POOLED: usize = 4;

thread_local! {
    static POOL: RefCell<Vec<Decompress>> = const { RefCell::new(Vec::new()) };
}

/// A decompressor that returns to the pool when dropped.
#[derive(Debug)]
pub(super) struct Inflater(Option<Decompress>);

impl Inflater {
    /// A reset decompressor for data with a zlib header or without.
    pub(super) fn acquire(zlib: bool) -> Self {
        let pooled = POOL.with_borrow_mut(Vec::pop);
        Self(Some(match pooled {
            Some(mut inflater) => {
                inflater.reset(zlib);
                inflater
            }
            None => Decompress::new(zlib),
        }))
    }
}

impl Deref for Inflater {
    type Target = Decompress;

    fn deref(&self) -> &Decompress {
        self.0.as_ref().expect("taken only in drop")
    }
}

impl DerefMut for Inflater {
    fn deref_mut(&mut self) -> &mut Decompress {
        self.0.as_mut().expect("taken only in drop")
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // On thread exit the pool may be destroyed before a response that is still alive.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < MAX_POOLED {
                pool.extend(self.0.take());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::generate::{deflate_compressed, zlib_compressed};
    use super::*;
    use flate2::{FlushDecompress, Status};

    fn inflate(inflater: &mut Inflater, compressed: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(1024);
        let status = inflater.decompress_vec(compressed, &mut text, FlushDecompress::None);
        assert!(matches!(status, Ok(Status::StreamEnd)), "{status:?}");
        text
    }

    #[test]
    fn pooled_inflater_is_reset() {
        for zlib in [true, false, false, true] {
            let compressed = if zlib { zlib_compressed(b"text") } else { deflate_compressed(b"text") };
            assert_eq!(inflate(&mut Inflater::acquire(zlib), &compressed), b"text");
            // Returned to the pool in the middle of the data, and after damaged data.
            let mut text = Vec::with_capacity(1);
            let _ = Inflater::acquire(zlib).decompress_vec(&compressed, &mut text, FlushDecompress::None);
            let _ = Inflater::acquire(zlib).decompress_vec(b"\xFF\xFF\xFF", &mut text, FlushDecompress::None);
        }
    }

    #[test]
    fn inflater_pool_is_bounded() {
        drop((0..2 * MAX_POOLED).map(|_| Inflater::acquire(false)).collect::<Vec<_>>());
        assert_eq!(POOL.with_borrow(Vec::len), MAX_POOLED);
    }
}
