//! Which connections may hold a large incomplete request head before a request on them was authorized.

use std::cell::Cell;

/// Maximum number of connections of a worker that hold one at the same time.
const MAX_LARGE_HEADS: usize = 8;

thread_local! {
    static LARGE_HEADS: Cell<usize> = const { Cell::new(0) };
}

/// One of the [`MAX_LARGE_HEADS`] of this thread.
#[derive(Debug)]
pub(super) struct LargeHead;

impl LargeHead {
    /// Takes one; `None` if all are taken.
    pub(super) fn try_acquire() -> Option<Self> {
        let held = LARGE_HEADS.get();
        (held < MAX_LARGE_HEADS).then(|| {
            LARGE_HEADS.set(held + 1);
            Self
        })
    }
}

impl Drop for LargeHead {
    fn drop(&mut self) {
        LARGE_HEADS.set(LARGE_HEADS.get() - 1);
    }
}
