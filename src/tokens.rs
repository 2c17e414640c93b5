//! Token cache: the access_token of each agent. Requests share the current token, and concurrent requests that
//! need a new one share one gettoken call (single flight).
//!
//! [`AgentToken::current_or_fetch`] returns the cached token, or fetches one if there is none or it has expired;
//! [`AgentToken::replace_refused`] replaces one that WeCom refused. A refresh runs in a task of its own
//! (`refresh`), so that a caller that disconnects does not cancel it for the others. Where replicas share a
//! store, one of them calls gettoken for all (`replicas`). The number of calls is bounded by `backoff`,
//! `cooldown`, `refresh_budget` and `failure_budget`. What operators see of an entry is in `status`.

mod accepted_paths;
mod backoff;
mod backoff_history;
mod bucket;
mod cooldown;
mod failure_budget;
mod failure_queue;
pub mod fetch;
mod fetched_token;
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

/// The outcome of [`AgentToken::replace_refused`].
#[derive(Debug)]
pub enum Replacement {
    /// A newer token; resend the request with it.
    Refreshed(Arc<Token>),
    /// gettoken returned the refused token again; the request is worth one retry.
    Unchanged(Arc<Token>),
    /// No refresh now: a cooldown applies (see `cooldown`), or a budget is spent. The refusal is final for this
    /// request; a refresh may be tried after this time.
    Throttled(Duration),
    /// The refresh failed.
    Unavailable(Arc<FetchError>),
}

impl Replacement {
    fn from_outcome(outcome: Outcome, refused: &Token) -> Self {
        match outcome {
            Ok(token) if token.is_same_as(refused) => Self::Unchanged(token),
            Ok(token) => Self::Refreshed(token),
            Err(failure) => match *failure {
                FetchError::Throttled { retry_at } => Self::throttled_until(retry_at),
                _ => Self::Unavailable(failure),
            },
        }
    }

    fn throttled_until(retry_at: Instant) -> Self {
        Self::Throttled(retry_at.saturating_duration_since(Instant::now()))
    }
}

type Outcome = Result<Arc<Token>, Arc<FetchError>>;
/// A refresh to wait for; `None` until it has completed.
type Refresh = watch::Receiver<Option<Outcome>>;

/// Cache entry: the token of one agent with its refresh state. It belongs to one pair of corpid and secret; a
/// changed secret creates a new entry.
pub struct AgentToken {
    agent_name: String,
    credentials: Credentials,
    service: Arc<TokenService>,
    current: ArcSwapOption<Token>,
    /// A request got the current token since it became current.
    used: AtomicBool,
    /// A token was requested since the entry was created.
    requested: AtomicBool,
    /// A gettoken with these credentials succeeded, here or at another replica, and none has failed since with an
    /// error for which `risks_ban` is true.
    credentials_proven: AtomicBool,
    /// A reload changed the secret, and it was not tried since.
    secret_changed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    refresh: Option<Refresh>,
    backoff: Backoff,
    cooldown: Cooldown,
    /// The paths that refused the current token since the running refresh began.
    refused_by: RefusedPaths,
    /// The running refresh ended a cooldown early.
    refresh_started_in_cooldown: bool,
    /// gettoken returned the current token although it had expired.
    repeated_after_expiry: bool,
    /// Proactive refreshes of the current token.
    proactive_refreshes: u8,
    /// When this agent may try its secret, where the failure budget of the address is spent.
    failure_queue_turn: Option<Instant>,
    /// Why the token is to be fetched then.
    queued_reason: Option<RefreshReason>,
    last_refresh: Option<LastRefresh>,
}

impl State {
    /// How long until gettoken may be tried again, after failures of this agent or of the address.
    fn wait_after_failures(&self, now: Instant) -> Duration {
        let queue_wait =
            self.failure_queue_turn.map_or(Duration::ZERO, |turn| turn.saturating_duration_since(now));
        self.backoff.remaining(now).max(queue_wait)
    }
}

impl AgentToken {
    /// An entry without a token.
    pub fn new(agent: &str, credentials: Credentials, service: Arc<TokenService>) -> Arc<Self> {
        Arc::new(Self::build(agent, credentials, service))
    }

    /// The same for an agent whose credentials an operator changed: the first attempt waits for no failure budget,
    /// unless they are known to have failed.
    pub fn with_changed_secret(
        agent: &str,
        credentials: Credentials,
        service: Arc<TokenService>,
    ) -> Arc<Self> {
        let secret_changed = AtomicBool::new(true);
        Arc::new(Self { secret_changed, ..Self::build(agent, credentials, service) })
    }

