//! One agent's access_token: who needs one gets the current one, who was refused gets the next, and however many ask
//! there is one gettoken.
//!
//! Two verbs carry the rest: [`TokenSlot::current`] and [`TokenSlot::replace`]. A renewal runs in a task of its own, so
//! that no caller who goes away takes it from the others. Where replicas share a store, one of them asks for all
//! (`shared`). What the slot tells to others about itself is in `report`.

mod ahead;
mod backoff;
mod budget;
pub mod fetch;
mod hold;
mod issuer;
mod past;
mod reason;
mod renewals;
mod report;
mod shared;
mod token;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::{sync::watch, time::Instant};

#[cfg(test)]
pub(crate) use self::token::wall_clock;
use self::{ahead::keep_fresh, backoff::Backoff, hold::Hold, shared::Obtained};
pub use self::{
    fetch::{Credentials, FetchError},
    issuer::{Issuer, Source},
    reason::Reason,
    renewals::Renewed,
    report::{LastRenewal, Report, whole_seconds},
    token::Token,
};
use crate::store::Store;

/// A token that gettoken hands out although it should have expired is believed for this long.
const PAST_EXPIRY: Duration = Duration::from_secs(60);

/// What became of a refused token.
#[derive(Debug)]
pub enum Replacement {
    /// A newer token; send the request with it.
    Renewed(Arc<Token>),
    /// gettoken handed the refused token out again; it is worth one try.
    SameAgain(Arc<Token>),
    /// No renewal now: the last one brought this very token, or too many have left this proxy. The refusal stands.
    Held,
    /// The renewal failed.
    Unavailable(Arc<FetchError>),
}

impl Replacement {
    fn of(outcome: Outcome, refused: &Token) -> Self {
        match outcome {
            Ok(token) if token.is_same_as(refused) => Self::SameAgain(token),
            Ok(token) => Self::Renewed(token),
            Err(failure) if matches!(*failure, FetchError::Budget) => Self::Held,
            Err(failure) => Self::Unavailable(failure),
        }
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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    flight: Option<Flight>,
    backoff: Backoff,
    hold: Option<Hold>,
    refused_in_flight: bool,
    /// The one gettoken that is due whatever the hour's budget says, for there is no token or it has expired, was made.
    due_spent: bool,
    /// The one that is due ahead of the current token's expiry was made.
    ahead_spent: bool,
    last: Option<LastRenewal>,
}

impl State {
    /// Whether a gettoken for this reason is made whatever the hour's budget says: the agent's first, one ahead of each
    /// token's expiry, and one when it has expired all the same, for while a token is valid gettoken may hand it out again.
    /// What repeats is counted, and so is the first of a changed secret.
    fn is_due(&mut self, reason: Reason, is_agents_first: impl FnOnce() -> bool) -> bool {
        let spent = match reason {
            Reason::First | Reason::Expired => &mut self.due_spent,
            Reason::Ahead => &mut self.ahead_spent,
            Reason::Refused | Reason::Asked | Reason::Shared => return false,
        };
        !std::mem::replace(spent, true) && (reason != Reason::First || is_agents_first())
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
            self.join_or_start(&mut state, reason)?
        };
        self.used_after(landed(flight).await)
    }

    /// What to do about a token that the upstream refused. If there is a newer one by now, that is the answer; only a
    /// refusal of the current one causes a gettoken.
    pub async fn replace(self: &Arc<Self>, refused: &Token) -> Replacement {
        let flight = {
            let mut state = self.state();
            let now = Instant::now();
            if !self.current.load().as_ref().is_some_and(|current| current.is_same_as(refused)) {
                drop(state);
                return Replacement::of(self.current().await, refused);
            }
            if let Some(current) = &*self.current.load() {
                current.refused();
            }
            if state.flight.is_none() {
                if state.hold.is_some_and(|hold| hold.is_on(now)) {
                    return Replacement::Held;
                }
                if let Some(failure) = state.backoff.holds(now) {
                    return Replacement::Unavailable(failure);
                }
            }
            state.refused_in_flight = true;
            match self.join_or_start(&mut state, Reason::Refused) {
                Ok(flight) => flight,
                Err(_) => return Replacement::Held,
            }
        };
        Replacement::of(self.used_after(landed(flight).await), refused)
    }

    /// Says that a token was refused although it had just been renewed, as it is for an app that may not call an API at
    /// all: renewing again and again would help nobody.
    pub fn refused_again(&self, token: &Token) {
        let (mut state, now) = (self.state(), Instant::now());
        let is_current = self.current.load().as_ref().is_some_and(|current| current.is_same_as(token));
        // However many were refused together, it counts once.
        if is_current && !state.hold.is_some_and(|hold| hold.is_on(now)) {
            state.hold = Some(Hold::after(state.hold, now));
        }
    }

    /// Fetches a token whatever failed before: an operator says that it is worth a try.
    pub async fn refresh(self: &Arc<Self>) -> Outcome {
        let flight = {
            let mut state = self.state();
            self.asked_for.store(true, Ordering::Relaxed);
            let flight = self.join_or_start(&mut state, Reason::Asked)?;
            // Only now: where the budget is spent there is no try, and what failed before stays as it is.
            state.backoff = Backoff::default();
            state.hold = None;
            flight
        };
        landed(flight).await
    }

