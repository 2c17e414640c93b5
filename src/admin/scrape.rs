//! `/metrics`: all that is counted, as Prometheus reads it.

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
    /// All metrics.
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

    /// Requests that are with the upstream.
    pub(super) fn in_flight(&self) -> usize {
        self.settings.in_flight.in_use()
    }

    fn write_proxy_metrics(&self, text: &mut TextEncoder) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        text.begin_family("wecom_proxy_build_info", "gauge", "Always 1; the label says which version runs.");
        text.write_sample("wecom_proxy_build_info", &version, 1);
        text.write_single(
            "wecom_proxy_in_flight",
            "gauge",
            "Requests that are with WeCom.",
            self.in_flight(),
        );
        let help = "Requests that wait for a token or a ticket.";
        text.write_single("wecom_proxy_token_waiters", "gauge", help, self.settings.wait_limit.waiting());
        let help = "Connections of clients that are open.";
        text.write_single("wecom_proxy_connections", "gauge", help, self.server.open_connections());
        text.begin_family(
            "wecom_proxy_refusals_total",
            "counter",
            "Errors of the proxy's own, by their kind.",
        );
        for (kind, count) in self.metrics.proxy_errors() {
            text.write_sample("wecom_proxy_refusals_total", &[("kind", &*kind)], count);
        }
        if self.token_service.store().is_some() {
            let help = "1 while the store that replicas share is there, 0 while this one goes on by itself.";
            text.write_single(
                "wecom_proxy_store_up",
                "gauge",
                help,
                u8::from(self.token_service.store_error().is_none()),
            );
        }
        let help = "Lines of the access log that were lost.";
        text.write_single("wecom_proxy_access_log_dropped_total", "counter", help, self.access_log.dropped());
        let help = "Spans that were lost on their way to the receiver of traces.";
        let lost = self.traces.as_ref().map_or(0, Traces::dropped);
        text.write_single("wecom_proxy_spans_dropped_total", "counter", help, lost);
        let name = "wecom_proxy_captures_dropped_total";
        text.begin_family(name, "counter", "Captured exchanges whose details were dropped, by why.");
        for reason in DropReason::ALL {
            text.write_sample(name, &[("reason", reason.as_str())], self.recent.captures_dropped(reason));
        }
        let help = "Memory of the buffers that request bodies are kept in for a retry.";
        text.write_single(
            "wecom_proxy_replay_memory_bytes",
            "gauge",
            help,
            self.settings.replay_budget.memory_used(),
        );
        let help = "Disk that request bodies take, or have announced, which are kept for a retry.";
        text.write_single(
            "wecom_proxy_replay_disk_bytes",
            "gauge",
            help,
            self.settings.replay_budget.disk_used(),
        );
        let help = "Most disk that they may take: replay.disk.";
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
            "Calls of gettoken, by why they were made and whether a token came; shared: another replica's.",
        );
        for renewed in self.token_service.refresh_counts() {
            let result = if renewed.succeeded { "ok" } else { "failed" };
            let labels =
                [("agent", &*renewed.agent_name), ("reason", renewed.reason.as_str()), ("result", result)];
            text.write_sample(name, &labels, renewed.count);
        }
        let name = "wecom_proxy_token_renewals_held";
        text.begin_family(
            name,
            "gauge",
            "1 for each agent whose renewal is held back because a share is spent; others have no sample.",
        );
        for (agent, _) in self.token_service.throttled_agents() {
            text.write_sample(name, &[("agent", &*agent)], 1);
        }
        let name = "wecom_proxy_token_expiry_timestamp_seconds";
        text.begin_family(name, "gauge", "When the agent's token expires, in seconds since 1970.");
        for agent in self.directory.load().agents() {
            if let Some(expires_at) = agent.token.expires_at() {
                text.write_sample(name, &[("agent", &agent.name)], unix_seconds(expires_at));
            }
        }
    }
}
