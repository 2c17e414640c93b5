//! Decompressors, of which each thread keeps some for the next reply. To allocate and clear the 40 KiB of a new one is
//! more work than all else about a small reply.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use flate2::Decompress;

/// Most decompressors that wait on one thread. A reply is mostly here whole, and done with its own before the next needs
/// one.
const MOST: usize = 4;

thread_local! {
    static AT_HAND: RefCell<Vec<Decompress>> = const { RefCell::new(Vec::new()) };
}

/// A decompressor that goes back to those that wait.
#[derive(Debug)]
pub(super) struct Inflater(Option<Decompress>);

impl Inflater {
    /// One at the start of its data, which have zlib's frame or none.
    pub(super) fn take(zlib: bool) -> Self {
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
            if at_hand.len() < MOST {
                at_hand.extend(self.0.take());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::generate::{deflated, raw_deflated};
    use super::*;
    use flate2::{FlushDecompress, Status};

    fn inflated(inflater: &mut Inflater, data: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(1024);
        let status = inflater.decompress_vec(data, &mut text, FlushDecompress::None);
        assert!(matches!(status, Ok(Status::StreamEnd)), "{status:?}");
        text
    }

    #[test]
    fn one_that_was_used_is_as_good_as_new() {
        for zlib in [true, false, false, true] {
            let data = if zlib { deflated(b"text") } else { raw_deflated(b"text") };
            assert_eq!(inflated(&mut Inflater::take(zlib), &data), b"text");
            // Given back in the middle, and after damaged data.
            let mut text = Vec::with_capacity(1);
            let _ = Inflater::take(zlib).decompress_vec(&data, &mut text, FlushDecompress::None);
            let _ = Inflater::take(zlib).decompress_vec(b"\xFF\xFF\xFF", &mut text, FlushDecompress::None);
        }
    }

    #[test]
    fn no_more_wait_than_are_worth_their_memory() {
        drop((0..2 * MOST).map(|_| Inflater::take(false)).collect::<Vec<_>>());
        assert_eq!(AT_HAND.with_borrow(Vec::len), MOST);
    }
}
