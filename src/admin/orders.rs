//! What an operator may order: `POST /api/agents/NAME/refresh` and `POST /api/reload`.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::json;

use super::{
    Admin,
    answer::{Body, json_response, problem},
    epoch,
};

/// Reads the configuration again; where that fails, what is wrong with it.
pub type Reload = Box<dyn Fn() -> Result<Reloaded, String> + Send + Sync>;

/// What a reload brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// How many agents there are now.
    pub agents: usize,
    /// How many clients there are now.
    pub clients: usize,
    /// The sections that have changed and whose change needs a restart.
    pub restart: Vec<&'static str>,
    /// What works but should not stay so.
    pub warnings: Vec<String>,
}

impl Admin {
    /// Renews an agent's token, whatever failed before.
    pub(super) async fn refresh(&self, name: &str) -> Response<Body> {
        let Some(agent) = self.directory.load().agent(name, None).cloned() else {
            return problem(StatusCode::NOT_FOUND, "there is no agent of this name");
        };
        let before = agent.slot.report().dates;
        tracing::info!(agent = agent.name, "an operator asks for a new token");
        match agent.slot.refresh().await {
            Ok(token) => {
                let same = before.is_some_and(|(first_seen, _)| first_seen == token.first_seen);
                let body = json!({
                    "ok": true,
                    "agent": agent.name,
                    // WeCom hands out the same one as long as it serves.
                    "same_token": same,
                    "expires_at": epoch(token.expires_at),
                });
                json_response(StatusCode::OK, &body)
            }
            Err(failure) => {
                let body = json!({
                    "ok": false,
                    "agent": agent.name,
                    "failure": failure.to_string(),
                    "next_try_in_seconds": agent.slot.report().next_try_in.as_secs(),
                });
                json_response(StatusCode::BAD_GATEWAY, &body)
            }
        }
    }

    /// Reads the configuration again.
    pub(super) async fn reload(self: Arc<Self>) -> Response<Body> {
        let admin = self.clone();
        let reloaded = tokio::task::spawn_blocking(move || (admin.reload)()).await;
        match reloaded.unwrap_or_else(|_| Err("the reload broke off".to_owned())) {
            Ok(Reloaded { agents, clients, restart, warnings }) => {
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
