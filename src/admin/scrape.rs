//! `/metrics`: all metrics in the Prometheus text format.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::Response;

use super::{
    Admin,
    response::{AdminBody, BackgroundPages, with_content_type},
    suites::CorpCounts,
    trouble::write_trouble_metrics,
    unix_seconds,
};
use crate::{
    blocking,
    inspector::DropReason,
    limits::quotas::QuotaUsage,
    proxy::UpstreamSettings,
    telemetry::{
        metrics::{
            AgentFamilies, AgentLabels, AgentTrouble, OTHER_AGENTS, TextEncoder, write_process_metrics,
        },
        traces::Traces,
    },
    text::SharedStr,
    tokens::{GettokenStats, RefreshCount},
};

/// The Prometheus text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What token refreshes and collections lock too, copied at the ordinary priority and written at the lowest one.
pub(super) struct SharedCounts {
    pub(super) labels: AgentLabels,
    troubles: Vec<AgentTrouble>,
    proxy_errors: Vec<(Box<str>, u64)>,
    refreshes: Vec<RefreshCount>,
    gettoken_calls: Vec<(SharedStr, GettokenStats)>,
    throttled: Vec<(String, Duration)>,
    pub(super) quotas: Vec<QuotaUsage>,
}

impl SharedCounts {
    fn copy(admin: &Admin) -> Self {
        Self {
            labels: admin.metrics.agent_labels(),
            troubles: admin.metrics.troubles(SystemTime::now()),
            proxy_errors: admin.metrics.proxy_errors(),
            refreshes: admin.token_cache.refresh_counts(),
            gettoken_calls: admin.token_cache.gettoken_calls(),
            throttled: admin.token_cache.throttled_agents(),
            quotas: admin.settings.quotas.report(),
        }
    }

    fn write_gettoken_metrics(&self, text: &mut TextEncoder) {
        let mut by_agent = BTreeMap::<_, GettokenStats>::new();
        for (agent, stats) in blocking::in_slices(&self.gettoken_calls) {
            by_agent.entry(self.labels.of(agent)).or_default().merge(stats);
        }
        let name = "wecom_proxy_gettoken_duration_seconds";
        text.begin_family(name, "summary", "Time of the calls that fetch tokens.");
        for (agent, stats) in &by_agent {
            let labels = [("agent", *agent)];
            text.write_sample(&format!("{name}_sum"), &labels, stats.total_time.as_secs_f64());
            text.write_sample(&format!("{name}_count"), &labels, stats.count);
        }
        let name = "wecom_proxy_gettoken_errcodes_total";
        let errcodes = by_agent.iter().flat_map(|(agent, stats)| {
            let errcodes = stats.errcodes.iter();
            errcodes.map(|(errcode, count)| {
                ([("agent", (*agent).to_owned()), ("errcode", errcode.to_string())], count)
            })
        });
        text.write_family(name, "counter", "Errcodes of the calls that fetch tokens.", errcodes);
    }
}

