//! Rate-limits a log message (5 a minute) and counts the suppressed ones, for events that clients can cause without
//! limit.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Messages that pass in each [`THROTTLE_INTERVAL`].
const MAX_LINES_PER_INTERVAL: u32 = 5;
/// Length of the fixed window.
const THROTTLE_INTERVAL: Duration = Duration::from_secs(60);

/// Rate limit of one log message.
#[derive(Debug, Default)]
pub(super) struct LogThrottle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    interval_started: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl LogThrottle {
    /// Counts an event. Returns `None` if its message is to be suppressed, otherwise how many were suppressed since the
    /// last one that passed.
    pub(super) fn allow(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.interval_started.is_none_or(|since| since.elapsed() >= THROTTLE_INTERVAL) {
            (state.interval_started, state.logged) = (Some(Instant::now()), 0);
        }
        if state.logged == MAX_LINES_PER_INTERVAL {
            state.suppressed += 1;
            return None;
        }
        state.logged += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn throttle_over_limit_suppresses_and_counts() {
        let throttle = LogThrottle::default();
        assert_eq!((0..8).filter_map(|_| throttle.allow()).collect::<Vec<_>>(), [0; 5]);
        tokio::time::advance(THROTTLE_INTERVAL).await;
        assert_eq!((0..8).filter_map(|_| throttle.allow()).collect::<Vec<_>>(), [3, 0, 0, 0, 0]);
        tokio::time::advance(THROTTLE_INTERVAL).await;
        assert_eq!(throttle.allow(), Some(3));
    }
}
