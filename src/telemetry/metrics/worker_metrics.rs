//! What one worker has counted since somebody last came to collect it.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use super::{MAX_ERRCODES, counter_map::CounterMap, histogram::Histogram};
use crate::{
    directory::{Agent, Client},
    telemetry::access_log::AccessLogEntry,
};

/// For so many pairs room is made before they come again.
const MAX_PREALLOCATED_PAIRS: usize = 1024;

/// An agent and a client, by where they lie.
type PairKey = (usize, usize);

/// One worker's counts.
#[derive(Default)]
pub(super) struct WorkerMetrics {
    /// Where the counts of an agent and a client are, by where these two lie in memory: their counts keep them there.
    index: HashMap<PairKey, usize, RandomState>,
    /// The same of the pair that was counted last: often it is the next one too.
    last_pair: Option<(PairKey, usize)>,
    pub(super) pairs: Vec<PairMetrics>,
    /// The proxy's own errors by kind.
    pub(super) proxy_errors: Vec<(Box<str>, u64)>,
}

/// The requests of one client through one agent.
pub(super) struct PairMetrics {
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) statuses: CounterMap<u16>,
    pub(super) errcodes: CounterMap<i64>,
    pub(super) retries: CounterMap<i64>,
    /// Those that did not go well, for whatever reason.
    pub(super) failed: u64,
    pub(super) durations: Histogram,
    pub(super) upstream_durations: Histogram,
}

impl PairMetrics {
    fn new(agent: Option<&Arc<Agent>>, client: Option<&Arc<Client>>) -> Self {
        Self {
            agent: agent.cloned(),
            client: client.cloned(),
            statuses: CounterMap::default(),
            errcodes: CounterMap::default(),
            retries: CounterMap::default(),
            failed: 0,
            durations: Histogram::default(),
            upstream_durations: Histogram::default(),
        }
    }

    fn record(&mut self, line: &AccessLogEntry<'_>) {
        self.statuses.add(line.status, 1, usize::MAX);
        self.durations.observe(line.total_time);
        if !line.upstream_time.is_zero() {
            self.upstream_durations.observe(line.upstream_time);
        }
        // An errcode of the proxy's own is told by the kind of its error.
        if let (Some(errcode), None) = (line.errcode, line.error) {
            self.errcodes.add(errcode, 1, MAX_ERRCODES);
        }
        if let Some(errcode) = line.retried {
            self.retries.add(errcode, 1, MAX_ERRCODES);
        }
        let failed =
            line.error.is_some() || line.errcode.is_some_and(|errcode| errcode != 0) || line.status >= 500;
        self.failed += u64::from(failed);
    }
}

impl WorkerMetrics {
    /// An empty one with room for about as many as this one holds.
    pub(super) fn empty_with_same_capacity(&self) -> Self {
        let room = self.pairs.len().min(MAX_PREALLOCATED_PAIRS);
        Self {
            index: HashMap::with_capacity_and_hasher(room, RandomState::default()),
            last_pair: None,
            pairs: Vec::with_capacity(room),
            proxy_errors: Vec::new(),
        }
    }

    /// Counts one request.
    pub(super) fn record(
        &mut self,
        line: &AccessLogEntry<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
    ) {
        let pair = (
            agent.map_or(0, |agent| Arc::as_ptr(agent).addr()),
            client.map_or(0, |client| Arc::as_ptr(client).addr()),
        );
        let place = match self.last_pair {
            Some((last, place)) if last == pair => place,
            _ => *self.index.entry(pair).or_insert_with(|| {
                self.pairs.push(PairMetrics::new(agent, client));
                self.pairs.len() - 1
            }),
        };
        self.last_pair = Some((pair, place));
        self.pairs[place].record(line);
        if let Some(kind) = line.error {
            match self.proxy_errors.iter_mut().find(|(known, _)| **known == *kind) {
                Some((_, count)) => *count += 1,
                None => self.proxy_errors.push((kind.into(), 1)),
            }
        }
    }
}
