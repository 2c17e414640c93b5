//! One refresh: its budget, the gettoken, and how the result is applied.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use tokio::time::{Instant, timeout};

use super::{
    Backoff, CachedToken, Cooldown, FetchCause, FetchError, LastRefresh, Outcome, RefreshReason, State,
    Token, ceil_seconds,
    cooldown::CooldownScope,
    failure_budget::{AttemptPermit, PERMIT_TIMEOUT},
    fetched_token::FetchedToken,
    join, proactive,
    refresh_budget::{BudgetClass, Charge, MAX_PROACTIVE_REFRESHES},
    single_flight::{Flight, Leader},
    token::PAST_EXPIRY_TTL,
    token_fetch::fetch_token,
    unproven_queue,
};
use crate::wecom::response::GettokenResponse;

/// A refresh in its task. Completes when dropped, so that a panic leaves no request waiting.
struct RunningRefresh<'a> {
    entry: &'a Arc<CachedToken>,
    attempt: Attempt,
    fetched: Result<FetchedToken, FetchError>,
    leader: Leader<Outcome>,
}

/// What is known of a refresh beside its result.
#[derive(Clone, Copy)]
struct Attempt {
    reason: RefreshReason,
    charge: Charge,
    requested_at: Instant,
    /// WeCom refused the secret, and its file has another one now.
    is_superseded: bool,
}

impl Drop for RunningRefresh<'_> {
    fn drop(&mut self) {
        let fetched = std::mem::replace(&mut self.fetched, Err(FetchError::Cancelled));
        let mut state = self.entry.state.lock();
        let outcome = self.entry.apply_result(&mut state, self.attempt, fetched);
        state.refresh.complete(&self.leader, outcome);
    }
}

impl CachedToken {
    /// Joins the running refresh or starts one. Error: the instant from which one may start.
    pub(super) fn join_or_start(
        self: &Arc<Self>,
        state: &mut State,
        reason: RefreshReason,
    ) -> Result<Flight<Outcome>, Instant> {
        if let Some(refresh) = state.refresh.running() {
            return Ok(refresh);
        }
        let charge = self.charge_budget(state, reason, Instant::now())?;
        let (leader, refresh) = state.refresh.start();
        let entry = self.clone();
        let refreshing = async move {
            let mut running = RunningRefresh {
                entry: &entry,
                attempt: Attempt { reason, charge, requested_at: Instant::now(), is_superseded: false },
                fetched: Err(FetchError::Cancelled),
                leader,
            };
            running.fetched = fetch_token(&entry, reason, charge.class).await;
            let is_refused = running.fetched.as_ref().is_err_and(FetchError::is_credential_error);
            if is_refused {
                running.attempt.is_superseded = entry.select_next_secret().await;
            }
            drop(running);
            if is_refused && let Some(failure) = entry.backoff().last_failure() {
                entry.try_next_secret(&failure).await;
            }
        };
        self.service.runtime.spawn(FetchCause::current().scope(refreshing));
        Ok(refresh)
    }

    /// Checks and charges the budget for a refresh. Error: when one may start, by the queue of unproven secrets, the token's
    /// expiry after two proactive refreshes, or the budget.
    fn charge_budget(
        &self,
        state: &mut State,
        reason: RefreshReason,
        now: Instant,
    ) -> Result<Charge, Instant> {
        if reason != RefreshReason::Manual
            && let Some(turn) = state.unproven_queue_turn.filter(|turn| now < *turn)
        {
            return Err(turn);
        }
        let class = match reason {
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
            RefreshReason::Refused { was_accepted } => BudgetClass::Refusal { was_accepted },
            RefreshReason::Manual => BudgetClass::Operator,
        };
        let charge = self.service.refresh_budget.try_charge(&self.agent_name, class, now)?;
        state.proactive_refreshes += u8::from(reason == RefreshReason::Proactive);
        Ok(charge)
    }

    /// Calls gettoken, unless the failure budget of the address is spent.
    pub(super) async fn call_gettoken(
        self: &Arc<Self>,
        class: BudgetClass,
        reason: RefreshReason,
    ) -> Result<GettokenResponse, FetchError> {
        let failures = &self.service.failure_budget;
        let proven = self.credentials_proven.load(Ordering::Relaxed);
        // What an operator requested is tried at once: a manual refresh, and a changed secret once.
        let is_exempt = !self.kind.risks_address() || class == BudgetClass::Operator;
        let mut permit = match is_exempt || self.take_changed_secret() {
            true => None,
            false => Some(self.acquire_attempt(proven).await?),
        };
        let started = Instant::now();
        let mut fetching = pin!(self.kind.fetch(&*self.service.fetcher, &self.credentials));
        let within_timeout = match permit {
            Some(_) => timeout(PERMIT_TIMEOUT, fetching.as_mut()).await.ok(),
            None => None,
        };
        let fetched = match within_timeout {
            Some(fetched) => fetched,
            None => {
                permit = None;
                fetching.await
            }
        };
        self.record_call(reason, started.elapsed(), &fetched);
        match (&fetched, &permit) {
            (Ok(_), Some(permit)) => permit.record_success(),
            (Err(failure), _) if failure.is_credential_error() => failures.record_failure(proven),
            _ => {}
        }
        drop(permit);
        fetched
    }

