//! `/api/overview`: the last hour, for a page that draws it.

use std::{sync::Arc, time::SystemTime};

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::{
    Admin,
    answer::{Body, json_response},
    epoch, milliseconds,
};
use crate::metrics::{AgentsHour, LastHour, LastMinute};

impl Admin {
    /// The last hour.
    pub(super) async fn overview(self: Arc<Self>) -> Response<Body> {
        let (now, connections, in_flight) = (SystemTime::now(), self.server.connections(), self.in_flight());
        let metrics = self.metrics.clone();
        let hour = tokio::task::spawn_blocking(move || {
            metrics.collect(now);
            metrics.last_hour()
        });
        let LastHour { minutes, agents, clients, unlisted } = hour.await.unwrap_or_default();
        let agents: Vec<_> = agents.iter().map(|(name, hour)| tell_agent(name, hour)).collect();
        let clients: Vec<_> = clients
            .iter()
            .map(|(name, uses)| json!({ "name": named(name), "agents": uses.iter().map(|(agent, requests)| json!({ "name": named(agent), "requests": requests })).collect::<Vec<_>>() }))
            .collect();
        let body = json!({
            "at": epoch(now),
            "version": env!("CARGO_PKG_VERSION"),
            "tls": self.tls,
        "connections": connections,
            "in_flight": in_flight,
            "minutes": minutes.iter().map(tell_minute).collect::<Vec<_>>(),
            "agents": agents,
            "clients": clients,
            "unlisted_requests": unlisted,
        });
        json_response(StatusCode::OK, &body)
    }
}

fn tell_minute(minute: &LastMinute) -> Value {
    let quantile = |share| minute.durations.quantile(share).map(milliseconds);
    json!({
        "at": epoch(minute.at),
        "requests": minute.requests,
        "failed": minute.failed,
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
    })
}

fn tell_agent(name: &str, hour: &AgentsHour) -> Value {
    let errcodes: Map<_, _> =
        hour.errcodes.iter().map(|(errcode, count)| (errcode.to_string(), (*count).into())).collect();
    json!({ "name": named(name), "requests": hour.requests, "failed": hour.failed, "errcodes": errcodes })
}

/// A name, or null for what names nobody.
pub(super) fn named(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}
