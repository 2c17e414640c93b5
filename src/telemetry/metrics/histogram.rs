//! A histogram of durations with fixed buckets.

use std::time::Duration;

/// The inclusive upper bounds of the buckets in nanoseconds. One more bucket counts longer durations.
const BUCKET_BOUNDS_NANOS: [u64; 23] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    3_000_000_000,
    4_000_000_000,
    5_000_000_000,
    6_000_000_000,
    8_000_000_000,
    10_000_000_000,
    15_000_000_000,
    20_000_000_000,
    30_000_000_000,
    60_000_000_000,
    120_000_000_000,
];
/// The same bounds in seconds, as `le` labels.
pub(super) const BUCKET_BOUNDS_SECONDS: [&str; 23] = [
    "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "3",
    "4", "5", "6", "8", "10", "15", "20", "30", "60", "120",
];

/// A histogram of durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Counts per bucket, not cumulative; the last bucket has no upper bound.
    pub(super) buckets: [u64; BUCKET_BOUNDS_NANOS.len() + 1],
    sum_nanos: u64,
}

impl Histogram {
    /// Counts one duration.
    pub(super) fn observe(&mut self, duration: Duration) {
        self.add(Self::bucket_of(duration), 1, Self::nanos(duration));
    }

    /// Counts that many durations of one bucket.
    pub(super) fn add(&mut self, bucket: u8, count: u64, nanos: u64) {
        self.buckets[usize::from(bucket)] += count;
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
    }

    /// The bucket of a duration.
    pub(super) fn bucket_of(duration: Duration) -> u8 {
        let nanos = Self::nanos(duration);
        BUCKET_BOUNDS_NANOS.partition_point(|bound| *bound < nanos) as u8
    }

    pub(super) fn nanos(duration: Duration) -> u64 {
        u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Adds the counts of another histogram.
    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, count) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += count;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(other.sum_nanos);
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum in seconds.
    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }

    /// The quantile `q` (0 to 1), interpolated within its bucket; `None` if the histogram is empty.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        self.quantile_in_bucket(q).map(|(quantile, _)| quantile)
    }

    /// The bounds of the bucket in which the quantile `q` lies; no upper one for the last bucket.
    pub fn quantile_bounds(&self, q: f64) -> Option<(Duration, Option<Duration>)> {
        self.quantile_in_bucket(q).map(|(_, bounds)| bounds)
    }

    fn quantile_in_bucket(&self, q: f64) -> Option<(Duration, (Duration, Option<Duration>))> {
        let rank = q * self.count() as f64;
        let mut below = 0;
        for (nth, count) in self.buckets.into_iter().enumerate() {
            if count > 0 && (below + count) as f64 >= rank {
                let floor = nth.checked_sub(1).map_or(0, |before| BUCKET_BOUNDS_NANOS[before]);
                let ceiling = BUCKET_BOUNDS_NANOS.get(nth).copied().unwrap_or(floor);
                let within = ((rank - below as f64) / count as f64).clamp(0.0, 1.0);
                let quantile = floor + ((ceiling - floor) as f64 * within) as u64;
                let upper = BUCKET_BOUNDS_NANOS.get(nth).map(|bound| Duration::from_nanos(*bound));
                return Some((Duration::from_nanos(quantile), (Duration::from_nanos(floor), upper)));
            }
            below += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observe_uses_first_bucket_not_exceeded() {
        for (duration, nth) in [
            (Duration::ZERO, 0),
            (Duration::from_micros(500), 0),
            (Duration::from_nanos(500_001), 1),
            (Duration::from_secs(30), 20),
            (Duration::from_secs(121), 23),
            (Duration::MAX, 23),
        ] {
            let mut histogram = Histogram::default();
            histogram.observe(duration);
            assert_eq!(histogram.buckets.iter().position(|count| *count == 1), Some(nth), "{duration:?}");
        }
    }

    #[test]
    fn bounds_in_seconds_match_nanoseconds() {
        for (bound, text) in BUCKET_BOUNDS_NANOS.into_iter().zip(BUCKET_BOUNDS_SECONDS) {
            assert_eq!(text.parse::<f64>().expect("a number"), bound as f64 / 1e9);
        }
    }

    #[test]
    fn quantile_lies_within_its_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..99 {
            histogram.observe(Duration::from_millis(3));
        }
        histogram.observe(Duration::from_secs(300));
        let median = histogram.quantile(0.5).expect("not empty");
        assert!((Duration::from_micros(2500)..Duration::from_millis(5)).contains(&median), "{median:?}");
        assert_eq!(histogram.quantile(0.99), Some(Duration::from_millis(5)));
        let bounds = (Duration::from_micros(2500), Some(Duration::from_millis(5)));
        assert_eq!(histogram.quantile_bounds(0.99), Some(bounds));
        assert_eq!(histogram.quantile_bounds(1.0), Some((Duration::from_secs(120), None)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_secs(120)), "the last bound");
    }
}
