//! Proactive refresh: renews tokens in use before they expire, in the background.
//!
//! Tokens that were fetched together are not refreshed together: a hash of the token decides its time, and so
//! all replicas that share it agree. Replicas are staggered by seconds, so that one of them refreshes and the
//! others find the result.

use std::{
    hash::BuildHasher,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use foldhash::quality::FixedState;
use tokio::time::{Instant, sleep_until};

use super::{CachedToken, RefreshReason, Token, join};
use crate::{secret::Masked, wecom::response::GettokenResponse};

/// The smallest part of the configured margin that is left for a refresh and its retries.
const MIN_MARGIN_FRACTION: f64 = 0.25;
/// Longest delay of a replica behind the first.
const MAX_STAGGER_INTERVAL: Duration = Duration::from_secs(10);

/// How long before its expiry a token is refreshed: a part of `max`, or of half the token's lifetime if that is
/// shorter; a hash of the token decides the part. Among replicas that share the token, this one is later by
/// `stagger`, from 0 to 1, of the longest delay.
pub(super) fn refresh_margin(max: Duration, response: &GettokenResponse, stagger: f64) -> Duration {
    let max = max.min(response.expires_in / 2);
    let margin =
        max.mul_f64(MIN_MARGIN_FRACTION + (1.0 - MIN_MARGIN_FRACTION) * hash_fraction(&response.token));
    margin.saturating_sub(stagger_delay(margin, stagger))
}

/// The delay of a replica behind the first: `stagger`, from 0 to 1, of [`MAX_STAGGER_INTERVAL`], or of half of
/// `margin` if that is shorter.
pub(super) fn stagger_delay(margin: Duration, stagger: f64) -> Duration {
    MAX_STAGGER_INTERVAL.min(margin / 2).mul_f64(stagger)
}

/// A hash of the token, uniform from 0 to 1.
fn hash_fraction(token: &Masked) -> f64 {
    let hash = FixedState::default().hash_one(token.expose());
    f64::from((hash >> 32) as u32) / f64::from(u32::MAX)
}

/// Refreshes a token in use before it expires. Ends when the token is no longer the current one or is not in use.
/// At its expiry it makes one last attempt, with [`RefreshReason::Expired`]; after that the next request fetches
/// one anyway.
pub(super) async fn refresh_before_expiry(entry: Weak<CachedToken>, token: Arc<Token>) {
    let mut at = token.refresh_at;
    loop {
        sleep_until(at).await;
        // Very many tokens wait at the same time: what the attempt needs is allocated only for it.
        match Box::pin(refresh_once(&entry, &token)).await {
            Some(retry_at) => at = retry_at,
            None => return,
        }
    }
}

/// One attempt; returns when to make the next one, if any.
async fn refresh_once(entry: &Weak<CachedToken>, token: &Arc<Token>) -> Option<Instant> {
    let entry = entry.upgrade()?;
    let still_current = entry.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, token));
    if !still_current || !entry.used.load(Ordering::Relaxed) {
        return None;
    }
    let now = Instant::now();
    let (refresh, retry_at) = {
        let mut state = entry.state.lock();
        let reason = if now < token.usable_until { RefreshReason::Proactive } else { RefreshReason::Expired };
        match state.wait_after_failures(now) {
            wait if wait.is_zero() => match entry.join_or_start(&mut state, reason) {
                Ok(refresh) => (Some(refresh), now + Duration::from_secs(1)),
                Err(retry_at) => (None, retry_at.max(now + Duration::from_secs(1))),
            },
            wait => (None, now + wait.max(Duration::from_secs(1))),
        }
    };
    if let Some(refresh) = refresh
        && join(refresh).await.is_ok()
    {
        // The new token, or the reissued one with its next time, has a task of its own.
        return None;
    }
    (now < token.usable_until).then(|| retry_at.min(token.usable_until))
}
