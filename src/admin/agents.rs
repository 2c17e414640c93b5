//! `/api/agents` and `/api/errcodes`.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    agent_list::ListQuery,
    error::{AdminResult, ApiError},
    overview::{agent_stats_json, hour_of},
    response::{AdminBody, json_response},
    trouble::{Troubles, explanation_json, trouble_json},
    unix_seconds,
};
use crate::{
    blocking,
    directory::{Agent, Directory},
    format_text,
    telemetry::metrics::HourStats,
    text::{Language, Text},
    tokens::{TokenStatus, ceil_seconds},
    wecom::errcode,
};

impl Admin {
    /// A page of agents with the state of their tokens, their last hour and their trouble; `next` is the `after` of the
    /// next page.
    pub(super) async fn agents(self: Arc<Self>, query: Option<&str>) -> AdminResult {
        let query = ListQuery::parse(query).map_err(ApiError::bad_request)?;
        let (troubles, hour) = self.collect().await?;
        // A search can look at very many agents.
        let response = blocking::run_in_background(move || {
            let (directory, troubles, hour) =
                (self.directory.load_full(), Troubles::new(troubles), hour.stats());
            let page = query.page(&directory, &troubles, &hour);
            page.response("agents", |agent| listed_agent_json(agent, &directory, &troubles, &hour))
        });
        Ok(response.await?)
    }
}

fn listed_agent_json(agent: &Agent, directory: &Directory, troubles: &Troubles, hour: &HourStats) -> Value {
    let mut json = corp_row_json(agent, directory);
    json["hour"] = hour_of(agent, hour).map_or(Value::Null, agent_stats_json);
    json["trouble"] = trouble_json(troubles.of(&agent.name));
    json
}

/// What is wrong with a corp that the file names and that cancelled, and what to do.
pub(super) fn cancelled_message(agent: &Agent) -> Text {
    let origin = &agent.origin;
    format_text!(
        "the corp withdrew its authorisation (cancel_auth) and is gone; take it out of the file ({origin}), write its new \
         permanent_code there, or have the application installed again",
        "该企业已取消授权（cancel_auth），不再可用；请从文件中删除它（{origin}），在其中写入新的永久授权码，或重新安装应用"
    )
}

/// The same as [`agent_json`]; of a corp that cancelled, it says so.
pub(super) fn corp_row_json(agent: &Agent, directory: &Directory) -> Value {
    let mut json = agent_json(agent);
    if directory.is_cancelled(agent) {
        json["cancelled"] = true.into();
        let message = cancelled_message(agent);
        json["failing"] = message.english().into();
        json["failing_zh"] = message.get(Language::Chinese).into();
    }
    json
}

/// The explanations of common errcodes.
pub(super) fn errcodes() -> Response<AdminBody> {
    let explanations = errcode::explanations().iter().map(|explanation| {
        let [english, chinese] = explanation_json(explanation);
        json!({ "errcode": explanation.errcode, "en": english, "zh": chinese })
    });
    json_response(StatusCode::OK, &json!({ "errcodes": explanations.collect::<Vec<_>>() }))
}

/// An agent with the state of its token; times in seconds since 1970, `next_try_in_seconds` from now.
pub(super) fn agent_json(agent: &Agent) -> Value {
    let status = agent.token.status();
    json!({
        "name": agent.name,
        "corpid": agent.corpid,
        "agentid": agent.settings.agentid,
        "upstream": agent.upstream.name(),
        "origin": agent.origin.to_string(),
        "token": token_json(&status),
        "last_renewal": status.last_refresh.map(|last| json!({
            "at": unix_seconds(last.completed_at),
            "reason": last.reason.as_str(),
            "ok": last.error.is_none(),
            "failure": last.error,
        })),
        "inspected_until": agent.capture_switch.until().map(unix_seconds),
        "failing": status.last_error.as_ref().map(Text::english),
        "failing_zh": status.last_error.as_ref().map(|error| error.get(Language::Chinese)),
        "held": status.throttled,
        "next_try_in_seconds": ceil_seconds(status.next_try_in),
    })
}

/// The state of a token; times in seconds since 1970.
fn token_json(status: &TokenStatus) -> Value {
    json!({
        "state": match (status.usable, status.first_seen_and_expiry) {
            (true, _) => "valid",
            (false, Some(_)) if status.refused => "refused",
            (false, Some(_)) => "expired",
            (false, None) => "none",
        },
        "first_seen": status.first_seen_and_expiry.map(|(first_seen, _)| unix_seconds(first_seen)),
        "age_seconds": status.first_seen_and_expiry.map(|(first_seen, _)| first_seen.elapsed().map_or(0, |age| age.as_secs())),
        "expires_at": status.first_seen_and_expiry.map(|(_, expires_at)| unix_seconds(expires_at)),
    })
}
