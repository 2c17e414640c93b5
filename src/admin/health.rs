//! `/healthz` and `/readyz`.

use std::{sync::Arc, time::SystemTime};

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    agents::cancelled_message,
    response::{AdminBody, json_response},
    trouble::{Troubles, trouble_json},
};
use crate::{
    blocking,
    directory::{Agent, Directory, Suite},
    suites::MAX_TICKET_AGE,
    tokens::ceil_seconds,
};

/// Bounds the response; `/api/agents?trouble=1` lists all.
const MAX_LISTED_TROUBLES: usize = 100;

impl Admin {
    /// `/readyz`, with the agents in trouble.
    pub(super) async fn ready(self: Arc<Self>) -> Response<AdminBody> {
        let (troubles, _) = self.collect().await.unwrap_or_default();
        let troubles = blocking::spawn(move || Troubles::new(troubles)).await;
        self.health(true, &troubles.unwrap_or_default())
    }

    /// `/healthz` fails only while the proxy is stopping; `/readyz` also if every requested agent fails and has no valid
    /// token. One agent's wrong secret must not take the others out of service, and a token that expired without
    /// requests is not a failure: the next request fetches another.
    pub(super) fn health(&self, ready: bool, troubles: &Troubles) -> Response<AdminBody> {
        let stopping = *self.stopping.borrow();
        let directory = self.directory.load_full();
        let tokens: Vec<_> =
            directory.agents().map(|agent| (agent.name.clone(), agent.token.status())).collect();
        let mut requested = tokens.iter().filter(|(_, status)| status.requested).peekable();
        let tokenless = requested.peek().is_some()
            && requested.all(|(_, token)| {
                // When the backoff is over, the proxy must be ready: only a request makes the next attempt.
                let fails =
                    token.last_error.is_some() || (token.throttled && token.first_seen_and_expiry.is_none());
                !token.usable && fails && !token.next_try_in.is_zero()
            });
        let corps = CorpHealth::of(&directory);
        let tokenless = tokenless && !corps.has_usable;
        let in_trouble: serde_json::Map<_, _> = troubles
            .iter()
            .take(MAX_LISTED_TROUBLES)
            .map(|trouble| (trouble.agent.to_string(), trouble_json(Some(trouble))))
            .collect();
        let failing: serde_json::Map<_, _> = tokens
            .iter()
            .filter_map(|(name, token)| Some((name.to_string(), token.last_error.as_ref()?.english().into())))
            .chain(corps.failing)
            .collect();
        let throttled: serde_json::Map<_, _> = self
            .token_cache
            .throttled_agents()
            .into_iter()
            .map(|(name, wait)| (name, json!({ "next_try_in_seconds": ceil_seconds(wait) })))
            .collect();
        let unready = ready && tokenless;
        let (state, degraded) = (self.state_status(), self.suites_without_ticket());
        let status = match (stopping, unready) {
            (true, _) => "shutting down",
            (_, true) => "no agent has a valid token",
            _ if !self.last_reload.is_ok() => "ok, but the last reload failed",
            _ if !failing.is_empty() => "ok, but some agents fail",
            _ if !degraded.is_empty() => "ok, but a suite has no new suite_ticket",
            _ if state["ok"] == false => "ok, but the state fails",
            _ if !throttled.is_empty() => "ok, but some token refreshes are held back",
            _ => "ok",
        };
        let mut body = json!({
            "status": status,
            "degraded": degraded,
            "agents": { "total": tokens.len() + corps.total, "failing": failing, "held": throttled },
            "corps": { "total": corps.total, "failing": corps.failing_count },
            "store": self.store_status(),
            "state": state,
            "config": self.last_reload.to_json(),
            "listeners": self.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        if !in_trouble.is_empty() {
            body["trouble"] = in_trouble.into();
        }
        let unavailable = stopping || unready;
        json_response(if unavailable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, &body)
    }

    /// `null` without `[state]`. An error of the state does not make the proxy unready: it goes on forwarding.
    fn state_status(&self) -> Value {
        let Some(state) = &self.state else { return Value::Null };
        let unreadable = state.unreadable_records();
        let trouble = state.last_error().or_else(|| (unreadable > 0).then(|| unreadable_message(unreadable)));
        match trouble {
            None => json!({ "kind": state.kind(), "ok": true }),
            Some(trouble) => {
                json!({ "kind": state.kind(), "ok": false, "trouble": trouble, "unreadable": unreadable })
            }
        }
    }

    /// The suites whose newest suite_ticket is so old that WeCom's pushes do not arrive, or that have none.
    fn suites_without_ticket(&self) -> Vec<String> {
        let directory = self.directory.load();
        let suites = directory.suites_and_providers().iter().filter_map(|agent| agent.suite());
        let is_late = |suite: &&Arc<Suite>| suite.state.ticket.age().is_none_or(|age| age > MAX_TICKET_AGE);
        suites.filter(is_late).map(|suite| suite.name().to_owned()).collect()
    }

    fn store_status(&self) -> Value {
        match (self.token_cache.store().is_some(), self.token_cache.store_error()) {
            (false, _) => json!({ "kind": "memory", "ok": true }),
            (true, None) => json!({ "kind": "redis", "ok": true }),
            (true, Some(error)) => json!({ "kind": "redis", "ok": false, "trouble": error }),
        }
    }
}

/// The authorised corps, and the tokens of suites and providers.
#[derive(Default)]
struct CorpHealth {
    total: usize,
    failing_count: usize,
    /// The first [`MAX_LISTED_TROUBLES`] of those that fail, and why.
    failing: Vec<(String, Value)>,
    /// Whether a corp has a valid token.
    has_usable: bool,
}

impl CorpHealth {
    fn of(directory: &Directory) -> Self {
        let corps = directory.corps();
        let mut health = Self { total: corps.len(), ..Self::default() };
        let now = SystemTime::now();
        for corp in &corps {
            let failure = match directory.is_cancelled(corp) {
                true => Some(cancelled_message(corp).english().to_owned()),
                false => {
                    health.has_usable |= corp.token.expires_at().is_some_and(|end| end > now);
                    corp.token.last_failure().map(|failure| failure.to_string())
                }
            };
            health.failing_count += usize::from(failure.is_some());
            health.list(corp, failure);
        }
        for owner in directory.suites_and_providers() {
            health.list(owner, owner.token.last_failure().map(|failure| failure.to_string()));
        }
        health
    }

    fn list(&mut self, agent: &Agent, failure: Option<String>) {
        if let Some(failure) = failure.filter(|_| self.failing.len() < MAX_LISTED_TROUBLES) {
            self.failing.push((agent.name.to_string(), failure.into()));
        }
    }
}

fn unreadable_message(records: usize) -> String {
    format!(
        "{records} changed records cannot be decrypted, and what was before stays in force: another process writes under a \
         key that this one lacks, or they are damaged"
    )
}
