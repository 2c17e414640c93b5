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
    AgentToken, Backoff, Cooldown, FetchError, LastRefresh, Outcome, Refresh, RefreshReason, State, Token,
    ceil_seconds,
    failure_budget::PERMIT_TIMEOUT,
    proactive::{self, refresh_before_expiry},
    refresh_budget::{BudgetClass, Charge, MAX_PROACTIVE_REFRESHES},
    replicas::FetchedToken,
};
use crate::wecom::response::GettokenResponse;

/// A token that gettoken hands out although it should have expired is believed for this long.
pub(super) const PAST_EXPIRY_TTL: Duration = Duration::from_secs(60);

impl AgentToken {
    /// The flight under way, or a new one; else when a new one may begin.
    pub(super) fn join_or_start(
        self: &Arc<Self>,
        state: &mut State,
        reason: RefreshReason,
    ) -> Result<Refresh, Instant> {
        if let Some(flight) = &state.refresh {
            return Ok(flight.clone());
        }
        let charge = self.charge_budget(state, reason, Instant::now())?;
        let (landing, flight) = watch::channel(None);
        state.refresh = Some(flight.clone());
        let slot = self.clone();
        self.service.runtime.spawn(async move {
            let asked = Instant::now();
            let fetching = slot.clone();
            // In a task of its own: a panic in there must not leave a flight that never lands.
            let fetching = tokio::spawn(async move { fetching.fetch_token(reason, charge.class).await });
            let fetched = fetching.await.unwrap_or(Err(FetchError::Cancelled));
            landing.send_replace(Some(slot.complete(reason, charge, asked, fetched)));
        });
        Ok(flight)
    }

    /// Takes what a renewal counts against; else when there will be enough.
    fn charge_budget(
        &self,
        state: &mut State,
        reason: RefreshReason,
        now: Instant,
    ) -> Result<Charge, Instant> {
        if reason != RefreshReason::Manual
            && let Some(turn) = state.failure_queue_turn.filter(|turn| now < *turn)
        {
            return Err(turn);
        }
        let share = match reason {
            RefreshReason::First | RefreshReason::OtherReplica => {
                self.service.refresh_budget.register_agent(&self.agent_name);
                BudgetClass::Free
            }
            RefreshReason::Expired if state.repeated_after_expiry => BudgetClass::Repeated,
            RefreshReason::Expired => BudgetClass::Free,
            RefreshReason::Proactive if state.proactive_refreshes == 0 => BudgetClass::Free,
            RefreshReason::Proactive if state.proactive_refreshes < MAX_PROACTIVE_REFRESHES => {
                BudgetClass::Repeated
            }
            RefreshReason::Proactive => {
                return Err(self.current.load().as_ref().map_or(now, |token| token.usable_until));
            }
            RefreshReason::Refused { was_accepted: worked } => BudgetClass::Refusal { was_accepted: worked },
            RefreshReason::Manual => BudgetClass::Operator,
        };
        let charge = self.service.refresh_budget.try_charge(&self.agent_name, share, now)?;
        state.proactive_refreshes += u8::from(reason == RefreshReason::Proactive);
        Ok(charge)
    }

    async fn fetch_token(
        self: &Arc<Self>,
        reason: RefreshReason,
        share: BudgetClass,
    ) -> Result<FetchedToken, FetchError> {
        match &self.service.replicas {
            Some(shared) => shared.fetch_token(self, reason, share).await,
            None => self.call_gettoken(share).await.map(FetchedToken::unshared),
        }
    }