impl Admin {
    /// All metrics; the series of agents as pages.
    pub(super) async fn scrape(self: Arc<Self>) -> Response<AdminBody> {
        self.collect_metrics(false).await;
        let admin = self.clone();
        let counts = blocking::spawn(move || SharedCounts::copy(&admin)).await;
        let admin = self.clone();
        let first = counts.map(|counts| blocking::run_in_background(move || admin.first_page(&counts)));
        let first = match first {
            Ok(first) => first.await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        let first = first + &self.callback_metrics().await;
        let pages = std::iter::once(first).chain(AgentFamilies::new(self.metrics.clone())).map(Bytes::from);
        with_content_type(CONTENT_TYPE, AdminBody::Pages(BackgroundPages::new(pages)))
    }

    /// All but the series of agents and callbacks.
    fn first_page(&self, counts: &SharedCounts) -> String {
        let mut text = TextEncoder::default();
        self.write_proxy_metrics(&mut text, counts);
        self.write_token_metrics(&mut text, counts);
        self.write_suite_metrics(&mut text);
        counts.write_quota_metrics(&mut text);
        write_trouble_metrics(&mut text, &counts.troubles, &counts.labels);
        write_process_metrics(&mut text);
        text.into_string()
    }

    /// The number of requests in flight to the upstream.
    pub(super) fn in_flight(&self) -> usize {
        self.settings.upstreams.iter().map(|upstream| upstream.in_flight.in_use()).sum()
    }

    /// The number of requests that wait for a token or a ticket.
    fn token_waiters(&self) -> usize {
        self.settings.upstreams.iter().map(|upstream| upstream.wait_limit.waiting()).sum()
    }

    fn write_upstream_metrics(&self, text: &mut TextEncoder) {
        type GaugeValue = fn(&UpstreamSettings) -> usize;
        let upstreams = || self.settings.upstreams.iter().map(|it| (it, it.connections.id().label()));
        let gauges: [(_, _, GaugeValue); 4] = [
            ("wecom_proxy_upstream_connections", "Open connections to the upstream.", |upstream| {
                upstream.connections.open_connections()
            }),
            ("wecom_proxy_upstream_in_flight", "Requests in flight to the upstream.", |upstream| {
                upstream.in_flight.in_use()
            }),
            (
                "wecom_proxy_upstream_in_flight_limit",
                "Limit of requests in flight: max_in_flight of the upstream.",
                |upstream| upstream.in_flight.max_permits(),
            ),
            ("wecom_proxy_upstream_queued", "Requests that wait for max_in_flight.", |upstream| {
                upstream.in_flight.queued()
            }),
        ];
        for (name, help, value) in gauges {
            let samples = upstreams().map(|(upstream, label)| ([("upstream", label)], value(upstream)));
            text.write_family(name, "gauge", help, samples);
        }
        let egress = upstreams().flat_map(|(upstream, label)| {
            let proxies = upstream.connections.egress_proxies();
            proxies.map(move |(via, is_up)| ([("upstream", label.to_owned()), ("via", via)], u8::from(is_up)))
        });
        let egress: Vec<_> = egress.collect();
        if !egress.is_empty() {
            let help = "1 if the last connection through the egress proxy succeeded, 0 if it failed.";
            text.write_family("wecom_proxy_via_up", "gauge", help, egress);
        }
    }

    fn write_proxy_metrics(&self, text: &mut TextEncoder, counts: &SharedCounts) {
        let version = [([("version", env!("CARGO_PKG_VERSION"))], 1)];
        let help = "Always 1; the label is the running version.";
        text.write_family("wecom_proxy_build_info", "gauge", help, version);
        text.write_single("wecom_proxy_in_flight", "gauge", "Requests in flight to WeCom.", self.in_flight());
        let help = "Requests waiting for a token or a ticket.";
        text.write_single("wecom_proxy_token_waiters", "gauge", help, self.token_waiters());
        let help = "Open client connections.";
        text.write_single("wecom_proxy_connections", "gauge", help, self.server.open_connections());
        let help = "Limit of open client connections: server.max_connections.";
        let limit = self.server.connection_limiter.max_connections();
        text.write_single("wecom_proxy_connections_limit", "gauge", help, limit);
        if let Some(expires_at) = self.server.certificate_expires_at() {
            let name = "wecom_proxy_certificate_expiry_timestamp_seconds";
            let help = "Expiry of the certificate of server.tls, in seconds since 1970.";
            text.write_family(name, "gauge", help, [([("certificate", "server")], expires_at)]);
        }
        self.last_reload.write_metrics(text);
        self.write_upstream_metrics(text);
        let errors = counts.proxy_errors.iter().map(|(kind, count)| ([("kind", kind)], count));
        let help = "The proxy's own errors by kind.";
        text.write_family("wecom_proxy_refusals_total", "counter", help, errors);
        if self.token_cache.store().is_some() {
            let help = "1 if the shared store is reachable, 0 if this replica serves from memory.";
            let up = u8::from(self.token_cache.store_error().is_none());
            text.write_single("wecom_proxy_store_up", "gauge", help, up);
        }
        self.write_state_metrics(text);
        let help = "Dropped access log lines.";
        text.write_single("wecom_proxy_access_log_dropped_total", "counter", help, self.access_log.dropped());
        let help = "Spans dropped before the OTLP collector accepted them.";
        let dropped = self.traces.as_ref().map_or(0, Traces::dropped);
        text.write_single("wecom_proxy_spans_dropped_total", "counter", help, dropped);
        let name = "wecom_proxy_captures_dropped_total";
        let help = "Captured exchanges whose details were dropped, by reason.";
        let dropped = DropReason::ALL
            .map(|reason| ([("reason", reason.as_str())], self.recent.captures_dropped(reason)));
        text.write_family(name, "counter", help, dropped);
        let budget = &self.settings.replay_budget;
        let help = "Memory of request bodies kept for a retry.";
        text.write_single("wecom_proxy_replay_memory_bytes", "gauge", help, budget.memory_used());
        let help = "Limit of that memory: replay.memory.";
        text.write_single("wecom_proxy_replay_memory_limit_bytes", "gauge", help, budget.max_memory());
        let help = "Disk space used or reserved by request bodies kept for a retry.";
        text.write_single("wecom_proxy_replay_disk_bytes", "gauge", help, budget.disk_used());
        let help = "Limit of that disk space: replay.disk.";
        text.write_single("wecom_proxy_replay_disk_limit_bytes", "gauge", help, budget.max_disk());
    }

    fn write_state_metrics(&self, text: &mut TextEncoder) {
        let Some(state) = &self.state else { return };
        let help = "1 if the last access to the state succeeded, 0 if it failed.";
        let up = u8::from(state.last_error().is_none());
        text.write_single("wecom_proxy_state_up", "gauge", help, up);
        let help = "Changed records of the state that cannot be decrypted; what was before stays in force.";
        let unreadable = state.unreadable_records();
        text.write_single("wecom_proxy_state_unreadable_records", "gauge", help, unreadable);
    }

    fn write_suite_metrics(&self, text: &mut TextEncoder) {
        let directory = self.directory.load();
        let agents = directory.suites_and_providers().iter();
        let suites: Vec<_> = agents.filter_map(|agent| agent.suite()).collect();
        if suites.is_empty() {
            return;
        }
        let name = "wecom_proxy_suite_ticket_age_seconds";
        let help = "Age of the suite's newest suite_ticket; no sample without one.";
        let ages = suites
            .iter()
            .filter_map(|suite| Some(([("suite", suite.name())], suite.state.ticket.age()?.as_secs())));
        text.write_family(name, "gauge", help, ages);
        let counts: Vec<_> = suites.iter().map(|suite| (suite.name(), CorpCounts::of(suite))).collect();
        let name = "wecom_proxy_suite_corps";
        let totals = counts.iter().map(|(suite, counts)| ([("suite", suite)], counts.total));
        text.write_family(name, "gauge", "Authorised corps of the suite.", totals);
        let name = "wecom_proxy_suite_corps_refused";
        let help = "Corps of the suite whose permanent code WeCom refuses (40084, 48004).";
        let refused = counts.iter().map(|(suite, counts)| ([("suite", suite)], counts.refused));
        text.write_family(name, "gauge", help, refused);
    }

    fn write_token_metrics(&self, text: &mut TextEncoder, shared: &SharedCounts) {
        let name = "wecom_proxy_token_refreshes_total";
        let help = "gettoken calls by reason and result; shared: made by another replica.";
        let mut counts = BTreeMap::<_, u64>::new();
        for refreshes in blocking::in_slices(&shared.refreshes) {
            let result = if refreshes.succeeded { "ok" } else { "failed" };
            let agent = shared.labels.of(&refreshes.agent_name);
            *counts.entry((agent, refreshes.reason.as_str(), result)).or_default() += refreshes.count;
        }
        let counts = counts.into_iter().map(|((agent, reason, result), count)| {
            ([("agent", agent), ("reason", reason), ("result", result)], count)
        });
        text.write_family(name, "counter", help, counts);
        shared.write_gettoken_metrics(text);
        let name = "wecom_proxy_token_renewals_held";
        let help = "Agents whose token refresh is held back because the hourly budget is used up; others have no sample.";
        let mut held = BTreeMap::<_, u64>::new();
        for (agent, _) in blocking::in_slices(&shared.throttled) {
            *held.entry(shared.labels.of(agent)).or_default() += 1;
        }
        let held = held.into_iter().map(|(agent, count)| ([("agent", agent)], count));
        text.write_family(name, "gauge", help, held);
        let name = "wecom_proxy_token_expiry_timestamp_seconds";
        let help = "Expiry of the agent's token, in seconds since 1970; of several agents, the earliest.";
        text.begin_family(name, "gauge", help);
        let (directory, mut others) = (self.directory.load(), None);
        for agent in blocking::in_slices(directory.agents()) {
            let Some(expires_at) = agent.token.expires_at().map(unix_seconds) else { continue };
            match shared.labels.of(&agent.name) {
                OTHER_AGENTS => others = Some(others.map_or(expires_at, |earliest| expires_at.min(earliest))),
                agent => text.write_sample(name, &[("agent", agent)], expires_at),
            }
        }
        if let Some(expires_at) = others {
            text.write_sample(name, &[("agent", OTHER_AGENTS)], expires_at);
        }
    }
}