    async fn acquire_attempt(self: &Arc<Self>, proven: bool) -> Result<AttemptPermit<'_>, FetchError> {
        let failures = &self.service.failure_budget;
        if proven {
            let acquired = failures.acquire_proven(&self.agent_name).await;
            return acquired.map_err(|retry_at| FetchError::Throttled { retry_at });
        }
        let has_failed =
            self.state.lock().backoff.last_failure().is_some_and(|last| last.is_credential_error());
        failures.acquire_unproven(self, has_failed).await.map_err(|retry_at| {
            if !failures.set_queue_running() {
                self.service.runtime.spawn(unproven_queue::run(Arc::downgrade(&self.service)));
            }
            FetchError::Throttled { retry_at }
        })
    }

    /// Whether the secret was changed and neither tried since nor known to fail; false from then on.
    fn take_changed_secret(&self) -> bool {
        self.secret_changed.swap(false, Ordering::Relaxed)
            && self.state.lock().backoff.last_failure().is_none()
    }

    /// Tries this secret, whose turn in the queue of unproven secrets has come; returns whether WeCom refused it.
    pub(super) async fn try_queued_secret(self: &Arc<Self>) -> bool {
        // The refresh that was queued may be about to end.
        let running = self.state.lock().refresh.running();
        if let Some(running) = running {
            let _ = join(running).await;
        }
        let refresh = {
            let mut state = self.state.lock();
            state.unproven_queue_turn = None;
            let Some(reason) = state.queued_reason.take() else { return false };
            self.join_or_start(&mut state, reason)
        };
        let Ok(refresh) = refresh else { return false };
        join(refresh).await.is_err_and(|failure| failure.is_credential_error())
    }

    /// Applies the result of a refresh.
    fn apply_result(
        self: &Arc<Self>,
        state: &mut State,
        Attempt { reason, charge, requested_at, is_superseded }: Attempt,
        fetched: Result<FetchedToken, FetchError>,
    ) -> Outcome {
        let now = Instant::now();
        self.record_result(state, reason, charge, &fetched);
        let by_other_replica = fetched.as_ref().is_ok_and(|fetched| !fetched.is_own);
        let outcome = match fetched {
            Ok(fetched) => Ok(self.install_token(state, requested_at, fetched)),
            // gettoken was not called, so this is no failure.
            Err(FetchError::Throttled { retry_at }) => {
                (state.unproven_queue_turn, state.queued_reason) = (Some(retry_at), Some(reason));
                return Err(self.throttle_error(state, retry_at));
            }
            Err(failure) => {
                // Backoff decides from now on, not an earlier place in the queue.
                self.leave_unproven_queue(state);
                Err(state.backoff.record_failure(now, failure, (self.service.jitter)()))
            }
        };
        state.last_refresh = Some(LastRefresh {
            completed_at: SystemTime::now(),
            reason,
            error: outcome.as_ref().err().map(ToString::to_string),
        });
        if is_superseded {
            // The secret that the file has now is tried next; only its failure is one of the agent.
            return outcome;
        }
        let counted = if by_other_replica { RefreshReason::OtherReplica } else { reason };
        self.service.refresh_counts.increment(self.counted_as(), counted, outcome.is_ok());
        self.log_refresh(state, reason, by_other_replica, &outcome, now);
        outcome
    }

    fn leave_unproven_queue(&self, state: &mut State) {
        (state.unproven_queue_turn, state.queued_reason) = (None, None);
        self.service.throttled.remove(&self.agent_name);
    }

    /// Records what a result means for budgets and credentials. Refunds the charge of a refresh that failed (backoff
    /// bounds those) or that another replica made.
    fn record_result(
        &self,
        state: &mut State,
        reason: RefreshReason,
        charge: Charge,
        fetched: &Result<FetchedToken, FetchError>,
    ) {
        if !fetched.as_ref().is_ok_and(|fetched| fetched.is_own) {
            self.service.refresh_budget.refund(&self.agent_name, charge);
        }
        match fetched {
            Ok(_) => self.credentials_proven.store(true, Ordering::Relaxed),
            Err(failure) => {
                if failure.risks_ban() {
                    self.credentials_proven.store(false, Ordering::Relaxed);
                }
                state.proactive_refreshes -= u8::from(reason == RefreshReason::Proactive);
                // Callers whose token was refused get the failure, so their refusals are settled.
                (state.refused_by, state.refresh_started_in_cooldown) = (Default::default(), false);
            }
        }
    }

    fn log_refresh(
        &self,
        state: &State,
        reason: RefreshReason,
        by_other_replica: bool,
        outcome: &Outcome,
        now: Instant,
    ) {
        let agent = self.agent_name.as_str();
        match outcome {
            Ok(token) => tracing::info!(
                agent,
                reason = reason.as_str(),
                by_another_replica = by_other_replica.then_some(true),
                expires_in_s = token.usable_until.saturating_duration_since(now).as_secs(),
                "token refreshed"
            ),
            Err(failure) => tracing::warn!(
                agent,
                reason = reason.as_str(),
                failure = failure.to_string(),
                hint = failure.hint(),
                next_try_in_s = ceil_seconds(state.backoff.remaining(now)),
                "token refresh failed"
            ),
        }
    }

    /// Makes a fetched token the current one, or reissues the current one if the value is the same.
    fn install_token(
        self: &Arc<Self>,
        state: &mut State,
        requested_at: Instant,
        FetchedToken { response, fence, .. }: FetchedToken,
    ) -> Arc<Token> {
        state.backoff = Backoff::default();
        self.leave_unproven_queue(state);
        let now = Instant::now();
        let refused_by = std::mem::take(&mut state.refused_by);
        let started_in_cooldown = std::mem::take(&mut state.refresh_started_in_cooldown);
        let previous = self.current.load_full();
        let unchanged =
            previous.as_ref().filter(|previous| previous.value.expose() == response.token.expose());
        let scope = match (unchanged.is_some(), started_in_cooldown) {
            (false, _) => CooldownScope::Refused,
            (true, false) => CooldownScope::Unaccepted,
            (true, true) => CooldownScope::All,
        };
        if !refused_by.is_empty() {
            state.cooldown.start(now, scope, refused_by);
        } else if unchanged.is_none() {
            // A new token may be accepted.
            state.cooldown = Cooldown::default();
        }
        let token = match unchanged {
            None => {
                (state.repeated_after_expiry, state.proactive_refreshes) = (false, 0);
                let margin = proactive::refresh_margin(
                    self.service.refresh_ahead,
                    &response,
                    self.service.random_stagger(),
                );
                Arc::new(Token::new(response, fence, requested_at, margin))
            }
            Some(previous) => {
                state.repeated_after_expiry |= requested_at >= previous.usable_until;
                Arc::new(previous.reissued(
                    fence,
                    requested_at,
                    PAST_EXPIRY_TTL,
                    self.service.random_stagger(),
                ))
            }
        };
        self.current.store(Some(token.clone()));
        self.used.store(false, Ordering::Relaxed);
        self.schedule_proactive_refresh(token.clone());
        token
    }

    /// Applies a token that another replica fetched. A refresh of this replica that is running will find it by
    /// itself.
    pub(super) fn apply_remote(self: &Arc<Self>, fetched: FetchedToken, is_unchanged: bool) {
        let mut state = self.state.lock();
        let is_newer = self.current.load().as_ref().is_none_or(|current| !fetched.is_not_newer_than(current));
        if state.refresh.running().is_none() && is_newer {
            self.install_token(&mut state, Instant::now(), fetched);
            if is_unchanged {
                // The path that refused it is not known here, and one gettoken must be enough for all replicas.
                state.cooldown.start(Instant::now(), CooldownScope::All, Default::default());
            }
            self.credentials_proven.store(true, Ordering::Relaxed);
            let reason = RefreshReason::OtherReplica;
            state.last_refresh = Some(LastRefresh { completed_at: SystemTime::now(), reason, error: None });
            self.service.refresh_counts.increment(self.counted_as(), reason, true);
            tracing::info!(agent = self.agent_name.as_str(), reason = reason.as_str(), "token refreshed");
        }
    }

    /// The error for callers whose token may not be refreshed now: the last failure, if there is one, because it
    /// says more.
    pub(super) fn throttle_error(&self, state: &State, retry_at: Instant) -> Arc<FetchError> {
        self.mark_throttled(retry_at);
        state.backoff.last_failure().unwrap_or_else(|| Arc::new(FetchError::Throttled { retry_at }))
    }

    pub(super) fn mark_throttled(&self, retry_at: Instant) {
        self.service.throttled.insert(&self.agent_name, retry_at, &self.service.runtime);
    }
}
