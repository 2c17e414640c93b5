//! What one worker has counted since somebody last came to collect it.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use super::{MOST_ERRCODES, counts::Counts, histogram::Histogram};
use crate::{
    access::Line,
    directory::{Agent, Client},
};

/// For so many pairs room is made before they come again.
const MOST_ROOM: usize = 1024;

/// An agent and a client, by where they lie.
type Pair = (usize, usize);

/// One worker's counts.
#[derive(Default)]
pub(super) struct Tally {
    /// Where the counts of an agent and a client are, by where these two lie in memory: their counts keep them there.
    places: HashMap<Pair, usize, RandomState>,
    /// The same of the pair that was counted last: often it is the next one too.
    last: Option<(Pair, usize)>,
    pub(super) pairs: Vec<PairCounts>,
    /// The proxy's own errors by kind.
    pub(super) refusals: Vec<(Box<str>, u64)>,
}

/// The requests of one client through one agent.
pub(super) struct PairCounts {
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) statuses: Counts<u16>,
    pub(super) errcodes: Counts<i64>,
    pub(super) retries: Counts<i64>,
    /// Those that did not go well, for whatever reason.
    pub(super) failed: u64,
    pub(super) durations: Histogram,
    pub(super) upstream: Histogram,
}

impl PairCounts {
    fn new(agent: Option<&Arc<Agent>>, client: Option<&Arc<Client>>) -> Self {
        Self {
            agent: agent.cloned(),
            client: client.cloned(),
            statuses: Counts::default(),
            errcodes: Counts::default(),
            retries: Counts::default(),
            failed: 0,
            durations: Histogram::default(),
            upstream: Histogram::default(),
        }
    }

    fn count(&mut self, line: &Line<'_>) {
        self.statuses.add(line.status, 1, usize::MAX);
        self.durations.observe(line.total);
        if !line.upstream.is_zero() {
            self.upstream.observe(line.upstream);
        }
        // An errcode of the proxy's own is told by the kind of its error.
        if let (Some(errcode), None) = (line.errcode, line.error) {
            self.errcodes.add(errcode, 1, MOST_ERRCODES);
        }
        if let Some(errcode) = line.retried {
            self.retries.add(errcode, 1, MOST_ERRCODES);
        }
        let failed =
            line.error.is_some() || line.errcode.is_some_and(|errcode| errcode != 0) || line.status >= 500;
        self.failed += u64::from(failed);
    }
}

impl Tally {
    /// An empty one with room for about as many as this one holds.
    pub(super) fn next(&self) -> Self {
        let room = self.pairs.len().min(MOST_ROOM);
        Self {
            places: HashMap::with_capacity_and_hasher(room, RandomState::default()),
            last: None,
            pairs: Vec::with_capacity(room),
            refusals: Vec::new(),
        }
    }

    /// Counts one request.
    pub(super) fn count(
        &mut self,
        line: &Line<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
    ) {
        let pair = (
            agent.map_or(0, |agent| Arc::as_ptr(agent).addr()),
            client.map_or(0, |client| Arc::as_ptr(client).addr()),
        );
        let place = match self.last {
            Some((last, place)) if last == pair => place,
            _ => *self.places.entry(pair).or_insert_with(|| {
                self.pairs.push(PairCounts::new(agent, client));
                self.pairs.len() - 1
            }),
        };
        self.last = Some((pair, place));
        self.pairs[place].count(line);
        if let Some(kind) = line.error {
            match self.refusals.iter_mut().find(|(known, _)| **known == *kind) {
                Some((_, count)) => *count += 1,
                None => self.refusals.push((kind.into(), 1)),
            }
        }
    }
}
