//! How many renewals each agent has had, and how they went.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Reason;

/// Counts of renewals, which outlive the slots: a changed secret begins no new count.
#[derive(Default)]
pub(super) struct Renewals(Mutex<BTreeMap<Box<str>, Counts>>);

/// For each reason: those that brought a token, and those that failed.
type Counts = [[u64; 2]; Reason::ALL.len()];

/// One of the counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// The agent's name.
    pub agent: String,
    /// Why there were renewals.
    pub reason: Reason,
    /// Whether they brought a token.
    pub ok: bool,
    /// How many.
    pub count: u64,
}

impl Renewals {
    pub(super) fn count(&self, agent: &str, reason: Reason, ok: bool) {
        let mut all = self.lock();
        let counts = match all.get_mut(agent) {
            Some(counts) => counts,
            None => all.entry(agent.into()).or_default(),
        };
        counts[reason.index()][usize::from(!ok)] += 1;
    }

    /// All counts but those of nothing, by agent.
    pub(super) fn all(&self) -> Vec<Renewed> {
        let of_agent = |agent: &str, counts: &Counts| {
            let each = Reason::ALL.into_iter().flat_map(|reason| [(reason, true), (reason, false)]);
            let each = each.map(|(reason, ok)| (reason, ok, counts[reason.index()][usize::from(!ok)]));
            let counted = each.filter(|(.., count)| *count > 0);
            let named =
                counted.map(|(reason, ok, count)| Renewed { agent: agent.to_string(), reason, ok, count });
            named.collect::<Vec<_>>()
        };
        self.lock().iter().flat_map(|(agent, counts)| of_agent(agent, counts)).collect()
    }

    pub(super) fn keep(&self, agents: impl Fn(&str) -> bool) {
        self.lock().retain(|agent, _| agents(agent));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
