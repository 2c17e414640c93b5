//! One renewal: whether it may begin, the gettoken, and what it brought.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Backoff, Cooldown, FetchError, Flight, LastRenewal, Outcome, Reason, State, Token, TokenSlot,
    ahead::{self, keep_fresh},
    failures::PERMIT_TIMEOUT,
    shared::Obtained,
    shares::{AHEAD, Charge, Share},
    whole_seconds,
};
use crate::wecom::reply::Grant;

/// A token that gettoken hands out although it should have expired is believed for this long.
pub(super) const PAST_EXPIRY: Duration = Duration::from_secs(60);

impl TokenSlot {
    /// The flight under way, or a new one; else when a new one may begin.
    pub(super) fn join_or_start(
        self: &Arc<Self>,
        state: &mut State,
        reason: Reason,
    ) -> Result<Flight, Instant> {
        if let Some(flight) = &state.flight {
            return Ok(flight.clone());
        }
        let charge = self.charge(state, reason, Instant::now())?;
        let (landing, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
        let slot = self.clone();
        self.issuer.runtime.spawn(async move {
            let asked = Instant::now();
            let fetching = slot.clone();
            // In a task of its own: a panic in there must not leave a flight that never lands.
            let fetching = tokio::spawn(async move { fetching.obtain(reason, charge.share).await });
            let fetched = fetching.await.unwrap_or(Err(FetchError::Stopped));
            landing.send_replace(Some(slot.land(reason, charge, asked, fetched)));
        });
        Ok(flight)
    }

    /// Takes what a renewal counts against; else when there will be enough.
    fn charge(&self, state: &mut State, reason: Reason, now: Instant) -> Result<Charge, Instant> {
        if reason != Reason::Asked
            && let Some(turn) = state.turn.filter(|turn| now < *turn)
        {
            return Err(turn);
        }
        let share = match reason {
            Reason::First | Reason::Shared => {
                self.issuer.shares.note_in_use(&self.agent);
                Share::Free
            }
            Reason::Expired if state.expiry_repeated => Share::Other,
            Reason::Expired => Share::Free,
            Reason::Ahead if state.ahead == 0 => Share::Free,
            Reason::Ahead if state.ahead < AHEAD => Share::Other,
            Reason::Ahead => {
                return Err(self.current.load().as_ref().map_or(now, |token| token.usable_until));
            }
            Reason::Refused { worked } => Share::Refusal { worked },
            Reason::Asked => Share::Operator,
        };
        let charge = self.issuer.shares.take(&self.agent, share, now)?;
        state.ahead += u8::from(reason == Reason::Ahead);
        Ok(charge)
    }

    async fn obtain(self: &Arc<Self>, reason: Reason, share: Share) -> Result<Obtained, FetchError> {
        match &self.issuer.shared {
            Some(shared) => shared.obtain(self, reason, share).await,
            None => self.ask(share).await.map(Obtained::alone),
        }
    }

    /// Asks WeCom, unless too many secrets have failed for the address; an operator's order is tried whatever has failed.
    pub(super) async fn ask(&self, share: Share) -> Result<Grant, FetchError> {
        let failures = &self.issuer.failures;
        let proven = self.proven.load(Ordering::Relaxed);
        let mut permit = match share == Share::Operator {
            true => None,
            false => {
                let admitted = failures.admit(&self.agent, proven).await;
                Some(admitted.map_err(|until| FetchError::Held { until })?)
            }
        };
        let mut fetching = pin!(self.issuer.source.fetch(&self.credentials));
        let early = match permit {
            Some(_) => timeout(PERMIT_TIMEOUT, fetching.as_mut()).await.ok(),
            None => None,
        };
        let fetched = match early {
            Some(fetched) => fetched,
            None => {
                permit = None;
                fetching.await
            }
        };
        match (&fetched, &permit) {
            (Ok(_), Some(permit)) => permit.brought_token(),
            (Err(failure), _) if failure.is_of_credentials() => failures.count(proven),
            _ => {}
        }
        drop(permit);
        fetched
    }

    /// Takes in what a flight brought.
    fn land(
        self: &Arc<Self>,
        reason: Reason,
        charge: Charge,
        asked: Instant,
        fetched: Result<Obtained, FetchError>,
    ) -> Outcome {
        let mut state = self.state();
        state.flight = None;
        let now = Instant::now();
        self.settle(&mut state, reason, charge, &fetched);
        let by_another = fetched.as_ref().is_ok_and(|obtained| !obtained.own);
        let outcome = match fetched {
            Ok(obtained) => Ok(self.take_in(&mut state, asked, obtained)),
            // Nothing was asked, so nothing failed.
            Err(FetchError::Held { until }) => {
                state.turn = Some(until);
                return Err(self.hold_back(&state, until));
            }
            Err(failure) => Err(state.backoff.fail(now, failure, (self.issuer.jitter)())),
        };
        self.issuer.past.note(&self.credentials, &state.backoff, now);
        state.last = Some(LastRenewal {
            at: SystemTime::now(),
            reason: reason.as_str(),
            failure: outcome.as_ref().err().map(ToString::to_string),
        });
        let counted = if by_another { Reason::Shared } else { reason };
        self.issuer.renewals.count(&self.agent, counted, outcome.is_ok());
        self.log(&state, reason, by_another, &outcome, now);
        outcome
    }

    /// Gives back what was taken for a renewal that brought nothing, or that another replica made: the backoff bounds what
    /// fails.
    fn settle(
        &self,
        state: &mut State,
        reason: Reason,
        charge: Charge,
        fetched: &Result<Obtained, FetchError>,
    ) {
        if !fetched.as_ref().is_ok_and(|obtained| obtained.own) {
            self.issuer.shares.give_back(&self.agent, charge);
        }
        match fetched {
            Ok(_) => self.proven.store(true, Ordering::Relaxed),
            Err(failure) => {
                if failure.is_dangerous() {
                    self.proven.store(false, Ordering::Relaxed);
                }
                state.ahead -= u8::from(reason == Reason::Ahead);
                // Those whose token was refused are told the failure.
                (state.refused_by, state.early) = (Default::default(), false);
            }
        }
    }

    fn log(&self, state: &State, reason: Reason, by_another: bool, outcome: &Outcome, now: Instant) {
        let agent = self.agent.as_str();
        match outcome {
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
    }

    /// Makes a grant the current token, unless it is the one that is current already.
    fn take_in(
        self: &Arc<Self>,
        state: &mut State,
        asked: Instant,
        Obtained { grant, fence, .. }: Obtained,
    ) -> Arc<Token> {
        state.backoff = Backoff::default();
        state.turn = None;
        self.issuer.held.clear(&self.agent);
        let now = Instant::now();
        let (refused_by, early) = (std::mem::take(&mut state.refused_by), std::mem::take(&mut state.early));
        let before = self.current.load_full();
        let same = before.as_ref().filter(|before| before.value.expose() == grant.token.expose());
        match (refused_by.is_empty(), same.is_some()) {
            (false, same) => state.cooldown.begin(now, same, early, refused_by),
            // A new token is worth a try.
            (true, false) => state.cooldown = Cooldown::default(),
            (true, true) => {}
        }
        let token = match same {
            None => {
                (state.expiry_repeated, state.ahead) = (false, 0);
                let lead = ahead::lead(self.issuer.refresh_ahead, &grant, self.issuer.stagger());
                Arc::new(Token::granted(grant, fence, asked, lead))
            }
            Some(before) => {
                state.expiry_repeated |= asked >= before.usable_until;
                Arc::new(before.granted_again(fence, asked, PAST_EXPIRY, self.issuer.stagger()))
            }
        };
        self.current.store(Some(token.clone()));
        self.used.store(false, Ordering::Relaxed);
        self.issuer.runtime.spawn(keep_fresh(Arc::downgrade(self), token.clone()));
        token
    }

    /// Takes in what another replica got. Where this one is asking too, that will see to it.
    pub(super) fn adopt(self: &Arc<Self>, obtained: Obtained, same_again: bool) {
        let mut state = self.state();
        let is_newer = self.current.load().as_ref().is_none_or(|held| !obtained.is_older_than(held));
        if state.flight.is_none() && is_newer {
            self.take_in(&mut state, Instant::now(), obtained);
            if same_again {
                // Which path refused it there is not known here: one gettoken is to do for all replicas.
                state.cooldown.begin(Instant::now(), true, true, Default::default());
            }
            self.proven.store(true, Ordering::Relaxed);
            let reason = Reason::Shared.as_str();
            state.last = Some(LastRenewal { at: SystemTime::now(), reason, failure: None });
            self.issuer.renewals.count(&self.agent, Reason::Shared, true);
            tracing::info!(agent = self.agent.as_str(), reason, "token renewed");
        }
    }

    /// What those are told who need a token that may not be renewed now: the last failure says more, where there is one.
    pub(super) fn hold_back(&self, state: &State, until: Instant) -> Arc<FetchError> {
        self.note_held(until);
        state.backoff.last().unwrap_or_else(|| Arc::new(FetchError::Held { until }))
    }

    pub(super) fn note_held(&self, until: Instant) {
        self.issuer.held.note(&self.agent, until, &self.issuer.runtime);
    }
}
