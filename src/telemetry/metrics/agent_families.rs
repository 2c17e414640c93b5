//! The series of all agents, a page at a time: there may be very many, and neither their text nor a copy of them needs to
//! lie in memory as a whole.

use std::{
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::{
    Metrics,
    histogram::{BUCKET_BOUNDS_SECONDS, Histogram},
    lock,
    registry::AgentMetrics,
    text_encoder::TextEncoder,
};

/// About so many bytes are written at once.
const PAGE_BYTES: usize = 64 * 1024;

struct MetricFamily {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    write: fn(&mut TextEncoder, &str, &AgentMetrics),
}

const FAMILIES: [MetricFamily; 5] = [
    MetricFamily {
        name: "wecom_proxy_requests_total",
        kind: "counter",
        help: "Requests, by the status of their answer; 0 where the caller left before there was one.",
        write: write_requests,
    },
    MetricFamily {
        name: "wecom_proxy_request_duration_seconds",
        kind: "histogram",
        help: "Time from a request's head to the end of its answer.",
        write: |text, agent, counts| {
            write_histogram(text, "wecom_proxy_request_duration_seconds", agent, &counts.durations);
        },
    },
    MetricFamily {
        name: "wecom_proxy_upstream_duration_seconds",
        kind: "histogram",
        help: "Time spent waiting for the heads of WeCom's answers to one request.",
        write: |text, agent, counts| {
            write_histogram(text, "wecom_proxy_upstream_duration_seconds", agent, &counts.upstream_durations);
        },
    },
    MetricFamily {
        name: "wecom_proxy_errcodes_total",
        kind: "counter",
        help: "Answers by their errcode, without the proxy's own errors.",
        write: |text, agent, counts| {
            for (errcode, count) in counts.errcodes.sorted() {
                write_errcode(text, "wecom_proxy_errcodes_total", agent, errcode, count);
            }
        },
    },
    MetricFamily {
        name: "wecom_proxy_retries_total",
        kind: "counter",
        help: "Requests that were sent once more, by the errcode that was the cause.",
        write: |text, agent, counts| {
            for (errcode, count) in counts.retries.sorted() {
                write_errcode(text, "wecom_proxy_retries_total", agent, errcode, count);
            }
        },
    },
];

/// The text of all agents' series, from the first page to the last.
pub struct AgentFamilies {
    metrics: Arc<Metrics>,
    family_index: usize,
    /// The agent whose series were written last.
    last_agent: Option<Arc<str>>,
}

impl AgentFamilies {
    /// From the beginning.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, family_index: 0, last_agent: None }
    }
}

impl Iterator for AgentFamilies {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut text = TextEncoder::default();
        let ledger = lock(&self.metrics.registry);
        while let Some(family) = FAMILIES.get(self.family_index) {
            let rest = match &self.last_agent {
                Some(after) => ledger.agents.range::<str, _>((Excluded(&**after), Unbounded)),
                None => {
                    text.begin_family(family.name, family.kind, family.help);
                    ledger.agents.range::<str, _>((Unbounded::<&str>, Unbounded))
                }
            };
            for (agent, counts) in rest {
                (family.write)(&mut text, agent, counts);
                if text.len() >= PAGE_BYTES {
                    self.last_agent = Some(agent.clone());
                    return Some(text.into_string());
                }
            }
            (self.family_index, self.last_agent) = (self.family_index + 1, None);
        }
        (!text.is_empty()).then(|| text.into_string())
    }
}

fn write_requests(text: &mut TextEncoder, agent: &str, counts: &AgentMetrics) {
    for (client, statuses) in &counts.statuses_by_client {
        for (status, count) in statuses.sorted() {
            let mut digits = itoa::Buffer::new();
            let status = status.map_or("other", |status| digits.format(status));
            let labels = [("agent", agent), ("client", &**client), ("status", status)];
            text.write_sample("wecom_proxy_requests_total", &labels, count);
        }
    }
}

fn write_errcode(text: &mut TextEncoder, name: &str, agent: &str, errcode: Option<i64>, count: u64) {
    let mut digits = itoa::Buffer::new();
    let errcode = errcode.map_or("other", |errcode| digits.format(errcode));
    text.write_sample(name, &[("agent", agent), ("errcode", errcode)], count);
}

fn write_histogram(text: &mut TextEncoder, name: &str, agent: &str, histogram: &Histogram) {
    let (bucket, mut so_far) = (format!("{name}_bucket"), 0);
    for (count, bound) in histogram.buckets.iter().zip(BUCKET_BOUNDS_SECONDS.iter().chain(&["+Inf"])) {
        so_far += count;
        text.write_sample(&bucket, &[("agent", agent), ("le", bound)], so_far);
    }
    text.write_sample(&format!("{name}_sum"), &[("agent", agent)], histogram.sum_seconds());
    text.write_sample(&format!("{name}_count"), &[("agent", agent)], so_far);
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
            lock(&metrics.registry).agents.entry(name.into()).or_default().errcodes.add(0, 1, 1);
        }
        let pages: Vec<_> = AgentFamilies::new(metrics.clone()).collect();
        assert!(pages.iter().all(|page| page.len() < PAGE_BYTES + 8 * 1024));
        let text = pages.concat();
        for (line, times) in [
            ("# TYPE wecom_proxy_errcodes_total counter", 1),
            ("wecom_proxy_errcodes_total{", AGENTS),
            ("wecom_proxy_request_duration_seconds_count{", AGENTS),
            ("wecom_proxy_upstream_duration_seconds_bucket{", 16 * AGENTS),
        ] {
            assert_eq!(text.lines().filter(|found| found.starts_with(line)).count(), times, "{line}");
        }
        // Who goes between two pages is not looked for.
        let mut series = AgentFamilies::new(metrics.clone());
        series.next();
        lock(&metrics.registry).retain(|agent| agent == "agent-99", |_| true);
        assert!(series.map(|page| page.matches("\"agent-99\"").count()).sum::<usize>() > 16);
    }
}
