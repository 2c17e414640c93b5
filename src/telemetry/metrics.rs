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

use std::{mem, sync::Arc, time::SystemTime};

use parking_lot::Mutex;

pub use self::{
    agent_families::AgentFamilies,
    failure::{FailureClass, FailureCounts, TroubleReason},
    histogram::Histogram,
    process::write_process_metrics,
    rolling_hour::{AgentStats, ClientStats, HourStats, MinuteStats},
    text_encoder::TextEncoder,
    trouble::AgentTrouble,
};
use self::{registry::Registry, worker_metrics::WorkerMetrics};
use super::access_log::AccessLogEntry;
use crate::{
    config::MetricsConfig,
    directory::{Agent, Client, Directory},
};

/// The metrics of all workers.
pub struct Metrics {
    workers: Mutex<Vec<Arc<Mutex<WorkerMetrics>>>>,
    registry: Mutex<Registry>,
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
        Self { workers: Mutex::default(), registry: Mutex::new(Registry::new(config, SystemTime::now())) }
    }

    /// The label of this agent's series: its name, or [`OTHER_AGENTS`] if others have taken all of
    /// `admin.metrics.per_agent`.
    pub fn agent_label<'a>(&self, agent: &'a str) -> &'a str {
        if self.registry.lock().take_series(agent) { agent } else { OTHER_AGENTS }
    }

    /// Registers a worker and returns its counter.
    pub fn worker_counter(&self) -> RequestCounter {
        let metrics = Arc::<Mutex<WorkerMetrics>>::default();
        self.workers.lock().push(metrics.clone());
        RequestCounter(metrics)
    }

    /// Moves the workers' metrics into the registry. They count for the minute of the previous collection, so a
    /// collection at the start of each minute completes the last one.
    pub fn collect(&self, now: SystemTime) {
        let workers = self.workers.lock().clone();
        let mut registry = self.registry.lock();
        for worker in workers {
            // Made before, because the worker waits for this lock.
            let empty = WorkerMetrics::with_capacity(worker.lock().pair_count());
            let collected = mem::replace(&mut *worker.lock(), empty);
            registry.merge(collected);
        }
        registry.rotate(now);
    }

    /// Drops the metrics of agents and clients that are no longer in the directory.
    pub fn prune_removed(&self, directory: &Directory) {
        self.registry.lock().retain(
            |agent| agent == OTHER_AGENTS || directory.find_agent(agent).is_some(),
            |client| directory.client_by_name(client).is_some(),
        );
    }

    /// The proxy's own errors by kind.
    pub fn proxy_errors(&self) -> Vec<(Box<str>, u64)> {
        self.registry.lock().proxy_errors.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
    }

    /// The agents in trouble, as collected; those with the most failures first.
    pub fn troubles(&self, now: SystemTime) -> Vec<AgentTrouble> {
        self.registry.lock().troubles.troubles(now)
    }

    /// The statistics of the last hour, as collected.
    pub fn last_hour(&self) -> HourStats {
        self.registry.lock().rolling_hour.stats()
    }
}
