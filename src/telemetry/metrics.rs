//! Counters and histograms of requests.
//!
//! Each worker has its own metrics. Their lock is uncontended: a collection holds it only to swap them for empty ones.
//! A reader first collects the metrics of all workers into one registry by the names of agents and clients.

mod agent_families;
mod counter_map;
mod histogram;
mod process;
mod registry;
mod rolling_hour;
mod text_encoder;
mod worker_metrics;

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

pub use self::{
    agent_families::AgentFamilies,
    histogram::Histogram,
    process::write_process_metrics,
    rolling_hour::{AgentStats, HourStats, MinuteStats},
    text_encoder::TextEncoder,
};
use self::{registry::Registry, worker_metrics::WorkerMetrics};
use super::access_log::AccessLogEntry;
use crate::directory::{Agent, Client, Directory};

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
        lock(&self.0).record(entry, agent, client);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { workers: Mutex::default(), registry: Mutex::new(Registry::new(SystemTime::now())) }
    }
}

impl Metrics {
    /// Registers a worker and returns its counter.
    pub fn worker_counter(&self) -> RequestCounter {
        let metrics = Arc::<Mutex<WorkerMetrics>>::default();
        lock(&self.workers).push(metrics.clone());
        RequestCounter(metrics)
    }

    /// Moves the workers' metrics into the registry. They count for the minute of the previous collection, so a
    /// collection at the start of each minute completes the last one.
    pub fn collect(&self, now: SystemTime) {
        let workers = lock(&self.workers).clone();
        let mut registry = lock(&self.registry);
        for worker in workers {
            let collected = {
                let mut metrics = lock(&worker);
                let empty = metrics.empty_with_same_capacity();
                mem::replace(&mut *metrics, empty)
            };
            registry.merge(&collected);
        }
        registry.rotate(now);
    }

    /// Drops the metrics of agents and clients that are no longer in the directory.
    pub fn prune_removed(&self, directory: &Directory) {
        lock(&self.registry).retain(
            |agent| directory.agent_by_name(agent).is_some(),
            |client| directory.client_by_name(client).is_some(),
        );
    }

    /// The proxy's own errors by kind.
    pub fn proxy_errors(&self) -> Vec<(Box<str>, u64)> {
        lock(&self.registry).proxy_errors.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
    }

    /// The statistics of the last hour, as collected.
    pub fn last_hour(&self) -> HourStats {
        lock(&self.registry).rolling_hour.stats()
    }
}

/// Locks, ignoring poisoning.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
