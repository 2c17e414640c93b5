//! How many gettokens may fail in an hour for their credentials: WeCom bans the address of who repeats a wrong secret, and
//! with it every agent.
//!
//! A try needs a permit, of which there are as many as failures are left, and one more for each token that such tries have
//! brought since the last failure, so that many good secrets are not held up by their number. When no failure is left,
//! agents come in the order in which they asked, as the bucket refills.
//!
//! Secrets that brought a token when they were last used have a limit of their own, so that secrets that never worked
//! cannot hold them up. It refills twice as fast: each of them fails once before it counts as a secret that does not
//! work, and good ones may wait behind them. In the worst hour, 300 fail for the address.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::bucket::{Bucket, Rate};

/// Failures for the address, of secrets that did not work when they were last used.
pub(super) const FAILURE_RATE: Rate = Rate { capacity: 60, refill_interval: Duration::from_secs(60) };
/// Failures for the address, of secrets that did.
const PROVEN_FAILURES: Rate = Rate { capacity: 60, refill_interval: Duration::from_secs(30) };
/// A try that takes longer returns its permit, so that a gettoken that hangs holds up no other agent's.
pub(super) const PERMIT_TIMEOUT: Duration = Duration::from_millis(500);

/// The limits of both kinds of secrets.
#[derive(Debug)]
pub(super) struct FailureBudget {
    unproven: FailureLimit,
    proven: FailureLimit,
}

impl Default for FailureBudget {
    fn default() -> Self {
        Self { unproven: FailureLimit::new(FAILURE_RATE), proven: FailureLimit::new(PROVEN_FAILURES) }
    }
}

impl FailureBudget {
    /// A permit for one try; else when to ask again. Waits only for tries that are under way.
    pub(super) async fn acquire(&self, agent: &str, proven: bool) -> Result<AttemptPermit<'_>, Instant> {
        if proven {
            // The next permit may be for any place in the queue: a token that comes meanwhile adds two.
            let next = || self.proven.next().max(Instant::now());
            return self.proven.admit(agent).await.map_err(|turn| turn.min(next()));
        }
        self.unproven.admit(agent).await
    }

    /// Counts a failure for the credentials. One of a proven secret takes what the others have left too, but not what
    /// comes back to them: a corrected secret is one that never worked.
    pub(super) fn record_failure(&self, proven: bool) {
        match proven {
            true => {
                self.proven.count(false);
                self.unproven.count(true);
            }
            false => self.unproven.count(false),
        }
    }
}

/// The failures that are left, and which agents wait for one.
#[derive(Debug)]
struct FailureLimit {
    rate: Rate,
    state: Mutex<State>,
    permit_returned: Notify,
}

#[derive(Debug, Default)]
struct State {
    bucket: Bucket,
    /// Permits of tries that are under way.
    permits_in_use: u32,
    /// Permits beyond the failures that are left.
    extra_permits: u32,
    /// Agents that found none left, and when each was told to come again.
    queue: VecDeque<(Box<str>, Instant)>,
}

/// The right to one try; returned when dropped.
#[derive(Debug)]
pub(super) struct AttemptPermit<'a>(&'a FailureLimit);

impl FailureLimit {
    fn new(rate: Rate) -> Self {
        Self { rate, state: Mutex::default(), permit_returned: Notify::new() }
    }

    /// A permit for one try; else when this agent's turn comes. Waits only for tries that are under way.
    async fn admit(&self, agent: &str) -> Result<AttemptPermit<'_>, Instant> {
        loop {
            let mut returned = pin!(self.permit_returned.notified());
            returned.as_mut().enable();
            if let Some(decided) = self.try_acquire(agent) {
                // The next one that waits may learn the same.
                self.permit_returned.notify_one();
                return decided;
            }
            returned.await;
        }
    }

    /// Counts a failure, `if_left` only where one is left: an empty bucket would begin its interval anew.
    fn count(&self, if_left: bool) {
        let (mut state, now) = (self.state(), Instant::now());
        if !if_left || state.bucket.available(now, self.rate) > 0 {
            state.bucket.consume(now, self.rate);
        }
        if !if_left {
            state.extra_permits = 0;
        }
    }

    /// When the next failure is left.
    fn next(&self) -> Instant {
        self.state().bucket.available_at(Instant::now(), self.rate)
    }

    fn try_acquire(&self, agent: &str) -> Option<Result<AttemptPermit<'_>, Instant>> {
        let (mut state, now) = (self.state(), Instant::now());
        // An agent that lets its turn pass makes room for the next.
        while state.queue.front().is_some_and(|(_, turn)| now >= *turn + self.rate.refill_interval) {
            state.queue.pop_front();
        }
        let left = state.bucket.available(now, self.rate);
        let place = state.queue.iter().position(|(waiting, _)| **waiting == *agent);
        let before = place.unwrap_or(state.queue.len());
        let permits = if left == 0 { 0 } else { left.saturating_add(state.extra_permits) };
        if before < permits.saturating_sub(state.permits_in_use) as usize {
            place.map(|place| state.queue.remove(place));
            state.permits_in_use += 1;
            return Some(Ok(AttemptPermit(self)));
        }
        if before < permits as usize {
            return None;
        }
        let first = state.bucket.available_at(now, self.rate).max(now);
        let turn = first + self.rate.refill_interval * u32::try_from(before).unwrap_or(u32::MAX);
        match place {
            Some(place) => state.queue[place].1 = turn,
            None => state.queue.push_back((agent.into(), turn)),
        }
        Some(Err(turn))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AttemptPermit<'_> {
    /// The try has brought a token: two more may be under way at once.
    pub(super) fn record_success(&self) {
        let mut state = self.0.state();
        state.extra_permits = state.extra_permits.saturating_add(2);
        drop(state);
        self.0.permit_returned.notify_one();
    }
}

impl Drop for AttemptPermit<'_> {
    fn drop(&mut self) {
        self.0.state().permits_in_use -= 1;
        self.0.permit_returned.notify_one();
    }
}
