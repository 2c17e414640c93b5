//! Renewal before expiry, in the background, for tokens that are in use.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Reason, Token, TokenSlot, landed};

/// Renews a token in use before it expires, in the background. Ends when the token is no longer the current one, when
/// nobody used it, or when it has expired and the next request will fetch anyway.
pub(super) async fn keep_fresh(slot: Weak<TokenSlot>, token: Arc<Token>) {
    let mut at = token.renew_at;
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
            let reason = if now < token.usable_until { Reason::Ahead } else { Reason::Expired };
            let wait = state.backoff.wait(now);
            let flight = match wait.is_zero() {
                true => slot.join_or_start(&mut state, reason).ok(),
                false => None,
            };
            (flight, now + wait.max(Duration::from_secs(1)))
        };
        if let Some(flight) = flight
            && landed(flight).await.is_ok()
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
