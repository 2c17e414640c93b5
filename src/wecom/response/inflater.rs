//! Decompressors, of which each thread keeps some for the next reply. To allocate and clear the 40 KiB of a new one is
//! more work than all else about a small reply.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use flate2::Decompress;

/// Most decompressors that wait on one thread. A reply is mostly here whole, and done with its own before the next needs
/// one.
const MAX_POOLED: usize = 4;

thread_local! {
    static AT_HAND: RefCell<Vec<Decompress>> = const { RefCell::new(Vec::new()) };
}

/// A decompressor that goes back to those that wait.
#[derive(Debug)]
pub(super) struct Inflater(Option<Decompress>);

impl Inflater {
    /// One at the start of its data, which have zlib's frame or none.
    pub(super) fn acquire(zlib: bool) -> Self {
        let waiting = AT_HAND.with_borrow_mut(Vec::pop);
        Self(Some(match waiting {
            Some(mut data) => {
                data.reset(zlib);
                data
            }
            None => Decompress::new(zlib),
        }))
    }
}

impl Deref for Inflater {
    type Target = Decompress;

    fn deref(&self) -> &Decompress {
        self.0.as_ref().expect("it leaves only in drop")
    }
}

impl DerefMut for Inflater {
    fn deref_mut(&mut self) -> &mut Decompress {
        self.0.as_mut().expect("it leaves only in drop")
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // A thread that ends may have let go of those that wait before a reply that it still has.
        let _ = AT_HAND.try_with(|at_hand| {
            let mut at_hand = at_hand.borrow_mut();
            if at_hand.len() < MAX_POOLED {
                at_hand.extend(self.0.take());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::generate::{deflate_compressed, zlib_compressed};
    use super::*;
    use flate2::{FlushDecompress, Status};

    fn inflate(inflater: &mut Inflater, data: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(1024);
        let status = inflater.decompress_vec(data, &mut text, FlushDecompress::None);
        assert!(matches!(status, Ok(Status::StreamEnd)), "{status:?}");
        text
    }

    #[test]
    fn pooled_inflater_is_reset() {
        for zlib in [true, false, false, true] {
            let data = if zlib { zlib_compressed(b"text") } else { deflate_compressed(b"text") };
            assert_eq!(inflate(&mut Inflater::acquire(zlib), &data), b"text");
            // Given back in the middle, and after damaged data.
            let mut text = Vec::with_capacity(1);
            let _ = Inflater::acquire(zlib).decompress_vec(&data, &mut text, FlushDecompress::None);
            let _ = Inflater::acquire(zlib).decompress_vec(b"\xFF\xFF\xFF", &mut text, FlushDecompress::None);
        }
    }

    #[test]
    fn inflater_pool_is_bounded() {
        drop((0..2 * MAX_POOLED).map(|_| Inflater::acquire(false)).collect::<Vec<_>>());
        assert_eq!(AT_HAND.with_borrow(Vec::len), MAX_POOLED);
    }
}
