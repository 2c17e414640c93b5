//! Bounds how many gettokens of this replica may fail for their credentials in an hour: WeCom bans an address that
//! repeats wrong secrets, and with it every agent behind it.
//!
//! An attempt needs a permit. There are as many permits as failures are left, and two more for each token that
//! attempts have fetched since the last failure, so that many valid secrets are not throttled by their number.
//! When no failure is left, agents are queued (`failure_queue`) while the bucket refills.
//!
//! Proven secrets, which have fetched a token and had no error with a ban risk since, have a limit of their own, so
//! that secrets that never worked cannot block them, and a queue in order of arrival. It refills twice as fast,
//! because valid secrets may be queued behind secrets that were reset: each of those fails once here, and is unproven
//! afterwards. The worst hour has 300 failures for this replica (60 + 60 unproven, 60 + 120 proven), beside manual
//! attempts and those already running.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    AgentToken,
    bucket::{Bucket, Rate},
    failure_queue::{FailureQueue, NextStep},
};

/// Failures per address of unproven secrets.
pub(super) const UNPROVEN_FAILURE_RATE: Rate =
    Rate { capacity: 60, refill_interval: Duration::from_secs(60) };
/// Failures per address of proven secrets.
const PROVEN_FAILURE_RATE: Rate = Rate { capacity: 60, refill_interval: Duration::from_secs(30) };
/// An attempt that takes longer returns its permit, so that a gettoken that hangs delays no other agent's.
pub(super) const PERMIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Longest wait that is reported to a queued agent, in refill intervals: valid secrets ahead of it may end it any time.
const MAX_REPORTED_INTERVALS: usize = 14;

/// The limits for unproven and proven secrets.
pub(super) struct FailureBudget {
    unproven: FailureLimit,
    proven: FailureLimit,
}

impl Default for FailureBudget {
    fn default() -> Self {
        Self {
            unproven: FailureLimit::new(UNPROVEN_FAILURE_RATE),
            proven: FailureLimit::new(PROVEN_FAILURE_RATE),
        }
    }
}

impl FailureBudget {
    /// A permit for one attempt of a proven secret, or else when to retry. Waits while running attempts hold all
    /// permits that are left, but not for a refill.
    pub(super) async fn acquire_proven(&self, agent: &str) -> Result<AttemptPermit<'_>, Instant> {
        // A success meanwhile adds two permits, and then an agent behind the first is admitted as well: so retry
        // when a failure refills, not only at this agent's turn.
        let next = || self.proven.next().max(Instant::now());
        self.proven.admit(|| self.proven.try_acquire(agent)).await.map_err(|turn| turn.min(next()))
    }

    /// The same for an unproven secret. Without a permit the agent is queued, and [`FailureBudget::next_queued`]
    /// returns it.
    pub(super) async fn acquire_unproven(
        &self,
        agent: &Arc<AgentToken>,
        has_failed: bool,
    ) -> Result<AttemptPermit<'_>, Instant> {
        self.unproven.admit(|| self.unproven.try_acquire_or_queue(agent, has_failed)).await
    }

    /// Marks the queue as running; returns whether it was.
    pub(super) fn set_queue_running(&self) -> bool {
        self.unproven.state().unproven_queue.set_running(true)
    }

    /// What to do for the queue now; `None`: nothing is queued, and the queue is no longer running.
    pub(super) fn next_queued(&self) -> Option<NextStep> {
        self.unproven.next_queued()
    }

    /// Ends the turn of the agent that [`FailureBudget::next_queued`] returned.
    pub(super) fn finish_queued(&self, has_failed: bool) {
        self.unproven.state().unproven_queue.finish(has_failed);
    }

    /// Counts a failure for the credentials. One of a proven secret also takes one from the unproven limit if one is
    /// left there. An empty limit keeps its refill time, because corrected secrets, which start as unproven ones,
    /// wait for it.
    pub(super) fn record_failure(&self, proven: bool) {
        match proven {
            true => {
                self.proven.record_failure();
                self.unproven.take_if_left();
            }
            false => self.unproven.record_failure(),
        }
    }
}

/// The failures that are left, and the queue for them.
struct FailureLimit {
    rate: Rate,
    state: Mutex<State>,
    permit_returned: Notify,
}

#[derive(Default)]
struct State {
    bucket: Bucket,
    /// Permits of running attempts.
    permits_in_use: u32,
    /// Permits beyond the failures that are left.
    extra_permits: u32,
    /// Agents with proven secrets that found no permit, and the turn after which each is dropped from the queue.
    proven_queue: VecDeque<(Box<str>, Instant)>,
    /// Those with unproven secrets. Each limit uses one of the two queues.
    unproven_queue: FailureQueue,
}

