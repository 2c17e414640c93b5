//! What a slot tells to operators: dates and failures, never a value.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{State, TokenSlot};

/// The last renewal and how it went.
#[derive(Debug, Clone)]
pub struct LastRenewal {
    /// When it ended.
    pub at: SystemTime,
    /// Why it was done: `first`, `expired`, `refused`, `ahead`, `asked` or `shared`.
    pub reason: &'static str,
    /// What failed; `None` when a token came.
    pub failure: Option<String>,
}

/// The state of one agent's token.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whether a request has asked for a token since the slot was made.
    pub asked_for: bool,
    /// Whether there is a token that serves now, as far as the last use of it tells.
    pub usable: bool,
    /// Whether the upstream refused the current token when it was last used.
    pub refused: bool,
    /// When the current value was first seen and when it expires.
    pub dates: Option<(SystemTime, SystemTime)>,
    /// The last renewal, if there was one.
    pub last: Option<LastRenewal>,
    /// How long no other gettoken will be tried after failures, or because too many were; zero when it may be tried now.
    pub next_try_in: Duration,
    /// Whether the last renewal that was wanted is held back because a share is spent.
    pub held: bool,
    /// The last failure, while no success has followed it.
    pub failing: Option<String>,
}

/// How many seconds it is until something that is not before.
pub fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl TokenSlot {
    /// How long no gettoken will be tried after failures, or because too many were; zero when it may be tried now.
    pub fn next_try_in(&self) -> Duration {
        let now = Instant::now();
        self.next_try(&self.state(), now).0
    }

    /// The same, and whether it is held back because a share is spent.
    fn next_try(&self, state: &State, now: Instant) -> (Duration, bool) {
        let held = self.issuer.held.until(&self.agent, now);
        let wait = held.map_or(Duration::ZERO, |until| until - now);
        (state.wait(now).max(wait), held.is_some())
    }

    /// When the current token expires, if there is one.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.current.load().as_ref().map(|token| token.expires_at)
    }

    /// How the token is, now.
    pub fn report(self: &Arc<Self>) -> Report {
        let now = Instant::now();
        let token = self.current.load_full();
        let state = self.state();
        let (next_try_in, held) = self.next_try(&state, now);
        Report {
            asked_for: self.asked_for.load(Ordering::Relaxed),
            usable: token.as_ref().is_some_and(|token| now < token.usable_until && !token.is_refused()),
            refused: token.as_ref().is_some_and(|token| token.is_refused()),
            dates: token.map(|token| (token.first_seen, token.expires_at)),
            last: state.last.clone(),
            next_try_in,
            held,
            failing: state.backoff.last().map(|failure| failure.to_string()),
        }
    }
}
