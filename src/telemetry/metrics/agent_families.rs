//! The series of all agents as text, one page at a time: there may be very many, so neither the whole text nor a copy
//! of them is in memory.

use std::{
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::{
    Metrics,
    counter_map::CounterMap,
    histogram::{BUCKET_BOUNDS_SECONDS, Histogram},
    registry::AgentMetrics,
    text_encoder::TextEncoder,
};
use crate::blocking;

/// Approximate size of a page in bytes.
const PAGE_BYTES: usize = 64 * 1024;

/// Agents whose series are written between two yields of the CPU.
const MAX_WRITTEN_AGENTS: usize = 4;

/// Name, kind, help, and what writes the samples of an agent under that name.
type MetricFamily =
    (&'static str, &'static str, &'static str, fn(&mut TextEncoder, &str, &str, &AgentMetrics));

const FAMILIES: [MetricFamily; 8] = [
    (
        "wecom_proxy_requests_total",
        "counter",
        "Requests by response status; aborted: client disconnected before the response.",
        write_requests,
    ),
    (
        "wecom_proxy_request_duration_seconds",
        "histogram",
        "Time from the end of a request's header block to the end of its response.",
        |text, name, agent, counts| write_histogram(text, name, agent, &counts.durations),
    ),
    (
        "wecom_proxy_upstream_duration_seconds",
        "histogram",
        "Time spent waiting for WeCom's response headers, per request.",
        |text, name, agent, counts| write_histogram(text, name, agent, &counts.upstream_durations),
    ),
    (
        "wecom_proxy_errcodes_total",
        "counter",
        "Responses by errcode, without the proxy's own errors.",
        |text, name, agent, counts| write_errcodes(text, name, agent, &counts.errcodes),
    ),
    (
        "wecom_proxy_agent_refusals_total",
        "counter",
        "The proxy's own errors by agent and kind; without an agent, where none is known yet.",
        |text, name, agent, counts| {
            for (kind, count) in &counts.refusals {
                text.write_sample(name, &[("agent", agent), ("kind", &**kind)], *count);
            }
        },
    ),
    (
        "wecom_proxy_request_bytes_total",
        "counter",
        "Bytes of request bodies.",
        |text, name, agent, counts| text.write_sample(name, &[("agent", agent)], counts.request_bytes),
    ),
    (
        "wecom_proxy_response_bytes_total",
        "counter",
        "Bytes of response bodies.",
        |text, name, agent, counts| text.write_sample(name, &[("agent", agent)], counts.response_bytes),
    ),
    (
        "wecom_proxy_retries_total",
        "counter",
        "Retried requests by the errcode that caused the retry.",
        |text, name, agent, counts| write_errcodes(text, name, agent, &counts.retries),
    ),
];

/// Iterates over the pages.
pub struct AgentFamilies {
    metrics: Arc<Metrics>,
    family_index: usize,
    /// The agent whose series were written last; the next page continues after it.
    last_agent: Option<Arc<str>>,
}

impl AgentFamilies {
    /// Starts at the first page.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, family_index: 0, last_agent: None }
    }

    /// Some agents after the last one. They are written without the lock, for which collections wait.
    fn next_slice(&self) -> Vec<(Arc<str>, Arc<AgentMetrics>)> {
        let after = self.last_agent.as_deref().map_or(Unbounded, Excluded);
        let registry = self.metrics.registry.lock();
        let rest = registry.agents.range::<str, _>((after, Unbounded));
        rest.take(MAX_WRITTEN_AGENTS).map(|(name, counts)| (name.clone(), counts.clone())).collect()
    }
}

impl Iterator for AgentFamilies {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut text = TextEncoder::default();
        while let Some((name, kind, help, write)) = FAMILIES.get(self.family_index) {
            if self.last_agent.is_none() {
                text.begin_family(name, kind, help);
            }
            let slice = self.next_slice();
            if slice.is_empty() {
                (self.family_index, self.last_agent) = (self.family_index + 1, None);
            }
            for (agent, counts) in slice {
                write(&mut text, name, &agent, &counts);
                self.last_agent = Some(agent);
                if text.len() >= PAGE_BYTES {
                    return Some(text.into_string());
                }
            }
            blocking::yield_cpu();
        }
        (!text.is_empty()).then(|| text.into_string())
    }
}

fn write_requests(text: &mut TextEncoder, name: &str, agent: &str, counts: &AgentMetrics) {
    for (client, statuses) in &counts.statuses_by_client {
        for (status, count) in statuses.sorted() {
            let mut digits = itoa::Buffer::new();
            let status = match status {
                None => "other",
                // The caller left before there was a response.
                Some(0) => "aborted",
                Some(status) => digits.format(status),
            };
            let labels = [("agent", agent), ("client", &**client), ("status", status)];
            text.write_sample(name, &labels, count);
        }
    }
}

fn write_errcodes(text: &mut TextEncoder, name: &str, agent: &str, counts: &CounterMap<i64>) {
    for (errcode, count) in counts.sorted() {
        let mut digits = itoa::Buffer::new();
        let errcode = errcode.map_or("other", |errcode| digits.format(errcode));
        text.write_sample(name, &[("agent", agent), ("errcode", errcode)], count);
    }
}

fn write_histogram(text: &mut TextEncoder, name: &str, agent: &str, histogram: &Histogram) {
    let (bucket, mut cumulative) = (format!("{name}_bucket"), 0);
    for (count, bound) in histogram.buckets.iter().zip(BUCKET_BOUNDS_SECONDS.iter().chain(&["+Inf"])) {
        cumulative += count;
        text.write_sample(&bucket, &[("agent", agent), ("le", bound)], cumulative);
    }
    text.write_sample(&format!("{name}_sum"), &[("agent", agent)], histogram.sum_seconds());
    text.write_sample(&format!("{name}_count"), &[("agent", agent)], cumulative);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_contain_each_agent_once() {
        const AGENTS: usize = 5000;
        let metrics = Arc::new(Metrics::default());
        for nth in 0..AGENTS {
            let name = format!("agent-{nth}");
            let mut registry = metrics.registry.lock();
            Arc::make_mut(registry.agents.entry(name.into()).or_default()).errcodes.add(0, 1, 1);
        }
        let pages: Vec<_> = AgentFamilies::new(metrics.clone()).collect();
        assert!(pages.iter().all(|page| page.len() < PAGE_BYTES + 8 * 1024));
        let text = pages.concat();
        for (line, times) in [
            ("# TYPE wecom_proxy_errcodes_total counter", 1),
            ("wecom_proxy_errcodes_total{", AGENTS),
            ("wecom_proxy_request_duration_seconds_count{", AGENTS),
            ("wecom_proxy_upstream_duration_seconds_bucket{", 24 * AGENTS),
        ] {
            assert_eq!(text.lines().filter(|found| found.starts_with(line)).count(), times, "{line}");
        }
        // Removing agents between two pages does not end the iteration.
        let mut series = AgentFamilies::new(metrics.clone());
        series.next();
        metrics.retain(|agent| agent == "agent-99", |_| true);
        assert!(series.map(|page| page.matches("\"agent-99\"").count()).sum::<usize>() > 16);
    }
}
