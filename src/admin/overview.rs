//! `/api/overview`: the statistics of the last hour and the limits in use, for the dashboard.

use std::{cmp::Reverse, sync::Arc, time::SystemTime};

use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    Admin,
    error::{AdminResult, ApiError},
    milliseconds,
    query::parameters,
    response::json_response,
    unix_seconds,
};
use crate::{
    blocking,
    directory::Agent,
    proxy::UpstreamSettings,
    telemetry::metrics::{AgentStats, ClientStats, FailureCounts, HourStats, MinuteStats},
};

/// Rows that are made between two yields of the CPU.
const MAX_ROWS: usize = 4;
/// The agents listed of each client, where the clients are limited.
const MAX_AGENTS_PER_CLIENT: usize = 20;

/// What to leave out.
#[derive(Debug, Default, PartialEq, Eq)]
struct OverviewQuery {
    without_agents: bool,
    /// Lists only so many clients, those with the most requests.
    max_clients: Option<usize>,
}

impl OverviewQuery {
    fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in parameters(query) {
            match (name, &*value) {
                ("agents", "0") => parsed.without_agents = true,
                ("clients", value) => {
                    let max = value.parse().map_err(|_| "clients: write a number like 50".to_owned())?;
                    parsed.max_clients = Some(max);
                }
                _ => return Err("unknown parameter; use agents=0 or clients".to_owned()),
            }
        }
        Ok(parsed)
    }
}

impl Admin {
    /// The statistics of the last hour.
    pub(super) async fn overview(self: Arc<Self>, query: Option<&str>) -> AdminResult {
        let query = OverviewQuery::parse(query).map_err(ApiError::bad_request)?;
        let (_, hour) = self.collect().await?;
        let response = blocking::run_in_background(move || {
            json_response(StatusCode::OK, &self.overview_json(&query, SystemTime::now(), &hour.stats()))
        });
        Ok(response.await?)
    }

    fn overview_json(&self, query: &OverviewQuery, now: SystemTime, hour: &HourStats) -> Value {
        let mut json = json!({
            "at": unix_seconds(now),
            "started_at": unix_seconds(self.started_at),
            "version": env!("CARGO_PKG_VERSION"),
            "host": host_name(),
            "replica": self.replica,
            "tls": self.tls,
            "connections": self.server.open_connections(),
            "in_flight": self.in_flight(),
            "limits": self.limits_json(),
            "minutes": hour.minutes.iter().map(minute_json).collect::<Vec<_>>(),
            "clients": self.clients_json(query.max_clients, hour),
            "client_count": hour.clients.len(),
            "unlisted_requests": hour.unlisted_requests,
        });
        if !query.without_agents {
            let agents = blocking::in_slices_of(MAX_ROWS, &hour.agents).map(|(name, hour)| {
                let AgentStats { requests, failures, .. } = hour;
                json!({ "name": non_empty(name), "requests": requests, "failed": failures.total(), "errcodes": errcodes_json(hour) })
            });
            json["agents"] = agents.collect();
        }
        json
    }

    /// How much of each limit is in use.
    fn limits_json(&self) -> Value {
        let limit = |name: &str, upstream: Option<&str>, used: u64, max: u64| json!({ "name": name, "upstream": upstream, "used": used, "max": max });
        let budget = &self.settings.replay_budget;
        let connections = (self.server.open_connections() as u64, self.server.max_connections() as u64);
        let mut limits = vec![
            limit("server.max_connections", None, connections.0, connections.1),
            limit("replay.memory", None, budget.memory_used(), budget.max_memory()),
            limit("replay.disk", None, budget.disk_used(), budget.max_disk()),
        ];
        let (renewals, max_renewals) = self.token_cache.refresh_budget_usage();
        limits.push(limit("tokens.renewals_per_hour", None, renewals as u64, max_renewals as u64));
        for UpstreamSettings { connections, in_flight, .. } in &self.settings.upstreams {
            let (name, max) = (Some(connections.id().label()), in_flight.max_permits() as u64);
            limits.push(limit("upstream.max_in_flight", name, in_flight.in_use() as u64, max));
            limits.push(limit("queue", name, in_flight.queued() as u64, max));
        }
        limits.into()
    }

