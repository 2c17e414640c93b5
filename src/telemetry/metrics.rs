//! Counters and histograms of requests.
//!
//! Each worker has its own metrics. Their lock is uncontended: a collection holds it only to swap them for empty ones.
//! A reader first collects the metrics of all workers into one registry by the names of agents and clients.

mod agent_families;
mod counter_map;
mod failure;
mod histogram;
mod pair_metrics;
mod process;
mod registry;
mod rolling_hour;
mod text_encoder;
mod trouble;
mod worker_metrics;

use std::{
    collections::BTreeSet,
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

pub use self::{
    agent_families::AgentFamilies,
    failure::{FailureClass, FailureCounts, TroubleReason},
    histogram::Histogram,
    process::write_process_metrics,
    rolling_hour::{AgentStats, ClientStats, HourSnapshot, HourStats, MinuteStats},
    text_encoder::TextEncoder,
    trouble::AgentTrouble,
};
use self::{registry::Registry, worker_metrics::WorkerMetrics};
use super::access_log::AccessLogEntry;
use crate::{
    blocking,
    config::MetricsConfig,
    directory::{Agent, Client, Directory},
};

/// Pairs that are merged under one lock, with some microseconds each.
const MAX_MERGED_PAIRS: usize = 8;

/// A last collection that is further ahead than this was before the clock was set back.
const MAX_OVERTAKEN: Duration = Duration::from_secs(60);

/// The metrics of all workers.
pub struct Metrics {
    workers: Mutex<Vec<Arc<Mutex<WorkerMetrics>>>>,
    /// `admin.metrics.per_agent`
    per_agent: usize,
    registry: Mutex<Registry>,
    /// Locked during a collection: what is merged must count before the next minute begins. The time of the last one.
    collecting: Mutex<SystemTime>,
}

/// The metrics of one worker.
pub struct RequestCounter(Arc<Mutex<WorkerMetrics>>);

impl RequestCounter {
    /// Counts one request by its access log entry.
    pub fn record(
        &self,
        entry: &AccessLogEntry<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
    ) {
        self.0.lock().record(entry, agent, client);
    }
}

/// The labels of agents in their series, most of them without a lock.
pub struct AgentLabels {
    metrics: Arc<Metrics>,
    named: BTreeSet<Arc<str>>,
    /// No other agent has series of its own.
    is_full: bool,
}

impl AgentLabels {
    /// See [`Metrics::agent_label`].
    pub fn of<'a>(&self, agent: &'a str) -> &'a str {
        match self.named.contains(agent) {
            true => agent,
            false if self.is_full && !agent.is_empty() => OTHER_AGENTS,
            false => self.metrics.agent_label(agent),
        }
    }
}

/// The label of the agents beyond `admin.metrics.per_agent`, which share their series.
pub const OTHER_AGENTS: &str = "_other";

impl Default for Metrics {
    fn default() -> Self {
        Self::new(MetricsConfig::default())
    }
}

impl Metrics {
    /// Metrics with these bounds.
    pub fn new(config: MetricsConfig) -> Self {
        Self {
            workers: Mutex::default(),
            per_agent: config.per_agent,
            registry: Mutex::new(Registry::new(config, SystemTime::now())),
            collecting: Mutex::new(SystemTime::UNIX_EPOCH),
        }
    }

