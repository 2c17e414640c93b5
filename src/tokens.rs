//! One agent's access_token: who needs one gets the current one, who was refused gets the next, and however many ask
//! there is one gettoken.
//!
//! Two verbs carry the rest: [`TokenSlot::current`] and [`TokenSlot::replace`]. A renewal runs in a task of its own
//! (`renew`), so that no caller who goes away takes it from the others. Where replicas share a store, one of them asks for
//! all (`shared`). How often is bounded by `backoff`, `cooldown`, `shares` and `failures`. What the slot tells to others
//! about itself is in `report`.

mod ahead;
mod backoff;
mod bucket;
mod cooldown;
mod failures;
pub mod fetch;
mod held;
mod hourly;
mod issuer;
mod past;
mod paths;
mod reason;
mod refusals;
mod renew;
mod renewals;
mod report;
mod shared;
mod shares;
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
use self::{
    ahead::keep_fresh,
    backoff::Backoff,
    cooldown::{Cooldown, Paths},
};
pub use self::{
    fetch::{Credentials, FetchError},
    issuer::{Issuer, RenewalSettings, Source},
    paths::PathKey,
    reason::Reason,
    renewals::Renewed,
    report::{LastRenewal, Report, whole_seconds},
    token::Token,
};
use crate::store::Store;

/// What became of a refused token.
#[derive(Debug)]
pub enum Replacement {
    /// A newer token; send the request with it.
    Renewed(Arc<Token>),
    /// gettoken handed the refused token out again; it is worth one try.
    SameAgain(Arc<Token>),
    /// No renewal now: the last one brought this very token, or a share is spent. The refusal stands; the next renewal may be
    /// tried after so long.
    Held(Duration),
    /// The renewal failed.
    Unavailable(Arc<FetchError>),
}

impl Replacement {
    fn of(outcome: Outcome, refused: &Token) -> Self {
        match outcome {
            Ok(token) if token.is_same_as(refused) => Self::SameAgain(token),
            Ok(token) => Self::Renewed(token),
            Err(failure) => match *failure {
                FetchError::Held { until } => Self::held(until),
                _ => Self::Unavailable(failure),
            },
        }
    }

    fn held(until: Instant) -> Self {
        Self::Held(until.saturating_duration_since(Instant::now()))
    }
}

type Outcome = Result<Arc<Token>, Arc<FetchError>>;
type Flight = watch::Receiver<Option<Outcome>>;

/// The token of one agent, and all that is known of getting one. It belongs to one pair of corpid and secret: a changed
/// secret makes a new slot.
pub struct TokenSlot {
    agent: String,
    credentials: Credentials,
    issuer: Arc<Issuer>,
    current: ArcSwapOption<Token>,
    used: AtomicBool,
    asked_for: AtomicBool,
    /// The secret brought a token when it was last used.
    proven: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    flight: Option<Flight>,
    backoff: Backoff,
    cooldown: Cooldown,
    /// The paths that refused the current token since the flight under way began.
    refused_by: Paths,
    /// That flight ended a cooldown early.
    early: bool,
    /// The current token came back although it had expired.
    expiry_repeated: bool,
    /// How often the current token was renewed ahead of its expiry.
    ahead: u8,
    /// When it is this agent's turn to try its secret, where too many have failed for the address.
    turn: Option<Instant>,
    last: Option<LastRenewal>,
}

impl State {
    /// How long no gettoken is tried after failures, its own or those of the address.
    fn wait(&self, now: Instant) -> Duration {
        let turn = self.turn.map_or(Duration::ZERO, |turn| turn.saturating_duration_since(now));
        self.backoff.wait(now).max(turn)
    }
}

