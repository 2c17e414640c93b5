//! A bucket whose units refill one by one, stored as its theoretical arrival time (GCRA).

use std::time::Duration;

use tokio::time::Instant;

/// Capacity and refill rate of a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) capacity: u32,
    pub(super) refill_interval: Duration,
}

/// A bucket; full at first.
#[derive(Debug, Default)]
pub(super) struct Bucket(Option<Instant>);

impl Bucket {
    /// Takes one. An empty bucket stays empty, and its refill interval begins anew.
    pub(super) fn consume(&mut self, now: Instant, rate: Rate) {
        let max_tat = now + rate.refill_interval * rate.capacity;
        self.0 = Some((self.tat(now) + rate.refill_interval).min(max_tat));
    }

    /// When one is available; `now` or earlier if one is available already.
    pub(super) fn available_at(&self, now: Instant, rate: Rate) -> Instant {
        let tat = self.tat(now) + rate.refill_interval;
        tat.checked_sub(rate.refill_interval * rate.capacity).unwrap_or(now)
    }

    /// How many are available.
    pub(super) fn available(&self, now: Instant, rate: Rate) -> u32 {
        let refill_time = self.tat(now).saturating_duration_since(now);
        let used = refill_time.as_nanos().div_ceil(rate.refill_interval.as_nanos());
        rate.capacity.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    fn tat(&self, now: Instant) -> Instant {
        self.0.map_or(now, |tat| tat.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_refills_one_per_interval() {
        let rate = Rate { capacity: 3, refill_interval: Duration::from_secs(60) };
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        for left in [2, 1, 0, 0] {
            bucket.consume(start, rate);
            assert_eq!(bucket.available(start, rate), left);
        }
        assert_eq!(bucket.available_at(start, rate), start + rate.refill_interval);
        assert_eq!(bucket.available(start + rate.refill_interval, rate), 1);
        assert_eq!(bucket.available(start + 9 * rate.refill_interval, rate), 3);
    }
}
