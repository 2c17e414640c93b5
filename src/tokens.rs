//! One agent's access_token: who needs one gets the current one, who was refused gets the next, and however many ask
//! there is one gettoken.
//!
//! Two verbs carry the rest: [`TokenSlot::current`] and [`TokenSlot::replace`]. A renewal runs in a task of its own
//! (`renew`), so that no caller who goes away takes it from the others. Where replicas share a store, one of them asks for
//! all (`shared`). How often is bounded by `backoff`, `cooldown`, `shares` and `failures`. What the slot tells to others
//! about itself is in `report`.

mod accepted_paths;
mod backoff;
mod backoff_history;
mod bucket;
mod cooldown;
mod failure_budget;
pub mod fetch;
mod hourly_window;
pub mod passes;
mod proactive;
mod reason;
mod refresh;
mod refresh_budget;
mod refresh_counts;
mod refusal_budget;
mod replicas;
mod service;
mod status;
mod throttled;
pub mod tickets;
mod token;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{sync::watch, time::Instant};

#[cfg(test)]
pub(crate) use self::token::wall_clock;
pub use self::{
    accepted_paths::PathKey,
    fetch::{Credentials, FetchError},
    reason::RefreshReason,
    refresh_counts::RefreshCount,
    service::{FetchToken, RefreshSettings, TokenService},
    status::{LastRefresh, TokenStatus, ceil_seconds},
    token::Token,
};
use self::{
    backoff::Backoff,
    cooldown::{Cooldown, RefusedPaths},
    proactive::refresh_before_expiry,
};
use crate::store::Store;

/// What became of a refused token.
#[derive(Debug)]
pub enum Replacement {
    /// A newer token; send the request with it.
    Refreshed(Arc<Token>),
    /// gettoken handed the refused token out again; it is worth one try.
    Unchanged(Arc<Token>),
    /// No renewal now: the last one brought this very token, or a share is spent. The refusal stands; the next renewal may be
    /// tried after so long.
    Throttled(Duration),
    /// The renewal failed.
    Unavailable(Arc<FetchError>),
}

impl Replacement {
    fn from_outcome(outcome: Outcome, refused: &Token) -> Self {
        match outcome {
            Ok(token) if token.is_same_as(refused) => Self::Unchanged(token),
            Ok(token) => Self::Refreshed(token),
            Err(failure) => match *failure {
                FetchError::Throttled { retry_at: until } => Self::throttled_until(until),
                _ => Self::Unavailable(failure),
            },
        }
    }

    fn throttled_until(until: Instant) -> Self {
        Self::Throttled(until.saturating_duration_since(Instant::now()))
    }
}

type Outcome = Result<Arc<Token>, Arc<FetchError>>;
type Refresh = watch::Receiver<Option<Outcome>>;

/// The token of one agent, and all that is known of getting one. It belongs to one pair of corpid and secret: a changed
/// secret makes a new slot.
pub struct AgentToken {
    agent_name: String,
    credentials: Credentials,
    service: Arc<TokenService>,
    current: ArcSwapOption<Token>,
    used: AtomicBool,
    requested: AtomicBool,
    /// The secret brought a token when it was last used.
    credentials_verified: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    refresh: Option<Refresh>,
    backoff: Backoff,
    cooldown: Cooldown,
    /// The paths that refused the current token since the flight under way began.
    refused_by: RefusedPaths,
    /// That flight ended a cooldown early.
    cooldown_ended_early: bool,
    /// The current token came back although it had expired.
    repeated_after_expiry: bool,
    /// How often the current token was renewed ahead of its expiry.
    proactive_refreshes: u8,
    /// When it is this agent's turn to try its secret, where too many have failed for the address.
    failure_queue_turn: Option<Instant>,
    last_refresh: Option<LastRefresh>,
}

impl State {
    /// How long no gettoken is tried after failures, its own or those of the address.
    fn backoff_remaining(&self, now: Instant) -> Duration {
        let turn = self.failure_queue_turn.map_or(Duration::ZERO, |turn| turn.saturating_duration_since(now));
        self.backoff.remaining(now).max(turn)
    }
}

