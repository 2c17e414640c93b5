//! A few lines a minute about what clients can make happen without end, and how many there would have been.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many lines in each [`WHILE`].
const MAX_LINES_PER_INTERVAL: u32 = 5;
/// See [`FEW`].
const THROTTLE_INTERVAL: Duration = Duration::from_secs(60);

/// What was said of one kind of trouble, and what was not.
#[derive(Debug, Default)]
pub(super) struct LogThrottle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    interval_started: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl LogThrottle {
    /// It happened again. Where that is to be said, how often it happened before without being spoken of.
    pub(super) fn allow(&self) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.interval_started.is_none_or(|since| since.elapsed() >= THROTTLE_INTERVAL) {
            (told.interval_started, told.logged) = (Some(Instant::now()), 0);
        }
        if told.logged == MAX_LINES_PER_INTERVAL {
            told.suppressed += 1;
            return None;
        }
        told.logged += 1;
        Some(std::mem::take(&mut told.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn throttle_over_limit_suppresses_and_counts() {
        let hushed = LogThrottle::default();
        assert_eq!((0..8).filter_map(|_| hushed.allow()).collect::<Vec<_>>(), [0; 5]);
        tokio::time::advance(THROTTLE_INTERVAL).await;
        assert_eq!((0..8).filter_map(|_| hushed.allow()).collect::<Vec<_>>(), [3, 0, 0, 0, 0]);
        tokio::time::advance(THROTTLE_INTERVAL).await;
        assert_eq!(hushed.allow(), Some(3));
    }
}
