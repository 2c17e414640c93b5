//! Renewal before expiry, in the background, for tokens that are in use.
//!
//! Tokens that were fetched together are not renewed together: when it is time for one, the token itself decides, and so
//! all replicas that have it agree. One of them comes first by a few seconds; the others find that it was done.

use std::{
    hash::BuildHasher,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use foldhash::quality::FixedState;
use tokio::time::{Instant, sleep_until};

use super::{AgentToken, RefreshReason, Token, join};
use crate::{secret::Masked, wecom::response::GettokenResponse};

/// The least part of the configured time ahead that is left for a renewal and its repetitions.
const MIN_MARGIN_FRACTION: f64 = 0.25;
/// Longest time by which one of several replicas comes after the first.
const MAX_STAGGER_INTERVAL: Duration = Duration::from_secs(10);

/// How long before its expiry a token is renewed: `most`, or half of its life if that is less, or a part of it that the
/// token decides. A replica that shares it comes later by `stagger`, from 0 to 1.
pub(super) fn refresh_margin(most: Duration, grant: &GettokenResponse, stagger: f64) -> Duration {
    let most = most.min(grant.expires_in / 2);
    let lead = most.mul_f64(MIN_MARGIN_FRACTION + (1.0 - MIN_MARGIN_FRACTION) * hash_fraction(&grant.token));
    lead.saturating_sub(stagger_delay(lead, stagger))
}

/// How much later than the first of several replicas one acts that has so much time.
pub(super) fn stagger_delay(time: Duration, stagger: f64) -> Duration {
    MAX_STAGGER_INTERVAL.min(time / 2).mul_f64(stagger)
}

/// From 0 to 1, evenly over all tokens.
fn hash_fraction(token: &Masked) -> f64 {
    let hash = FixedState::default().hash_one(token.expose());
    f64::from((hash >> 32) as u32) / f64::from(u32::MAX)
}

/// Renews a token in use before it expires, in the background. Ends when the token is no longer the current one, when
/// nobody used it, or when it has expired and the next request will fetch anyway.
pub(super) async fn refresh_before_expiry(slot: Weak<AgentToken>, token: Arc<Token>) {
    let mut at = token.refresh_at;
    loop {
        sleep_until(at).await;
        let Some(slot) = slot.upgrade() else { return };
        let still_current = slot.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, &token));
        if !still_current || !slot.used.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let (flight, retry_at) = {
            let mut state = slot.state();
            let reason =
                if now < token.usable_until { RefreshReason::Proactive } else { RefreshReason::Expired };
            match state.backoff_remaining(now) {
                wait if wait.is_zero() => match slot.join_or_start(&mut state, reason) {
                    Ok(flight) => (Some(flight), now + Duration::from_secs(1)),
                    Err(until) => (None, until.max(now + Duration::from_secs(1))),
                },
                wait => (None, now + wait.max(Duration::from_secs(1))),
            }
        };
        if let Some(flight) = flight
            && join(flight).await.is_ok()
        {
            // The new token, or the same one with its next date, has a keeper of its own.
            return;
        }
        if now >= token.usable_until {
            return;
        }
        at = retry_at.min(token.usable_until);
    }
}
