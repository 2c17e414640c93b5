//! Rate-limits a log message and counts the suppressed ones, for events that clients can cause without limit.

use std::time::Duration;

use parking_lot::Mutex;

use tokio::time::Instant;

/// Length of the fixed window.
const THROTTLE_INTERVAL: Duration = Duration::from_secs(60);

/// Rate limit of one log message.
#[derive(Debug)]
pub struct LogThrottle {
    /// Messages that pass in each [`THROTTLE_INTERVAL`].
    max_lines: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    interval_started: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl LogThrottle {
    /// Lets `max_lines` messages a minute pass.
    pub fn per_minute(max_lines: u32) -> Self {
        Self { max_lines, state: Mutex::default() }
    }

    /// Counts an event. Returns `None` if its message is to be suppressed, otherwise how many were suppressed since the
    /// last one that passed.
    pub fn allow(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.interval_started.is_none_or(|since| since.elapsed() >= THROTTLE_INTERVAL) {
            (state.interval_started, state.logged) = (Some(Instant::now()), 0);
        }
        if state.logged == self.max_lines {
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
        let throttle = LogThrottle::per_minute(5);
        assert_eq!((0..8).filter_map(|_| throttle.allow()).collect::<Vec<_>>(), [0; 5]);
        tokio::time::advance(THROTTLE_INTERVAL).await;
        assert_eq!((0..8).filter_map(|_| throttle.allow()).collect::<Vec<_>>(), [3, 0, 0, 0, 0]);
        tokio::time::advance(THROTTLE_INTERVAL).await;
        assert_eq!(throttle.allow(), Some(3));
    }
}
