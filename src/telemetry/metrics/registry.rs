//! The metrics of all workers since the start, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use super::{
    counter_map::{CounterMap, MAX_ERRCODES},
    histogram::Histogram,
    rolling_hour::RollingHour,
    worker_metrics::{PairMetrics, WorkerMetrics},
};

/// All metrics. Requests without an agent or client have an empty name.
pub(super) struct Registry {
    pub(super) agents: BTreeMap<Arc<str>, AgentMetrics>,
    pub(super) proxy_errors: BTreeMap<Box<str>, u64>,
    pub(super) rolling_hour: RollingHour,
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
}

impl Registry {
    /// An empty registry.
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            agents: BTreeMap::new(),
            proxy_errors: BTreeMap::new(),
            rolling_hour: RollingHour::new(now),
            clients: BTreeSet::new(),
        }
    }

    /// Adds the metrics of a worker.
    pub(super) fn merge(&mut self, worker: &WorkerMetrics) {
        for pair in &worker.pairs {
            let agent = pair.agent.as_ref().map_or("", |agent| agent.name.as_str());
            let client = pair.client.as_ref().map_or("", |client| client.name.as_str());
            let (agent, client) = (self.intern_agent(agent), self.intern_client(client));
            self.rolling_hour.add(&agent, &client, pair);
            self.agents.entry(agent).or_default().merge(client, pair);
        }
        for (kind, count) in &worker.proxy_errors {
            *self.proxy_errors.entry(kind.clone()).or_default() += count;
        }
    }

    /// Ends a collection: later ones belong to the minute of `now`.
    pub(super) fn rotate(&mut self, now: SystemTime) {
        self.rolling_hour.rotate(now);
    }

    /// Drops the agents and clients for which the predicates are false; keeps the empty name.
    pub(super) fn retain(&mut self, agents: impl Fn(&str) -> bool, clients: impl Fn(&str) -> bool) {
        self.agents.retain(|name, _| name.is_empty() || agents(name));
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
    fn merge(&mut self, client: Arc<str>, pair: &PairMetrics) {
        self.statuses_by_client.entry(client).or_default().merge(&pair.statuses, usize::MAX);
        self.errcodes.merge(&pair.errcodes, MAX_ERRCODES);
        self.retries.merge(&pair.retries, MAX_ERRCODES);
        self.durations.merge(&pair.durations);
        self.upstream_durations.merge(&pair.upstream_durations);
    }
}