    /// Asks WeCom, unless too many secrets have failed for the address; an operator's order is tried whatever has failed.
    pub(super) async fn call_gettoken(&self, share: BudgetClass) -> Result<GettokenResponse, FetchError> {
        let failures = &self.service.failure_budget;
        let proven = self.credentials_verified.load(Ordering::Relaxed);
        let mut permit = match share == BudgetClass::Operator {
            true => None,
            false => {
                let admitted = failures.acquire(&self.agent_name, proven).await;
                Some(admitted.map_err(|until| FetchError::Throttled { retry_at: until })?)
            }
        };
        let mut fetching = pin!(self.service.fetcher.fetch(&self.credentials));
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
            (Ok(_), Some(permit)) => permit.record_success(),
            (Err(failure), _) if failure.is_credential_error() => failures.record_failure(proven),
            _ => {}
        }
        drop(permit);
        fetched
    }

    /// Takes in what a flight brought.
    fn complete(
        self: &Arc<Self>,
        reason: RefreshReason,
        charge: Charge,
        asked: Instant,
        fetched: Result<FetchedToken, FetchError>,
    ) -> Outcome {
        let mut state = self.state();
        state.refresh = None;
        let now = Instant::now();
        self.settle_charge(&mut state, reason, charge, &fetched);
        let by_another = fetched.as_ref().is_ok_and(|obtained| !obtained.is_own);
        let outcome = match fetched {
            Ok(obtained) => Ok(self.set(&mut state, asked, obtained)),
            // Nothing was asked, so nothing failed.
            Err(FetchError::Throttled { retry_at: until }) => {
                state.failure_queue_turn = Some(until);
                return Err(self.throttle_error(&state, until));
            }
            Err(failure) => Err(state.backoff.record_failure(now, failure, (self.service.jitter)())),
        };
        self.service.backoff_history.record(&self.credentials, &state.backoff, now);
        state.last_refresh = Some(LastRefresh {
            completed_at: SystemTime::now(),
            reason: reason.as_str(),
            error: outcome.as_ref().err().map(ToString::to_string),
        });
        let counted = if by_another { RefreshReason::OtherReplica } else { reason };
        self.service.refresh_counts.increment(&self.agent_name, counted, outcome.is_ok());
        self.log_refresh(&state, reason, by_another, &outcome, now);
        outcome
    }

    /// Gives back what was taken for a renewal that brought nothing, or that another replica made: the backoff bounds what
    /// fails.
    fn settle_charge(
        &self,
        state: &mut State,
        reason: RefreshReason,
        charge: Charge,
        fetched: &Result<FetchedToken, FetchError>,
    ) {
        if !fetched.as_ref().is_ok_and(|obtained| obtained.is_own) {
            self.service.refresh_budget.refund(&self.agent_name, charge);
        }
        match fetched {
            Ok(_) => self.credentials_verified.store(true, Ordering::Relaxed),
            Err(failure) => {
                if failure.risks_ban() {
                    self.credentials_verified.store(false, Ordering::Relaxed);
                }
                state.proactive_refreshes -= u8::from(reason == RefreshReason::Proactive);
                // Those whose token was refused are told the failure.
                (state.refused_by, state.cooldown_ended_early) = (Default::default(), false);
            }
        }
    }

    fn log_refresh(
        &self,
        state: &State,
        reason: RefreshReason,
        by_another: bool,
        outcome: &Outcome,
        now: Instant,
    ) {
        let agent = self.agent_name.as_str();
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
                next_try_in_s = ceil_seconds(state.backoff.remaining(now)),
                "token not renewed"
            ),
        }
    }

    /// Makes a grant the current token, unless it is the one that is current already.
    fn set(
        self: &Arc<Self>,
        state: &mut State,
        asked: Instant,
        FetchedToken { response: grant, fence, .. }: FetchedToken,
    ) -> Arc<Token> {
        state.backoff = Backoff::default();
        state.failure_queue_turn = None;
        self.service.throttled.remove(&self.agent_name);
        let now = Instant::now();
        let (refused_by, early) =
            (std::mem::take(&mut state.refused_by), std::mem::take(&mut state.cooldown_ended_early));
        let before = self.current.load_full();
        let same = before.as_ref().filter(|before| before.value.expose() == grant.token.expose());
        match (refused_by.is_empty(), same.is_some()) {
            (false, same) => state.cooldown.start(now, same, early, refused_by),
            // A new token is worth a try.
            (true, false) => state.cooldown = Cooldown::default(),
            (true, true) => {}
        }
        let token = match same {
            None => {
                (state.repeated_after_expiry, state.proactive_refreshes) = (false, 0);
                let lead = proactive::refresh_margin(
                    self.service.refresh_ahead,
                    &grant,
                    self.service.random_stagger(),
                );
                Arc::new(Token::new(grant, fence, asked, lead))
            }
            Some(before) => {
                state.repeated_after_expiry |= asked >= before.usable_until;
                Arc::new(before.reissued(fence, asked, PAST_EXPIRY_TTL, self.service.random_stagger()))
            }
        };
        self.current.store(Some(token.clone()));
        self.used.store(false, Ordering::Relaxed);
        self.service.runtime.spawn(refresh_before_expiry(Arc::downgrade(self), token.clone()));
        token
    }

    /// Takes in what another replica got. Where this one is asking too, that will see to it.
    pub(super) fn apply_remote(self: &Arc<Self>, obtained: FetchedToken, same_again: bool) {
        let mut state = self.state();
        let is_newer = self.current.load().as_ref().is_none_or(|held| !obtained.is_older_than(held));
        if state.refresh.is_none() && is_newer {
            self.set(&mut state, Instant::now(), obtained);
            if same_again {
                // Which path refused it there is not known here: one gettoken is to do for all replicas.
                state.cooldown.start(Instant::now(), true, true, Default::default());
            }
            self.credentials_verified.store(true, Ordering::Relaxed);
            let reason = RefreshReason::OtherReplica.as_str();
            state.last_refresh = Some(LastRefresh { completed_at: SystemTime::now(), reason, error: None });
            self.service.refresh_counts.increment(&self.agent_name, RefreshReason::OtherReplica, true);
            tracing::info!(agent = self.agent_name.as_str(), reason, "token renewed");
        }
    }

    /// What those are told who need a token that may not be renewed now: the last failure says more, where there is one.
    pub(super) fn throttle_error(&self, state: &State, until: Instant) -> Arc<FetchError> {
        self.mark_throttled(until);
        state.backoff.last_failure().unwrap_or_else(|| Arc::new(FetchError::Throttled { retry_at: until }))
    }

    pub(super) fn mark_throttled(&self, until: Instant) {
        self.service.throttled.insert(&self.agent_name, until, &self.service.runtime);
    }
}
