//! The series of all agents, a page at a time: there may be very many, and neither their text nor a copy of them needs to
//! lie in memory as a whole.

use std::{
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::{
    Metrics,
    histogram::{Histogram, SECONDS},
    ledger::AgentCounts,
    lock,
    text::Text,
};

/// About so many bytes are written at once.
const PAGE: usize = 64 * 1024;

struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    write: fn(&mut Text, &str, &AgentCounts),
}

const FAMILIES: [Family; 5] = [
    Family {
        name: "wecom_proxy_requests_total",
        kind: "counter",
        help: "Requests, by the status of their answer; 0 where the caller left before there was one.",
        write: write_requests,
    },
    Family {
        name: "wecom_proxy_request_duration_seconds",
        kind: "histogram",
        help: "Time from a request's head to the end of its answer.",
        write: |text, agent, counts| {
            write_histogram(text, "wecom_proxy_request_duration_seconds", agent, &counts.durations);
        },
    },
    Family {
        name: "wecom_proxy_upstream_duration_seconds",
        kind: "histogram",
        help: "Time spent waiting for the heads of WeCom's answers to one request.",
        write: |text, agent, counts| {
            write_histogram(text, "wecom_proxy_upstream_duration_seconds", agent, &counts.upstream);
        },
    },
    Family {
        name: "wecom_proxy_errcodes_total",
        kind: "counter",
        help: "Answers by their errcode, without the proxy's own errors.",
        write: |text, agent, counts| {
            for (errcode, count) in counts.errcodes.in_order() {
                write_errcode(text, "wecom_proxy_errcodes_total", agent, errcode, count);
            }
        },
    },
    Family {
        name: "wecom_proxy_retries_total",
        kind: "counter",
        help: "Requests that were sent once more, by the errcode that was the cause.",
        write: |text, agent, counts| {
            for (errcode, count) in counts.retries.in_order() {
                write_errcode(text, "wecom_proxy_retries_total", agent, errcode, count);
            }
        },
    },
];

/// The text of all agents' series, from the first page to the last.
pub struct Series {
    metrics: Arc<Metrics>,
    family: usize,
    /// The agent whose series were written last.
    after: Option<Arc<str>>,
}

impl Series {
    /// From the beginning.
    pub fn of(metrics: Arc<Metrics>) -> Self {
        Self { metrics, family: 0, after: None }
    }
}

impl Iterator for Series {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut text = Text::default();
        let ledger = lock(&self.metrics.ledger);
        while let Some(family) = FAMILIES.get(self.family) {
            let rest = match &self.after {
                Some(after) => ledger.agents.range::<str, _>((Excluded(&**after), Unbounded)),
                None => {
                    text.family(family.name, family.kind, family.help);
                    ledger.agents.range::<str, _>((Unbounded::<&str>, Unbounded))
                }
            };
            for (agent, counts) in rest {
                (family.write)(&mut text, agent, counts);
                if text.len() >= PAGE {
                    self.after = Some(agent.clone());
                    return Some(text.into_string());
                }
            }
            (self.family, self.after) = (self.family + 1, None);
        }
        (!text.is_empty()).then(|| text.into_string())
    }
}

fn write_requests(text: &mut Text, agent: &str, counts: &AgentCounts) {
    for (client, statuses) in &counts.statuses {
        for (status, count) in statuses.in_order() {
            let mut digits = itoa::Buffer::new();
            let status = status.map_or("other", |status| digits.format(status));
            let labels = [("agent", agent), ("client", &**client), ("status", status)];
            text.sample("wecom_proxy_requests_total", &labels, count);
        }
    }
}

fn write_errcode(text: &mut Text, name: &str, agent: &str, errcode: Option<i64>, count: u64) {
    let mut digits = itoa::Buffer::new();
    let errcode = errcode.map_or("other", |errcode| digits.format(errcode));
    text.sample(name, &[("agent", agent), ("errcode", errcode)], count);
}

fn write_histogram(text: &mut Text, name: &str, agent: &str, histogram: &Histogram) {
    let (bucket, mut so_far) = (format!("{name}_bucket"), 0);
    for (count, bound) in histogram.buckets.iter().zip(SECONDS.iter().chain(&["+Inf"])) {
        so_far += count;
        text.sample(&bucket, &[("agent", agent), ("le", bound)], so_far);
    }
    text.sample(&format!("{name}_sum"), &[("agent", agent)], histogram.sum());
    text.sample(&format!("{name}_count"), &[("agent", agent)], so_far);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_agents_are_told_page_by_page_and_none_twice() {
        const AGENTS: usize = 5000;
        let metrics = Arc::new(Metrics::default());
        for nth in 0..AGENTS {
            let name = format!("agent-{nth}");
            lock(&metrics.ledger).agents.entry(name.into()).or_default().errcodes.add(0, 1, 1);
        }
        let pages: Vec<_> = Series::of(metrics.clone()).collect();
        assert!(pages.iter().all(|page| page.len() < PAGE + 8 * 1024));
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
        let mut series = Series::of(metrics.clone());
        series.next();
        lock(&metrics.ledger).keep(|agent| agent == "agent-99", |_| true);
        assert!(series.map(|page| page.matches("\"agent-99\"").count()).sum::<usize>() > 16);
    }
}
