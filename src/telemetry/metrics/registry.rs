//! The metrics of all workers since the start, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use super::{
    OTHER_AGENTS,
    counter_map::{CounterMap, MAX_ERRCODES},
    histogram::Histogram,
    pair_metrics::PairCounts,
    rolling_hour::RollingHour,
    trouble::TroubleTracker,
    worker_metrics::WorkerMetrics,
};
use crate::config::MetricsConfig;

/// All metrics. Requests without an agent or client have an empty name.
pub(super) struct Registry {
    config: MetricsConfig,
    /// The agents with series of their own; [`OTHER_AGENTS`] are all others.
    named_agents: BTreeSet<Arc<str>>,
    pub(super) agents: BTreeMap<Arc<str>, AgentMetrics>,
    pub(super) proxy_errors: BTreeMap<Box<str>, u64>,
    pub(super) rolling_hour: RollingHour,
    pub(super) troubles: TroubleTracker,
    clients: BTreeSet<Arc<str>>,
}

/// The metrics of one agent.
#[derive(Default)]
pub(super) struct AgentMetrics {
    /// By client.
    pub(super) statuses_by_client: BTreeMap<Arc<str>, CounterMap<u16>>,
    pub(super) errcodes: CounterMap<i64>,
    pub(super) retries: CounterMap<i64>,
    pub(super) durations: Histogram,
    pub(super) upstream_durations: Histogram,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// The proxy's own errors by kind.
    pub(super) refusals: BTreeMap<Box<str>, u64>,
}

impl Registry {
    /// An empty registry.
    pub(super) fn new(config: MetricsConfig, now: SystemTime) -> Self {
        Self {
            config,
            named_agents: BTreeSet::new(),
            agents: BTreeMap::new(),
            proxy_errors: BTreeMap::new(),
            rolling_hour: RollingHour::new(now),
            troubles: TroubleTracker::new(now),
            clients: BTreeSet::new(),
        }
    }

    /// Adds the metrics of a worker.
    pub(super) fn merge(&mut self, worker: WorkerMetrics) {
        for mut pair in worker.pairs {
            let counts = pair.take_counts();
            if let Some(agent) = &pair.agent {
                self.troubles.add(agent, &counts);
            }
            let agent = pair.agent.as_ref().map_or("", |agent| agent.counted_as());
            let client = pair.client.as_ref().map_or("", |client| client.config.name.as_str());
            let (agent, client) = (self.intern_agent(agent), self.intern_client(client));
            self.rolling_hour.add(&agent, &client, &counts);
            for (kind, count) in &counts.refusals {
                *self.proxy_errors.entry(kind.clone()).or_default() += count;
            }
            let agent = if self.take_series(&agent) { agent } else { OTHER_AGENTS.into() };
            let client = if self.config.per_client { client } else { "".into() };
            self.agents.entry(agent).or_default().merge(client, &counts);
        }
    }

    /// Whether an agent has series of its own: it had some before, or not all of `admin.metrics.per_agent` are taken.
    pub(super) fn take_series(&mut self, agent: &str) -> bool {
        if agent.is_empty() || self.named_agents.contains(agent) {
            return true;
        }
        let has_room = self.named_agents.len() < self.config.per_agent;
        if has_room {
            self.named_agents.insert(agent.into());
        }
        has_room
    }

    /// Ends a collection: later ones belong to the minute of `now`.
    pub(super) fn rotate(&mut self, now: SystemTime) {
        self.rolling_hour.rotate(now);
        self.troubles.rotate(now);
    }

    /// Drops the agents and clients for which the predicates are false; keeps the empty name.
    pub(super) fn retain(&mut self, agents: impl Fn(&str) -> bool, clients: impl Fn(&str) -> bool) {
        self.agents.retain(|name, _| name.is_empty() || agents(name));
        self.named_agents.retain(|name| agents(name));
        self.troubles.retain(&agents);
        let before = self.clients.len();
        self.clients.retain(|name| name.is_empty() || clients(name));
        if self.clients.len() < before {
            for agent in self.agents.values_mut() {
                agent.statuses_by_client.retain(|name, _| self.clients.contains(name));
            }
        }
    }

    fn intern_agent(&self, name: &str) -> Arc<str> {
        self.agents.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone())
    }

    fn intern_client(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.clients.get(name) {
            return known.clone();
        }
        let interned: Arc<str> = name.into();
        self.clients.insert(interned.clone());
        interned
    }
}

impl AgentMetrics {
    fn merge(&mut self, client: Arc<str>, pair: &PairCounts) {
        self.statuses_by_client.entry(client).or_default().merge(&pair.statuses, usize::MAX);
        self.errcodes.merge(&pair.errcodes, MAX_ERRCODES);
        self.retries.merge(&pair.retries, MAX_ERRCODES);
        self.durations.merge(&pair.durations);
        self.upstream_durations.merge(&pair.upstream_durations);
        self.request_bytes += pair.request_bytes;
        self.response_bytes += pair.response_bytes;
        for (kind, count) in &pair.refusals {
            *self.refusals.entry(kind.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_beyond_the_limit_share_series_until_one_is_removed() {
        let config = MetricsConfig { per_client: true, per_agent: 2 };
        let mut registry = Registry::new(config, SystemTime::UNIX_EPOCH);
        let mut take =
            |names: &[&str]| names.iter().map(|name| registry.take_series(name)).collect::<Vec<_>>();
        assert_eq!(take(&["b", "", "c", "a", "b", "c", ""]), [true, true, true, false, true, true, true]);
        registry.retain(|name| name != "b", |_| true);
        assert!(registry.take_series("a") && !registry.take_series("b") && registry.take_series("c"));
    }
}
