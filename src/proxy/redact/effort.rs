//! Bounds the work of one redaction. It is counted, not timed: where it ends does not depend on how busy the machine is.

use std::cell::Cell;

/// About so many nanoseconds of work are done for one exchange.
const BUDGET: u64 = 50_000_000;

/// What is left of the work that may be done.
pub(super) struct Effort(Cell<u64>);

impl Default for Effort {
    fn default() -> Self {
        Self(Cell::new(BUDGET))
    }
}

impl Effort {
    /// Takes off work that takes about so many nanoseconds. Whether it may be done.
    pub(super) fn spend(&self, nanoseconds: usize) -> bool {
        let left = self.0.get().saturating_sub(nanoseconds as u64);
        self.0.set(left);
        left > 0
    }

    /// Leaves nothing.
    pub(super) fn give_up(&self) {
        self.0.set(0);
    }

    /// Whether nothing is left, and what was found may not be all.
    pub(super) fn is_spent(&self) -> bool {
        self.0.get() == 0
    }
}
