//! The requests of one client to one agent since the last collection. There can be very many such pairs, each of them with
//! few requests, so most requests change one cache line and allocate nothing.

use std::{mem, sync::Arc};

use super::{
    counter_map::{CounterMap, MAX_ERRCODES},
    failure::{AgentFailures, FailureClass, FailureCounts},
    histogram::Histogram,
};
use crate::{
    directory::{Agent, Client},
    telemetry::access_log::AccessLogEntry,
};

/// The addresses of an agent and a client; stable because [`PairMetrics`] holds both `Arc`s.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PairKey(usize, usize);

impl PairKey {
    pub(super) fn of(agent: Option<&Arc<Agent>>, client: Option<&Arc<Client>>) -> Self {
        Self(
            agent.map_or(0, |agent| Arc::as_ptr(agent).addr()),
            client.map_or(0, |client| Arc::as_ptr(client).addr()),
        )
    }
}

/// The requests of one client to one agent, in one cache line.
#[repr(align(64))]
pub(super) struct PairMetrics {
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) client: Option<Arc<Client>>,
    /// Those like the first one, as most are.
    alike: AlikeRequests,
    others: Option<Box<PairCounts>>,
}

/// Requests that differ in times and bytes only.
#[derive(Default)]
struct AlikeRequests {
    nanos: u64,
    upstream_nanos: u64,
    request_bytes: u32,
    response_bytes: u32,
    status: u16,
    /// Whether the responses have an errcode, which is 0.
    has_errcode: bool,
    durations: FewBuckets,
    /// Of those for which the upstream was called.
    upstream_durations: FewBuckets,
}

/// The counts of the buckets of a histogram that most requests of a pair fall into.
#[derive(Default)]
struct FewBuckets {
    buckets: [u8; 3],
    counts: [u8; 3],
}

/// A request that succeeded at once.
struct PlainRequest {
    status: u16,
    has_errcode: bool,
    /// The bucket of the histogram of durations.
    bucket: u8,
    /// `None`: the upstream was not called.
    upstream_bucket: Option<u8>,
}

/// What is counted of requests.
#[derive(Default)]
pub(super) struct PairCounts {
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
    pub(super) fn new(agent: Option<&Arc<Agent>>, client: Option<&Arc<Client>>) -> Self {
        Self { agent: agent.cloned(), client: client.cloned(), alike: AlikeRequests::default(), others: None }
    }

    pub(super) fn key(&self) -> PairKey {
        PairKey::of(self.agent.as_ref(), self.client.as_ref())
    }

    /// Counts one request.
    pub(super) fn record(&mut self, entry: &AccessLogEntry<'_>) {
        if !PlainRequest::of(entry).is_some_and(|request| self.record_plain(&request, entry)) {
            self.others.get_or_insert_default().record(entry, self.agent.is_some());
        }
    }

    /// Counts a request if it is like the first one.
    fn record_plain(&mut self, request: &PlainRequest, entry: &AccessLogEntry<'_>) -> bool {
        if self.alike.record(request, entry) {
            return true;
        }
        if !self.alike.is_like(request) {
            return false;
        }
        // Its numbers are full.
        let counted = mem::take(&mut self.alike);
        self.others.get_or_insert_default().add_alike(&counted);
        self.alike.record(request, entry)
    }

    /// All of its requests.
    pub(super) fn take_counts(&mut self) -> Box<PairCounts> {
        let mut counts = self.others.take().unwrap_or_default();
        counts.add_alike(&self.alike);
        counts
    }
}

impl PlainRequest {
    fn of(entry: &AccessLogEntry<'_>) -> Option<Self> {
        let is_plain = entry.error.is_none()
            && entry.retried.is_none()
            && entry.errcode.is_none_or(|errcode| errcode == 0)
            && entry.status < 400;
        is_plain.then(|| Self {
            status: entry.status,
            bucket: Histogram::bucket_of(entry.total_time),
            upstream_bucket: (!entry.upstream_time.is_zero())
                .then(|| Histogram::bucket_of(entry.upstream_time)),
            has_errcode: entry.errcode.is_some(),
        })
    }
}

impl AlikeRequests {
    fn is_like(&self, request: &PlainRequest) -> bool {
        self.durations.is_empty()
            || (self.status == request.status && self.has_errcode == request.has_errcode)
    }

    /// Counts a request if it is like the first one, and the numbers have room for it.
    fn record(&mut self, request: &PlainRequest, entry: &AccessLogEntry<'_>) -> bool {
        self.is_like(request) && self.add(request, entry).is_some()
    }

    fn add(&mut self, request: &PlainRequest, entry: &AccessLogEntry<'_>) -> Option<()> {
        let add = |sum: u32, bytes| sum.checked_add(u32::try_from(bytes).ok()?);
        let request_bytes = add(self.request_bytes, entry.request_bytes.unwrap_or_default())?;
        let response_bytes = add(self.response_bytes, entry.response_bytes)?;
        let slot = self.durations.slot(request.bucket)?;
        if let Some(bucket) = request.upstream_bucket {
            let slot = self.upstream_durations.slot(bucket)?;
            self.upstream_durations.add(slot, bucket);
        }
        self.durations.add(slot, request.bucket);
        (self.request_bytes, self.response_bytes) = (request_bytes, response_bytes);
        (self.status, self.has_errcode) = (request.status, request.has_errcode);
        self.nanos = self.nanos.saturating_add(Histogram::nanos(entry.total_time));
        self.upstream_nanos = self.upstream_nanos.saturating_add(Histogram::nanos(entry.upstream_time));
        Some(())
    }
}