impl State {
    fn permits(&self, left: u32) -> u32 {
        if left == 0 { 0 } else { left.saturating_add(self.extra_permits) }
    }
}

/// The permit for one attempt; returned when dropped.
pub(super) struct AttemptPermit<'a>(&'a FailureLimit);

impl FailureLimit {
    fn new(rate: Rate) -> Self {
        Self { rate, state: Mutex::default(), permit_returned: Notify::new() }
    }

    /// Repeats `try_acquire` until it has a result, after each attempt that ends.
    async fn admit<'a>(
        &'a self,
        try_acquire: impl Fn() -> Option<Result<AttemptPermit<'a>, Instant>>,
    ) -> Result<AttemptPermit<'a>, Instant> {
        loop {
            let mut returned = pin!(self.permit_returned.notified());
            returned.as_mut().enable();
            if let Some(result) = try_acquire() {
                // The next waiting task may get the same result.
                self.permit_returned.notify_one();
                return result;
            }
            returned.await;
        }
    }

    /// Counts a failure; ends the extra permits.
    fn record_failure(&self) {
        let mut state = self.state();
        state.bucket.consume(Instant::now(), self.rate);
        state.extra_permits = 0;
    }

    /// Takes a failure that is left. An empty bucket is left alone, because taking from it would restart its refill
    /// interval.
    fn take_if_left(&self) {
        let (mut state, now) = (self.state(), Instant::now());
        if state.bucket.available(now, self.rate) > 0 {
            state.bucket.consume(now, self.rate);
        }
    }

    /// When the next failure is available.
    fn next(&self) -> Instant {
        self.state().bucket.available_at(Instant::now(), self.rate)
    }

    /// A permit, or when this agent's turn is; `None` while running attempts may still return theirs.
    fn try_acquire(&self, agent: &str) -> Option<Result<AttemptPermit<'_>, Instant>> {
        let (mut state, now) = (self.state(), Instant::now());
        // An agent that misses its turn leaves the queue.
        while state.proven_queue.front().is_some_and(|(_, turn)| now >= *turn + self.rate.refill_interval) {
            state.proven_queue.pop_front();
        }
        let left = state.bucket.available(now, self.rate);
        let position = state.proven_queue.iter().position(|(waiting, _)| **waiting == *agent);
        let ahead = position.unwrap_or(state.proven_queue.len());
        let permits = state.permits(left);
        if ahead < permits.saturating_sub(state.permits_in_use) as usize {
            position.map(|position| state.proven_queue.remove(position));
            state.permits_in_use += 1;
            return Some(Ok(AttemptPermit(self)));
        }
        if ahead < permits as usize {
            return None;
        }
        let next = state.bucket.available_at(now, self.rate).max(now);
        let turn = next + self.rate.refill_interval * u32::try_from(ahead).unwrap_or(u32::MAX);
        match position {
            Some(position) => state.proven_queue[position].1 = turn,
            None => state.proven_queue.push_back((agent.into(), turn)),
        }
        Some(Err(turn))
    }

    /// The same for an unproven secret; an agent that finds others in the queue is queued too.
    fn try_acquire_or_queue(
        &self,
        agent: &Arc<AgentToken>,
        has_failed: bool,
    ) -> Option<Result<AttemptPermit<'_>, Instant>> {
        let (mut state, now) = (self.state(), Instant::now());
        let permits = state.permits(state.bucket.available(now, self.rate));
        let is_turn = state.unproven_queue.is_turn_of(agent);
        if is_turn || (state.unproven_queue.is_empty() && state.permits_in_use < permits) {
            state.permits_in_use += 1;
            return Some(Ok(AttemptPermit(self)));
        }
        if state.unproven_queue.is_empty() && permits > 0 {
            return None;
        }
        let ahead = state.unproven_queue.push(agent, has_failed).min(MAX_REPORTED_INTERVALS) as u32;
        let next = state.bucket.available_at(now, self.rate).max(now + Duration::from_secs(1));
        Some(Err(next + self.rate.refill_interval * ahead))
    }

    fn next_queued(&self) -> Option<NextStep> {
        let (mut state, now) = (self.state(), Instant::now());
        let left = state.bucket.available(now, self.rate);
        let next = match state.permits_in_use < state.permits(left) {
            _ if state.unproven_queue.is_empty() => None,
            _ if left == 0 => Some(NextStep::Wait(state.bucket.available_at(now, self.rate))),
            false => Some(NextStep::Wait(now + PERMIT_TIMEOUT)),
            true => state.unproven_queue.pop().map(NextStep::Try),
        };
        if next.is_none() {
            state.unproven_queue.set_running(false);
        }
        next
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AttemptPermit<'_> {
    /// The attempt fetched a token: two more may run at once.
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
