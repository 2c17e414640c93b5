//! Bounds how many gettokens of this replica may fail for their credentials in an hour: WeCom bans an address that
//! repeats wrong secrets, and with it every agent behind it.
//!
//! An attempt needs a permit, and there are as many permits as failures are left, so that attempts under way cannot
//! fail more often than that. A permit is returned when the attempt ends, or when it hangs ([`PERMIT_TIMEOUT`]).
//! When no failure is left, agents are queued (`unproven_queue`) while the bucket refills.
//!
//! Proven secrets, which have fetched a token and had no error with a ban risk since, have a limit of their own, so
//! that secrets that never worked cannot block them, and a queue in order of arrival. It refills twice as fast,
//! because valid secrets may be queued behind secrets that were reset: each of those fails once here, and is unproven
//! afterwards. The worst hour has 300 failures for this replica (60 + 60 unproven, 60 + 120 proven), beside manual
//! attempts and those already running.

use std::{pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;

use tokio::{sync::Notify, time::Instant};

use super::{
    CachedToken,
    bucket::{Bucket, Rate},
    proven_queue::ProvenQueue,
    unproven_queue::{NextStep, UnprovenQueue},
};

/// Failures per address of unproven secrets.
pub(super) const UNPROVEN_FAILURE_RATE: Rate =
    Rate { capacity: 60, refill_interval: Duration::from_secs(60) };
/// Failures per address of proven secrets.
const PROVEN_FAILURE_RATE: Rate = Rate { capacity: 60, refill_interval: Duration::from_secs(30) };
/// An attempt that takes longer hangs: it returns its permit, so that it does not delay other agents' attempts until
/// its own timeout. If it fails for the credentials after all, that counts, beyond what was left, too. Longer than any
/// refusal takes: with a shorter time, slow refusals would exceed the limit.
pub(super) const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the queue looks for a permit while running attempts hold all.
const PERMIT_POLL_INTERVAL: Duration = Duration::from_millis(500);

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
        // A success meanwhile lets two more agents pass the first: so retry when a failure refills, not only at this
        // agent's turn.
        let next = || self.proven.next().max(Instant::now());
        self.proven.admit(|| self.proven.try_acquire(agent)).await.map_err(|turn| turn.min(next()))
    }

    /// The same for an unproven secret. Without a permit the agent is queued, and [`FailureBudget::next_queued`]
    /// returns it.
    pub(super) async fn acquire_unproven(
        &self,
        agent: &Arc<CachedToken>,
        has_failed: bool,
    ) -> Result<AttemptPermit<'_>, Instant> {
        self.unproven.admit(|| self.unproven.try_acquire_or_queue(agent, has_failed)).await
    }

    /// A permit for the verification of an unproven secret, or else when to retry: it is not queued, and those that are
    /// come first.
    pub(super) async fn acquire_verification(&self) -> Result<AttemptPermit<'_>, Instant> {
        self.unproven.admit(|| self.unproven.try_acquire_unqueued()).await
    }

    /// Marks the queue as running; returns whether it was.
    pub(super) fn set_queue_running(&self) -> bool {
        self.unproven.state.lock().unproven_queue.set_running(true)
    }

    /// What to do for the queue now; `None`: nothing is queued, and the queue is no longer running.
    pub(super) fn next_queued(&self) -> Option<NextStep> {
        let limit = &self.unproven;
        let (mut state, now) = (limit.state.lock(), Instant::now());
        let left = state.bucket.available(now, limit.rate);
        let next = match state.permits_in_use < left {
            _ if state.unproven_queue.is_empty() => None,
            _ if left == 0 => Some(NextStep::Wait(state.bucket.available_at(now, limit.rate))),
            false => Some(NextStep::Wait(now + PERMIT_POLL_INTERVAL)),
            true => state.unproven_queue.pop().map(NextStep::Try),
        };
        if next.is_none() {
            state.unproven_queue.set_running(false);
        }
        next
    }

    /// Ends the turn of the agent that [`FailureBudget::next_queued`] returned.
    pub(super) fn finish_queued(&self, has_failed: bool) {
        self.unproven.state.lock().unproven_queue.finish(has_failed);
    }

    /// Counts a failure for the credentials. One of a proven secret also takes one from the unproven limit if one is
    /// left there. An empty limit keeps its refill time, because corrected secrets, which start as unproven ones,
    /// wait for it.
    pub(super) fn record_failure(&self, proven: bool) {
        match proven {
            true => {
                self.proven.record_failure();
                self.unproven.consume_if_available();
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
    /// How many agents may pass those ahead of them in the proven queue: two for each token fetched since the last
    /// failure, so that many valid secrets do not wait for agents that no longer ask.
    overtakes_left: usize,
    /// Agents with proven secrets that found no permit. Each limit uses one of the two queues.
    proven_queue: ProvenQueue,
    /// Agents with unproven secrets.
    unproven_queue: UnprovenQueue,
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

    /// Counts a failure.
    fn record_failure(&self) {
        let mut state = self.state.lock();
        state.bucket.consume(Instant::now(), self.rate);
        state.overtakes_left = 0;
    }

    /// Consumes a failure if one is available. An empty bucket is left alone, because taking from it would restart its refill
    /// interval.
    fn consume_if_available(&self) {
        let (mut state, now) = (self.state.lock(), Instant::now());
        if state.bucket.available(now, self.rate) > 0 {
            state.bucket.consume(now, self.rate);
        }
    }

    /// When the next failure is available.
    fn next(&self) -> Instant {
        self.state.lock().bucket.available_at(Instant::now(), self.rate)
    }

    /// A permit, or when this agent's turn is; `None` while running attempts may still return theirs.
    fn try_acquire(&self, agent: &str) -> Option<Result<AttemptPermit<'_>, Instant>> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        state.proven_queue.drop_missed(now, self.rate.refill_interval);
        let left = state.bucket.available(now, self.rate);
        let ahead = state.proven_queue.ahead_of(agent);
        let served = if left == 0 { 0 } else { (left as usize).saturating_add(state.overtakes_left) };
        if state.permits_in_use < left && ahead < served.saturating_sub(state.permits_in_use as usize) {
            state.proven_queue.remove(agent);
            state.permits_in_use += 1;
            return Some(Ok(AttemptPermit(self)));
        }
        if ahead < served {
            return None;
        }
        let next = state.bucket.available_at(now, self.rate).max(now);
        let turn = next + self.rate.refill_interval * u32::try_from(ahead).unwrap_or(u32::MAX);
        state.proven_queue.push(agent, turn);
        Some(Err(turn))
    }

    /// The same for an unproven secret; an agent that finds others in the queue is queued too.
    fn try_acquire_or_queue(
        &self,
        agent: &Arc<CachedToken>,
        has_failed: bool,
    ) -> Option<Result<AttemptPermit<'_>, Instant>> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        let left = state.bucket.available(now, self.rate);
        let is_turn = state.unproven_queue.is_turn_of(agent);
        if is_turn || (state.unproven_queue.is_empty() && state.permits_in_use < left) {
            state.permits_in_use += 1;
            return Some(Ok(AttemptPermit(self)));
        }
        if state.unproven_queue.is_empty() && left > 0 {
            return None;
        }
        let ahead = state.unproven_queue.push(agent, has_failed).min(MAX_REPORTED_INTERVALS) as u32;
        let next = state.bucket.available_at(now, self.rate).max(now + Duration::from_secs(1));
        Some(Err(next + self.rate.refill_interval * ahead))
    }

    /// The same without a place in the queue.
    fn try_acquire_unqueued(&self) -> Option<Result<AttemptPermit<'_>, Instant>> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        let left = state.bucket.available(now, self.rate);
        match state.unproven_queue.len() {
            0 if state.permits_in_use < left => {
                state.permits_in_use += 1;
                Some(Ok(AttemptPermit(self)))
            }
            0 if left > 0 => None,
            ahead => {
                let next = state.bucket.available_at(now, self.rate).max(now + Duration::from_secs(1));
                Some(Err(next + self.rate.refill_interval * ahead.min(MAX_REPORTED_INTERVALS) as u32))
            }
        }
    }
}

impl AttemptPermit<'_> {
    /// The attempt fetched a token: two agents may pass those ahead of them.
    pub(super) fn record_success(&self) {
        let mut state = self.0.state.lock();
        state.overtakes_left = state.overtakes_left.saturating_add(2);
    }
}

impl Drop for AttemptPermit<'_> {
    fn drop(&mut self) {
        self.0.state.lock().permits_in_use -= 1;
        self.0.permit_returned.notify_one();
    }
}
