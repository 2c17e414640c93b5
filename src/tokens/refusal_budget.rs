//! The refreshes that refusals of one agent's tokens may cause: twelve, refilled by one every five minutes.

use std::time::Duration;

use tokio::time::Instant;

/// Refreshes reserved for refusals by a path that had accepted the token, and as many again for any refusal.
const MAX_RESERVED: u32 = 6;
const MAX_UNRESERVED: u32 = 6;
/// Refill time of one refresh; the reserved ones refill first.
const REFILL_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The refreshes that are left to one agent.
#[derive(Debug)]
pub(super) struct RefusalBudget {
    reserved: u32,
    unreserved: u32,
    /// When the refill of the next one began.
    refilling_since: Instant,
}

impl RefusalBudget {
    /// A full budget.
    pub(super) fn new(now: Instant) -> Self {
        Self { reserved: MAX_RESERVED, unreserved: MAX_UNRESERVED, refilling_since: now }
    }

    /// Takes one; with `was_accepted` a reserved one if possible. `Err`: when one is available.
    pub(super) fn try_acquire(&mut self, now: Instant, was_accepted: bool) -> Result<(), Instant> {
        self.refill(now);
        match was_accepted {
            true if self.reserved > 0 => self.reserved -= 1,
            _ if self.unreserved > 0 => self.unreserved -= 1,
            true => return Err(self.refilling_since + REFILL_INTERVAL),
            false => return Err(self.refilling_since + REFILL_INTERVAL * (MAX_RESERVED - self.reserved + 1)),
        }
        Ok(())
    }

    /// Returns one that was taken.
    pub(super) fn release(&mut self, was_accepted: bool) {
        match was_accepted {
            true if self.reserved < MAX_RESERVED => self.reserved += 1,
            _ => self.unreserved = (self.unreserved + 1).min(MAX_UNRESERVED),
        }
    }

    /// Whether none is spent.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.reserved == MAX_RESERVED && self.unreserved == MAX_UNRESERVED
    }

    /// Whether one is left for a path that had accepted the token.
    #[cfg(test)]
    pub(super) fn has_remaining(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.reserved + self.unreserved > 0
    }

    fn refill(&mut self, now: Instant) {
        let missing = MAX_RESERVED - self.reserved + MAX_UNRESERVED - self.unreserved;
        let intervals =
            now.saturating_duration_since(self.refilling_since).as_nanos() / REFILL_INTERVAL.as_nanos();
        let refilled = missing.min(u32::try_from(intervals).unwrap_or(u32::MAX));
        self.refilling_since += REFILL_INTERVAL * refilled;
        let reserved = refilled.min(MAX_RESERVED - self.reserved);
        self.reserved += reserved;
        self.unreserved += refilled - reserved;
        if refilled == missing {
            self.refilling_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_budget_reserves_six_and_refills_them_first() {
        let start = Instant::now();
        let mut budget = RefusalBudget::new(start);
        let mut taken =
            |at, was_accepted| (0..20).filter(|_| budget.try_acquire(at, was_accepted).is_ok()).count();
        assert_eq!([taken(start, false), taken(start, true), taken(start, true)], [6, 6, 0]);
        let later = start + 3 * REFILL_INTERVAL;
        assert_eq!([taken(later, false), taken(later, true)], [0, 3]);
        assert_eq!(budget.try_acquire(later, true), Err(later + REFILL_INTERVAL));
        assert_eq!(budget.try_acquire(later, false), Err(later + 7 * REFILL_INTERVAL));
        assert!(budget.try_acquire(later + 7 * REFILL_INTERVAL, false).is_ok());
        budget.release(false);
        assert!(
            !budget.is_full(later + 11 * REFILL_INTERVAL) && budget.is_full(later + 12 * REFILL_INTERVAL)
        );
    }

    #[test]
    fn refusal_budget_spent_reserve_leaves_unreserved() {
        let start = Instant::now();
        let mut budget = RefusalBudget::new(start);
        let mut taken =
            |was_accepted| (0..6).filter(|_| budget.try_acquire(start, was_accepted).is_ok()).count();
        assert_eq!([taken(true), taken(false), taken(true)], [6, 6, 0]);
    }
}
