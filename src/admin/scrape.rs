//! `/metrics`: all metrics in the Prometheus text format.

use std::{sync::Arc, time::SystemTime};

use http::Response;

use super::{
    Admin,
    response::{AdminBody, with_content_type},
    unix_seconds,
};
use crate::{
    inspector::DropReason,
    telemetry::{
        metrics::{AgentFamilies, TextEncoder, write_process_metrics},
        traces::Traces,
    },
};

/// The Prometheus text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Admin {
    /// All metrics; the series of agents as pages.
    pub(super) async fn scrape(self: Arc<Self>) -> Response<AdminBody> {
        let admin = self.clone();
        let first = tokio::task::spawn_blocking(move || {
            admin.metrics.collect(SystemTime::now());
            admin.prune_removed();
            let mut text = TextEncoder::default();
            admin.write_proxy_metrics(&mut text);
            admin.write_token_metrics(&mut text);
            write_process_metrics(&mut text);
            text.into_string()
        });
        let first = first.await.unwrap_or_default();
        let pages = std::iter::once(first).chain(AgentFamilies::new(self.metrics.clone()));
        with_content_type(CONTENT_TYPE, AdminBody::Pages(Box::new(pages)))
    }

    /// The number of requests in flight to the upstream.
    pub(super) fn in_flight(&self) -> usize {
        self.settings.in_flight.in_use()
    }

    fn write_proxy_metrics(&self, text: &mut TextEncoder) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        text.begin_family("wecom_proxy_build_info", "gauge", "Always 1; the label is the running version.");
        text.write_sample("wecom_proxy_build_info", &version, 1);
        text.write_single("wecom_proxy_in_flight", "gauge", "Requests in flight to WeCom.", self.in_flight());
        let help = "Requests waiting for a token or a ticket.";
        text.write_single("wecom_proxy_token_waiters", "gauge", help, self.settings.wait_limit.waiting());
        let help = "Open client connections.";
        text.write_single("wecom_proxy_connections", "gauge", help, self.server.open_connections());
        text.begin_family("wecom_proxy_refusals_total", "counter", "The proxy's own errors by kind.");
        for (kind, count) in self.metrics.proxy_errors() {
            text.write_sample("wecom_proxy_refusals_total", &[("kind", &*kind)], count);
        }
        if self.token_service.store().is_some() {
            let help = "1 if the shared store is reachable, 0 if this replica serves from memory.";
            text.write_single(
                "wecom_proxy_store_up",
                "gauge",
                help,
                u8::from(self.token_service.store_error().is_none()),
            );
        }
        let help = "Dropped access log lines.";
        text.write_single("wecom_proxy_access_log_dropped_total", "counter", help, self.access_log.dropped());
        let help = "Spans dropped before the OTLP collector accepted them.";
        let dropped = self.traces.as_ref().map_or(0, Traces::dropped);
        text.write_single("wecom_proxy_spans_dropped_total", "counter", help, dropped);
        let name = "wecom_proxy_captures_dropped_total";
        text.begin_family(name, "counter", "Captured exchanges whose details were dropped, by reason.");
        for reason in DropReason::ALL {
            text.write_sample(name, &[("reason", reason.as_str())], self.recent.captures_dropped(reason));
        }
        let help = "Memory of request bodies kept for a retry.";
        text.write_single(
            "wecom_proxy_replay_memory_bytes",
            "gauge",
            help,
            self.settings.replay_budget.memory_used(),
        );
        let help = "Disk space used or reserved by request bodies kept for a retry.";
        text.write_single(
            "wecom_proxy_replay_disk_bytes",
            "gauge",
            help,
            self.settings.replay_budget.disk_used(),
        );
        let help = "Limit of that disk space: replay.disk.";
        text.write_single(
            "wecom_proxy_replay_disk_limit_bytes",
            "gauge",
            help,
            self.settings.replay_budget.max_disk(),
        );
    }

    fn write_token_metrics(&self, text: &mut TextEncoder) {
        let name = "wecom_proxy_token_refreshes_total";
        text.begin_family(
            name,
            "counter",
            "gettoken calls by reason and result; shared: made by another replica.",
        );
        for refreshes in self.token_service.refresh_counts() {
            let result = if refreshes.succeeded { "ok" } else { "failed" };
            let labels = [
                ("agent", &*refreshes.agent_name),
                ("reason", refreshes.reason.as_str()),
                ("result", result),
            ];
            text.write_sample(name, &labels, refreshes.count);
        }
        let name = "wecom_proxy_token_renewals_held";
        text.begin_family(
            name,
            "gauge",
            "1 for each agent whose token refresh is held back because the hourly budget is used up; others have no sample.",
        );
        for (agent, _) in self.token_service.throttled_agents() {
            text.write_sample(name, &[("agent", &*agent)], 1);
        }
        let name = "wecom_proxy_token_expiry_timestamp_seconds";
        text.begin_family(name, "gauge", "Expiry of the agent's token, in seconds since 1970.");
        for agent in self.directory.load().agents() {
            if let Some(expires_at) = agent.token.expires_at() {
                text.write_sample(name, &[("agent", &agent.name)], unix_seconds(expires_at));
            }
        }
    }
}
