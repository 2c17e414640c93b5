//! Commands that talk to the running proxy over its admin listener: status, agents, tail, refresh, reload, inspect, diag.

mod diag;
mod status;
mod tail;
mod zip;

use std::time::Duration;

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

pub use self::{
    diag::diag,
    status::{agents, status},
    tail::{TailOptions, tail},
};
use super::{
    AdminLocation, CliError, block_on,
    language::shown,
    listener_client::{ListenerClient, ListenerResponse},
    print, print_text,
    style::visible,
};
use crate::{config, format_text, text, text::Text};

/// Refreshes an agent's token now.
pub fn refresh(location: AdminLocation<'_>, agent: &str) -> Result<(), CliError> {
    let body = act_on(location, agent, "refresh")?;
    let same = match body["same_token"].as_bool() {
        Some(true) => text!(
            "WeCom returned the same token, which is still valid",
            "企业微信返回了同一个 token，它仍然有效"
        ),
        _ => text!("a new token", "得到新的 token"),
    };
    let (agent, expiry) = (show(&body["agent"]), show_time(&body["expires_at"]));
    print_text(&format_text!(
        "{agent}: {}; it expires at {expiry}\n",
        "{agent}：{}；过期时间 {expiry}\n",
        same
    ))
}

/// Reloads the configuration of the running proxy.
pub fn reload(location: AdminLocation<'_>) -> Result<(), CliError> {
    let body = act(location, "/api/reload")?;
    let (agents, clients) = (show(&body["agents"]), show(&body["clients"]));
    let mut text = shown(&format_text!(
        "reloaded: {agents} agents, {clients} clients\n",
        "已重新加载：{agents} 个应用，{clients} 个调用方\n"
    ))
    .to_owned();
    for section in items(&body["needs_restart"]).iter().map(show) {
        text += shown(&format_text!(
            "[{section}] has changed and needs a restart\n",
            "[{section}] 有改动，需要重启\n"
        ));
    }
    let warnings = items(&body["warnings"]).iter().map(show);
    // A proxy of an older version has no Chinese ones.
    let chinese =
        items(&body["warnings_zh"]).iter().map(|text| Some(show(text))).chain(std::iter::repeat(None));
    for (english, chinese) in warnings.zip(chinese) {
        let warning = Text::formatted(english.clone(), chinese.unwrap_or(english));
        text += shown(&format_text!("warning: {}\n", "警告：{}\n", warning));
    }
    print(text)
}

/// Captures headers and bodies of an agent's exchanges for a while.
pub fn inspect(location: AdminLocation<'_>, agent: &str, duration: Duration) -> Result<(), CliError> {
    let duration = config::format_duration(duration);
    let body = act_on(location, agent, &format!("inspect?for={duration}"))?;
    let name = show(&body["agent"]);
    match body["inspected_until"].is_null() {
        true => print_text(&format_text!("{name}: capture ended\n", "{name}：已停止保留\n")),
        false => print_text(&format_text!(
            "{name}: headers and bodies are captured until {}; `wecom-proxy tail --agent {name}` lists the exchanges, and \
             `wecom-proxy tail --id ID` shows one\n",
            "{name}：在 {} 之前保留请求和响应的头与正文；`wecom-proxy tail --agent {name}` 列出这些请求，\
             `wecom-proxy tail --id ID` 显示其中一个\n",
            show_time(&body["inspected_until"])
        )),
    }
}

/// As [`act`], for one agent.
fn act_on(location: AdminLocation<'_>, agent: &str, action: &str) -> Result<Value, CliError> {
    let client = ListenerClient::admin(location)?;
    let response = block_on(async { client.post(&format!("/api/agents/{}/{action}", encode(agent))).await })?;
    if is_unknown_agent(&response) { Err(unknown_agent(agent)) } else { response.into_json() }
}

/// Whether the proxy itself says so: another program at this address has other errors.
fn is_unknown_agent(response: &ListenerResponse) -> bool {
    let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    response.status == StatusCode::NOT_FOUND
        && body["error"].as_str().is_some_and(|error| error.starts_with("there is no agent"))
}

fn unknown_agent(agent: &str) -> CliError {
    let agent = visible(agent);
    CliError::config(format_text!(
        "there is no agent {agent}; `wecom-proxy agents` lists them",
        "没有应用 {agent}；`wecom-proxy agents` 列出全部应用"
    ))
}

/// Sends a POST; a response other than 200 is an error with the text of the proxy.
fn act(location: AdminLocation<'_>, path: &str) -> Result<Value, CliError> {
    let client = ListenerClient::admin(location)?;
    block_on(async { client.post(path).await?.into_json() })
}

/// A part of a path or query, percent-encoded.
fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value on one line. Characters that could change what a terminal shows are escaped: callers choose paths.
fn show(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    visible(&text)
}

/// Seconds since 1970 as a time in UTC.
fn show_time(value: &Value) -> String {
    let seconds = value.as_f64().filter(|seconds| (0.0..1e11).contains(seconds));
    seconds.map_or_else(
        || "-".to_owned(),
        |seconds| {
            let at = std::time::UNIX_EPOCH + Duration::from_millis((seconds * 1000.0) as u64);
            humantime::format_rfc3339_seconds(at).to_string()
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shown_values_cannot_control_a_terminal() {
        assert_eq!(show(&json!("/a\u{1b}[2J\u{202e}b")), "/a\\u{1b}[2J\\u{202e}b");
        assert_eq!(show(&Value::Null), "-");
        assert_eq!(show(&json!("张三")), "张三");
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(show_time(&json!(1_700_000_000)), "2023-11-14T22:13:20Z");
        assert_eq!(show_time(&Value::Null), "-");
        assert_eq!(show_time(&json!(1e300)), "-");
    }
}
