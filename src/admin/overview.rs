//! `/api/overview`: the statistics of the last hour, for the dashboard.

use std::{sync::Arc, time::SystemTime};

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::{
    Admin, milliseconds,
    response::{AdminBody, json_response},
    unix_seconds,
};
use crate::telemetry::metrics::{AgentStats, HourStats, MinuteStats};

impl Admin {
    /// The statistics of the last hour.
    pub(super) async fn overview(self: Arc<Self>) -> Response<AdminBody> {
        let (now, connections, in_flight) =
            (SystemTime::now(), self.server.open_connections(), self.in_flight());
        let metrics = self.metrics.clone();
        let hour = tokio::task::spawn_blocking(move || {
            metrics.collect(now);
            metrics.last_hour()
        });
        let HourStats { minutes, agents, clients, unlisted_requests } = hour.await.unwrap_or_default();
        let agents: Vec<_> = agents.iter().map(|(name, hour)| agent_stats_json(name, hour)).collect();
        let clients: Vec<_> = clients
            .iter()
            .map(|(name, requests_by_agent)| json!({ "name": non_empty(name), "agents": requests_by_agent.iter().map(|(agent, requests)| json!({ "name": non_empty(agent), "requests": requests })).collect::<Vec<_>>() }))
            .collect();
        let body = json!({
            "at": unix_seconds(now),
            "version": env!("CARGO_PKG_VERSION"),
            "tls": self.tls,
            "connections": connections,
            "in_flight": in_flight,
            "minutes": minutes.iter().map(minute_json).collect::<Vec<_>>(),
            "agents": agents,
            "clients": clients,
            "unlisted_requests": unlisted_requests,
        });
        json_response(StatusCode::OK, &body)
    }
}

fn minute_json(minute: &MinuteStats) -> Value {
    let quantile = |q| minute.durations.quantile(q).map(milliseconds);
    json!({
        "at": unix_seconds(minute.started_at),
        "requests": minute.requests,
        "failed": minute.failed,
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
    })
}

fn agent_stats_json(name: &str, hour: &AgentStats) -> Value {
    let errcodes: Map<_, _> =
        hour.errcodes.iter().map(|(errcode, count)| (errcode.to_string(), (*count).into())).collect();
    json!({ "name": non_empty(name), "requests": hour.requests, "failed": hour.failed, "errcodes": errcodes })
}

/// The name, or `None` for an empty one, which means without agent or client.
pub(super) fn non_empty(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}
