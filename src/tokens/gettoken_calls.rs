//! What became of the calls that fetch tokens, by agent: how many, how long they took, and WeCom's errcodes.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;

use super::FetchError;
use crate::{blocking, text::SharedStr};

/// Bounds the errcodes of an agent, whatever the upstream returns.
const MAX_ERRCODES: usize = 32;

/// The calls of all agents.
#[derive(Default)]
pub(super) struct GettokenCalls(Mutex<BTreeMap<SharedStr, GettokenStats>>);

/// The calls of one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GettokenStats {
    /// The number of calls.
    pub count: u64,
    /// Their durations together.
    pub total_time: Duration,
    /// The number of responses by errcode, without 0.
    pub errcodes: BTreeMap<i64, u64>,
}

impl GettokenCalls {
    pub(super) fn record<T>(&self, agent: &SharedStr, duration: Duration, outcome: &Result<T, FetchError>) {
        let mut all = self.0.lock();
        let stats = match all.get_mut(agent.as_str()) {
            Some(stats) => stats,
            None => all.entry(agent.clone()).or_default(),
        };
        stats.count += 1;
        stats.total_time += duration;
        if let Err(FetchError::Errcode { errcode, .. }) = outcome
            && (stats.errcodes.contains_key(errcode) || stats.errcodes.len() < MAX_ERRCODES)
        {
            *stats.errcodes.entry(*errcode).or_default() += 1;
        }
    }

    /// The calls so far, by agent.
    pub(super) fn snapshot(&self) -> Vec<(SharedStr, GettokenStats)> {
        blocking::copy_in_slices(|| self.0.lock(), |agent, stats| (agent.clone(), stats.clone()))
    }

    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        blocking::retain_in_slices(|| self.0.lock(), |agent| agents(agent));
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