    fn build(agent: &str, credentials: Credentials, service: Arc<TokenService>) -> Self {
        Self {
            agent_name: agent.to_owned(),
            credentials,
            service,
            current: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
            requested: AtomicBool::new(false),
            credentials_proven: AtomicBool::new(false),
            secret_changed: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// The store that replicas share, if one is configured.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.service.store()
    }

    /// The credentials that the token is fetched with.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The cached token, expired or not; for code that redacts it.
    pub fn cached_even_expired(&self) -> Option<Arc<Token>> {
        self.current.load_full()
    }

    /// The cached token if it is valid at `now`, which marks it as used; its first use after its refresh time also
    /// spawns its proactive refresh. Takes no lock of this module.
    pub fn cached(self: &Arc<Self>, now: Instant) -> Option<Arc<Token>> {
        let token = self.current.load();
        let token = token.as_ref().filter(|token| now < token.usable_until)?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            if now >= token.refresh_at {
                // The token was not in use when its proactive refresh was due.
                self.service.runtime.spawn(refresh_before_expiry(Arc::downgrade(self), token.clone()));
            }
        }
        Some(token.clone())
    }

    /// The valid token; fetches one if there is none, once for all concurrent callers. During backoff the last
    /// failure is returned at once.
    pub async fn current_or_fetch(self: &Arc<Self>) -> Outcome {
        let refresh = {
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
            self.join_or_start(&mut state, reason)
                .map_err(|retry_at| self.throttle_error(&state, retry_at))?
        };
        self.mark_used_if_ok(join(refresh).await)
    }

    /// Replaces a token that WeCom refused on this path. If the cache has a newer token by now, that one is
    /// returned; only a refusal of the current token causes a gettoken.
    pub async fn replace_refused(self: &Arc<Self>, refused: &Token, path: PathKey) -> Replacement {
        let refresh = {
            let mut state = self.state();
            let now = Instant::now();
            let current = self.current.load_full().filter(|current| current.is_same_as(refused));
            let Some(current) = current else {
                drop(state);
                return Replacement::from_outcome(self.current_or_fetch().await, refused);
            };
            let (was_accepted, is_accepted) =
                (current.was_ever_accepted_on(path), current.is_accepted_on(path));
            current.mark_refused_on(path);
            if state.refresh.is_none() {
                if let Some(retry_at) = state.cooldown.blocked_until(now, path, is_accepted) {
                    return Replacement::throttled_until(retry_at);
                }
                if let Some(failure) = state.backoff.active_failure(now) {
                    return Replacement::Unavailable(failure);
                }
            }
            let ends_early = state.refresh.is_none() && state.cooldown.ends_early(now);
            match self.join_or_start(&mut state, RefreshReason::Refused { was_accepted }) {
                Ok(refresh) => {
                    state.refresh_started_in_cooldown |= ends_early;
                    state.refused_by.insert(path);
                    refresh
                }
                Err(retry_at) => {
                    self.mark_throttled(retry_at);
                    return Replacement::throttled_until(retry_at);
                }
            }
        };
        Replacement::from_outcome(self.mark_used_if_ok(join(refresh).await), refused)
    }

    /// Records that a path refused a token that had just been refreshed, as it does for an app without
    /// permission for an API: further refreshes would not help.
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

    /// Fetches a token in spite of backoff and cooldown, because an operator requested it.
    pub async fn force_refresh(self: &Arc<Self>) -> Outcome {
        let refresh = {
            let mut state = self.state();
            self.requested.store(true, Ordering::Relaxed);
            // A manual refresh is charged to no budget, so it is never throttled here.
            let refresh = self.join_or_start(&mut state, RefreshReason::Manual);
            let refresh = refresh.map_err(|retry_at| self.throttle_error(&state, retry_at))?;
            state.backoff = Backoff::default();
            state.cooldown = Cooldown::default();
            (state.failure_queue_turn, state.queued_reason) = (None, None);
            refresh
        };
        join(refresh).await
    }

    /// A token that a caller waited for counts as used.
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

/// Waits until a refresh completes.
async fn join(mut refresh: Refresh) -> Outcome {
    match refresh.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Arc::new(FetchError::Cancelled))),
        Err(_) => Err(Arc::new(FetchError::Cancelled)),
    }
}

#[cfg(test)]
mod tests;
