//! The metrics of one worker since the last collection.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use super::{
    counter_map::{CounterMap, MAX_ERRCODES},
    failure::{AgentFailures, FailureClass, FailureCounts},
    histogram::Histogram,
};
use crate::{
    directory::{Agent, Client},
    telemetry::access_log::AccessLogEntry,
};

/// Bounds the capacity that is reserved after a collection.
const MAX_PREALLOCATED_PAIRS: usize = 1024;

/// The addresses of an agent and a client.
type PairKey = (usize, usize);

/// The metrics of one worker.
#[derive(Default)]
pub(super) struct WorkerMetrics {
    /// Index of `pairs` by the addresses of agent and client; stable because each entry holds both `Arc`s.
    index: HashMap<PairKey, usize, RandomState>,
    /// The pair and index of the last request, because the next one is often the same.
    last_pair: Option<(PairKey, usize)>,
    pub(super) pairs: Vec<PairMetrics>,
}

/// The requests of one client to one agent.
#[derive(Default)]
pub(super) struct PairMetrics {
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) statuses: CounterMap<u16>,
    pub(super) errcodes: CounterMap<i64>,
    pub(super) retries: CounterMap<i64>,
    /// Failed requests by class.
    pub(super) failures: FailureCounts,
    /// Those of them that may put the agent in trouble.
    pub(super) agent_failures: Option<Box<AgentFailures>>,
    pub(super) durations: Histogram,
    pub(super) upstream_durations: Histogram,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// The proxy's own errors by kind.
    pub(super) refusals: Vec<(Box<str>, u64)>,
}

impl PairMetrics {
    fn new(agent: Option<&Arc<Agent>>, client: Option<&Arc<Client>>) -> Self {
        Self { agent: agent.cloned(), client: client.cloned(), ..Self::default() }
    }

    fn record(&mut self, entry: &AccessLogEntry<'_>) {
        self.statuses.add(entry.status, 1, usize::MAX);
        self.durations.observe(entry.total_time);
        self.request_bytes += entry.request_bytes.unwrap_or_default();
        self.response_bytes += entry.response_bytes;
        if !entry.upstream_time.is_zero() {
            self.upstream_durations.observe(entry.upstream_time);
        }
        // Errors of the proxy's own are counted by kind instead of errcode.
        if let (Some(errcode), None) = (entry.errcode, entry.error) {
            self.errcodes.add(errcode, 1, MAX_ERRCODES);
        }
        if let Some(kind) = entry.error {
            count_kind(&mut self.refusals, kind);
        }
        if let Some(errcode) = entry.retried {
            self.retries.add(errcode, 1, MAX_ERRCODES);
        }
        if entry.error.is_some() || entry.errcode.is_some_and(|errcode| errcode != 0) || entry.status >= 400 {
            self.record_failure(entry);
        }
    }

    #[cold]
    fn record_failure(&mut self, entry: &AccessLogEntry<'_>) {
        let Some(class) = FailureClass::of(entry) else { return };
        self.failures.add(class);
        if self.agent.is_some() && matches!(class, FailureClass::Outage | FailureClass::Wecom) {
            let failures =
                self.agent_failures.get_or_insert_with(|| Box::new(AgentFailures::new(entry.ended_at)));
            failures.record(entry);
        }
    }
}

impl WorkerMetrics {
    /// Empty metrics with capacity for as many pairs as these.
    pub(super) fn empty_with_same_capacity(&self) -> Self {
        let capacity = self.pairs.len().min(MAX_PREALLOCATED_PAIRS);
        Self {
            index: HashMap::with_capacity_and_hasher(capacity, RandomState::default()),
            last_pair: None,
            pairs: Vec::with_capacity(capacity),
        }
    }

    /// Counts one request.
    pub(super) fn record(
        &mut self,
        entry: &AccessLogEntry<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
    ) {
        let pair = (
            agent.map_or(0, |agent| Arc::as_ptr(agent).addr()),
            client.map_or(0, |client| Arc::as_ptr(client).addr()),
        );
        let index = match self.last_pair {
            Some((last, index)) if last == pair => index,
            _ => *self.index.entry(pair).or_insert_with(|| {
                self.pairs.push(PairMetrics::new(agent, client));
                self.pairs.len() - 1
            }),
        };
        self.last_pair = Some((pair, index));
        self.pairs[index].record(entry);
    }
}

fn count_kind(counts: &mut Vec<(Box<str>, u64)>, kind: &str) {
    match counts.iter_mut().find(|(known, _)| **known == *kind) {
        Some((_, count)) => *count += 1,
        None => counts.push((kind.into(), 1)),
    }
}
