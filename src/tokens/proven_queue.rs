//! Agents with proven secrets that wait for a failure to be left, in order of arrival.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The queued agents by name, each with its turn.
#[derive(Default)]
pub(super) struct ProvenQueue(VecDeque<(Box<str>, Instant)>);

impl ProvenQueue {
    /// Drops the first agents if they missed their turns by this long: they may no longer ask.
    pub(super) fn drop_missed(&mut self, now: Instant, grace: Duration) {
        while self.0.front().is_some_and(|(_, turn)| now >= *turn + grace) {
            self.0.pop_front();
        }
    }

    /// How many are ahead of this agent, queued or not.
    pub(super) fn ahead_of(&self, agent: &str) -> usize {
        self.position(agent).unwrap_or(self.0.len())
    }

    /// Queues an agent, or changes its turn.
    pub(super) fn push(&mut self, agent: &str, turn: Instant) {
        match self.position(agent) {
            Some(position) => self.0[position].1 = turn,
            None => self.0.push_back((agent.into(), turn)),
        }
    }

    /// Removes an agent, if it is queued.
    pub(super) fn remove(&mut self, agent: &str) {
        if let Some(position) = self.position(agent) {
            self.0.remove(position);
        }
    }

    fn position(&self, agent: &str) -> Option<usize> {
        self.0.iter().position(|(queued, _)| **queued == *agent)
    }
}
