//! What an operator may order: `POST /api/agents/NAME/refresh`, `POST /api/agents/NAME/inspect` and `POST /api/reload`.

use std::{sync::Arc, time::Duration};

use http::{Response, StatusCode};
use serde_json::json;

use super::{
    Admin,
    response::{AdminBody, error_response, json_response},
    unix_seconds,
};
use crate::{config::parse_duration, tokens::ceil_seconds};

/// Nobody looks into an agent's exchanges for longer than this without saying so again.
const MAX_INSPECT_DURATION: Duration = Duration::from_secs(3600);

/// An order, by where it is posted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// Renew this agent's token.
    Refresh(&'a str),
    /// Keep what this agent's exchanges look like.
    Inspect(&'a str),
    /// Read the configuration again.
    Reload,
}

impl<'a> Action<'a> {
    /// The order of this path, if it is one.
    pub(super) fn from_path(path: &'a str) -> Option<Self> {
        if path == "/api/reload" {
            return Some(Self::Reload);
        }
        match path.strip_prefix("/api/agents/")?.rsplit_once('/')? {
            (agent, "refresh") => Some(Self::Refresh(agent)),
            (agent, "inspect") => Some(Self::Inspect(agent)),
            _ => None,
        }
    }
}

/// Reads the configuration again; where that fails, what is wrong with it.
pub type ReloadFn = Box<dyn Fn() -> Result<ReloadReport, String> + Send + Sync>;

/// What a reload brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadReport {
    /// How many agents there are now.
    pub agents: usize,
    /// How many clients there are now.
    pub clients: usize,
    /// The sections that have changed and whose change needs a restart.
    pub needs_restart: Vec<&'static str>,
    /// What works but should not stay so.
    pub warnings: Vec<String>,
}

impl Admin {
    /// Does what was ordered, and says how it went.
    pub(super) async fn handle_action(
        self: Arc<Self>,
        order: Action<'_>,
        query: Option<&str>,
    ) -> Response<AdminBody> {
        match order {
            Action::Refresh(agent) => self.refresh(agent).await,
            Action::Inspect(agent) => self.inspect(agent, query),
            Action::Reload => self.reload().await,
        }
    }

    /// Keeps what an agent's exchanges look like, for as long as the query says.
    fn inspect(&self, name: &str, query: Option<&str>) -> Response<AdminBody> {
        let Some(agent) = self.directory.load().agent(name, None).cloned() else {
            return error_response(StatusCode::NOT_FOUND, "there is no agent of this name");
        };
        let asked = query.and_then(|query| query.strip_prefix("for=")).and_then(parse_duration);
        let Some(how_long) = asked.filter(|asked| *asked <= MAX_INSPECT_DURATION) else {
            let words = "say for how long: ?for=10m, at most 1h; ?for=0s ends it";
            return error_response(StatusCode::BAD_REQUEST, words);
        };
        agent.capture_switch.enable_for(how_long);
        tracing::info!(agent = agent.name, seconds = how_long.as_secs(), "an operator looks into exchanges");
        let until = agent.capture_switch.until().map(unix_seconds);
        json_response(StatusCode::OK, &json!({ "ok": true, "agent": agent.name, "inspected_until": until }))
    }

    /// Renews an agent's token, whatever failed before.
    async fn refresh(&self, name: &str) -> Response<AdminBody> {
        let Some(agent) = self.directory.load().agent(name, None).cloned() else {
            return error_response(StatusCode::NOT_FOUND, "there is no agent of this name");
        };
        let before = agent.token.status().first_seen_and_expiry;
        tracing::info!(agent = agent.name, "an operator asks for a new token");
        match agent.token.force_refresh().await {
            Ok(token) => {
                let same = before.is_some_and(|(first_seen, _)| first_seen == token.first_seen);
                let body = json!({
                    "ok": true,
                    "agent": agent.name,
                    // WeCom hands out the same one as long as it serves.
                    "same_token": same,
                    "expires_at": unix_seconds(token.expires_at),
                });
                json_response(StatusCode::OK, &body)
            }
            Err(failure) => {
                let body = json!({
                    "ok": false,
                    "agent": agent.name,
                    "failure": failure.to_string(),
                    "next_try_in_seconds": ceil_seconds(agent.token.next_try_in()),
                });
                json_response(StatusCode::BAD_GATEWAY, &body)
            }
        }
    }

    /// Reads the configuration again.
    async fn reload(self: Arc<Self>) -> Response<AdminBody> {
        let admin = self.clone();
        let reloaded = tokio::task::spawn_blocking(move || (admin.reload)()).await;
        match reloaded.unwrap_or_else(|_| Err("the reload broke off".to_owned())) {
            Ok(ReloadReport { agents, clients, needs_restart: restart, warnings }) => {
                let body = json!({
                    "ok": true,
                    "agents": agents,
                    "clients": clients,
                    "needs_restart": restart,
                    "warnings": warnings,
                });
                json_response(StatusCode::OK, &body)
            }
            Err(failure) => {
                let body = json!({ "ok": false, "failure": failure });
                json_response(StatusCode::UNPROCESSABLE_ENTITY, &body)
            }
        }
    }
}
