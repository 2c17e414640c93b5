//! What the proxy counts of its requests.
//!
//! Each worker counts for itself, under a lock that nobody else holds for longer than it takes to carry the counts away.
//! Who reads collects them first, into one ledger in which agents and clients stand by name.

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

/// So many errcodes of one agent are counted by themselves; whatever the upstream answers, there are no more series.
const MAX_ERRCODES: usize = 64;

/// All counts.
pub struct Metrics {
    workers: Mutex<Vec<Arc<Mutex<WorkerMetrics>>>>,
    registry: Mutex<Registry>,
}

/// One worker's counts.
pub struct RequestCounter(Arc<Mutex<WorkerMetrics>>);

impl RequestCounter {
    /// Counts one request, by the line that the access log has of it.
    pub fn record(
        &self,
        line: &AccessLogEntry<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
    ) {
        lock(&self.0).record(line, agent, client);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { workers: Mutex::default(), registry: Mutex::new(Registry::new(SystemTime::now())) }
    }
}

impl Metrics {
    /// The counts of another worker.
    pub fn worker_counter(&self) -> RequestCounter {
        let tally = Arc::<Mutex<WorkerMetrics>>::default();
        lock(&self.workers).push(tally.clone());
        RequestCounter(tally)
    }

    /// Takes in what the workers have counted. What is taken in belongs to the minute of the collection before, so that one
    /// at each minute's beginning closes the last.
    pub fn collect(&self, now: SystemTime) {
        let workers = lock(&self.workers).clone();
        let mut ledger = lock(&self.registry);
        for worker in workers {
            let counted = {
                let mut tally = lock(&worker);
                let next = tally.empty_with_same_capacity();
                mem::replace(&mut *tally, next)
            };
            ledger.merge(&counted);
        }
        ledger.rotate(now);
    }

    /// Forgets agents and clients that are no longer in the directory. Those that stay keep their counts.
    pub fn prune_removed(&self, directory: &Directory) {
        lock(&self.registry).retain(
            |agent| directory.agent(agent, None).is_some(),
            |client| directory.client_by_name(client).is_some(),
        );
    }

    /// The proxy's own errors by kind.
    pub fn proxy_errors(&self) -> Vec<(Box<str>, u64)> {
        lock(&self.registry).proxy_errors.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
    }

    /// What was collected of the last hour.
    pub fn last_hour(&self) -> HourStats {
        lock(&self.registry).rolling_hour.stats()
    }
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
