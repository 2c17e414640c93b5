//! The state of an entry for operators: times and failures, never a token.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{CachedToken, FetchError, RefreshReason, State, Token};
use crate::text::Text;

/// The last refresh and its outcome.
#[derive(Debug, Clone)]
pub struct LastRefresh {
    /// When it ended.
    pub completed_at: SystemTime,
    /// Why it was made.
    pub reason: RefreshReason,
    /// The failure; `None` if a token was fetched.
    pub error: Option<String>,
}

/// The state of one credential's token.
#[derive(Debug, Clone)]
pub struct TokenStatus {
    /// Whether a token was requested since the entry was created.
    pub requested: bool,
    /// Whether there is a valid token that WeCom did not refuse when it was last used.
    pub usable: bool,
    /// Whether WeCom refused the current token when it was last used.
    pub refused: bool,
    /// When the current token was first seen, and when it expires.
    pub first_seen_and_expiry: Option<(SystemTime, SystemTime)>,
    /// The last refresh, if there was one.
    pub last_refresh: Option<LastRefresh>,
    /// How long backoff or a spent budget holds refreshes back; zero if nothing does.
    pub next_try_in: Duration,
    /// Whether a spent budget holds refreshes back now.
    pub throttled: bool,
    /// The last failure, if no success followed it.
    pub last_error: Option<Text>,
}

/// Whole seconds, rounded up, so that a retry is never too early.
pub fn ceil_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl CachedToken {
    /// How long backoff or a spent budget holds refreshes back; zero if nothing does.
    pub fn next_try_in(&self) -> Duration {
        let now = Instant::now();
        self.state.read(|state| self.next_try_and_throttled(state, now).0)
    }

    /// The same, and whether a spent budget is a cause.
    fn next_try_and_throttled(&self, state: &State, now: Instant) -> (Duration, bool) {
        let throttled_until = self.service.throttled.retry_at(&self.agent_name, now);
        let wait = throttled_until.map_or(Duration::ZERO, |retry_at| retry_at - now);
        (state.wait_after_failures(now).max(wait), throttled_until.is_some())
    }

    /// When the current token expires, if there is one.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.current.load().as_ref().map(|token| token.expires_at())
    }

    /// The last failure, if no success followed it.
    pub fn last_failure(&self) -> Option<Arc<FetchError>> {
        self.state.read(|state| state.backoff.last_failure())
    }

    /// The current state.
    pub fn status(&self) -> TokenStatus {
        let now = Instant::now();
        let token = self.current.load_full();
        self.state.read(|state| self.status_of(state, token, now))
    }

    fn status_of(&self, state: &State, token: Option<Arc<Token>>, now: Instant) -> TokenStatus {
        let (next_try_in, throttled) = self.next_try_and_throttled(state, now);
        TokenStatus {
            requested: self.requested.load(Ordering::Relaxed),
            usable: token.as_ref().is_some_and(|token| now < token.usable_until && !token.is_refused()),
            refused: token.as_ref().is_some_and(|token| token.is_refused()),
            first_seen_and_expiry: token.map(|token| (token.first_seen(), token.expires_at())),
            last_refresh: state.last_refresh.clone(),
            next_try_in,
            throttled,
            last_error: state.backoff.last_failure().map(|failure| failure.text()),
        }
    }
}
