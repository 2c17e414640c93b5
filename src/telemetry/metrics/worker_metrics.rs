//! The metrics of one worker since the last collection.

use std::{hash::BuildHasher, sync::Arc};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::pair_metrics::{PairKey, PairMetrics};
use crate::{
    directory::{Agent, Client},
    telemetry::access_log::AccessLogEntry,
};

/// Bounds the capacity that is reserved after a collection.
const MAX_PREALLOCATED_PAIRS: usize = 1024;

/// The metrics of one worker.
#[derive(Default)]
pub(super) struct WorkerMetrics {
    /// Positions in `pairs` by the hashes of their keys, which they have themselves: with very many pairs, little memory
    /// is looked at.
    index: HashTable<u32>,
    hasher: RandomState,
    /// The pair and position of the last request, because the next one is often the same.
    last_pair: Option<(PairKey, u32)>,
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
            index: HashTable::with_capacity(capacity),
            hasher: RandomState::default(),
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
        let key = PairKey::of(agent, client);
        let position = match self.last_pair {
            Some((last, position)) if last == key => position,
            _ => self.position(key, agent, client),
        };
        self.last_pair = Some((key, position));
        self.pairs[position as usize].record(entry);
    }

    fn position(&mut self, key: PairKey, agent: Option<&Arc<Agent>>, client: Option<&Arc<Client>>) -> u32 {
        let Self { index, hasher, pairs, .. } = self;
        let hash = hasher.hash_one(key);
        if let Some(position) = index.find(hash, |position| pairs[*position as usize].key() == key) {
            return *position;
        }
        let position = pairs.len() as u32;
        pairs.push(PairMetrics::new(agent, client));
        index.insert_unique(hash, position, |position| hasher.hash_one(pairs[*position as usize].key()));
        position
    }
}
