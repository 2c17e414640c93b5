//! How long a gettoken that failed is left alone.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::FetchError;

/// First and longest wait after an ordinary failure.
const BACKOFF_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// First and longest wait after a wrong credential or a frequency limit: WeCom bans the address of who repeats those,
/// and with it every agent behind it.
const BAN_RISK_BACKOFF_RANGE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15 * 60));

/// The failures in a row of one agent.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff(Option<BackoffState>);

#[derive(Debug, Clone)]
struct BackoffState {
    last_failure: Arc<FetchError>,
    retry_at: Instant,
    failures: u32,
}

impl Backoff {
    /// Counts one more failure; `jitter` is from 0 to 1.
    pub(super) fn record_failure(
        &mut self,
        now: Instant,
        failure: FetchError,
        jitter: f64,
    ) -> Arc<FetchError> {
        let times = self.0.as_ref().map_or(0, |failing| failing.failures);
        let wait = backoff_delay(times, failure.risks_ban(), jitter);
        let failure = Arc::new(failure);
        self.0 = Some(BackoffState {
            last_failure: failure.clone(),
            retry_at: now + wait,
            failures: times.saturating_add(1),
        });
        failure
    }

    /// The last failure, while it is too early for another try.
    pub(super) fn active_failure(&self, now: Instant) -> Option<Arc<FetchError>> {
        self.0.as_ref().filter(|failing| now < failing.retry_at).map(|failing| failing.last_failure.clone())
    }

    /// Whether it is so long ago that another failure would be one by itself.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|failing| now >= failing.retry_at + BAN_RISK_BACKOFF_RANGE.1)
    }

    /// How long until another try.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |failing| failing.retry_at.saturating_duration_since(now))
    }

    /// The last failure since the last success.
    pub(super) fn last_failure(&self) -> Option<Arc<FetchError>> {
        self.0.as_ref().map(|failing| failing.last_failure.clone())
    }
}

/// The wait after `times` failures before this one; `jitter` is from 0 to 1, so that agents which failed together do
/// not try again together.
pub(super) fn backoff_delay(times: u32, dangerous: bool, jitter: f64) -> Duration {
    let (first, longest) = if dangerous { BAN_RISK_BACKOFF_RANGE } else { BACKOFF_RANGE };
    let doubled = first.saturating_mul(1 << times.min(10)).min(longest);
    doubled.mul_f64(0.9 + 0.3 * jitter).clamp(first, longest)
}

/// Chance, from 0 to 1.
pub(super) fn random_jitter() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn backoff_delay_grows_within_its_range(times in any::<u32>(), jitter in 0.0..=1.0f64) {
            let (ordinary, dangerous) = (backoff_delay(times, false, jitter), backoff_delay(times, true, jitter));
            prop_assert!((1.0..=60.0).contains(&ordinary.as_secs_f64()));
            prop_assert!((60.0..=900.0).contains(&dangerous.as_secs_f64()));
            prop_assert!(backoff_delay(times.saturating_add(1), false, jitter) >= ordinary);
        }
    }
}
