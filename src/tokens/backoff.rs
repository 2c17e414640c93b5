//! Exponential backoff after failed gettokens.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::FetchError;
use crate::time::backoff::BackoffRange;

/// The delays after an ordinary failure.
const BACKOFF_RANGE: BackoffRange =
    BackoffRange { min: Duration::from_secs(1), max: Duration::from_secs(60) };
/// The delays after a wrong credential or a rate limit: WeCom bans an address that repeats
/// these, and with it every agent behind it.
const BAN_RISK_BACKOFF_RANGE: BackoffRange =
    BackoffRange { min: Duration::from_secs(60), max: Duration::from_secs(15 * 60) };

/// The delay after WeCom refused a suite_ticket; a push ends it.
const TICKET_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// The delay after a corp withdrew its authorisation: another authorisation brings another permanent code.
const AUTHORIZATION_GONE_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Consecutive failures of one credential.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff(Option<BackoffState>);

#[derive(Debug, Clone)]
struct BackoffState {
    last_failure: Arc<FetchError>,
    retry_at: Instant,
    /// With the last one.
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
        let earlier = self.0.as_ref().map_or(0, |state| state.failures);
        let delay = delay_after(&failure, earlier, jitter);
        let failure = Arc::new(failure);
        self.0 = Some(BackoffState {
            last_failure: failure.clone(),
            retry_at: now + delay,
            failures: earlier.saturating_add(1),
        });
        failure
    }

    /// The last failure, while its backoff lasts.
    pub(super) fn active_failure(&self, now: Instant) -> Option<Arc<FetchError>> {
        self.0.as_ref().filter(|state| now < state.retry_at).map(|state| state.last_failure.clone())
    }

    /// Whether the last failure is so long ago that `TokenCache` may forget it.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|state| now >= state.retry_at + BAN_RISK_BACKOFF_RANGE.max)
    }

    /// The time until the next attempt.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |state| state.retry_at.saturating_duration_since(now))
    }

    /// The last failure, if no success followed it.
    pub(super) fn last_failure(&self) -> Option<Arc<FetchError>> {
        self.0.as_ref().map(|state| state.last_failure.clone())
    }
}

/// The delay after a failure that `earlier` failures in a row preceded.
pub(super) fn delay_after(failure: &FetchError, earlier: u32, jitter: f64) -> Duration {
    if failure.is_prerequisite() {
        Duration::ZERO
    } else if failure.is_ticket_error() {
        TICKET_RETRY_INTERVAL
    } else if failure.is_authorization_gone() {
        AUTHORIZATION_GONE_DELAY
    } else {
        backoff_delay(earlier, failure.risks_ban(), jitter)
    }
}

/// The delay after a failure that `earlier` failures in a row preceded. `jitter`, from 0 to 1, keeps agents that
/// failed together from retrying together.
pub(super) fn backoff_delay(earlier: u32, risks_ban: bool, jitter: f64) -> Duration {
    let range = if risks_ban { BAN_RISK_BACKOFF_RANGE } else { BACKOFF_RANGE };
    range.jittered(earlier, jitter)
}
