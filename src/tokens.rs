//! Token cache: one access_token per credential. Requests share the current token, and concurrent requests that
//! need a new one share one gettoken call (single flight). [`TokenCache`] has an entry for each credential.
//!
//! [`CachedToken::current_or_fetch`] returns the cached token, or fetches one if there is none or it has expired;
//! [`CachedToken::replace_refused`] replaces one that WeCom refused. A refresh runs in a task of its own
//! (`refresh`), so that a caller that disconnects does not cancel it for the others. Where replicas share a
//! store, one of them calls gettoken for all (`leased_fetch`). The number of calls is bounded by `backoff`,
//! `cooldown`, `refresh_budget` and `failure_budget`. [`AgentToken`] is that of an agent, which may have two secrets. What operators see of an entry is in `status`.

mod accepted_paths;
mod agent_token;
mod backoff;
mod bucket;
mod cache;
mod cooldown;
mod credential_id;
mod discard;
mod failure_budget;
pub mod fetch;
mod fetch_error;
mod fetch_observer;
mod fetched_token;
mod hourly_window;
pub mod kinds;
mod lazy_state;
mod leased_fetch;
pub mod passes;
mod proactive;
mod proven_queue;
mod reason;
mod refresh;
mod refresh_budget;
mod refresh_counts;
mod refusal_budget;
mod replicas;
mod secret_rotation;
mod service;
mod single_flight;
mod status;
mod throttled;
pub mod tickets;
mod token;
mod token_fetch;
mod unproven_queue;
mod verification;

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

pub use self::{
    accepted_paths::PathKey,
    agent_token::AgentToken,
    cache::TokenCache,
    credential_id::{CredentialId, Credentials},
    fetch_error::FetchError,
    fetch_observer::{CausingRequest, EndedFetch, FetchCause, FetchObserver},
    kinds::TokenSpec,
    reason::RefreshReason,
    refresh_counts::{GettokenStats, RefreshCount},
    service::{FetchToken, RefreshSettings},
    status::{LastRefresh, TokenStatus, ceil_seconds},
    token::Token,
};
use self::{
    backoff::Backoff,
    cooldown::{Cooldown, RefusedPaths},
    kinds::{TokenKind, json_call::JsonCall},
    lazy_state::LazyState,
    passes::{KeptPassKey, PassKey},
    secret_rotation::SecretRotation,
    service::TokenService,
    single_flight::{Flight, SingleFlight},
    tickets::AgentTickets,
};
use crate::{store::Store, text::SharedStr, upstream::Fetched};

