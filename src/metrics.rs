//! What the proxy counts of its requests.
//!
//! Each worker counts for itself, under a lock that nobody else holds for longer than it takes to carry the counts away.
//! Who reads collects them first, into one ledger in which agents and clients stand by name.

mod counts;
mod histogram;
mod hour;
mod ledger;
mod process;
mod series;
mod tally;
mod text;

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

pub use self::{
    histogram::Histogram,
    hour::{AgentsHour, LastHour, LastMinute},
    process::write_process,
    series::Series,
    text::Text,
};
use self::{ledger::Ledger, tally::Tally};
use crate::{
    access::Line,
    directory::{Agent, Client, Directory},
};

/// So many errcodes of one agent are counted by themselves; whatever the upstream answers, there are no more series.
const MOST_ERRCODES: usize = 64;

/// All counts.
pub struct Metrics {
    workers: Mutex<Vec<Arc<Mutex<Tally>>>>,
    ledger: Mutex<Ledger>,
}

/// One worker's counts.
pub struct Counter(Arc<Mutex<Tally>>);

impl Counter {
    /// Counts one request, by the line that the access log has of it.
    pub fn count(&self, line: &Line<'_>, agent: Option<&Arc<Agent>>, client: Option<&Arc<Client>>) {
        lock(&self.0).count(line, agent, client);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { workers: Mutex::default(), ledger: Mutex::new(Ledger::new(SystemTime::now())) }
    }
}

impl Metrics {
    /// The counts of another worker.
    pub fn counter(&self) -> Counter {
        let tally = Arc::<Mutex<Tally>>::default();
        lock(&self.workers).push(tally.clone());
        Counter(tally)
    }

    /// Takes in what the workers have counted. What is taken in belongs to the minute of the collection before, so that one
    /// at each minute's beginning closes the last.
    pub fn collect(&self, now: SystemTime) {
        let workers = lock(&self.workers).clone();
        let mut ledger = lock(&self.ledger);
        for worker in workers {
            let counted = {
                let mut tally = lock(&worker);
                let next = tally.next();
                mem::replace(&mut *tally, next)
            };
            ledger.take_in(&counted);
        }
        ledger.turn(now);
    }

    /// Forgets agents and clients that are no longer in the directory. Those that stay keep their counts.
    pub fn forget_removed(&self, directory: &Directory) {
        lock(&self.ledger).keep(
            |agent| directory.agent(agent, None).is_some(),
            |client| directory.client_named(client).is_some(),
        );
    }

    /// The proxy's own errors by kind.
    pub fn refusals(&self) -> Vec<(Box<str>, u64)> {
        lock(&self.ledger).refusals.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
    }

    /// What was collected of the last hour.
    pub fn last_hour(&self) -> LastHour {
        lock(&self.ledger).hour.report()
    }
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
