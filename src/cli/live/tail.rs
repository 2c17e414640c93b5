//! `tail`: the recent exchanges, then new ones as they end; or one exchange in full.

use std::collections::HashSet;

use http_body_util::BodyExt;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{AdminLocation, ListenerClient, encode, items, show};
use crate::cli::{
    CliError, block_on,
    language::shown,
    print, print_text,
    style::{Style, Styler},
};

use crate::{format_text, text, text::Text, wecom::errcode};

/// Exchanges that are printed before new ones.
const RECENT_COUNT: usize = 20;

/// The options of `tail`.
#[derive(Debug, Clone, Default)]
pub struct TailOptions {
    /// Only exchanges that failed: a status of 400 or more, or an errcode.
    pub failed: bool,
    /// Only those of this agent.
    pub agent: Option<String>,
    /// One exchange, in full, by its request id.
    pub id: Option<String>,
    /// Print JSON, one object a line.
    pub json: bool,
    /// Do not wait for new exchanges.
    pub once: bool,
}

/// Prints exchanges until the reader closes the pipe or the program is interrupted.
pub fn tail(location: AdminLocation<'_>, options: &TailOptions) -> Result<(), CliError> {
    let client = ListenerClient::admin(location)?;
    block_on(async {
        match &options.id {
            Some(id) => print_one(&client, id).await,
            None => follow(&client, options).await,
        }
    })
}

async fn print_one(client: &ListenerClient, id: &str) -> Result<(), CliError> {
    let body = client.get(&format!("/api/requests?id={}", encode(id))).await?.into_json()?;
    match items(&body["requests"]).first() {
        Some(exchange) => print(format!("{exchange:#}\n")),
        None => Err(CliError::other(text!(
            "no exchange with this id is kept; `admin.recent` is the number of those that are kept",
            "没有保留这个 id 的请求；保留的数量是 `admin.recent`"
        ))),
    }
}

async fn follow(client: &ListenerClient, options: &TailOptions) -> Result<(), CliError> {
    let mut filter =
        options.agent.as_deref().map(|agent| format!("agent={}", encode(agent))).unwrap_or_default();
    if options.failed {
        filter += "&failed=1";
    }
    // The stream first: what ends between the two requests is in both, and printed once.
    let stream = match options.once {
        true => None,
        false => Some(client.stream(&format!("/api/requests/stream?{filter}")).await?),
    };
    let recent = client.get(&format!("/api/requests?limit={RECENT_COUNT}&{filter}")).await?.into_json()?;
    let recent = items(&recent["requests"]);
    let mut printed: HashSet<_> = recent.iter().map(identity).collect();
    let included: Vec<_> =
        recent.iter().filter(|exchange| options.includes(exchange)).take(RECENT_COUNT).collect();
    if let (Some(agent), true) = (&options.agent, recent.is_empty()) {
        require_name(client, agent).await?;
    }
    for exchange in included.into_iter().rev() {
        options.print_exchange(exchange)?;
    }
    let Some(mut stream) = stream else { return Ok(()) };
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::of)?;
    let mut events = EventLines::default();
    loop {
        let frame = tokio::select! {
            frame = stream.frame() => frame,
            _ = terminate.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(Ok(frame)) = frame else {
            return Err(CliError::other(text!(
                "the proxy closed the stream; it was stopped or restarted",
                "代理关闭了数据流；它已停止或重启"
            )));
        };
        for exchange in events.push(frame.data_ref().map_or(&[][..], |data| data)) {
            match exchange["lost"].as_u64() {
                Some(lost) => print_text(&format_text!(
                    "({lost} exchanges were overwritten before they could be read)\n",
                    "（{lost} 个请求在读取之前已被覆盖）\n"
                ))?,
                None if printed.remove(&identity(&exchange)) => {}
                None if options.includes(&exchange) => options.print_exchange(&exchange)?,
                None => {}
            }
        }
    }
}

