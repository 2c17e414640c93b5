//! The last hour, minute by minute.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{histogram::Histogram, worker_metrics::PairMetrics};

const WINDOW_MINUTES: u64 = 60;
/// So many pairs of a client and an agent, and errcodes of an agent, are told apart in one minute.
const MAX_ENTRIES_PER_MINUTE: usize = 2000;

/// What was collected in the last hour.
pub(super) struct RollingHour {
    /// Never empty; the last one is not over.
    minutes: VecDeque<MinuteBucket>,
}

#[derive(Default)]
struct MinuteBucket {
    /// Minutes since 1970.
    unix_minute: u64,
    requests: u64,
    failed: u64,
    durations: Histogram,
    errcodes: HashMap<(Arc<str>, i64), u64>,
    /// Requests and failed ones, by client and agent.
    pairs: HashMap<(Arc<str>, Arc<str>), (u64, u64)>,
    /// Requests whose pair had no room.
    unlisted_requests: u64,
}

/// One minute's numbers.
#[derive(Debug)]
pub struct MinuteStats {
    /// When it began.
    pub started_at: SystemTime,
    /// Requests whose answer ended in it.
    pub requests: u64,
    /// Those of them that did not go well: an error of the proxy's own, an errcode other than 0, a status from 500 on, or
    /// an answer that broke off.
    pub failed: u64,
    /// How long they took.
    pub durations: Histogram,
}

/// One agent's hour.
#[derive(Debug, Default)]
pub struct AgentStats {
    /// Its requests.
    pub requests: u64,
    /// Those of them that did not go well.
    pub failed: u64,
    /// WeCom's errcodes, but for 0.
    pub errcodes: BTreeMap<i64, u64>,
}

/// The last hour. What names nobody stands under the empty name.
#[derive(Debug, Default)]
pub struct HourStats {
    /// The oldest first; the last one is not over.
    pub minutes: Vec<MinuteStats>,
    /// The agents that were used.
    pub agents: BTreeMap<Arc<str>, AgentStats>,
    /// The clients that called, and how often through which agent.
    pub clients: BTreeMap<Arc<str>, BTreeMap<Arc<str>, u64>>,
    /// Requests of agents and clients that are not listed, because there were too many.
    pub unlisted_requests: u64,
}

impl RollingHour {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            minutes: VecDeque::from([MinuteBucket {
                unix_minute: unix_minute(now),
                ..MinuteBucket::default()
            }]),
        }
    }

    /// Adds to the minute that is not over.
    pub(super) fn add(&mut self, agent: &Arc<str>, client: &Arc<str>, counts: &PairMetrics) {
        if let Some(minute) = self.minutes.back_mut() {
            minute.add(agent, client, counts);
        }
    }

    /// Begins the minute of this moment, unless it has begun.
    pub(super) fn rotate(&mut self, now: SystemTime) {
        let at = unix_minute(now);
        if self.minutes.back().is_none_or(|last| last.unix_minute < at) {
            self.minutes.push_back(MinuteBucket { unix_minute: at, ..MinuteBucket::default() });
        }
        while self.minutes.front().is_some_and(|first| first.unix_minute + WINDOW_MINUTES <= at) {
            self.minutes.pop_front();
        }
    }

    pub(super) fn stats(&self) -> HourStats {
        let mut report = HourStats::default();
        for minute in &self.minutes {
            minute.add_to(&mut report);
        }
        report
    }
}

impl MinuteBucket {
    fn add(&mut self, agent: &Arc<str>, client: &Arc<str>, counts: &PairMetrics) {
        let requests = counts.durations.count();
        self.requests += requests;
        self.failed += counts.failed;
        self.durations.merge(&counts.durations);
        for (errcode, count) in counts.errcodes.sorted() {
            let Some(errcode) = errcode.filter(|errcode| *errcode != 0) else { continue };
            if let Some(known) = entry_within_limit(&mut self.errcodes, (agent.clone(), errcode)) {
                *known += count;
            }
        }
        match entry_within_limit(&mut self.pairs, (client.clone(), agent.clone())) {
            Some(pair) => (pair.0, pair.1) = (pair.0 + requests, pair.1 + counts.failed),
            None => self.unlisted_requests += requests,
        }
    }

    fn add_to(&self, report: &mut HourStats) {
        let Self { requests, failed, durations, .. } = *self;
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(self.unix_minute * 60);
        report.minutes.push(MinuteStats { started_at: at, requests, failed, durations });
        for ((client, agent), (requests, failed)) in &self.pairs {
            let of_agent = report.agents.entry(agent.clone()).or_default();
            (of_agent.requests, of_agent.failed) = (of_agent.requests + requests, of_agent.failed + failed);
            let of_client = report.clients.entry(client.clone()).or_default();
            *of_client.entry(agent.clone()).or_default() += requests;
        }
        for ((agent, errcode), count) in &self.errcodes {
            let of_agent = report.agents.entry(agent.clone()).or_default();
            *of_agent.errcodes.entry(*errcode).or_default() += count;
        }
        report.unlisted_requests += self.unlisted_requests;
    }
}

/// The place of a key, unless it is a new one and there is no room.
fn entry_within_limit<K: Eq + Hash, V: Default>(map: &mut HashMap<K, V>, key: K) -> Option<&mut V> {
    let full = map.len() >= MAX_ENTRIES_PER_MINUTE;
    match map.entry(key) {
        Entry::Vacant(_) if full => None,
        entry => Some(entry.or_default()),
    }
}

fn unix_minute(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 60)
}
