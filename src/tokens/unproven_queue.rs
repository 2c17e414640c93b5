//! Order in which unproven secrets are tried once the failures of the address are spent.
//!
//! Secrets that were never tried go first, then those that failed. Agents that arrive together often have secrets of
//! one kind, all valid or all wrong. So a valid secret is followed by its neighbor at once, and a wrong one by a
//! secret from the other end of the queue: many wrong secrets do not delay the valid ones that came before or after.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use tokio::time::{Instant, sleep_until};

use super::{CachedToken, TokenService};

/// The queued agents.
#[derive(Default)]
pub(super) struct UnprovenQueue {
    /// In order of arrival.
    untried: VecDeque<Weak<CachedToken>>,
    failed: VecDeque<Weak<CachedToken>>,
    /// Whether the next untried secret is the oldest, not the newest.
    from_oldest: bool,
    /// The agent whose turn it is.
    current: Weak<CachedToken>,
    /// Whether [`run`] is running.
    is_running: bool,
}

/// What [`run`] does next.
pub(super) enum NextStep {
    /// Try the secret of this agent.
    Try(Arc<CachedToken>),
    /// Wait until then.
    Wait(Instant),
}

/// Tries the queued secrets, one after the other, until the queue is empty. A task of its own, so that an agent needs
/// no request at the right moment.
pub(super) async fn run(service: Weak<TokenService>) {
    loop {
        let Some(service) = service.upgrade() else { return };
        match service.failure_budget.next_queued() {
            None => return,
            Some(NextStep::Wait(until)) => {
                drop(service);
                sleep_until(until).await;
            }
            Some(NextStep::Try(agent)) => {
                let has_failed = agent.try_queued_secret().await;
                service.failure_budget.finish_queued(has_failed);
            }
        }
    }
}

impl UnprovenQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of queued agents.
    pub(super) fn len(&self) -> usize {
        self.untried.len() + self.failed.len()
    }

    /// Whether it is this agent's turn.
    pub(super) fn is_turn_of(&self, agent: &Arc<CachedToken>) -> bool {
        is_same(&self.current, agent)
    }

    /// Queues an agent that is not queued yet. Returns how many are ahead, if all of them fail.
    pub(super) fn push(&mut self, agent: &Arc<CachedToken>, has_failed: bool) -> usize {
        let queue = if has_failed { &mut self.failed } else { &mut self.untried };
        let known = queue.iter().position(|queued| is_same(queued, agent));
        let position = known.unwrap_or_else(|| {
            // Removes replaced agents before the queue grows.
            if queue.len() == queue.capacity() {
                queue.retain(|queued| queued.strong_count() > 0);
            }
            queue.push_back(Arc::downgrade(agent));
            queue.len() - 1
        });
        if has_failed {
            return self.untried.len() + position;
        }
        let newer = self.untried.len() - 1 - position;
        let (from_oldest, from_newest) = match self.from_oldest {
            true => (2 * position, 2 * newer + 1),
            false => (2 * position + 1, 2 * newer),
        };
        from_oldest.min(from_newest).min(self.untried.len() - 1)
    }

    /// Takes the next agent, whose turn it is until [`UnprovenQueue::finish`].
    pub(super) fn pop(&mut self) -> Option<Arc<CachedToken>> {
        loop {
            let next = if self.from_oldest { self.untried.pop_front() } else { self.untried.pop_back() };
            let next = next.or_else(|| self.failed.pop_front())?;
            if let Some(agent) = next.upgrade() {
                self.current = next;
                return Some(agent);
            }
        }
    }

    /// Ends the turn of the current agent.
    pub(super) fn finish(&mut self, has_failed: bool) {
        self.current = Weak::new();
        self.from_oldest ^= has_failed;
    }

    /// Sets whether [`run`] is running; returns whether it was.
    pub(super) fn set_running(&mut self, is_running: bool) -> bool {
        std::mem::replace(&mut self.is_running, is_running)
    }
}

fn is_same(queued: &Weak<CachedToken>, agent: &Arc<CachedToken>) -> bool {
    std::ptr::eq(queued.as_ptr(), Arc::as_ptr(agent))
}