impl FewBuckets {
    fn is_empty(&self) -> bool {
        self.counts[0] == 0
    }

    /// Where a duration of this bucket is counted; `None`: there is no room.
    fn slot(&self, bucket: u8) -> Option<usize> {
        let is_slot = |nth: &usize| self.counts[*nth] == 0 || self.buckets[*nth] == bucket;
        (0..self.counts.len()).find(is_slot).filter(|nth| self.counts[*nth] < u8::MAX)
    }

    fn add(&mut self, slot: usize, bucket: u8) {
        self.buckets[slot] = bucket;
        self.counts[slot] += 1;
    }

    fn count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    fn add_to(&self, histogram: &mut Histogram, mut nanos: u64) {
        for (bucket, count) in self.buckets.iter().zip(self.counts) {
            histogram.add(*bucket, count.into(), mem::take(&mut nanos));
        }
    }
}

impl PairCounts {
    fn record(&mut self, entry: &AccessLogEntry<'_>, has_agent: bool) {
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
            self.record_failure(entry, has_agent);
        }
    }

    #[cold]
    fn record_failure(&mut self, entry: &AccessLogEntry<'_>, has_agent: bool) {
        let Some(class) = FailureClass::of(entry) else { return };
        self.failures.add(class);
        if has_agent && matches!(class, FailureClass::Outage | FailureClass::Wecom) {
            let failures =
                self.agent_failures.get_or_insert_with(|| Box::new(AgentFailures::new(entry.ended_at)));
            failures.record(entry);
        }
    }

    fn add_alike(&mut self, alike: &AlikeRequests) {
        let count = alike.durations.count();
        if count == 0 {
            return;
        }
        self.statuses.add(alike.status, count, usize::MAX);
        alike.durations.add_to(&mut self.durations, alike.nanos);
        alike.upstream_durations.add_to(&mut self.upstream_durations, alike.upstream_nanos);
        if alike.has_errcode {
            self.errcodes.add(0, count, MAX_ERRCODES);
        }
        self.request_bytes += u64::from(alike.request_bytes);
        self.response_bytes += u64::from(alike.response_bytes);
    }
}

fn count_kind(counts: &mut Vec<(Box<str>, u64)>, kind: &str) {
    match counts.iter_mut().find(|(known, _)| **known == *kind) {
        Some((_, count)) => *count += 1,
        None => counts.push((kind.into(), 1)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The numbers of a pair are those of counters without bounds, whatever its requests are.
    #[test]
    fn requests_of_all_kinds_and_numbers_are_counted_once() {
        let (mut pair, mut expected) = (PairMetrics::new(None, None), PairCounts::default());
        for nth in 0..5_000_u64 {
            let entry = AccessLogEntry {
                status: if nth % 701 == 700 { 304 } else { 200 },
                errcode: (nth % 301 < 290).then_some(0),
                total_time: Duration::from_micros(nth * nth % 40_000),
                upstream_time: Duration::from_micros(if nth % 7 == 0 { 0 } else { nth * nth % 20_000 }),
                request_bytes: Some(nth * 1_000_000),
                response_bytes: nth,
                ..AccessLogEntry::default()
            };
            pair.record(&entry);
            expected.record(&entry, false);
        }
        let counts = pair.take_counts();
        assert_eq!(
            (counts.durations, counts.upstream_durations),
            (expected.durations, expected.upstream_durations)
        );
        assert_eq!(
            (counts.request_bytes, counts.response_bytes),
            (expected.request_bytes, expected.response_bytes)
        );
        let sorted = |counts: &PairCounts| {
            (counts.statuses.sorted().collect::<Vec<_>>(), counts.errcodes.sorted().collect::<Vec<_>>())
        };
        assert_eq!(sorted(&counts), sorted(&expected));
    }

    #[test]
    fn alike_requests_of_three_buckets_take_no_other_memory() {
        let mut pair = PairMetrics::new(None, None);
        for nth in 0..765 {
            let total_time = Duration::from_millis([1, 4, 9][nth % 3]);
            pair.record(&AccessLogEntry { status: 200, total_time, ..AccessLogEntry::default() });
        }
        assert!(pair.others.is_none());
        assert_eq!(pair.take_counts().durations.count(), 765);
    }

    #[test]
    fn pair_takes_one_cache_line_and_counts_sums_beyond_it() {
        assert_eq!(size_of::<PairMetrics>(), 64);
        let entry = AccessLogEntry {
            status: 200,
            request_bytes: Some(3_000_000_000),
            response_bytes: 5,
            ..AccessLogEntry::default()
        };
        let large = AccessLogEntry { request_bytes: None, response_bytes: 5_000_000_000, ..entry };
        let mut pair = PairMetrics::new(None, None);
        for entry in [&entry, &entry, &entry, &large] {
            pair.record(entry);
        }
        let counts = pair.take_counts();
        assert_eq!((counts.request_bytes, counts.response_bytes), (9_000_000_000, 5_000_000_015));
        assert_eq!(counts.statuses.sorted().collect::<Vec<_>>(), [(Some(200), 4)]);
    }
}
