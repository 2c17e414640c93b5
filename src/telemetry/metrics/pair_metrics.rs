//! The requests of one client to one agent since the last collection. There can be very many such pairs, each of them with
//! few requests, so most requests change one cache line and allocate nothing.

use std::sync::Arc;

use super::{
    counter_map::{CounterMap, MAX_ERRCODES},
    failure::{AgentFailures, FailureClass, FailureCounts},
    histogram::Histogram,
};
use crate::{
    directory::{Agent, Client},
    telemetry::access_log::AccessLogEntry,
};

/// The requests of one client to one agent.
pub(super) struct PairMetrics {
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) client: Option<Arc<Client>>,
    /// Those like the first one, as most are.
    alike: AlikeRequests,
    others: Option<Box<PairCounts>>,
}

/// Requests that differ in numbers only.
#[derive(Default)]
struct AlikeRequests {
    kind: PlainRequest,
    count: u32,
    nanos: u64,
    upstream_nanos: u64,
    request_bytes: u64,
    response_bytes: u64,
}

/// A request that succeeded at once.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct PlainRequest {
    status: u16,
    /// The bucket of the histogram of durations.
    bucket: u8,
    /// `None`: the upstream was not called.
    upstream_bucket: Option<u8>,
    /// Whether the response has an errcode, which is 0.
    has_errcode: bool,
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

    /// Counts one request.
    pub(super) fn record(&mut self, entry: &AccessLogEntry<'_>) {
        if !PlainRequest::of(entry).is_some_and(|kind| self.alike.record(kind, entry)) {
            self.others.get_or_insert_default().record(entry, self.agent.is_some());
        }
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
    /// Counts a request if it is like the first one.
    fn record(&mut self, kind: PlainRequest, entry: &AccessLogEntry<'_>) -> bool {
        if self.count == 0 {
            self.kind = kind;
        }
        if self.kind != kind || self.count == u32::MAX {
            return false;
        }
        self.count += 1;
        self.nanos = self.nanos.saturating_add(Histogram::nanos(entry.total_time));
        self.upstream_nanos = self.upstream_nanos.saturating_add(Histogram::nanos(entry.upstream_time));
        self.request_bytes += entry.request_bytes.unwrap_or_default();
        self.response_bytes += entry.response_bytes;
        true
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
        let count = u64::from(alike.count);
        if count == 0 {
            return;
        }
        let PlainRequest { status, bucket, upstream_bucket, has_errcode } = alike.kind;
        self.statuses.add(status, count, usize::MAX);
        self.durations.add(bucket, count, alike.nanos);
        if let Some(bucket) = upstream_bucket {
            self.upstream_durations.add(bucket, count, alike.upstream_nanos);
        }
        if has_errcode {
            self.errcodes.add(0, count, MAX_ERRCODES);
        }
        self.request_bytes += alike.request_bytes;
        self.response_bytes += alike.response_bytes;
    }
}

fn count_kind(counts: &mut Vec<(Box<str>, u64)>, kind: &str) {
    match counts.iter_mut().find(|(known, _)| **known == *kind) {
        Some((_, count)) => *count += 1,
        None => counts.push((kind.into(), 1)),
    }
}
