//! What all workers have counted since the start, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use super::{
    MOST_ERRCODES,
    counts::Counts,
    histogram::Histogram,
    hour::Hour,
    tally::{PairCounts, Tally},
};

/// All counts. What names nobody stands under the empty name.
pub(super) struct Ledger {
    pub(super) agents: BTreeMap<Arc<str>, AgentCounts>,
    pub(super) refusals: BTreeMap<Box<str>, u64>,
    pub(super) hour: Hour,
    clients: BTreeSet<Arc<str>>,
}

/// One agent's.
#[derive(Default)]
pub(super) struct AgentCounts {
    /// By client.
    pub(super) statuses: BTreeMap<Arc<str>, Counts<u16>>,
    pub(super) errcodes: Counts<i64>,
    pub(super) retries: Counts<i64>,
    pub(super) durations: Histogram,
    pub(super) upstream: Histogram,
}

impl Ledger {
    /// An empty one, begun now.
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            agents: BTreeMap::new(),
            refusals: BTreeMap::new(),
            hour: Hour::new(now),
            clients: BTreeSet::new(),
        }
    }

    /// Adds what a worker has counted.
    pub(super) fn take_in(&mut self, tally: &Tally) {
        for pair in &tally.pairs {
            let agent = pair.agent.as_ref().map_or("", |agent| agent.name.as_str());
            let client = pair.client.as_ref().map_or("", |client| client.name.as_str());
            let (agent, client) = (self.agent(agent), self.client(client));
            self.hour.add(&agent, &client, pair);
            self.agents.entry(agent).or_default().add(client, pair);
        }
        for (kind, count) in &tally.refusals {
            *self.refusals.entry(kind.clone()).or_default() += count;
        }
    }

    /// A collection ends now.
    pub(super) fn turn(&mut self, now: SystemTime) {
        self.hour.turn(now);
    }

    /// Drops all agents and clients but these, and the nameless.
    pub(super) fn keep(&mut self, agents: impl Fn(&str) -> bool, clients: impl Fn(&str) -> bool) {
        self.agents.retain(|name, _| name.is_empty() || agents(name));
        let before = self.clients.len();
        self.clients.retain(|name| name.is_empty() || clients(name));
        if self.clients.len() < before {
            for agent in self.agents.values_mut() {
                agent.statuses.retain(|name, _| self.clients.contains(name));
            }
        }
    }

    fn agent(&self, name: &str) -> Arc<str> {
        self.agents.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone())
    }

    fn client(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.clients.get(name) {
            return known.clone();
        }
        let fresh: Arc<str> = name.into();
        self.clients.insert(fresh.clone());
        fresh
    }
}

impl AgentCounts {
    fn add(&mut self, client: Arc<str>, pair: &PairCounts) {
        self.statuses.entry(client).or_default().add_all(&pair.statuses, usize::MAX);
        self.errcodes.add_all(&pair.errcodes, MOST_ERRCODES);
        self.retries.add_all(&pair.retries, MOST_ERRCODES);
        self.durations.add(&pair.durations);
        self.upstream.add(&pair.upstream);
    }
}