impl TokenSlot {
    /// A slot without a token.
    pub fn new(agent: &str, credentials: Credentials, issuer: Arc<Issuer>) -> Arc<Self> {
        Arc::new(Self {
            agent: agent.to_owned(),
            credentials,
            issuer,
            current: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
            asked_for: AtomicBool::new(false),
            proven: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// The store that replicas share, where there is one.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.issuer.store()
    }

    /// Whose token it is.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The token that there is, whether it serves or not; for whoever must not show it.
    pub fn held(&self) -> Option<Arc<Token>> {
        self.current.load_full()
    }

    /// The token that serves at `now`, if there is one. Takes no lock that a renewal can hold.
    pub fn ready(self: &Arc<Self>, now: Instant) -> Option<Arc<Token>> {
        let token = self.current.load();
        let token = token.as_ref().filter(|token| now < token.usable_until)?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            if now >= token.renew_at {
                // Nobody used it when its renewal was due.
                self.issuer.runtime.spawn(keep_fresh(Arc::downgrade(self), token.clone()));
            }
        }
        Some(token.clone())
    }

    /// The token that serves now; fetches one if there is none, once for all that ask. While fetching fails, the last
    /// failure comes back at once until it is time for another try.
    pub async fn current(self: &Arc<Self>) -> Outcome {
        let flight = {
            let mut state = self.state();
            let now = Instant::now();
            if let Some(token) = self.ready(now) {
                return Ok(token);
            }
            self.asked_for.store(true, Ordering::Relaxed);
            let reason = if self.current.load().is_some() { Reason::Expired } else { Reason::First };
            if state.flight.is_none() {
                if reason == Reason::First && state.backoff.last().is_none() {
                    state.backoff = self.issuer.past.failures(&self.credentials, now);
                }
                if let Some(failure) = state.backoff.holds(now) {
                    return Err(failure);
                }
            }
            self.join_or_start(&mut state, reason).map_err(|until| self.hold_back(&state, until))?
        };
        self.used_after(landed(flight).await)
    }

    /// What to do about a token that the upstream refused on this path. If there is a newer one by now, that is the answer;
    /// only a refusal of the current one causes a gettoken.
    pub async fn replace(self: &Arc<Self>, refused: &Token, path: PathKey) -> Replacement {
        let flight = {
            let mut state = self.state();
            let now = Instant::now();
            let current = self.current.load_full().filter(|current| current.is_same_as(refused));
            let Some(current) = current else {
                drop(state);
                return Replacement::of(self.current().await, refused);
            };
            let (worked, works) = (current.had_worked_on(path), current.works_on(path));
            current.refused_on(path);
            if state.flight.is_none() {
                if let Some(until) = state.cooldown.holds(now, path, works) {
                    return Replacement::held(until);
                }
                if let Some(failure) = state.backoff.holds(now) {
                    return Replacement::Unavailable(failure);
                }
            }
            let early = state.flight.is_none() && state.cooldown.ends_early(now);
            match self.join_or_start(&mut state, Reason::Refused { worked }) {
                Ok(flight) => {
                    state.early |= early;
                    state.refused_by.insert(path);
                    flight
                }
                Err(until) => {
                    self.note_held(until);
                    return Replacement::held(until);
                }
            }
        };
        Replacement::of(self.used_after(landed(flight).await), refused)
    }

    /// Says that a path refused a token although it had just been renewed, as it is for an app that may not call an API at
    /// all: renewing again and again would help nobody.
    pub fn refused_again(&self, token: &Token, path: PathKey) {
        let mut state = self.state();
        let current = self.current.load_full().filter(|current| current.is_same_as(token));
        if let Some(current) = current {
            if !current.works_on(path) {
                state.cooldown.extend_to(path, Instant::now(), current.seen());
            }
            current.refused_on(path);
        }
    }

    /// Fetches a token whatever failed before: an operator says that it is worth a try. Such orders count against the
    /// agent's own share, and are held back when that is spent.
    pub async fn refresh(self: &Arc<Self>) -> Outcome {
        let flight = {
            let mut state = self.state();
            self.asked_for.store(true, Ordering::Relaxed);
            let flight = self.join_or_start(&mut state, Reason::Asked);
            let flight = flight.map_err(|until| self.hold_back(&state, until))?;
            // Only now: where the share is spent there is no try, and what failed before stays as it is.
            state.backoff = Backoff::default();
            state.cooldown = Cooldown::default();
            state.turn = None;
            flight
        };
        landed(flight).await
    }

    /// Who waited for a token uses it.
    fn used_after(&self, outcome: Outcome) -> Outcome {
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
async fn landed(mut flight: Flight) -> Outcome {
    match flight.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Arc::new(FetchError::Stopped))),
        Err(_) => Err(Arc::new(FetchError::Stopped)),
    }
}

#[cfg(test)]
mod tests;
