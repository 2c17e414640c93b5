//! Messages, which are checked as far as a program's mistakes go, and kept.

use serde_json::Value;

use super::random;
use super::recorder::RecordedMessage;
use super::response::{ErrcodeJson, SimulatedResponse};
use super::routes::ApiRequest;
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
pub(super) fn send(state: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    let message = match parse(sent, APP_MESSAGE_TYPES) {
        Ok(message) => message,
        Err(errcode) => return ErrcodeJson::new(errcode, "").into(),
    };
    let filled = |key: &str| message[key].as_str().is_some_and(|text| !text.is_empty());
    if !["touser", "toparty", "totag"].into_iter().any(filled) {
        return ErrcodeJson::new(81013, "").into();
    }
    // Alertmanager, for one, sends it as a string.
    let agentid = &message["agentid"];
    if agentid.as_u64().or_else(|| agentid.as_str()?.parse().ok()).is_none() {
        return ErrcodeJson::new(41011, "").into();
    }
    let users = message["touser"].as_str().unwrap_or("").split('|');
    let unknown: Vec<&str> =
        users.filter(|user| !user.is_empty() && *user != "@all" && !state.company.has_user(user)).collect();
    let json = ErrcodeJson::ok();
    let json = if unknown.is_empty() { json } else { json.with("invaliduser", unknown.join("|")) };
    let answer = json.with("msgid", random::url_safe_text(48));
    store(state, sent, message);
    answer.into()
}

/// `webhook/send?key=`
pub(super) fn send_by_webhook(state: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    match parse(sent, WEBHOOK_MESSAGE_TYPES) {
        Ok(message) => {
            store(state, sent, message);
            ErrcodeJson::ok().into()
        }
        Err(errcode) => ErrcodeJson::new(errcode, "").into(),
    }
}

/// The message, whatever its Content-Type, or an errcode.
fn parse(sent: &ApiRequest<'_>, kinds: &[&str]) -> Result<Value, i64> {
    let message: Value = serde_json::from_slice(&sent.body()).map_err(|_| 40035)?;
    let kind = message["msgtype"].as_str().filter(|kind| kinds.contains(kind)).ok_or(40008)?;
    let content = message[kind].as_object().ok_or(40035)?;
    let wordy = matches!(kind, "text" | "markdown" | "markdown_v2");
    if wordy && content.get("content").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(44004);
    }
    Ok(message)
}

fn store(state: &mut State, sent: &ApiRequest<'_>, body: Value) {
    let agent = sent.agent.map(|agent| state.agents.name(agent).to_owned());
    state.recorder.push_message(RecordedMessage { seq: sent.seq, agent, body });
}
