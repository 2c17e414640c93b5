//! Exponential backoff.

use std::time::Duration;

/// A delay that doubles with each failure in a row.
#[derive(Debug, Clone, Copy)]
pub struct BackoffRange {
    /// The first delay.
    pub min: Duration,
    /// The longest delay.
    pub max: Duration,
}

impl BackoffRange {
    /// The delay after a failure that `earlier` failures in a row preceded.
    pub fn delay(self, earlier: u32) -> Duration {
        self.min.saturating_mul(1 << earlier.min(20)).min(self.max)
    }

    /// The same with jitter, so that what failed together is not retried together. `fraction` is random, from 0 to 1.
    pub fn jittered(self, earlier: u32, fraction: f64) -> Duration {
        self.delay(earlier).mul_f64(0.9 + 0.3 * fraction).clamp(self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: BackoffRange = BackoffRange { min: Duration::from_secs(1), max: Duration::from_secs(600) };

    proptest! {
        #[test]
        fn jittered_delay_grows_within_its_range(earlier in any::<u32>(), fraction in 0.0..=1.0f64) {
            let delay = RANGE.jittered(earlier, fraction);
            prop_assert!((RANGE.min..=RANGE.max).contains(&delay));
            prop_assert!(RANGE.jittered(earlier.saturating_add(1), fraction) >= delay);
        }
    }

    #[test]
    fn delay_doubles_up_to_the_longest() {
        let delays: Vec<_> = (0..12).map(|earlier| RANGE.delay(earlier).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(RANGE.delay(u32::MAX), RANGE.max);
    }
}