    fn clients_json(&self, max: Option<usize>, hour: &HourStats) -> Value {
        let total = |client: &ClientStats| client.requests_by_agent.values().sum::<u64>();
        let mut clients: Vec<_> = hour.clients.iter().collect();
        if let Some(max) = max {
            clients.sort_by_key(|(_, client)| Reverse(total(client)));
            clients.truncate(max);
        }
        let max_agents = max.map_or(usize::MAX, |_| MAX_AGENTS_PER_CLIENT);
        let directory = self.directory.load();
        let clients = blocking::in_slices_of(MAX_ROWS, clients).map(|(name, client)| {
            let limiter = directory.client_by_name(name).and_then(|client| client.rate_limiter.as_ref());
            let mut agents: Vec<_> = client.requests_by_agent.iter().collect();
            agents.sort_by_key(|(_, requests)| Reverse(**requests));
            agents.truncate(max_agents);
            let agents = agents
                .into_iter()
                .map(|(agent, requests)| json!({ "name": non_empty(agent), "requests": requests }));
            let mut json = failures_json(total(client), &client.failures);
            json["name"] = non_empty(name).into();
            json["agents"] = agents.collect();
            json["agent_count"] = client.requests_by_agent.len().into();
            json["last_minute"] = client.last_minute.map(unix_seconds).into();
            json["limit"] = limiter.map(|limiter| limiter.limit().to_string()).into();
            json["limit_used_ratio"] = limiter.map(|limiter| limiter.used_ratio(Instant::now())).into();
            json
        });
        clients.collect()
    }
}

fn minute_json(minute: &MinuteStats) -> Value {
    let quantile = |q| minute.durations.quantile(q).map(milliseconds);
    let bounds = |q| {
        let bounds = minute.durations.quantile_bounds(q);
        bounds.map(|(lower, upper)| [Some(milliseconds(lower)), upper.map(milliseconds)])
    };
    let mut json = failures_json(minute.requests, &minute.failures);
    json["at"] = unix_seconds(minute.started_at).into();
    json["p50_ms"] = quantile(0.5).into();
    json["p99_ms"] = quantile(0.99).into();
    json["p50_bounds_ms"] = json!(bounds(0.5));
    json["p99_bounds_ms"] = json!(bounds(0.99));
    json
}

/// The last hour of an agent; that of a corp that counts as its suite is not known.
pub(super) fn hour_of<'a>(agent: &Agent, hour: &'a HourStats) -> Option<&'a AgentStats> {
    hour.agents.get(&*agent.name).filter(|_| !agent.is_unnamed_corp())
}

pub(super) fn agent_stats_json(hour: &AgentStats) -> Value {
    let mut json = failures_json(hour.requests, &hour.failures);
    json["errcodes"] = errcodes_json(hour).into();
    json
}

fn errcodes_json(hour: &AgentStats) -> Map<String, Value> {
    hour.errcodes.iter().map(|(errcode, count)| (errcode.to_string(), (*count).into())).collect()
}

/// Requests, and the failed ones by class.
fn failures_json(requests: u64, failures: &FailureCounts) -> Value {
    json!({
        "requests": requests,
        "failed": failures.total(),
        "outage": failures.outage,
        "refused": failures.refused,
        "wecom": failures.wecom,
        "caller": failures.caller,
    })
}

/// The name, or `None` for an empty one, which means without agent or client.
fn non_empty(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

/// The name of this machine or container.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overview_query_is_parsed_or_refused() {
        let parsed = OverviewQuery::parse(Some("agents=0&clients=7"));
        assert_eq!(parsed, Ok(OverviewQuery { without_agents: true, max_clients: Some(7) }));
        assert_eq!(OverviewQuery::parse(None), Ok(OverviewQuery::default()));
        for invalid in ["agents=1", "clients=", "clients=x", "minutes=5"] {
            assert!(OverviewQuery::parse(Some(invalid)).is_err(), "{invalid}");
        }
    }
}
