//! Actions: `POST /api/agents/NAME/refresh`, `POST /api/agents/NAME/inspect`, `POST /api/requests/replay` and
//! `POST /api/reload`.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::{
    Admin,
    error::{AdminResult, ApiError},
    response::json_response,
    unix_seconds,
};
use crate::{
    blocking,
    config::parse_duration,
    directory::Agent,
    text,
    text::{Language, Text},
    tokens::ceil_seconds,
};

/// Bounds the duration of a capture, because exchanges may contain personal data.
const MAX_INSPECT_DURATION: Duration = Duration::from_secs(3600);

/// An action, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// Refresh this agent's token.
    Refresh(&'a str),
    /// Capture headers and bodies of this agent's exchanges.
    Inspect(&'a str),
    /// Reload the configuration.
    Reload,
    /// Send a recorded request again.
    Replay,
}

impl<'a> Action<'a> {
    /// The action of a path.
    pub(super) fn from_path(path: &'a str) -> Option<Self> {
        match path {
            "/api/reload" => return Some(Self::Reload),
            "/api/requests/replay" => return Some(Self::Replay),
            _ => {}
        }
        match path.strip_prefix("/api/agents/")?.rsplit_once('/')? {
            (agent, "refresh") => Some(Self::Refresh(agent)),
            (agent, "inspect") => Some(Self::Inspect(agent)),
            _ => None,
        }
    }
}

/// Reloads the configuration; the error is its text.
pub type ReloadFn = Box<dyn Fn() -> Result<ReloadReport, Text> + Send + Sync>;

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadReport {
    /// The number of agents.
    pub agents: usize,
    /// The number of clients.
    pub clients: usize,
    /// The changed sections that need a restart.
    pub needs_restart: Vec<&'static str>,
    /// Warnings about settings that are valid but not advisable.
    pub warnings: Vec<Text>,
}

impl Admin {
    /// Performs an action and returns its result.
    pub(super) async fn handle_action(
        self: Arc<Self>,
        action: Action<'_>,
        query: Option<&str>,
    ) -> AdminResult {
        let decoded = |name: &str| percent_decode_str(name).decode_utf8_lossy().into_owned();
        match action {
            Action::Refresh(agent) => self.refresh(&decoded(agent)).await,
            Action::Inspect(agent) => self.inspect(&decoded(agent), query),
            Action::Reload => self.reload().await,
            Action::Replay => self.replay(query).await,
        }
    }

    /// Captures headers and bodies of an agent's exchanges for the duration in the query.
    fn inspect(&self, name: &str, query: Option<&str>) -> AdminResult {
        let agent = self.agent_named(name)?;
        let duration = query.and_then(|query| query.strip_prefix("for=")).and_then(parse_duration);
        let Some(duration) = duration.filter(|duration| *duration <= MAX_INSPECT_DURATION) else {
            let message = "set the duration: ?for=10m, at most 1h; ?for=0s disables the capture";
            return Err(ApiError::bad_request(message));
        };
        agent.capture_switch.enable_for(duration);
        tracing::info!(agent = &*agent.name, seconds = duration.as_secs(), "capture enabled");
        let until = agent.capture_switch.until().map(unix_seconds);
        let body = json!({ "ok": true, "agent": agent.name, "inspected_until": until });
        Ok(json_response(StatusCode::OK, &body))
    }

    /// Refreshes an agent's token, even during a backoff.
    async fn refresh(&self, name: &str) -> AdminResult {
        let agent = self.agent_named(name)?;
        let before = agent.token.status().first_seen_and_expiry;
        tracing::info!(agent = &*agent.name, "manual token refresh");
        Ok(match agent.token.force_refresh().await {
            Ok(token) => {
                let same = before.is_some_and(|(first_seen, _)| first_seen == token.first_seen());
                let body = json!({
                    "ok": true,
                    "agent": agent.name,
                    // WeCom returns the same token while it is valid.
                    "same_token": same,
                    "expires_at": unix_seconds(token.expires_at()),
                });
                json_response(StatusCode::OK, &body)
            }
            Err(error) => {
                let body = json!({
                    "ok": false,
                    "agent": agent.name,
                    "failure": error.to_string(),
                    "failure_zh": error.text().get(Language::Chinese),
                    "next_try_in_seconds": ceil_seconds(agent.token.next_try_in()),
                });
                json_response(StatusCode::BAD_GATEWAY, &body)
            }
        })
    }

    fn agent_named(&self, name: &str) -> Result<Arc<Agent>, ApiError> {
        let agent = self.directory.load().find_agent(name);
        agent.ok_or_else(|| ApiError::not_found("there is no agent of this name"))
    }

    /// Reloads the configuration on another thread.
    async fn reload(self: Arc<Self>) -> AdminResult {
        let admin = self.clone();
        let reloaded = blocking::spawn(move || (admin.reload)()).await;
        Ok(match reloaded.unwrap_or_else(|_| Err(text!("reload panicked", "重新加载时程序崩溃"))) {
            Ok(ReloadReport { agents, clients, needs_restart, warnings }) => {
                let texts = |language| warnings.iter().map(|text| text.get(language)).collect::<Vec<_>>();
                let body = json!({
                    "ok": true,
                    "agents": agents,
                    "clients": clients,
                    "needs_restart": needs_restart,
                    "warnings": texts(Language::English),
                    "warnings_zh": texts(Language::Chinese),
                });
                json_response(StatusCode::OK, &body)
            }
            Err(error) => {
                let body = json!({
                    "ok": false,
                    "failure": error.english(),
                    "failure_zh": error.get(Language::Chinese),
                });
                json_response(StatusCode::UNPROCESSABLE_ENTITY, &body)
            }
        })
    }
}
