//! Proactive refresh: renews tokens in use before they expire, in the background.
//!
//! Tokens that were fetched together are not refreshed together: a hash of the token decides its time, and so
//! all replicas that share it agree. Replicas are staggered by seconds, so that one of them refreshes and the
//! others find the result.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    hash::BuildHasher,
    mem,
    sync::{Arc, Weak, atomic},
    time::Duration,
};

use foldhash::quality::FixedState;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, timeout_at},
};

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

/// The refreshes to come, in the order of their times. One task waits for all of them: there can be very many tokens, and
/// a task for each would take more memory than the token.
#[derive(Default)]
pub(super) struct ProactiveSchedule {
    queue: Mutex<PendingRefreshes>,
    /// A refresh was added that is the first one now.
    first_has_changed: Notify,
}

#[derive(Default)]
struct PendingRefreshes {
    refreshes: BinaryHeap<Reverse<DueRefresh>>,
    /// Whether the task runs; it ends when no refresh is left.
    is_running: bool,
}

struct DueRefresh {
    at: Instant,
    entry: Weak<CachedToken>,
    token: Arc<Token>,
}

impl ProactiveSchedule {
    /// Refreshes a token in use before it expires, unless it is no longer the current one or not in use by then. At its
    /// expiry there is one last attempt, with [`RefreshReason::Expired`]; after that the next request fetches one anyway.
    pub(super) fn add(self: &Arc<Self>, runtime: &Handle, entry: Weak<CachedToken>, token: Arc<Token>) {
        let at = token.refresh_at();
        self.push(runtime, DueRefresh { at, entry, token });
    }

    fn push(self: &Arc<Self>, runtime: &Handle, refresh: DueRefresh) {
        let mut queue = self.queue.lock();
        let is_first = queue.refreshes.peek().is_none_or(|Reverse(first)| refresh.at < first.at);
        queue.refreshes.push(Reverse(refresh));
        if !mem::replace(&mut queue.is_running, true) {
            runtime.spawn(self.clone().run(runtime.clone()));
        } else if is_first {
            self.first_has_changed.notify_one();
        }
    }

    async fn run(self: Arc<Self>, runtime: Handle) {
        while let Some(next) = self.spawn_due(&runtime) {
            let _ = timeout_at(next, self.first_has_changed.notified()).await;
        }
    }

    /// Spawns the refreshes whose time has come; returns the time of the next one. Without one, the task ends.
    fn spawn_due(self: &Arc<Self>, runtime: &Handle) -> Option<Instant> {
        let now = Instant::now();
        let mut queue = self.queue.lock();
        while let Some(Reverse(first)) = queue.refreshes.peek() {
            if now < first.at {
                return Some(first.at);
            }
            if let Some(Reverse(due)) = queue.refreshes.pop() {
                runtime.spawn(self.clone().refresh(runtime.clone(), due));
            }
        }
        // Very many of them may have been there at once.
        *queue = PendingRefreshes::default();
        None
    }

    async fn refresh(self: Arc<Self>, runtime: Handle, DueRefresh { entry, token, .. }: DueRefresh) {
        if let Some(at) = refresh_once(&entry, &token).await {
            self.push(&runtime, DueRefresh { at, entry, token });
        }
    }
}

impl PartialEq for DueRefresh {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for DueRefresh {}

impl PartialOrd for DueRefresh {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DueRefresh {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

/// One attempt; returns when to make the next one, if any.
async fn refresh_once(entry: &Weak<CachedToken>, token: &Arc<Token>) -> Option<Instant> {
    let entry = entry.upgrade()?;
    let still_current = entry.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, token));
    if !still_current || !entry.used.load(atomic::Ordering::Relaxed) {
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
        // The new token, or the reissued one with its next time, is in the schedule by itself.
        return None;
    }
    (now < token.usable_until).then(|| retry_at.min(token.usable_until))
}
