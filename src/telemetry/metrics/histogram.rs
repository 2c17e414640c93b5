//! Durations, counted in buckets whose bounds never change.

use std::time::Duration;

/// The buckets' upper bounds in nanoseconds, each its own bucket's. What takes longer is in one more.
const BUCKET_BOUNDS_NANOS: [u64; 15] = [
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
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
/// The same in seconds, as they are written.
pub(super) const BUCKET_BOUNDS_SECONDS: [&str; 15] = [
    "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5",
    "10", "30",
];

/// How long things took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many fell between the bound before and this bucket's own; the last has none.
    pub(super) buckets: [u64; BUCKET_BOUNDS_NANOS.len() + 1],
    sum_nanos: u64,
}

impl Histogram {
    /// Counts one.
    pub(super) fn observe(&mut self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[BUCKET_BOUNDS_NANOS.partition_point(|bound| *bound < took)] += 1;
        self.sum_nanos = self.sum_nanos.saturating_add(took);
    }

    /// Counts all that another one has.
    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(other.sum_nanos);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Seconds, all together.
    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }

    /// What this share of all did not take longer than, as far as the buckets tell; `None` where there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = share * self.count() as f64;
        let mut below = 0;
        for (nth, here) in self.buckets.into_iter().enumerate() {
            if here > 0 && (below + here) as f64 >= rank {
                let floor = nth.checked_sub(1).map_or(0, |before| BUCKET_BOUNDS_NANOS[before]);
                let ceiling = BUCKET_BOUNDS_NANOS.get(nth).copied().unwrap_or(floor);
                let within = ((rank - below as f64) / here as f64).clamp(0.0, 1.0);
                return Some(Duration::from_nanos(floor + ((ceiling - floor) as f64 * within) as u64));
            }
            below += here;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observe_uses_first_bucket_not_exceeded() {
        for (took, nth) in [
            (Duration::ZERO, 0),
            (Duration::from_micros(500), 0),
            (Duration::from_nanos(500_001), 1),
            (Duration::from_secs(30), 14),
            (Duration::from_secs(31), 15),
            (Duration::MAX, 15),
        ] {
            let mut histogram = Histogram::default();
            histogram.observe(took);
            assert_eq!(histogram.buckets.iter().position(|count| *count == 1), Some(nth), "{took:?}");
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
        histogram.observe(Duration::from_secs(60));
        let half = histogram.quantile(0.5).expect("there are some");
        assert!((Duration::from_micros(2500)..Duration::from_millis(5)).contains(&half), "{half:?}");
        assert_eq!(histogram.quantile(0.99), Some(Duration::from_millis(5)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_secs(30)), "no more is known of it");
    }
}
