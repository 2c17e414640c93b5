//! A token bucket, kept as the one instant at which it is full again (GCRA).

use std::time::Duration;

use tokio::time::Instant;

/// How much a bucket holds, and how often it gets one back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) capacity: u32,
    pub(super) interval: Duration,
}

/// A bucket; full to begin with.
#[derive(Debug, Default)]
pub(super) struct Bucket(Option<Instant>);

impl Bucket {
    /// Takes one and leaves `spare`; else when that will be possible.
    pub(super) fn take(&mut self, now: Instant, rate: Rate, spare: u32) -> Result<(), Instant> {
        match self.next(now, rate, spare) {
            at if at <= now => {
                self.0 = Some(self.full_at(now) + rate.interval);
                Ok(())
            }
            at => Err(at),
        }
    }

    /// Takes one even where there is none: an empty bucket stays empty.
    pub(super) fn force(&mut self, now: Instant, rate: Rate) {
        let most = now + rate.interval * rate.capacity;
        self.0 = Some((self.full_at(now) + rate.interval).min(most));
    }

    /// Puts one back that was taken.
    pub(super) fn give_back(&mut self, rate: Rate) {
        self.0 = self.0.and_then(|full_at| full_at.checked_sub(rate.interval));
    }

    /// When one can be taken that leaves `spare`; `now` or before where it can be already.
    pub(super) fn next(&self, now: Instant, rate: Rate, spare: u32) -> Instant {
        let full_at = self.full_at(now) + rate.interval;
        full_at.checked_sub(rate.interval * rate.capacity.saturating_sub(spare)).unwrap_or(now)
    }

    /// How many there are.
    pub(super) fn level(&self, now: Instant, rate: Rate) -> u32 {
        let lacking = self.full_at(now).saturating_duration_since(now);
        let taken = lacking.as_nanos().div_ceil(rate.interval.as_nanos());
        rate.capacity.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX))
    }

    /// Whether nothing is missing.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full_at(now) <= now
    }

    fn full_at(&self, now: Instant) -> Instant {
        self.0.map_or(now, |full_at| full_at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_refills_by_one_each_interval_and_keeps_its_spare() {
        let rate = Rate { capacity: 12, interval: Duration::from_secs(300) };
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        let taken = (0..20).filter(|_| bucket.take(start, rate, 6).is_ok()).count();
        assert_eq!((taken, bucket.level(start, rate)), (6, 6));
        assert_eq!(bucket.take(start, rate, 6), Err(start + rate.interval));
        let taken = (0..20).filter(|_| bucket.take(start, rate, 0).is_ok()).count();
        assert_eq!((taken, bucket.level(start, rate)), (6, 0));
        let later = start + rate.interval;
        assert_eq!(
            [bucket.take(later, rate, 0), bucket.take(later, rate, 0)],
            [Ok(()), Err(later + rate.interval)]
        );
        bucket.give_back(rate);
        assert_eq!(bucket.take(later, rate, 0), Ok(()));
        bucket.force(later, rate);
        assert_eq!(bucket.level(later, rate), 0);
        assert!(!bucket.is_full(later) && bucket.is_full(later + 12 * rate.interval));
    }
}
