//! What one agent's refused tokens may cost: twelve renewals, one of which comes back every five minutes.

use std::time::Duration;

use tokio::time::Instant;

/// Renewals for refusals by a path on which the refused token had worked, and as many again for any.
const MAX_RESERVED: u32 = 6;
const MAX_UNRESERVED: u32 = 6;
/// Time in which one comes back, a reserved one first.
const REFILL_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The renewals that are left to one agent.
#[derive(Debug)]
pub(super) struct RefusalBudget {
    reserved: u32,
    unreserved: u32,
    /// Since when the next one is coming back.
    refilling_since: Instant,
}

impl RefusalBudget {
    /// None is spent.
    pub(super) fn new(now: Instant) -> Self {
        Self { reserved: MAX_RESERVED, unreserved: MAX_UNRESERVED, refilling_since: now }
    }

    /// Takes one, `worked` where the reserved ones are for it; else when that will be possible.
    pub(super) fn try_acquire(&mut self, now: Instant, worked: bool) -> Result<(), Instant> {
        self.refill(now);
        match worked {
            true if self.reserved > 0 => self.reserved -= 1,
            _ if self.unreserved > 0 => self.unreserved -= 1,
            true => return Err(self.refilling_since + REFILL_INTERVAL),
            false => return Err(self.refilling_since + REFILL_INTERVAL * (MAX_RESERVED - self.reserved + 1)),
        }
        Ok(())
    }

    /// Puts one back that was taken.
    pub(super) fn release(&mut self, worked: bool) {
        match worked {
            true if self.reserved < MAX_RESERVED => self.reserved += 1,
            _ => self.unreserved = (self.unreserved + 1).min(MAX_UNRESERVED),
        }
    }

    /// Whether none is spent.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.reserved == MAX_RESERVED && self.unreserved == MAX_UNRESERVED
    }

    /// Whether one is left to a path on which the token had worked.
    #[cfg(test)]
    pub(super) fn has_remaining(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.reserved + self.unreserved > 0
    }

    fn refill(&mut self, now: Instant) {
        let most = MAX_RESERVED - self.reserved + MAX_UNRESERVED - self.unreserved;
        let passed =
            now.saturating_duration_since(self.refilling_since).as_nanos() / REFILL_INTERVAL.as_nanos();
        let back = most.min(u32::try_from(passed).unwrap_or(u32::MAX));
        self.refilling_since += REFILL_INTERVAL * back;
        let reserved = back.min(MAX_RESERVED - self.reserved);
        self.reserved += reserved;
        self.unreserved += back - reserved;
        if back == most {
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
        let mut left = RefusalBudget::new(start);
        let mut taken = |at, worked| (0..20).filter(|_| left.try_acquire(at, worked).is_ok()).count();
        assert_eq!([taken(start, false), taken(start, true), taken(start, true)], [6, 6, 0]);
        let later = start + 3 * REFILL_INTERVAL;
        assert_eq!([taken(later, false), taken(later, true)], [0, 3]);
        assert_eq!(left.try_acquire(later, true), Err(later + REFILL_INTERVAL));
        assert_eq!(left.try_acquire(later, false), Err(later + 7 * REFILL_INTERVAL));
        assert!(left.try_acquire(later + 7 * REFILL_INTERVAL, false).is_ok());
        left.release(false);
        assert!(!left.is_full(later + 11 * REFILL_INTERVAL) && left.is_full(later + 12 * REFILL_INTERVAL));
    }

    #[test]
    fn refusal_budget_spent_reserve_leaves_unreserved() {
        let start = Instant::now();
        let mut left = RefusalBudget::new(start);
        let mut taken = |worked| (0..6).filter(|_| left.try_acquire(start, worked).is_ok()).count();
        assert_eq!([taken(true), taken(false), taken(true)], [6, 6, 0]);
    }
}
