//! Refresh counters per agent, reason and outcome.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::RefreshReason;
use crate::{blocking, text::SharedStr};

/// Refresh counters. They outlive the cache entries, so a changed secret does not reset them.
#[derive(Default)]
pub(super) struct RefreshCounts(Mutex<BTreeMap<SharedStr, ReasonCounts>>);

/// For each reason: successes and failures. No agent reaches the end of 32 bits, and there can be very many agents.
type ReasonCounts = [[u32; 2]; RefreshReason::ALL.len()];

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshCount {
    /// The agent's name.
    pub agent_name: SharedStr,
    /// The reason of the refreshes.
    pub reason: RefreshReason,
    /// Whether they fetched a token.
    pub succeeded: bool,
    /// Number of refreshes.
    pub count: u64,
}

impl RefreshCounts {
    pub(super) fn increment(&self, agent: &SharedStr, reason: RefreshReason, ok: bool) {
        let mut all = self.0.lock();
        let counts = match all.get_mut(agent.as_str()) {
            Some(counts) => counts,
            None => all.entry(agent.clone()).or_default(),
        };
        let count = &mut counts[reason.index()][usize::from(!ok)];
        *count = count.saturating_add(1);
    }

    /// All counters that are not 0, by agent.
    pub(super) fn snapshot(&self) -> Vec<RefreshCount> {
        let of_agent = |agent: &SharedStr, counts: &ReasonCounts| {
            let pairs = RefreshReason::ALL.into_iter().flat_map(|reason| [(reason, true), (reason, false)]);
            let pairs = pairs.map(|(reason, ok)| (reason, ok, counts[reason.index()][usize::from(!ok)]));
            let counted = pairs.filter(|(.., count)| *count > 0);
            let counters = counted.map(|(reason, ok, count)| RefreshCount {
                agent_name: agent.clone(),
                reason,
                succeeded: ok,
                count: count.into(),
            });
            counters.collect::<Vec<_>>()
        };
        let all = blocking::copy_in_slices(|| self.0.lock(), |agent, counts| (agent.clone(), *counts));
        blocking::in_slices(&all).flat_map(|(agent, counts)| of_agent(agent, counts)).collect()
    }

    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        blocking::retain_in_slices(|| self.0.lock(), |agent| agents(agent));
    }
}
