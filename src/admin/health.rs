//! `/healthz` and `/readyz`.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    response::{AdminBody, json_response},
};
use crate::tokens::ceil_seconds;

impl Admin {
    /// Well unless the proxy is stopping; ready unless, besides, every agent that was asked for fails and has no token
    /// that serves. One agent's bad secret must not take the others out of service, and a token that ran out while
    /// nobody asked is no failure: whoever asks next gets another.
    pub(super) fn health(&self, ready: bool) -> Response<AdminBody> {
        let stopping = *self.stopping.borrow();
        let reports: Vec<_> =
            self.directory.load().agents().map(|agent| (agent.name.clone(), agent.token.status())).collect();
        let mut asked_for = reports.iter().filter(|(_, report)| report.requested).peekable();
        let tokenless = asked_for.peek().is_some()
            && asked_for.all(|(_, report)| {
                // Once it is time for another try only a request can make it, and none comes to who is not ready.
                let fails = report.last_error.is_some()
                    || (report.throttled && report.first_seen_and_expiry.is_none());
                !report.usable && fails && !report.next_try_in.is_zero()
            });
        let failing: serde_json::Map<_, _> = reports
            .iter()
            .filter_map(|(name, report)| {
                report.last_error.clone().map(|failure| (name.clone(), failure.into()))
            })
            .collect();
        let held: serde_json::Map<_, _> = self
            .token_service
            .throttled_agents()
            .into_iter()
            .map(|(name, wait)| (name, json!({ "next_try_in_seconds": ceil_seconds(wait) })))
            .collect();
        let unready = ready && tokenless;
        let status = match (stopping, unready) {
            (true, _) => "shutting down",
            (_, true) => "no agent has a token that serves",
            _ if !failing.is_empty() => "ok, but some agents fail",
            _ if !held.is_empty() => "ok, but some renewals are held back",
            _ => "ok",
        };
        let body = json!({
            "status": status,
            "agents": { "total": reports.len(), "failing": failing, "held": held },
            "store": self.store_status(),
            "listeners": self.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        let unwell = stopping || unready;
        json_response(if unwell { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, &body)
    }

    fn store_status(&self) -> Value {
        match (self.token_service.store().is_some(), self.token_service.store_error()) {
            (false, _) => json!({ "kind": "memory", "ok": true }),
            (true, None) => json!({ "kind": "redis", "ok": true }),
            (true, Some(trouble)) => json!({ "kind": "redis", "ok": false, "trouble": trouble }),
        }
    }
}