    /// The flight under way, or a new one. Fails where the hour's budget is spent.
    fn join_or_start(self: &Arc<Self>, state: &mut State, reason: Reason) -> Result<Flight, Arc<FetchError>> {
        if let Some(flight) = &state.flight {
            return Ok(flight.clone());
        }
        let due = state.is_due(reason, || self.issuer.past.is_first(&self.agent));
        let now = Instant::now();
        let has_budget = match (&self.issuer.shared, reason) {
            (None, _) => due || self.issuer.budget.take(now),
            // Nobody waits for it, and the store is spared the question.
            (Some(_), Reason::Ahead) => due || !self.issuer.budget.is_spent(now),
            // With other replicas it is not yet known who asks.
            (Some(_), _) => true,
        };
        if !has_budget {
            return Err(state.backoff.last().unwrap_or_else(|| Arc::new(FetchError::Budget)));
        }
        let (landing, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
        let slot = self.clone();
        self.issuer.runtime.spawn(async move {
            let asked = Instant::now();
            let fetching = slot.clone();
            // In a task of its own: a panic in there must not leave a flight that never lands.
            let fetching = tokio::spawn(async move { fetching.obtain(reason, due).await });
            let fetched = fetching.await.unwrap_or(Err(FetchError::Stopped));
            landing.send_replace(Some(slot.land(reason, asked, fetched)));
        });
        Ok(flight)
    }

    async fn obtain(self: &Arc<Self>, reason: Reason, due: bool) -> Result<Obtained, FetchError> {
        match &self.issuer.shared {
            Some(shared) => shared.obtain(self, reason, due).await,
            None => self.issuer.source.fetch(&self.credentials).await.map(Obtained::alone),
        }
    }

    /// Takes in what a flight brought.
    fn land(
        self: &Arc<Self>,
        reason: Reason,
        asked: Instant,
        fetched: Result<Obtained, FetchError>,
    ) -> Outcome {
        let mut state = self.state();
        state.flight = None;
        let refused = std::mem::take(&mut state.refused_in_flight);
        let now = Instant::now();
        let by_another = fetched.as_ref().is_ok_and(|obtained| !obtained.own);
        let outcome = match fetched {
            Ok(obtained) => Ok(self.take_in(&mut state, refused, asked, obtained)),
            // Nothing was asked, so nothing failed.
            Err(FetchError::Budget) => {
                return Err(state.backoff.last().unwrap_or_else(|| Arc::new(FetchError::Budget)));
            }
            Err(failure) => Err(state.backoff.fail(now, failure, (self.issuer.jitter)())),
        };
        self.issuer.past.note(&self.credentials, &state.backoff, now);
        state.last = Some(LastRenewal {
            at: SystemTime::now(),
            reason: reason.as_str(),
            failure: outcome.as_ref().err().map(ToString::to_string),
        });
        let agent = self.agent.as_str();
        let counted = if by_another { Reason::Shared } else { reason };
        self.issuer.renewals.count(agent, counted, outcome.is_ok());
        match &outcome {
            Ok(token) => tracing::info!(
                agent,
                reason = reason.as_str(),
                by_another_replica = by_another.then_some(true),
                expires_in_s = token.usable_until.saturating_duration_since(now).as_secs(),
                "token renewed"
            ),
            Err(failure) => tracing::warn!(
                agent,
                reason = reason.as_str(),
                failure = failure.to_string(),
                hint = failure.hint(),
                next_try_in_s = whole_seconds(state.backoff.wait(now)),
                "token not renewed"
            ),
        }
        outcome
    }

    /// Makes a grant the current token, unless it is the one that is current already.
    fn take_in(
        self: &Arc<Self>,
        state: &mut State,
        refused: bool,
        asked: Instant,
        Obtained { grant, fence, .. }: Obtained,
    ) -> Arc<Token> {
        state.backoff = Backoff::default();
        let before = self.current.load_full();
        let same = before.as_ref().filter(|before| before.value.expose() == grant.token.expose());
        let token = match same {
            None => {
                // A new token is worth a try; if it is refused at once like the last one, the next hold is longer.
                state.hold = state.hold.map(|hold| hold.lifted(Instant::now()));
                (state.due_spent, state.ahead_spent) = (false, false);
                let lead = ahead::lead(self.issuer.refresh_ahead, &grant, self.issuer.stagger());
                Arc::new(Token::granted(grant, fence, asked, lead))
            }
            Some(before) => {
                if refused {
                    state.hold = Some(Hold::after(state.hold, Instant::now()));
                }
                Arc::new(before.granted_again(fence, asked, PAST_EXPIRY, self.issuer.stagger()))
            }
        };
        self.current.store(Some(token.clone()));
        self.used.store(false, Ordering::Relaxed);
        self.issuer.runtime.spawn(keep_fresh(Arc::downgrade(self), token.clone()));
        token
    }

    /// Takes in what another replica got. Where this one is asking too, that will see to it.
    fn adopt(self: &Arc<Self>, obtained: Obtained, same_again: bool) {
        let mut state = self.state();
        let is_newer = self.current.load().as_ref().is_none_or(|held| !obtained.is_older_than(held));
        if state.flight.is_none() && is_newer {
            self.take_in(&mut state, same_again, Instant::now(), obtained);
            let reason = Reason::Shared.as_str();
            state.last = Some(LastRenewal { at: SystemTime::now(), reason, failure: None });
            self.issuer.renewals.count(&self.agent, Reason::Shared, true);
            tracing::info!(agent = self.agent.as_str(), reason, "token renewed");
        }
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
