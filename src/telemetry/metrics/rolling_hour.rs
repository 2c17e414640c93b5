//! Statistics of the last hour in buckets of one minute.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{failure::FailureCounts, histogram::Histogram, pair_metrics::PairCounts};
use crate::{blocking, time::clock};

const WINDOW_MINUTES: u64 = 60;
/// Bounds the pairs of client and agent, and the errcodes per agent, of one minute.
const MAX_ENTRIES_PER_MINUTE: usize = 2000;

/// The metrics collected in the last hour.
pub(super) struct RollingHour {
    /// Never empty; the last one is the current minute. Shared with snapshots.
    minutes: VecDeque<Arc<MinuteBucket>>,
}

/// The last hour at one moment.
#[derive(Default)]
pub struct HourSnapshot(VecDeque<Arc<MinuteBucket>>);

#[derive(Clone, Default)]
struct MinuteBucket {
    /// Minutes since 1970.
    unix_minute: u64,
    requests: u64,
    failures: FailureCounts,
    durations: Histogram,
    errcodes: HashMap<(Arc<str>, i64), u64>,
    /// Requests and failed requests by client and agent.
    pairs: HashMap<(Arc<str>, Arc<str>), (u64, FailureCounts)>,
    /// Requests whose pair exceeded [`MAX_ENTRIES_PER_MINUTE`].
    unlisted_requests: u64,
}

/// The statistics of one minute.
#[derive(Debug)]
pub struct MinuteStats {
    /// The start of the minute.
    pub started_at: SystemTime,
    /// Requests whose response ended in this minute.
    pub requests: u64,
    /// Failed requests: an error of the proxy's own, an errcode other than 0, a status of 400 or higher, or an
    /// incomplete upstream response.
    pub failures: FailureCounts,
    /// Their durations.
    pub durations: Histogram,
}

/// The statistics of one agent.
#[derive(Debug, Default)]
pub struct AgentStats {
    /// The agent's requests.
    pub requests: u64,
    /// The failed ones of them.
    pub failures: FailureCounts,
    /// WeCom's errcodes, without 0.
    pub errcodes: BTreeMap<i64, u64>,
}

/// The statistics of one client.
#[derive(Debug, Default)]
pub struct ClientStats {
    /// Its failed requests.
    pub failures: FailureCounts,
    /// Its requests by agent.
    pub requests_by_agent: BTreeMap<Arc<str>, u64>,
    /// The start of the last minute with a request.
    pub last_minute: Option<SystemTime>,
}

/// The statistics of the last hour. Requests without an agent or client have an empty name.
#[derive(Debug, Default)]
pub struct HourStats {
    /// The oldest first; the last one is the current minute.
    pub minutes: Vec<MinuteStats>,
    /// By agent.
    pub agents: BTreeMap<Arc<str>, AgentStats>,
    /// By client.
    pub clients: BTreeMap<Arc<str>, ClientStats>,
    /// Requests of pairs beyond the limit.
    pub unlisted_requests: u64,
}

impl RollingHour {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            minutes: VecDeque::from([Arc::new(MinuteBucket {
                unix_minute: unix_minute(now),
                ..MinuteBucket::default()
            })]),
        }
    }

    /// Adds to the current minute.
    pub(super) fn add(&mut self, agent: &Arc<str>, client: &Arc<str>, counts: &PairCounts) {
        if let Some(minute) = self.minutes.back_mut() {
            Arc::make_mut(minute).add(agent, client, counts);
        }
    }

    /// Starts the minute of `now`, if it is a new one, and drops minutes older than an hour.
    pub(super) fn rotate(&mut self, now: SystemTime) {
        let current = unix_minute(now);
        if self.minutes.back().is_none_or(|last| last.unix_minute < current) {
            self.minutes
                .push_back(Arc::new(MinuteBucket { unix_minute: current, ..MinuteBucket::default() }));
        }
        while self.minutes.front().is_some_and(|first| first.unix_minute + WINDOW_MINUTES <= current) {
            self.minutes.pop_front();
        }
    }

    pub(super) fn snapshot(&self) -> HourSnapshot {
        HourSnapshot(self.minutes.clone())
    }
}

impl HourSnapshot {
    /// Its statistics. There can be very many pairs of client and agent.
    pub fn stats(&self) -> HourStats {
        let mut stats = HourStats::default();
        for minute in &self.0 {
            minute.add_to(&mut stats);
        }
        stats
    }
}

impl MinuteBucket {
    fn add(&mut self, agent: &Arc<str>, client: &Arc<str>, counts: &PairCounts) {
        let requests = counts.durations.count();
        self.requests += requests;
        self.failures += counts.failures;
        self.durations.merge(&counts.durations);
        for (errcode, count) in counts.errcodes.sorted() {
            let Some(errcode) = errcode.filter(|errcode| *errcode != 0) else { continue };
            if let Some(total) = entry_within_limit(&mut self.errcodes, (agent.clone(), errcode)) {
                *total += count;
            }
        }
        match entry_within_limit(&mut self.pairs, (client.clone(), agent.clone())) {
            Some(pair) => {
                pair.0 += requests;
                pair.1 += counts.failures;
            }
            None => self.unlisted_requests += requests,
        }
    }

    fn add_to(&self, stats: &mut HourStats) {
        let Self { requests, failures, durations, .. } = *self;
        let started_at = SystemTime::UNIX_EPOCH + Duration::from_secs(self.unix_minute * 60);
        stats.minutes.push(MinuteStats { started_at, requests, failures, durations });
        for ((client, agent), (requests, failures)) in blocking::in_slices(&self.pairs) {
            let agent_stats = stats.agents.entry(agent.clone()).or_default();
            agent_stats.requests += requests;
            agent_stats.failures += *failures;
            let client_stats = stats.clients.entry(client.clone()).or_default();
            client_stats.failures += *failures;
            client_stats.last_minute = client_stats.last_minute.max(Some(started_at));
            *client_stats.requests_by_agent.entry(agent.clone()).or_default() += requests;
        }
        for ((agent, errcode), count) in blocking::in_slices(&self.errcodes) {
            let agent_stats = stats.agents.entry(agent.clone()).or_default();
            *agent_stats.errcodes.entry(*errcode).or_default() += count;
        }
        stats.unlisted_requests += self.unlisted_requests;
    }
}

/// The entry of a key; `None` if the key is new and the map is full.
fn entry_within_limit<K: Eq + Hash, V: Default>(map: &mut HashMap<K, V>, key: K) -> Option<&mut V> {
    let full = map.len() >= MAX_ENTRIES_PER_MINUTE;
    match map.entry(key) {
        Entry::Vacant(_) if full => None,
        entry => Some(entry.or_default()),
    }
}

fn unix_minute(time: SystemTime) -> u64 {
    clock::unix_seconds(time) / 60
}
