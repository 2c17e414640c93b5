//! How many renewals each agent has had, and how they went.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::RefreshReason;

/// Counts of renewals, which outlive the slots: a changed secret begins no new count.
#[derive(Default)]
pub(super) struct RefreshCounts(Mutex<BTreeMap<Box<str>, ReasonCounts>>);

/// For each reason: those that brought a token, and those that failed.
type ReasonCounts = [[u64; 2]; RefreshReason::ALL.len()];

/// One of the counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshCount {
    /// The agent's name.
    pub agent_name: String,
    /// Why there were renewals.
    pub reason: RefreshReason,
    /// Whether they brought a token.
    pub succeeded: bool,
    /// How many.
    pub count: u64,
}

impl RefreshCounts {
    pub(super) fn increment(&self, agent: &str, reason: RefreshReason, ok: bool) {
        let mut all = self.lock();
        let counts = match all.get_mut(agent) {
            Some(counts) => counts,
            None => all.entry(agent.into()).or_default(),
        };
        counts[reason.index()][usize::from(!ok)] += 1;
    }

    /// All counts but those of nothing, by agent.
    pub(super) fn snapshot(&self) -> Vec<RefreshCount> {
        let of_agent = |agent: &str, counts: &ReasonCounts| {
            let each = RefreshReason::ALL.into_iter().flat_map(|reason| [(reason, true), (reason, false)]);
            let each = each.map(|(reason, ok)| (reason, ok, counts[reason.index()][usize::from(!ok)]));
            let counted = each.filter(|(.., count)| *count > 0);
            let named = counted.map(|(reason, ok, count)| RefreshCount {
                agent_name: agent.to_string(),
                reason,
                succeeded: ok,
                count,
            });
            named.collect::<Vec<_>>()
        };
        self.lock().iter().flat_map(|(agent, counts)| of_agent(agent, counts)).collect()
    }

    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        self.lock().retain(|agent, _| agents(agent));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, ReasonCounts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
