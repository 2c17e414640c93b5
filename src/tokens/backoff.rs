//! How long a gettoken that failed is left alone.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::FetchError;

/// First and longest wait after an ordinary failure.
const ORDINARY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// First and longest wait after a wrong credential or a frequency limit: WeCom bans the address of who repeats those,
/// and with it every agent behind it.
const DANGEROUS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15 * 60));

/// The failures in a row of one agent.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff(Option<Failing>);

#[derive(Debug, Clone)]
struct Failing {
    failure: Arc<FetchError>,
    until: Instant,
    times: u32,
}

impl Backoff {
    /// Counts one more failure; `jitter` is from 0 to 1.
    pub(super) fn fail(&mut self, now: Instant, failure: FetchError, jitter: f64) -> Arc<FetchError> {
        let times = self.0.as_ref().map_or(0, |failing| failing.times);
        let wait = wait(times, failure.is_dangerous(), jitter);
        let failure = Arc::new(failure);
        self.0 =
            Some(Failing { failure: failure.clone(), until: now + wait, times: times.saturating_add(1) });
        failure
    }

    /// The last failure, while it is too early for another try.
    pub(super) fn holds(&self, now: Instant) -> Option<Arc<FetchError>> {
        self.0.as_ref().filter(|failing| now < failing.until).map(|failing| failing.failure.clone())
    }

    /// Whether it is so long ago that another failure would be one by itself.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|failing| now >= failing.until + DANGEROUS.1)
    }

    /// How long until another try.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |failing| failing.until.saturating_duration_since(now))
    }

    /// The last failure since the last success.
    pub(super) fn last(&self) -> Option<Arc<FetchError>> {
        self.0.as_ref().map(|failing| failing.failure.clone())
    }
}

/// The wait after `times` failures before this one; `jitter` is from 0 to 1, so that agents which failed together do
/// not try again together.
pub(super) fn wait(times: u32, dangerous: bool, jitter: f64) -> Duration {
    let (first, longest) = if dangerous { DANGEROUS } else { ORDINARY };
    let doubled = first.saturating_mul(1 << times.min(10)).min(longest);
    doubled.mul_f64(0.9 + 0.3 * jitter).clamp(first, longest)
}

/// Chance, from 0 to 1.
pub(super) fn random_unit() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_within_their_bounds(times in any::<u32>(), jitter in 0.0..=1.0f64) {
            let (ordinary, dangerous) = (wait(times, false, jitter), wait(times, true, jitter));
            prop_assert!((1.0..=60.0).contains(&ordinary.as_secs_f64()));
            prop_assert!((60.0..=900.0).contains(&dangerous.as_secs_f64()));
            prop_assert!(wait(times.saturating_add(1), false, jitter) >= ordinary);
        }
    }
}
