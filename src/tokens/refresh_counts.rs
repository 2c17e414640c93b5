//! Counters per agent: refreshes by reason and outcome, and the calls that fetch tokens: how many, how long they took, and
//! WeCom's errcodes.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;

use super::{FetchError, RefreshReason};
use crate::{blocking, text::SharedStr};

/// Bounds the errcodes of an agent, whatever the upstream returns.
const MAX_ERRCODES: usize = 32;

/// The counters of all agents. They outlive the cache entries, so a changed secret does not reset them.
#[derive(Default)]
pub(super) struct RefreshCounts(Mutex<BTreeMap<SharedStr, AgentCounts>>);

/// The counters of one agent. No agent reaches the end of 32 bits, and there can be very many agents, of which most have
/// refreshes of one kind only.
#[derive(Default)]
struct AgentCounts {
    call_nanos: u64,
    calls: u32,
    /// Refreshes of the kind of the first one.
    first: u32,
    /// The index of that kind in `more`.
    first_kind: (u8, u8),
    more: Option<Box<MoreCounts>>,
}

#[derive(Default)]
struct MoreCounts {
    /// For each reason: successes and failures, without those of the first kind.
    refreshes: [[u32; 2]; RefreshReason::ALL.len()],
    errcodes: BTreeMap<i64, u64>,
}

/// One counter of refreshes.
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

/// The calls of one agent that fetch tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GettokenStats {
    /// The number of calls.
    pub count: u64,
    /// Their durations together.
    pub total_time: Duration,
    /// The number of responses by errcode, without 0.
    pub errcodes: BTreeMap<i64, u64>,
}

impl RefreshCounts {
    /// Counts a refresh.
    pub(super) fn increment(&self, agent: &SharedStr, reason: RefreshReason, ok: bool) {
        self.update(agent, |counts| {
            let kind = (reason.index() as u8, u8::from(!ok));
            if counts.first == 0 {
                counts.first_kind = kind;
            }
            let count = match counts.first_kind == kind {
                true => &mut counts.first,
                false => {
                    let more = counts.more.get_or_insert_default();
                    &mut more.refreshes[reason.index()][usize::from(!ok)]
                }
            };
            *count = count.saturating_add(1);
        });
    }

    /// Counts a call.
    pub(super) fn record_call<T>(
        &self,
        agent: &SharedStr,
        duration: Duration,
        outcome: &Result<T, FetchError>,
    ) {
        self.update(agent, |counts| {
            counts.calls = counts.calls.saturating_add(1);
            let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            counts.call_nanos = counts.call_nanos.saturating_add(nanos);
            if let Err(FetchError::Errcode { errcode, .. }) = outcome {
                let errcodes = &mut counts.more.get_or_insert_default().errcodes;
                if errcodes.contains_key(errcode) || errcodes.len() < MAX_ERRCODES {
                    *errcodes.entry(*errcode).or_default() += 1;
                }
            }
        });
    }

    fn update(&self, agent: &SharedStr, update: impl FnOnce(&mut AgentCounts)) {
        let mut all = self.0.lock();
        match all.get_mut(agent.as_str()) {
            Some(counts) => update(counts),
            None => update(all.entry(agent.clone()).or_default()),
        }
    }

    /// All counters of refreshes that are not 0, by agent.
    pub(super) fn refreshes(&self) -> Vec<RefreshCount> {
        let kinds = RefreshReason::ALL.into_iter().flat_map(|reason| [(reason, true), (reason, false)]);
        let of_agent = |agent: &SharedStr, counts: &AgentCounts| {
            let counted = kinds.clone().map(|(reason, ok)| (reason, ok, counts.refreshes(reason, ok)));
            let counted = counted.filter(|(.., count)| *count > 0);
            let counters = counted.map(|(reason, ok, count)| RefreshCount {
                agent_name: agent.clone(),
                reason,
                succeeded: ok,
                count: count.into(),
            });
            counters.collect::<Vec<_>>()
        };
        let all = blocking::copy_in_slices(|| self.0.lock(), of_agent);
        blocking::in_slices(all).flatten().collect()
    }

    /// The calls so far, by agent.
    pub(super) fn calls(&self) -> Vec<(SharedStr, GettokenStats)> {
        let of_agent = |agent: &SharedStr, counts: &AgentCounts| {
            (counts.calls > 0).then(|| (agent.clone(), counts.call_stats()))
        };
        let all = blocking::copy_in_slices(|| self.0.lock(), of_agent);
        blocking::in_slices(all).flatten().collect()
    }

    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        blocking::retain_in_slices(|| self.0.lock(), |agent| agents(agent));
    }
}

impl AgentCounts {
    fn refreshes(&self, reason: RefreshReason, ok: bool) -> u32 {
        if self.first_kind == (reason.index() as u8, u8::from(!ok)) {
            return self.first;
        }
        self.more.as_ref().map_or(0, |more| more.refreshes[reason.index()][usize::from(!ok)])
    }

    fn call_stats(&self) -> GettokenStats {
        GettokenStats {
            count: self.calls.into(),
            total_time: Duration::from_nanos(self.call_nanos),
            errcodes: self.more.as_ref().map(|more| more.errcodes.clone()).unwrap_or_default(),
        }
    }
}

impl GettokenStats {
    /// Adds the calls of another agent.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.total_time += other.total_time;
        for (errcode, count) in &other.errcodes {
            *self.errcodes.entry(*errcode).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refreshes_are_counted_by_agent_reason_and_outcome() {
        let (counts, all) = (RefreshCounts::default(), RefreshReason::ALL);
        let agents = ["b", "a"].map(SharedStr::from);
        // Each kind of refresh is the first one of some agent.
        for (nth, reason) in all.into_iter().enumerate() {
            for _ in 0..=nth {
                counts.increment(&agents[0], reason, true);
                counts.increment(&agents[1], all[all.len() - 1 - nth], false);
            }
        }
        let found: Vec<_> = counts.refreshes().into_iter().collect();
        let expected = |agent: &str, nth: usize, succeeded, count: usize| RefreshCount {
            agent_name: agent.into(),
            reason: all[nth],
            succeeded,
            count: count as u64,
        };
        let failed = (0..all.len()).map(|nth| expected("a", nth, false, all.len() - nth));
        let succeeded = (0..all.len()).map(|nth| expected("b", nth, true, nth + 1));
        assert_eq!(found, failed.chain(succeeded).collect::<Vec<_>>());
        assert!(counts.calls().is_empty(), "none was made here");
        counts.retain(|agent| agent == "b");
        assert!(counts.refreshes().iter().all(|count| count.agent_name == "b"));
    }

    #[test]
    fn calls_are_counted_with_their_errcodes_within_a_bound() {
        let (counts, agent) = (RefreshCounts::default(), SharedStr::from("a"));
        counts.record_call(&agent, Duration::from_millis(1), &Ok(()));
        for errcode in (0..100).chain(0..100) {
            let outcome = Err::<(), _>(FetchError::Errcode { errcode, errmsg: String::new() });
            counts.record_call(&agent, Duration::from_millis(1), &outcome);
        }
        let [(name, stats)] = &counts.calls()[..] else { panic!("one agent") };
        assert_eq!((name.as_str(), stats.count, stats.total_time), ("a", 201, Duration::from_millis(201)));
        assert_eq!(stats.errcodes, (0..MAX_ERRCODES as i64).map(|errcode| (errcode, 2)).collect());
        assert!(counts.refreshes().is_empty());
    }
}
