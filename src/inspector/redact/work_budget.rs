//! Bounds the work of one redaction. It is counted, not timed: where it ends does not depend on how busy the machine is.

use std::cell::Cell;

/// About so many nanoseconds of work are done for one exchange.
const MAX_WORK_NANOS: u64 = 50_000_000;

/// What is left of the work that may be done.
pub(super) struct WorkBudget(Cell<u64>);

impl Default for WorkBudget {
    fn default() -> Self {
        Self(Cell::new(MAX_WORK_NANOS))
    }
}

impl WorkBudget {
    /// Takes off work that takes about so many nanoseconds. Whether it may be done.
    pub(super) fn spend(&self, nanoseconds: usize) -> bool {
        let left = self.0.get().saturating_sub(nanoseconds as u64);
        self.0.set(left);
        left > 0
    }

    /// Leaves nothing.
    pub(super) fn exhaust(&self) {
        self.0.set(0);
    }

    /// Whether nothing is left, and what was found may not be all.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.get() == 0
    }
}
