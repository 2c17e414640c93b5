//! Bounds the work of one redaction. The work is counted, not timed, so that the result does not depend on the load
//! of the machine.

use std::cell::Cell;

/// Budget of one exchange, in estimated nanoseconds.
const MAX_WORK_NANOS: u64 = 50_000_000;

/// Remaining work in nanoseconds.
pub(super) struct WorkBudget(Cell<u64>);

impl Default for WorkBudget {
    fn default() -> Self {
        Self(Cell::new(MAX_WORK_NANOS))
    }
}

impl WorkBudget {
    /// Spends an estimated cost in nanoseconds; returns whether any budget is left.
    pub(super) fn spend(&self, nanoseconds: usize) -> bool {
        let left = self.0.get().saturating_sub(nanoseconds as u64);
        self.0.set(left);
        left > 0
    }

    /// Spends the whole budget.
    pub(super) fn exhaust(&self) {
        self.0.set(0);
    }

    /// Whether the budget is spent and the result may be incomplete.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.get() == 0
    }
}
