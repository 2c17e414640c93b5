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
    /// All agents and their tokens' health.
    pub(super) fn agents(&self) -> Response<AdminBody> {
        let agents: Vec<_> = self.directory.load().agents().map(agent_json).collect();
        json_response(StatusCode::OK, &json!({ "agents": agents }))
    }
}

/// What the common errcodes mean, and what to do.
pub(super) fn errcodes() -> Response<AdminBody> {
    let rows = errcode::explanations().iter().map(|row| {
        json!({
            "errcode": row.errcode,
            "en": { "meaning": row.meaning_en, "action": row.action_en, "place": row.console_path_en },
            "zh": { "meaning": row.meaning_zh, "action": row.action_zh, "place": row.console_path_zh },
        })
    });
    json_response(StatusCode::OK, &json!({ "errcodes": rows.collect::<Vec<_>>() }))
}

/// One agent and its token's health; times in seconds since 1970, or from now where they say so.
fn agent_json(agent: &Arc<Agent>) -> Value {
    let report = agent.token.status();
    json!({
        "name": agent.name,
        "corpid": agent.corpid,
        "agentid": agent.agentid,
        "token": {
            "state": match (report.usable, report.first_seen_and_expiry) {
                (true, _) => "valid",
                (false, Some(_)) if report.refused => "refused",
                (false, Some(_)) => "expired",
                (false, None) => "none",
            },
            "first_seen": report.first_seen_and_expiry.map(|(first_seen, _)| unix_seconds(first_seen)),
            "age_seconds": report.first_seen_and_expiry.map(|(first_seen, _)| first_seen.elapsed().map_or(0, |age| age.as_secs())),
            "expires_at": report.first_seen_and_expiry.map(|(_, expires_at)| unix_seconds(expires_at)),
        },
        "last_renewal": report.last_refresh.map(|last| json!({
            "at": unix_seconds(last.completed_at),
            "reason": last.reason,
            "ok": last.error.is_none(),
            "failure": last.error,
        })),
        "inspected_until": agent.capture_switch.until().map(unix_seconds),
        "failing": report.last_error,
        "held": report.throttled,
        "next_try_in_seconds": ceil_seconds(report.next_try_in),
    })
}
