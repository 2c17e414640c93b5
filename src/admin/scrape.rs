//! `/metrics`: all that is counted, as Prometheus reads it.

use std::{sync::Arc, time::SystemTime};

use http::Response;

use super::{
    Admin,
    answer::{Body, of_type},
    epoch,
};
use crate::{
    metrics::{Series, Text, write_process},
    recent::Missing,
    traces::Traces,
};

/// The Prometheus text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Admin {
    /// All metrics.
    pub(super) async fn scrape(self: Arc<Self>) -> Response<Body> {
        let admin = self.clone();
        let first = tokio::task::spawn_blocking(move || {
            admin.metrics.collect(SystemTime::now());
            admin.forget_removed();
            let mut text = Text::default();
            admin.write_own(&mut text);
            admin.write_tokens(&mut text);
            write_process(&mut text);
            text.into_string()
        });
        let first = first.await.unwrap_or_default();
        let pages = std::iter::once(first).chain(Series::of(self.metrics.clone()));
        of_type(TEXT, Body::Pages(Box::new(pages)))
    }

    /// Requests that are with the upstream.
    pub(super) fn in_flight(&self) -> usize {
        self.rules.in_flight.taken()
    }

    fn write_own(&self, text: &mut Text) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        text.family("wecom_proxy_build_info", "gauge", "Always 1; the label says which version runs.");
        text.sample("wecom_proxy_build_info", &version, 1);
        text.single("wecom_proxy_in_flight", "gauge", "Requests that are with WeCom.", self.in_flight());
        let help = "Requests that wait for a token or a ticket.";
        text.single("wecom_proxy_token_waiters", "gauge", help, self.rules.waiting.waiting());
        let help = "Connections of clients that are open.";
        text.single("wecom_proxy_connections", "gauge", help, self.server.connections());
        text.family("wecom_proxy_refusals_total", "counter", "Errors of the proxy's own, by their kind.");
        for (kind, count) in self.metrics.refusals() {
            text.sample("wecom_proxy_refusals_total", &[("kind", &*kind)], count);
        }
        if self.issuer.store().is_some() {
            let help = "1 while the store that replicas share is there, 0 while this one goes on by itself.";
            text.single(
                "wecom_proxy_store_up",
                "gauge",
                help,
                u8::from(self.issuer.store_trouble().is_none()),
            );
        }
        let help = "Lines of the access log that were lost.";
        text.single("wecom_proxy_access_log_dropped_total", "counter", help, self.access.dropped());
        let help = "Spans that were lost on their way to the receiver of traces.";
        let lost = self.traces.as_ref().map_or(0, Traces::dropped);
        text.single("wecom_proxy_spans_dropped_total", "counter", help, lost);
        let name = "wecom_proxy_captures_dropped_total";
        text.family(name, "counter", "Captured exchanges whose details were dropped, by why.");
        for reason in Missing::ALL {
            text.sample(name, &[("reason", reason.as_str())], self.recent.captures_dropped(reason));
        }
        let help = "Memory of the buffers that request bodies are kept in for a retry.";
        text.single("wecom_proxy_replay_memory_bytes", "gauge", help, self.rules.shelf.in_memory());
        let help = "Disk that request bodies take, or have announced, which are kept for a retry.";
        text.single("wecom_proxy_replay_disk_bytes", "gauge", help, self.rules.shelf.in_files());
        let help = "Most disk that they may take: replay.disk.";
        text.single("wecom_proxy_replay_disk_limit_bytes", "gauge", help, self.rules.shelf.max_in_files());
    }

    fn write_tokens(&self, text: &mut Text) {
        let name = "wecom_proxy_token_refreshes_total";
        text.family(
            name,
            "counter",
            "Calls of gettoken, by why they were made and whether a token came; shared: another replica's.",
        );
        for renewed in self.issuer.renewals() {
            let result = if renewed.ok { "ok" } else { "failed" };
            let labels =
                [("agent", &*renewed.agent), ("reason", renewed.reason.as_str()), ("result", result)];
            text.sample(name, &labels, renewed.count);
        }
        let name = "wecom_proxy_token_renewals_held";
        text.family(
            name,
            "gauge",
            "1 for each agent whose renewal is held back because a share is spent; others have no sample.",
        );
        for (agent, _) in self.issuer.held() {
            text.sample(name, &[("agent", &*agent)], 1);
        }
        let name = "wecom_proxy_token_expiry_timestamp_seconds";
        text.family(name, "gauge", "When the agent's token expires, in seconds since 1970.");
        for agent in self.directory.load().agents() {
            if let Some(expires_at) = agent.slot.expires_at() {
                text.sample(name, &[("agent", &agent.name)], epoch(expires_at));
            }
        }
    }
}