    /// The label of this agent's series: its name, or [`OTHER_AGENTS`] if others have taken all of
    /// `admin.metrics.per_agent`.
    pub fn agent_label<'a>(&self, agent: &'a str) -> &'a str {
        if self.registry.lock().take_series(agent) { agent } else { OTHER_AGENTS }
    }

    /// The labels of all agents, for very many of them.
    pub fn agent_labels(self: &Arc<Self>) -> AgentLabels {
        let named = || MutexGuard::map(self.registry.lock(), |it| &mut it.named_agents);
        let named: BTreeSet<_> =
            blocking::copy_in_slices(named, |name, ()| name.clone()).into_iter().collect();
        AgentLabels { is_full: named.len() >= self.per_agent, named, metrics: self.clone() }
    }

    /// Registers a worker and returns its counter.
    pub fn worker_counter(&self) -> RequestCounter {
        let metrics = Arc::<Mutex<WorkerMetrics>>::default();
        self.workers.lock().push(metrics.clone());
        RequestCounter(metrics)
    }

    /// Moves the workers' metrics into the registry. They count for the minute of the previous collection, so a
    /// collection at the start of each minute completes the last one. Locks what workers and health checks lock: not for
    /// a thread of the lowest priority.
    pub fn collect(&self, now: SystemTime) {
        let mut last = self.collecting.lock();
        // One that read the clock later may have come first; the minute must not go back for that.
        let is_overtaken = last.duration_since(now).is_ok_and(|ahead| ahead < MAX_OVERTAKEN);
        let now = if is_overtaken { *last } else { now };
        *last = now;
        let workers = self.workers.lock().clone();
        for worker in workers {
            // Made before, because the worker waits for this lock.
            let empty = WorkerMetrics::with_capacity(worker.lock().pair_count());
            let collected = mem::replace(&mut *worker.lock(), empty);
            self.merge(collected);
        }
        self.registry.lock().rotate(now);
    }

    /// Adds the metrics of a worker, in slices.
    fn merge(&self, worker: WorkerMetrics) {
        let mut pairs = worker.pairs.into_iter();
        while pairs.len() > 0 {
            let mut registry = self.registry.lock();
            pairs.by_ref().take(MAX_MERGED_PAIRS).for_each(|pair| registry.merge(pair));
            drop(registry);
            blocking::yield_cpu();
        }
    }

    /// Drops the metrics of agents and clients that are no longer in the directory. As [`collect`](Self::collect), not for
    /// a thread of the lowest priority.
    pub fn prune_removed(&self, directory: &ArcSwap<Directory>) {
        // Loaded for each, so that it has an agent whose first requests were collected meanwhile.
        self.retain(
            |agent| agent == OTHER_AGENTS || directory.load().find_agent(agent).is_some(),
            |client| directory.load().client_by_name(client).is_some(),
        );
    }

    /// Drops the agents and clients for which the predicates are false; keeps the empty name.
    fn retain(&self, agents: impl Fn(&str) -> bool, clients: impl Fn(&str) -> bool) {
        let keep = |name: &Arc<str>| name.is_empty() || agents(name);
        let registry = || self.registry.lock();
        blocking::retain_in_slices(|| MutexGuard::map(registry(), |it| &mut it.agents), keep);
        blocking::retain_in_slices(|| MutexGuard::map(registry(), |it| &mut it.named_agents), keep);
        blocking::retain_in_slices(|| MutexGuard::map(registry(), |it| it.troubles.agents_mut()), keep);
        let known = blocking::copy_in_slices(
            || MutexGuard::map(registry(), |it| &mut it.clients),
            |name, ()| name.clone(),
        );
        let gone: BTreeSet<_> =
            blocking::in_slices(known).filter(|name| !name.is_empty() && !clients(name)).collect();
        if gone.is_empty() {
            return;
        }
        blocking::retain_in_slices(
            || MutexGuard::map(registry(), |it| &mut it.clients),
            |name| !gone.contains(name),
        );
        blocking::visit_in_slices(
            || MutexGuard::map(registry(), |it| &mut it.agents),
            |_, agent| Arc::make_mut(agent).statuses_by_client.retain(|name, _| !gone.contains(name)),
        );
    }

    /// The proxy's own errors by kind.
    pub fn proxy_errors(&self) -> Vec<(Box<str>, u64)> {
        self.registry.lock().proxy_errors.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
    }

    /// The agents in trouble, as collected, in no order.
    pub fn troubles(&self, now: SystemTime) -> Vec<AgentTrouble> {
        self.registry.lock().troubles.troubles(now)
    }

    /// The last hour, as collected.
    pub fn last_hour(&self) -> HourSnapshot {
        self.registry.lock().rolling_hour.snapshot()
    }
}

#[cfg(test)]
mod tests {
    use super::{counter_map::CounterMap, pair_metrics::PairMetrics, *};

    #[test]
    fn agents_beyond_the_limit_share_series_until_one_is_removed() {
        let metrics = Metrics::new(MetricsConfig { per_client: true, per_agent: 2 });
        let take = |names: &[&str]| {
            let mut registry = metrics.registry.lock();
            names.iter().map(|name| registry.take_series(name)).collect::<Vec<_>>()
        };
        assert_eq!(take(&["b", "", "c", "a", "b", "c", ""]), [true, true, true, false, true, true, true]);
        metrics.retain(|name| name != "b", |_| true);
        assert_eq!(take(&["a", "b", "c"]), [true, false, true]);
    }

    #[test]
    fn removed_names_are_looked_up_without_the_lock() {
        let metrics = Metrics::default();
        for name in ["a", "b"] {
            let mut registry = metrics.registry.lock();
            registry.take_series(name);
            let agent = Arc::make_mut(registry.agents.entry(name.into()).or_default());
            agent.statuses_by_client.extend([(name.into(), CounterMap::default())]);
            registry.clients.insert(name.into(), ());
        }
        let keep = |name: &str| !metrics.registry.is_locked() && name != "a";
        metrics.retain(|name| keep(name), |name| !metrics.registry.is_locked() && name != "b");
        let registry = metrics.registry.lock();
        assert!(registry.agents.keys().eq(registry.named_agents.keys()));
        assert!(registry.agents.keys().map(|name| &**name).eq(["b"]));
        assert!(registry.clients.keys().map(|name| &**name).eq(["a"]));
        assert!(registry.agents["b"].statuses_by_client.is_empty());
    }

    #[test]
    fn collection_that_comes_late_does_not_set_the_time_back() {
        let (metrics, now) = (Metrics::default(), SystemTime::now());
        let after = |seconds, back| {
            metrics.collect(now + Duration::from_secs(seconds) - Duration::from_millis(back));
            metrics.collecting.lock().duration_since(now).expect("later").as_secs()
        };
        assert_eq!([after(600, 0), after(600, 5), after(601, 0)], [600, 600, 601]);
        assert_eq!(after(300, 0), 300, "the clock was set back");
    }

    #[test]
    fn collection_locks_the_registry_for_a_few_pairs_at_a_time() {
        let metrics = Arc::new(Metrics::default());
        let pairs = 10 * MAX_MERGED_PAIRS;
        let mut worker = WorkerMetrics::default();
        worker.pairs.extend((0..pairs).map(|_| PairMetrics::new(None, None)));
        let yields = blocking::yields();
        metrics.merge(worker);
        assert_eq!(blocking::yields() - yields, 10);
    }
}