/// The outcome of [`CachedToken::replace_refused`].
#[derive(Debug)]
pub enum ReplaceOutcome {
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

impl ReplaceOutcome {
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

/// Cache entry: the token of one pair of corpid and secret with its refresh state, and its tickets. A changed secret
/// is another entry.
// The order is that of the memory: what requests read is in one cache line, which with very many agents is in no cache.
#[repr(C)]
pub struct CachedToken {
    current: ArcSwapOption<Token>,
    /// A request got the current token since it became current.
    used: AtomicBool,
    /// A token was requested since the entry was created.
    requested: AtomicBool,
    /// What it is of is gone, and the store keeps nothing of it.
    discarded: AtomicBool,
    /// A gettoken with these credentials succeeded, here or at another replica, and none has failed since with an
    /// error for which `risks_ban` is true.
    credentials_proven: AtomicBool,
    /// A reload changed the secret, and it was not tried since.
    secret_changed: AtomicBool,
    state: LazyState,
    /// The agent that it was created for; others may share it.
    agent_name: SharedStr,
    id: CredentialId,
    credentials: Credentials,
    /// Derived from the secret on first use, because there can be very many agents.
    pass_key: OnceLock<Box<PassKey>>,
    /// The rotations of agents that have this secret beside others, or from a file.
    rotations: OnceLock<Box<Mutex<Vec<Weak<SecretRotation>>>>>,
    kind: TokenKind,
    /// The name in counters, where it is not the agent's: a suite's for its corps.
    counted_as: Option<SharedStr>,
    /// Allocated on first use, as the state is.
    tickets: OnceLock<Box<AgentTickets>>,
    service: Arc<TokenService>,
}

#[derive(Default)]
struct State {
    refresh: SingleFlight<Outcome>,
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
    unproven_queue_turn: Option<Instant>,
    /// Why the token is to be fetched then.
    queued_reason: Option<RefreshReason>,
    last_refresh: Option<LastRefresh>,
}

impl State {
    /// How long until gettoken may be tried again, after failures of this agent or of the address.
    fn wait_after_failures(&self, now: Instant) -> Duration {
        let queue_wait =
            self.unproven_queue_turn.map_or(Duration::ZERO, |turn| turn.saturating_duration_since(now));
        self.backoff.remaining(now).max(queue_wait)
    }
}

impl CachedToken {
    /// An entry without a token.
    fn new(spec: TokenSpec<'_>, service: Arc<TokenService>, is_changed: bool) -> Self {
        let TokenSpec { agent, counted_as, credentials, kind } = spec;
        Self {
            agent_name: agent.clone(),
            id: CredentialId::new(kind.id_kind(), &credentials),
            credentials,
            pass_key: OnceLock::new(),
            rotations: OnceLock::new(),
            kind,
            counted_as: counted_as.map(SharedStr::from),
            tickets: OnceLock::new(),
            service,
            current: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
            requested: AtomicBool::new(false),
            discarded: AtomicBool::new(false),
            credentials_proven: AtomicBool::new(false),
            secret_changed: AtomicBool::new(is_changed),
            state: LazyState::default(),
        }
    }

    fn backoff(&self) -> Backoff {
        self.state.read(|state| state.backoff.clone())
    }

    fn agent_name(&self) -> &SharedStr {
        &self.agent_name
    }

    /// The name in counters.
    fn counted_as(&self) -> &SharedStr {
        self.counted_as.as_ref().unwrap_or(&self.agent_name)
    }

    /// Ends the wait for a suite_ticket: a new one has arrived.
    pub fn forget_ticket_failure(&self) {
        let mut state = self.state.lock();
        if state.backoff.last_failure().is_some_and(|last| last.is_ticket_error() || last.is_prerequisite()) {
            state.backoff = Backoff::default();
        }
    }

    /// Makes a call of the proxy's own for this token's owner.
    pub async fn call(&self, call: JsonCall) -> Result<Fetched, FetchError> {
        self.service.fetcher.call(call).await
    }

    /// Whether a token was requested.
    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Calls `visit` with the token, expired or not, and each ticket, for redaction.
    pub fn for_each_value(&self, visit: &mut dyn FnMut(&str)) {
        if let Some(token) = self.current.load_full() {
            visit(token.value.expose());
        }
        if let Some(tickets) = self.tickets.get() {
            tickets.for_each_value(visit);
        }
    }

    /// The store that replicas share, if one is configured.
    fn store(&self) -> Option<&Arc<Store>> {
        self.service.store()
    }

    /// The credentials that the token is fetched with.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The key of passes that are made under this secret.
    pub fn pass_key(&self) -> &PassKey {
        let Credentials { corpid, secret, generation, .. } = &self.credentials;
        self.pass_key.get_or_init(|| Box::new(PassKey::derive(corpid, secret, *generation)))
    }

    /// The same, to be kept after the secret has changed.
    pub fn kept_pass_key(&self) -> KeptPassKey {
        let Credentials { corpid, secret, generation, .. } = &self.credentials;
        KeptPassKey::derive(corpid, secret, *generation)
    }

    /// The cached token if it is valid at `now`, which marks it as used; its first use after its refresh time also
    /// spawns its proactive refresh. Takes no lock of this module.
    pub fn cached(self: &Arc<Self>, now: Instant) -> Option<Arc<Token>> {
        let token = self.current.load();
        let token = token.as_ref().filter(|token| now < token.usable_until)?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            if now >= token.refresh_at() {
                // The token was not in use when its proactive refresh was due.
                self.schedule_proactive_refresh(token.clone());
            }
        }
        Some(token.clone())
    }

