//! The metrics of one worker since the last collection.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use super::pair_metrics::PairMetrics;
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

impl WorkerMetrics {
    pub(super) fn pair_count(&self) -> usize {
        self.pairs.len()
    }

    /// Empty metrics with capacity for this many pairs, within a bound.
    pub(super) fn with_capacity(pairs: usize) -> Self {
        let capacity = pairs.min(MAX_PREALLOCATED_PAIRS);
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
