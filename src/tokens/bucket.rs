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
    /// Takes one even where there is none: an empty bucket stays empty.
    pub(super) fn take(&mut self, now: Instant, rate: Rate) {
        let most = now + rate.interval * rate.capacity;
        self.0 = Some((self.full_at(now) + rate.interval).min(most));
    }

    /// When there is one; `now` or before where there is one already.
    pub(super) fn next(&self, now: Instant, rate: Rate) -> Instant {
        let full_at = self.full_at(now) + rate.interval;
        full_at.checked_sub(rate.interval * rate.capacity).unwrap_or(now)
    }

    /// How many there are.
    pub(super) fn level(&self, now: Instant, rate: Rate) -> u32 {
        let lacking = self.full_at(now).saturating_duration_since(now);
        let taken = lacking.as_nanos().div_ceil(rate.interval.as_nanos());
        rate.capacity.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX))
    }

    fn full_at(&self, now: Instant) -> Instant {
        self.0.map_or(now, |full_at| full_at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_refills_by_one_each_interval() {
        let rate = Rate { capacity: 3, interval: Duration::from_secs(60) };
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        for left in [2, 1, 0, 0] {
            bucket.take(start, rate);
            assert_eq!(bucket.level(start, rate), left);
        }
        assert_eq!(bucket.next(start, rate), start + rate.interval);
        assert_eq!(bucket.level(start + rate.interval, rate), 1);
        assert_eq!(bucket.level(start + 9 * rate.interval, rate), 3);
    }
}
