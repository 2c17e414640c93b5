//! `/api/agents` and `/api/errcodes`.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    answer::{Body, json_response},
    epoch,
};
use crate::{directory::Agent, tokens::whole_seconds, wecom::errcode};

impl Admin {
    /// All agents and their tokens' health.
    pub(super) fn agents(&self) -> Response<Body> {
        let agents: Vec<_> = self.directory.load().agents().map(describe).collect();
        json_response(StatusCode::OK, &json!({ "agents": agents }))
    }
}

/// What the common errcodes mean, and what to do.
pub(super) fn errcodes() -> Response<Body> {
    let rows = errcode::all().iter().map(|row| {
        json!({
            "errcode": row.errcode,
            "en": { "meaning": row.meaning_en, "action": row.action_en, "place": row.place_en },
            "zh": { "meaning": row.meaning_zh, "action": row.action_zh, "place": row.place_zh },
        })
    });
    json_response(StatusCode::OK, &json!({ "errcodes": rows.collect::<Vec<_>>() }))
}

/// One agent and its token's health; times in seconds since 1970, or from now where they say so.
fn describe(agent: &Arc<Agent>) -> Value {
    let report = agent.slot.report();
    json!({
        "name": agent.name,
        "corpid": agent.corpid,
        "agentid": agent.agentid,
        "token": {
            "state": match (report.usable, report.dates) {
                (true, _) => "valid",
                (false, Some(_)) if report.refused => "refused",
                (false, Some(_)) => "expired",
                (false, None) => "none",
            },
            "first_seen": report.dates.map(|(first_seen, _)| epoch(first_seen)),
            "age_seconds": report.dates.map(|(first_seen, _)| first_seen.elapsed().map_or(0, |age| age.as_secs())),
            "expires_at": report.dates.map(|(_, expires_at)| epoch(expires_at)),
        },
        "last_renewal": report.last.map(|last| json!({
            "at": epoch(last.at),
            "reason": last.reason,
            "ok": last.failure.is_none(),
            "failure": last.failure,
        })),
        "inspected_until": agent.inspection.until().map(epoch),
        "failing": report.failing,
        "held": report.held,
        "next_try_in_seconds": whole_seconds(report.next_try_in),
    })
}