/// Refuses a name that is no agent's, suite's or provider's: a mistyped one would wait for ever.
async fn require_name(client: &ListenerClient, name: &str) -> Result<(), CliError> {
    let agent = client.get(&format!("/api/agents/{}", encode(name))).await?;
    if !super::is_unknown_agent(&agent) {
        return Ok(());
    }
    let suites = client.get("/api/suites").await?.into_json()?;
    let has_name = |list: &Value| items(list).iter().any(|entry| entry["name"] == name);
    match has_name(&suites["suites"]) || has_name(&suites["providers"]) {
        true => Ok(()),
        false => Err(super::unknown_agent(name)),
    }
}

impl TailOptions {
    fn includes(&self, exchange: &Value) -> bool {
        let is_failed = exchange["status"].as_u64().is_none_or(|status| status >= 400)
            || exchange["errcode"].as_i64().is_some_and(|errcode| errcode != 0)
            || exchange["whole"] == false;
        !self.failed || is_failed
    }

    fn print_exchange(&self, exchange: &Value) -> Result<(), CliError> {
        match self.json {
            true => print(format!("{exchange}\n")),
            false => print(exchange_line(exchange, Styler::stdout())),
        }
    }
}

/// Tells two exchanges apart: a client may use its request id again.
fn identity(exchange: &Value) -> (String, String) {
    (exchange["request_id"].to_string(), exchange["at"].to_string())
}

/// Time, agent, client, method, path, status, errcode, duration, request id, and what went wrong.
fn exchange_line(exchange: &Value, styler: Styler) -> String {
    let errcode = exchange["errcode"].as_i64().filter(|errcode| *errcode != 0);
    let status = show(&exchange["status"]);
    let is_bad = exchange["status"].as_u64().is_none_or(|status| status >= 500);
    let style = match (is_bad, errcode) {
        (true, _) => Style::Bad,
        (false, Some(_)) => Style::Warning,
        (false, None) => Style::Plain,
    };
    let mut line = format!(
        "{} {} {} {} {} {}",
        super::show_time(&exchange["at"]),
        show(&exchange["agent"]),
        show(&exchange["client"]),
        show(&exchange["method"]),
        show(&exchange["path"]),
        styler.apply(style, &status),
    );
    if let Some(errcode) = errcode {
        line += &format!(" {}", styler.apply(style, &format!("errcode={errcode}")));
    }
    line += &format!(" {} ms id={}", show(&exchange["total_ms"]), show(&exchange["request_id"]));
    for key in ["retried", "error", "reason"] {
        if !exchange[key].is_null() {
            line += &format!(" {key}={}", show(&exchange[key]));
        }
    }
    if !exchange["hint"].is_null() {
        line += &format!(" hint={}", shown(&hint_text(exchange)));
    }
    line + "\n"
}

/// What the errcode means and what to do.
fn hint_text(exchange: &Value) -> Text {
    let english = show(&exchange["hint"]);
    let explanation = exchange["errcode"].as_i64().and_then(errcode::explain);
    let chinese = explanation.map_or_else(
        || english.clone(),
        |explanation| format!("{}：{}", explanation.meaning_zh, explanation.action_zh),
    );
    Text::formatted(english, chinese)
}

/// Splits server-sent events into the JSON of their data.
#[derive(Default)]
struct EventLines {
    unfinished: Vec<u8>,
}

impl EventLines {
    fn push(&mut self, bytes: &[u8]) -> Vec<Value> {
        self.unfinished.extend_from_slice(bytes);
        let end = self.unfinished.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.unfinished.drain(..end).collect();
        let data = lines.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data: "));
        data.filter_map(|json| serde_json::from_slice(json).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_split_at_any_byte() {
        let text = ": new\n\ndata: {\"a\":1}\n\nevent: lost\ndata: {\"lost\":2}\n\n:\n\n".as_bytes();
        for cut in 0..text.len() {
            let mut events = EventLines::default();
            let mut found = events.push(&text[..cut]);
            found.extend(events.push(&text[cut..]));
            assert_eq!(found, [serde_json::json!({ "a": 1 }), serde_json::json!({ "lost": 2 })], "{cut}");
        }
    }
}
