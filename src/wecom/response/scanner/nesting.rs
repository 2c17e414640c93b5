//! The stack of open JSON containers, in constant memory.

use super::MAX_DEPTH;

/// The open containers, innermost last: one bit each, set for an object.
#[derive(Clone, Debug)]
pub(super) struct NestingStack {
    objects: [u64; MAX_DEPTH / 64],
    pub(super) depth: usize,
}

impl NestingStack {
    pub(super) const fn new() -> Self {
        Self { objects: [0; MAX_DEPTH / 64], depth: 0 }
    }

    /// Opens a container; false if it is nested too deeply.
    #[inline]
    pub(super) fn push(&mut self, object: bool) -> bool {
        let Some(word) = self.objects.get_mut(self.depth / 64) else { return false };
        let bit = 1 << (self.depth % 64);
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
        true
    }

    #[inline]
    pub(super) fn in_object(&self) -> bool {
        let top = self.depth - 1; // only called inside of a container
        self.objects[top / 64] >> (top % 64) & 1 == 1
    }
}
