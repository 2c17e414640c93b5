//! `/api/agents` and `/api/errcodes`.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    response::{AdminBody, json_response},
    unix_seconds,
};
use crate::{directory::Agent, tokens::ceil_seconds, wecom::errcode};

impl Admin {
    /// All agents with the state of their tokens.
    pub(super) fn agents(&self) -> Response<AdminBody> {
        let agents: Vec<_> = self.directory.load().agents().map(agent_json).collect();
        json_response(StatusCode::OK, &json!({ "agents": agents }))
    }
}

/// The explanations of common errcodes.
pub(super) fn errcodes() -> Response<AdminBody> {
    let explanations = errcode::explanations().iter().map(|explanation| {
        json!({
            "errcode": explanation.errcode,
            "en": { "meaning": explanation.meaning_en, "action": explanation.action_en, "place": explanation.console_path_en },
            "zh": { "meaning": explanation.meaning_zh, "action": explanation.action_zh, "place": explanation.console_path_zh },
        })
    });
    json_response(StatusCode::OK, &json!({ "errcodes": explanations.collect::<Vec<_>>() }))
}

/// An agent with the state of its token; times in seconds since 1970, `next_try_in_seconds` from now.
fn agent_json(agent: &Arc<Agent>) -> Value {
    let status = agent.token.status();
    json!({
        "name": agent.name,
        "corpid": agent.corpid,
        "agentid": agent.agentid,
        "token": {
            "state": match (status.usable, status.first_seen_and_expiry) {
                (true, _) => "valid",
                (false, Some(_)) if status.refused => "refused",
                (false, Some(_)) => "expired",
                (false, None) => "none",
            },
            "first_seen": status.first_seen_and_expiry.map(|(first_seen, _)| unix_seconds(first_seen)),
            "age_seconds": status.first_seen_and_expiry.map(|(first_seen, _)| first_seen.elapsed().map_or(0, |age| age.as_secs())),
            "expires_at": status.first_seen_and_expiry.map(|(_, expires_at)| unix_seconds(expires_at)),
        },
        "last_renewal": status.last_refresh.map(|last| json!({
            "at": unix_seconds(last.completed_at),
            "reason": last.reason,
            "ok": last.error.is_none(),
            "failure": last.error,
        })),
        "inspected_until": agent.capture_switch.until().map(unix_seconds),
        "failing": status.last_error,
        "held": status.throttled,
        "next_try_in_seconds": ceil_seconds(status.next_try_in),
    })
}
