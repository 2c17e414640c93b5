//! What a slot tells to operators: dates and failures, never a value.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{AgentToken, State};

/// The last renewal and how it went.
#[derive(Debug, Clone)]
pub struct LastRefresh {
    /// When it ended.
    pub completed_at: SystemTime,
    /// Why it was done: `first`, `expired`, `refused`, `ahead`, `asked` or `shared`.
    pub reason: &'static str,
    /// What failed; `None` when a token came.
    pub error: Option<String>,
}

/// The state of one agent's token.
#[derive(Debug, Clone)]
pub struct TokenStatus {
    /// Whether a request has asked for a token since the slot was made.
    pub requested: bool,
    /// Whether there is a token that serves now, as far as the last use of it tells.
    pub usable: bool,
    /// Whether the upstream refused the current token when it was last used.
    pub refused: bool,
    /// When the current value was first seen and when it expires.
    pub first_seen_and_expiry: Option<(SystemTime, SystemTime)>,
    /// The last renewal, if there was one.
    pub last_refresh: Option<LastRefresh>,
    /// How long no other gettoken will be tried after failures, or because too many were; zero when it may be tried now.
    pub next_try_in: Duration,
    /// Whether the last renewal that was wanted is held back because a share is spent.
    pub throttled: bool,
    /// The last failure, while no success has followed it.
    pub last_error: Option<String>,
}

/// How many seconds it is until something that is not before.
pub fn ceil_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl AgentToken {
    /// How long no gettoken will be tried after failures, or because too many were; zero when it may be tried now.
    pub fn next_try_in(&self) -> Duration {
        let now = Instant::now();
        self.next_try_and_throttled(&self.state(), now).0
    }

    /// The same, and whether it is held back because a share is spent.
    fn next_try_and_throttled(&self, state: &State, now: Instant) -> (Duration, bool) {
        let held = self.service.throttled.retry_at(&self.agent_name, now);
        let wait = held.map_or(Duration::ZERO, |until| until - now);
        (state.backoff_remaining(now).max(wait), held.is_some())
    }

    /// When the current token expires, if there is one.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.current.load().as_ref().map(|token| token.expires_at)
    }

    /// How the token is, now.
    pub fn status(self: &Arc<Self>) -> TokenStatus {
        let now = Instant::now();
        let token = self.current.load_full();
        let state = self.state();
        let (next_try_in, held) = self.next_try_and_throttled(&state, now);
        TokenStatus {
            requested: self.requested.load(Ordering::Relaxed),
            usable: token.as_ref().is_some_and(|token| now < token.usable_until && !token.is_refused()),
            refused: token.as_ref().is_some_and(|token| token.is_refused()),
            first_seen_and_expiry: token.map(|token| (token.first_seen, token.expires_at)),
            last_refresh: state.last_refresh.clone(),
            next_try_in,
            throttled: held,
            last_error: state.backoff.last_failure().map(|failure| failure.to_string()),
        }
    }
}
