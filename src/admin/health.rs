//! `/healthz` and `/readyz`.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    response::{AdminBody, json_response},
};
use crate::tokens::ceil_seconds;

impl Admin {
    /// `/healthz` fails only while the proxy is stopping; `/readyz` also if every requested agent fails and has no valid
    /// token. One agent's wrong secret must not take the others out of service, and a token that expired without
    /// requests is not a failure: the next request fetches another.
    pub(super) fn health(&self, ready: bool) -> Response<AdminBody> {
        let stopping = *self.stopping.borrow();
        let tokens: Vec<_> =
            self.directory.load().agents().map(|agent| (agent.name.clone(), agent.token.status())).collect();
        let mut requested = tokens.iter().filter(|(_, status)| status.requested).peekable();
        let tokenless = requested.peek().is_some()
            && requested.all(|(_, token)| {
                // When the backoff is over, the proxy must be ready: only a request makes the next attempt.
                let fails =
                    token.last_error.is_some() || (token.throttled && token.first_seen_and_expiry.is_none());
                !token.usable && fails && !token.next_try_in.is_zero()
            });
        let failing: serde_json::Map<_, _> = tokens
            .iter()
            .filter_map(|(name, token)| token.last_error.clone().map(|error| (name.clone(), error.into())))
            .collect();
        let throttled: serde_json::Map<_, _> = self
            .token_service
            .throttled_agents()
            .into_iter()
            .map(|(name, wait)| (name, json!({ "next_try_in_seconds": ceil_seconds(wait) })))
            .collect();
        let unready = ready && tokenless;
        let status = match (stopping, unready) {
            (true, _) => "shutting down",
            (_, true) => "no agent has a valid token",
            _ if !failing.is_empty() => "ok, but some agents fail",
            _ if !throttled.is_empty() => "ok, but some token refreshes are held back",
            _ => "ok",
        };
        let body = json!({
            "status": status,
            "agents": { "total": tokens.len(), "failing": failing, "held": throttled },
            "store": self.store_status(),
            "listeners": self.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        let unavailable = stopping || unready;
        json_response(if unavailable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, &body)
    }

    fn store_status(&self) -> Value {
        match (self.token_service.store().is_some(), self.token_service.store_error()) {
            (false, _) => json!({ "kind": "memory", "ok": true }),
            (true, None) => json!({ "kind": "redis", "ok": true }),
            (true, Some(error)) => json!({ "kind": "redis", "ok": false, "trouble": error }),
        }
    }
}
