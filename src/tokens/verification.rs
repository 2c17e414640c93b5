//! A gettoken that proves the credentials of an agent before it is written.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::{Instant, timeout};

use super::{
    CachedToken, FetchError, Outcome, RefreshReason,
    failure_budget::{AttemptPermit, PERMIT_TIMEOUT},
    join,
};

impl CachedToken {
    /// Fetches a token to prove the credentials. During backoff the last failure is returned at once. It counts in the
    /// failure budget of the address, and fails with [`FetchError::Throttled`] where that is spent: it is queued for no
    /// later attempt, because its caller would not have the result.
    pub async fn verify(self: &Arc<Self>) -> Outcome {
        let permit = if self.kind.risks_address() { Some(self.acquire_verification().await?) } else { None };
        let refresh = {
            let mut state = self.state.lock();
            if let Some(failure) = state.backoff.active_failure(Instant::now()) {
                return Err(failure);
            }
            self.join_or_start(&mut state, RefreshReason::Manual)
                .map_err(|retry_at| Arc::new(FetchError::Throttled { retry_at }))?
        };
        let mut joined = pin!(join(refresh));
        // One that hangs must not hold back the attempts of others.
        let outcome = match timeout(PERMIT_TIMEOUT, joined.as_mut()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                drop(permit);
                return joined.await;
            }
        };
        if let Some(permit) = permit.filter(|_| outcome.is_ok()) {
            permit.record_success();
        }
        outcome
    }

    async fn acquire_verification(&self) -> Result<AttemptPermit<'_>, Arc<FetchError>> {
        if let Some(failure) = self.state.lock().backoff.active_failure(Instant::now()) {
            return Err(failure);
        }
        let failures = &self.service.failure_budget;
        let acquired = match self.credentials_proven.load(Ordering::Relaxed) {
            true => failures.acquire_proven(&self.agent_name).await,
            false => failures.acquire_verification().await,
        };
        acquired.map_err(|retry_at| Arc::new(FetchError::Throttled { retry_at }))
    }
}
