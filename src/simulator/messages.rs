//! Messages: validated for the common mistakes of callers, then stored.

use serde_json::Value;

use super::random;
use super::recorder::RecordedMessage;
use super::response::ErrcodeJson;
use super::routes::{ApiRequest, HandlerResult};
use super::state::State;

const APP_MESSAGE_TYPES: &[&str] = &[
    "text",
    "image",
    "voice",
    "video",
    "file",
    "textcard",
    "news",
    "mpnews",
    "markdown",
    "miniprogram_notice",
    "template_card",
];
const WEBHOOK_MESSAGE_TYPES: &[&str] =
    &["text", "markdown", "markdown_v2", "image", "news", "file", "voice", "template_card"];

/// `message/send`. Unknown userids are named in `invaliduser`, and the message counts as sent.
pub(super) fn send(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let message = parse(request, APP_MESSAGE_TYPES)?;
    let non_empty = |key: &str| message[key].as_str().is_some_and(|text| !text.is_empty());
    if !["touser", "toparty", "totag"].into_iter().any(non_empty) {
        return Err(81013);
    }
    // Some clients, such as Alertmanager, send it as a string.
    let agentid = &message["agentid"];
    if agentid.as_u64().or_else(|| agentid.as_str()?.parse().ok()).is_none() {
        return Err(41011);
    }
    let users = message["touser"].as_str().unwrap_or("").split('|');
    let unknown: Vec<&str> =
        users.filter(|user| !user.is_empty() && *user != "@all" && !state.company.has_user(user)).collect();
    let json = ErrcodeJson::ok();
    let json = if unknown.is_empty() { json } else { json.with("invaliduser", unknown.join("|")) };
    let response = json.with("msgid", random::url_safe_text(48));
    store(state, request, message);
    response.into()
}

/// `webhook/send?key=`
pub(super) fn send_by_webhook(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let message = parse(request, WEBHOOK_MESSAGE_TYPES)?;
    store(state, request, message);
    ErrcodeJson::ok().into()
}

/// Parses and validates a message, whatever its Content-Type; the error is an errcode.
fn parse(request: &ApiRequest<'_>, allowed_kinds: &[&str]) -> Result<Value, i64> {
    let message: Value = serde_json::from_slice(&request.body()).map_err(|_| 40035)?;
    let kind = message["msgtype"].as_str().filter(|kind| allowed_kinds.contains(kind)).ok_or(40008)?;
    let content = message[kind].as_object().ok_or(40035)?;
    let has_content = matches!(kind, "text" | "markdown" | "markdown_v2");
    if has_content && content.get("content").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(44004);
    }
    Ok(message)
}

fn store(state: &mut State, request: &ApiRequest<'_>, body: Value) {
    let agent = request.agent.map(|agent| state.agents.name(agent).to_owned());
    state.recorder.push_message(RecordedMessage { seq: request.seq, agent, body });
}
