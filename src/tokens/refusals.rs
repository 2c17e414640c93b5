//! What one agent's refused tokens may cost: twelve renewals, one of which comes back every five minutes.

use std::time::Duration;

use tokio::time::Instant;

/// Renewals for refusals by a path on which the refused token had worked, and as many again for any.
const RESERVED: u32 = 6;
const OPEN: u32 = 6;
/// Time in which one comes back, a reserved one first.
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The renewals that are left to one agent.
#[derive(Debug)]
pub(super) struct Refusals {
    reserved: u32,
    open: u32,
    /// Since when the next one is coming back.
    since: Instant,
}

impl Refusals {
    /// None is spent.
    pub(super) fn new(now: Instant) -> Self {
        Self { reserved: RESERVED, open: OPEN, since: now }
    }

    /// Takes one, `worked` where the reserved ones are for it; else when that will be possible.
    pub(super) fn take(&mut self, now: Instant, worked: bool) -> Result<(), Instant> {
        self.refill(now);
        match worked {
            true if self.reserved > 0 => self.reserved -= 1,
            _ if self.open > 0 => self.open -= 1,
            true => return Err(self.since + INTERVAL),
            false => return Err(self.since + INTERVAL * (RESERVED - self.reserved + 1)),
        }
        Ok(())
    }

    /// Puts one back that was taken.
    pub(super) fn give_back(&mut self, worked: bool) {
        match worked {
            true if self.reserved < RESERVED => self.reserved += 1,
            _ => self.open = (self.open + 1).min(OPEN),
        }
    }

    /// Whether none is spent.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.reserved == RESERVED && self.open == OPEN
    }

    /// Whether one is left to a path on which the token had worked.
    #[cfg(test)]
    pub(super) fn has_any(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.reserved + self.open > 0
    }

    fn refill(&mut self, now: Instant) {
        let most = RESERVED - self.reserved + OPEN - self.open;
        let passed = now.saturating_duration_since(self.since).as_nanos() / INTERVAL.as_nanos();
        let back = most.min(u32::try_from(passed).unwrap_or(u32::MAX));
        self.since += INTERVAL * back;
        let reserved = back.min(RESERVED - self.reserved);
        self.reserved += reserved;
        self.open += back - reserved;
        if back == most {
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_are_reserved_and_come_back_first() {
        let start = Instant::now();
        let mut left = Refusals::new(start);
        let mut taken = |at, worked| (0..20).filter(|_| left.take(at, worked).is_ok()).count();
        assert_eq!([taken(start, false), taken(start, true), taken(start, true)], [6, 6, 0]);
        let later = start + 3 * INTERVAL;
        assert_eq!([taken(later, false), taken(later, true)], [0, 3]);
        assert_eq!(left.take(later, true), Err(later + INTERVAL));
        assert_eq!(left.take(later, false), Err(later + 7 * INTERVAL));
        assert!(left.take(later + 7 * INTERVAL, false).is_ok());
        left.give_back(false);
        assert!(!left.is_full(later + 11 * INTERVAL) && left.is_full(later + 12 * INTERVAL));
    }

    #[test]
    fn reserved_ones_that_are_spent_leave_the_others() {
        let start = Instant::now();
        let mut left = Refusals::new(start);
        let mut taken = |worked| (0..6).filter(|_| left.take(start, worked).is_ok()).count();
        assert_eq!([taken(true), taken(false), taken(true)], [6, 6, 0]);
    }
}
