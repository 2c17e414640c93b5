//! The metrics of all workers since the start, by name.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use super::{
    OTHER_AGENTS,
    counter_map::{CounterMap, MAX_ERRCODES},
    histogram::Histogram,
    pair_metrics::{PairCounts, PairMetrics},
    rolling_hour::RollingHour,
    trouble::TroubleTracker,
};
use crate::config::MetricsConfig;

/// All metrics. Requests without an agent or client have an empty name.
pub(super) struct Registry {
    config: MetricsConfig,
    /// The agents with series of their own; [`OTHER_AGENTS`] are all others.
    pub(super) named_agents: BTreeMap<Arc<str>, ()>,
    /// Shared with what writes them as text.
    pub(super) agents: BTreeMap<Arc<str>, Arc<AgentMetrics>>,
    pub(super) proxy_errors: BTreeMap<Box<str>, u64>,
    pub(super) rolling_hour: RollingHour,
    pub(super) troubles: TroubleTracker,
    pub(super) clients: BTreeMap<Arc<str>, ()>,
}

/// The metrics of one agent.
#[derive(Clone, Default)]
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
            named_agents: BTreeMap::new(),
            agents: BTreeMap::new(),
            proxy_errors: BTreeMap::new(),
            rolling_hour: RollingHour::new(now),
            troubles: TroubleTracker::new(now),
            clients: BTreeMap::new(),
        }
    }

    /// Adds the metrics of a client and agent.
    pub(super) fn merge(&mut self, mut pair: PairMetrics) {
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
        Arc::make_mut(self.agents.entry(agent).or_default()).merge(client, &counts);
    }

    /// Whether an agent has series of its own: it had some before, or not all of `admin.metrics.per_agent` are taken.
    pub(super) fn take_series(&mut self, agent: &str) -> bool {
        if agent.is_empty() || self.named_agents.contains_key(agent) {
            return true;
        }
        let has_room = self.named_agents.len() < self.config.per_agent;
        if has_room {
            self.named_agents.insert(agent.into(), ());
        }
        has_room
    }

    /// Ends a collection: later ones belong to the minute of `now`.
    pub(super) fn rotate(&mut self, now: SystemTime) {
        self.rolling_hour.rotate(now);
        self.troubles.rotate(now);
    }

    fn intern_agent(&self, name: &str) -> Arc<str> {
        self.agents.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone())
    }

    fn intern_client(&mut self, name: &str) -> Arc<str> {
        if let Some((known, ())) = self.clients.get_key_value(name) {
            return known.clone();
        }
        let interned: Arc<str> = name.into();
        self.clients.insert(interned.clone(), ());
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