    /// The valid token; fetches one if there is none, once for all concurrent callers. During backoff the last
    /// failure is returned at once.
    pub async fn current_or_fetch(self: &Arc<Self>) -> Outcome {
        let refresh = {
            let mut state = self.state.lock();
            let now = Instant::now();
            if let Some(token) = self.cached(now) {
                return Ok(token);
            }
            self.requested.store(true, Ordering::Relaxed);
            let reason =
                if self.current.load().is_some() { RefreshReason::Expired } else { RefreshReason::First };
            if state.refresh.running().is_none()
                && let Some(failure) = state.backoff.active_failure(now)
            {
                return Err(failure);
            }
            self.join_or_start(&mut state, reason)
                .map_err(|retry_at| self.throttle_error(&state, retry_at))?
        };
        self.mark_used_if_ok(join(refresh).await)
    }

    /// Replaces a token that WeCom refused on this path. If the cache has a newer token by now, that one is
    /// returned; only a refusal of the current token causes a gettoken.
    pub async fn replace_refused(self: &Arc<Self>, refused: &Token, path: PathKey) -> ReplaceOutcome {
        let refresh = {
            let mut state = self.state.lock();
            let now = Instant::now();
            let current = self.current.load_full().filter(|current| current.is_same_as(refused));
            let Some(current) = current else {
                drop(state);
                return ReplaceOutcome::from_outcome(self.current_or_fetch().await, refused);
            };
            let (was_accepted, is_accepted) =
                (current.was_ever_accepted_on(path), current.is_accepted_on(path));
            current.mark_refused_on(path);
            let is_running = state.refresh.running().is_some();
            if !is_running {
                if let Some(retry_at) = state.cooldown.blocked_until(now, path, is_accepted) {
                    return ReplaceOutcome::throttled_until(retry_at);
                }
                if let Some(failure) = state.backoff.active_failure(now) {
                    return ReplaceOutcome::Unavailable(failure);
                }
            }
            let ends_early = !is_running && state.cooldown.ends_early(now);
            match self.join_or_start(&mut state, RefreshReason::Refused { was_accepted }) {
                Ok(refresh) => {
                    state.refresh_started_in_cooldown |= ends_early;
                    state.refused_by.insert(path);
                    refresh
                }
                Err(retry_at) => {
                    self.mark_throttled(retry_at);
                    return ReplaceOutcome::throttled_until(retry_at);
                }
            }
        };
        ReplaceOutcome::from_outcome(self.mark_used_if_ok(join(refresh).await), refused)
    }

    /// Records that a path refused a token that had just been refreshed, as it does for an app without
    /// permission for an API: further refreshes would not help.
    pub fn mark_refused_again(&self, token: &Token, path: PathKey) {
        let mut state = self.state.lock();
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
            let mut state = self.state.lock();
            self.requested.store(true, Ordering::Relaxed);
            // A manual refresh is charged to no budget, so it is never throttled here.
            let refresh = self.join_or_start(&mut state, RefreshReason::Manual);
            let refresh = refresh.map_err(|retry_at| self.throttle_error(&state, retry_at))?;
            state.backoff = Backoff::default();
            state.cooldown = Cooldown::default();
            (state.unproven_queue_turn, state.queued_reason) = (None, None);
            refresh
        };
        join(refresh).await
    }

    fn schedule_proactive_refresh(self: &Arc<Self>, token: Arc<Token>) {
        self.service.proactive.add(&self.service.runtime, Arc::downgrade(self), token);
    }

    /// A token that a caller waited for counts as used.
    fn mark_used_if_ok(&self, outcome: Outcome) -> Outcome {
        if outcome.is_ok() {
            self.used.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

/// Waits until a refresh completes.
async fn join(refresh: Flight<Outcome>) -> Outcome {
    refresh.wait().await.unwrap_or_else(|| Err(Arc::new(FetchError::Cancelled)))
}

#[cfg(test)]
mod tests;
