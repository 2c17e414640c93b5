//! How many gettoken calls may leave this proxy in an hour, whatever happens.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// WeCom publishes no number; 300 an hour and address is the historic one.
const CALLS: usize = 300;
const WINDOW: Duration = Duration::from_secs(60 * 60);

/// The calls of the last hour that count.
#[derive(Debug, Default)]
pub(super) struct Budget(Mutex<VecDeque<Instant>>);

impl Budget {
    /// Takes one call out of the hour's budget; false when it is spent.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while calls.front().is_some_and(|call| now.saturating_duration_since(*call) >= WINDOW) {
            calls.pop_front();
        }
        if calls.len() >= CALLS {
            return false;
        }
        calls.push_back(now);
        true
    }

    /// Whether there is no call left.
    pub(super) fn is_spent(&self, now: Instant) -> bool {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counting = |call: &&Instant| now.saturating_duration_since(**call) < WINDOW;
        calls.iter().filter(counting).count() >= CALLS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_hour_holds_at_most_its_budget() {
        let (budget, start) = (Budget::default(), Instant::now());
        let taken = (0..2 * 3600).filter(|second| budget.take(start + Duration::from_secs(*second))).count();
        assert_eq!(taken, 2 * CALLS);
        assert!(!budget.take(start + Duration::from_secs(2 * 3600 - 1)));
    }
}
