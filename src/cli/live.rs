//! Commands that talk to the running proxy over its admin listener: status, agents, tail, refresh, reload, inspect, diag.

mod client;
mod diag;
mod endpoint;
mod status;
mod tail;
mod zip;

use std::{path::Path, time::Duration};

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

pub(super) use self::client::AdminClient;
pub use self::{
    diag::diag,
    status::{agents, status},
    tail::{TailOptions, tail},
};
use super::{CliError, block_on, print};
use crate::{config, telemetry::access_log::is_invisible};

/// Where the admin listener is.
#[derive(Debug, Clone, Copy)]
pub struct AdminLocation<'a> {
    /// Its URL; without one, it is taken from the configuration file.
    pub url: Option<&'a str>,
    /// The configuration file.
    pub config: &'a Path,
}

/// Refreshes an agent's token now.
pub fn refresh(location: AdminLocation<'_>, agent: &str) -> Result<(), CliError> {
    let body = act(location, &format!("/api/agents/{}/refresh", encode(agent)))?;
    let same = match body["same_token"].as_bool() {
        Some(true) => "WeCom returned the same token, which is still valid",
        _ => "a new token",
    };
    print(format!("{}: {same}; it expires at {}\n", show(&body["agent"]), show_time(&body["expires_at"])))
}

/// Reloads the configuration of the running proxy.
pub fn reload(location: AdminLocation<'_>) -> Result<(), CliError> {
    let body = act(location, "/api/reload")?;
    let mut text =
        format!("reloaded: {} agents, {} clients\n", show(&body["agents"]), show(&body["clients"]));
    for section in items(&body["needs_restart"]) {
        text += &format!("[{}] has changed and needs a restart\n", show(section));
    }
    for warning in items(&body["warnings"]) {
        text += &format!("warning: {}\n", show(warning));
    }
    print(text)
}

/// Captures headers and bodies of an agent's exchanges for a while.
pub fn inspect(location: AdminLocation<'_>, agent: &str, duration: Duration) -> Result<(), CliError> {
    let duration = config::format_duration(duration);
    let body = act(location, &format!("/api/agents/{}/inspect?for={duration}", encode(agent)))?;
    let name = show(&body["agent"]);
    match body["inspected_until"].is_null() {
        true => print(format!("{name}: capture ended\n")),
        false => print(format!(
            "{name}: headers and bodies are captured until {}; `wecom-proxy tail --agent {name}` lists the exchanges, and \
             `wecom-proxy tail --id ID` shows one\n",
            show_time(&body["inspected_until"])
        )),
    }
}

/// Sends a POST; a response other than 200 is an error with the text of the proxy.
fn act(location: AdminLocation<'_>, path: &str) -> Result<Value, CliError> {
    let client = AdminClient::new(location)?;
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
    show_text(&text)
}

fn show_text(text: &str) -> String {
    let escaped = text.chars().map(|char| match is_invisible(char) {
        true => char.escape_unicode().to_string(),
        false => char.to_string(),
    });
    escaped.collect()
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

/// The error for a response that is not 200.
fn response_error(status: StatusCode, body: &Value) -> CliError {
    let cause = ["failure", "error"].iter().find_map(|key| body[key].as_str());
    let mut text = show_text(cause.unwrap_or("no reason given"));
    if status == StatusCode::UNAUTHORIZED {
        text = match client::key_from_env() {
            Some(_) => "the admin listener refuses the key in WECOM_PROXY_ADMIN_KEY".to_owned(),
            None => "the admin listener requires its key; set WECOM_PROXY_ADMIN_KEY to it".to_owned(),
        };
    }
    if let Some(seconds) = body["next_try_in_seconds"].as_u64().filter(|seconds| *seconds > 0) {
        text += &format!("; the proxy tries again in {seconds} s");
    }
    CliError::other(format!("{text} ({})", status.as_u16()))
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