impl AgentToken {
    /// A slot without a token.
    pub fn new(agent: &str, credentials: Credentials, issuer: Arc<TokenService>) -> Arc<Self> {
        Arc::new(Self {
            agent_name: agent.to_owned(),
            credentials,
            service: issuer,
            current: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
            requested: AtomicBool::new(false),
            credentials_verified: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// The store that replicas share, where there is one.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.service.store()
    }

    /// Whose token it is.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The token that there is, whether it serves or not; for whoever must not show it.
    pub fn cached_even_expired(&self) -> Option<Arc<Token>> {
        self.current.load_full()
    }

    /// The token that serves at `now`, if there is one. Takes no lock that a renewal can hold.
    pub fn cached(self: &Arc<Self>, now: Instant) -> Option<Arc<Token>> {
        let token = self.current.load();
        let token = token.as_ref().filter(|token| now < token.usable_until)?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            if now >= token.refresh_at {
                // Nobody used it when its renewal was due.
                self.service.runtime.spawn(refresh_before_expiry(Arc::downgrade(self), token.clone()));
            }
        }
        Some(token.clone())
    }

    /// The token that serves now; fetches one if there is none, once for all that ask. While fetching fails, the last
    /// failure comes back at once until it is time for another try.
    pub async fn current_or_fetch(self: &Arc<Self>) -> Outcome {
        let flight = {
            let mut state = self.state();
            let now = Instant::now();
            if let Some(token) = self.cached(now) {
                return Ok(token);
            }
            self.requested.store(true, Ordering::Relaxed);
            let reason =
                if self.current.load().is_some() { RefreshReason::Expired } else { RefreshReason::First };
            if state.refresh.is_none() {
                if reason == RefreshReason::First && state.backoff.last_failure().is_none() {
                    state.backoff = self.service.backoff_history.lookup(&self.credentials, now);
                }
                if let Some(failure) = state.backoff.active_failure(now) {
                    return Err(failure);
                }
            }
            self.join_or_start(&mut state, reason).map_err(|until| self.throttle_error(&state, until))?
        };
        self.mark_used_if_ok(join(flight).await)
    }

    /// What to do about a token that the upstream refused on this path. If there is a newer one by now, that is the answer;
    /// only a refusal of the current one causes a gettoken.
    pub async fn replace_refused(self: &Arc<Self>, refused: &Token, path: PathKey) -> Replacement {
        let flight = {
            let mut state = self.state();
            let now = Instant::now();
            let current = self.current.load_full().filter(|current| current.is_same_as(refused));
            let Some(current) = current else {
                drop(state);
                return Replacement::from_outcome(self.current_or_fetch().await, refused);
            };
            let (worked, works) = (current.was_ever_accepted_on(path), current.is_accepted_on(path));
            current.mark_refused_on(path);
            if state.refresh.is_none() {
                if let Some(until) = state.cooldown.blocked_until(now, path, works) {
                    return Replacement::throttled_until(until);
                }
                if let Some(failure) = state.backoff.active_failure(now) {
                    return Replacement::Unavailable(failure);
                }
            }
            let early = state.refresh.is_none() && state.cooldown.ends_early(now);
            match self.join_or_start(&mut state, RefreshReason::Refused { was_accepted: worked }) {
                Ok(flight) => {
                    state.cooldown_ended_early |= early;
                    state.refused_by.insert(path);
                    flight
                }
                Err(until) => {
                    self.mark_throttled(until);
                    return Replacement::throttled_until(until);
                }
            }
        };
        Replacement::from_outcome(self.mark_used_if_ok(join(flight).await), refused)
    }

    /// Says that a path refused a token although it had just been renewed, as it is for an app that may not call an API at
    /// all: renewing again and again would help nobody.
    pub fn mark_refused_again(&self, token: &Token, path: PathKey) {
        let mut state = self.state();
        let current = self.current.load_full().filter(|current| current.is_same_as(token));
        if let Some(current) = current {
            if !current.is_accepted_on(path) {
                state.cooldown.extend_to(path, Instant::now(), current.first_seen_instant());
            }
            current.mark_refused_on(path);
        }
    }

    /// Fetches a token whatever failed before: an operator says that it is worth a try. Such orders count against the
    /// agent's own share, and are held back when that is spent.
    pub async fn force_refresh(self: &Arc<Self>) -> Outcome {
        let flight = {
            let mut state = self.state();
            self.requested.store(true, Ordering::Relaxed);
            let flight = self.join_or_start(&mut state, RefreshReason::Manual);
            let flight = flight.map_err(|until| self.throttle_error(&state, until))?;
            // Only now: where the share is spent there is no try, and what failed before stays as it is.
            state.backoff = Backoff::default();
            state.cooldown = Cooldown::default();
            state.failure_queue_turn = None;
            flight
        };
        join(flight).await
    }

    /// Who waited for a token uses it.
    fn mark_used_if_ok(&self, outcome: Outcome) -> Outcome {
        if outcome.is_ok() {
            self.used.store(true, Ordering::Relaxed);
        }
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a flight to land.
async fn join(mut flight: Refresh) -> Outcome {
    match flight.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Arc::new(FetchError::Cancelled))),
        Err(_) => Err(Arc::new(FetchError::Cancelled)),
    }
}

#[cfg(test)]
mod tests;
