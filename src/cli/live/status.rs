//! `status` and `agents`: the state of the running proxy as text.

use http::StatusCode;
use serde_json::Value;

use super::{AdminLocation, ListenerClient, encode, items, show, show_time};
use crate::cli::{
    CliError, block_on,
    language::shown,
    print, print_text,
    style::{Cell, Style, Styler, visible},
};

use crate::{format_text, text, text::Text};

/// Agents of a page of the API; its maximum.
const PAGE_LENGTH: usize = 1000;
/// The whole minutes over which rates are computed.
const RATE_MINUTES: usize = 5;

/// Prints what `/readyz` and the last minutes say; fails if the proxy is not ready.
pub fn status(location: AdminLocation<'_>, as_json: bool) -> Result<(), CliError> {
    let client = ListenerClient::admin(location)?;
    let (ready, health, overview, failing) = block_on(async {
        let ready = client.get("/readyz").await?;
        let health: Value = serde_json::from_slice(&ready.body).unwrap_or_default();
        let overview = client.get("/api/overview").await?.into_json()?;
        // `/readyz` has the failures in English only.
        let failing = match health["agents"]["failing"].as_object() {
            Some(failing) if !as_json && !failing.is_empty() => all_agents(&client, "&failing=1").await?,
            _ => Vec::new(),
        };
        Ok::<_, CliError>((ready.status, health, overview, failing))
    })?;
    match as_json {
        true => print(format!("{}\n", serde_json::json!({ "ready": health, "overview": overview })))?,
        false => {
            let styler = Styler::stdout();
            print(status_text(&client.address(), &health, &overview, styler))?;
            print(failures_text(&health, &failing, styler))?;
        }
    }
    match ready {
        StatusCode::OK => Ok(()),
        status => Err(CliError::other(format_text!("not ready ({})", "未就绪（{}）", status.as_u16()))),
    }
}

fn status_text(address: &str, health: &Value, overview: &Value, styler: Styler) -> String {
    let status = show(&health["status"]);
    let style = if status == "ok" { Style::Good } else { Style::Warning };
    let status = styler.apply(style, shown(&state_of_proxy(&status)));
    let version = show(&overview["version"]);
    let heading = format_text!(
        "wecom-proxy {version} at {address}: {status}\n\n",
        "wecom-proxy {version}，地址 {address}：{status}\n\n"
    );
    let agents = &health["agents"];
    let (failing, held) = (&agents["failing"], &agents["held"]);
    let count = |value: &Value| value.as_object().map_or(0, serde_json::Map::len) as u64;
    let corps = &health["corps"];
    let listeners: Vec<_> = items(&health["listeners"]).iter().map(show).collect();
    let agent_counts = format_text!(
        "{}, failing {}, held back {}",
        "{}，失败 {}，暂缓 {}",
        show(&agents["total"]),
        count(failing),
        count(held)
    );
    let connections = format_text!(
        "{}, in flight {}",
        "{}，处理中的请求 {}",
        show(&overview["connections"]),
        show(&overview["in_flight"])
    );
    let facts = [
        (text!("listeners", "监听"), Cell::plain(listeners.join(", "))),
        (text!("agents", "应用"), Cell::text(Style::Plain, &agent_counts)),
        (text!("store", "存储"), Cell::text(Style::Plain, &component(&health["store"]))),
        (text!("state", "状态库"), Cell::text(Style::Plain, &component(&health["state"]))),
        (text!("connections", "连接"), Cell::text(Style::Plain, &connections)),
        (text!("traffic", "流量"), Cell::text(Style::Plain, &traffic(items(&overview["minutes"])))),
    ];
    let corps_counts =
        format_text!("{}, failing {}", "{}，失败 {}", show(&corps["total"]), show(&corps["failing"]));
    let corps = (corps["total"].as_u64() > Some(0))
        .then(|| (text!("corps", "授权企业"), Cell::text(Style::Plain, &corps_counts)));
    let late: Vec<_> = items(&health["degraded"]).iter().map(show).collect();
    let late = (!late.is_empty())
        .then(|| (text!("no suite_ticket", "没有 suite_ticket"), Cell::plain(late.join(", "))));
    let facts = facts.into_iter().chain(corps).chain(late);
    let rows = facts.map(|(name, value)| vec![Cell::text(Style::Plain, &name), value]);
    shown(&heading).to_owned() + &styler.render_rows(rows.collect())
}

/// Each failing agent and why; `agents` has the texts in both languages.
fn failures_text(health: &Value, agents: &[Value], styler: Styler) -> String {
    let mut text = String::new();
    for (name, error) in health["agents"]["failing"].as_object().into_iter().flatten() {
        let known = agents.iter().find(|agent| agent["name"] == name.as_str());
        let failure = known.map_or_else(|| Text::formatted(show(error), show(error)), failure_text);
        let name = styler.apply(Style::Bad, &visible(name));
        text += shown(&format_text!("\n{name}: {}\n", "\n{name}：{}\n", failure));
    }
    text
}

/// What `/readyz` says in one line.
fn state_of_proxy(status: &str) -> Text {
    let chinese = match status {
        "ok" => "正常",
        "shutting down" => "正在停止",
        "no agent has a valid token" => "没有应用有可用的 token",
        "ok, but the last reload failed" => "正常，但上次重新加载失败",
        "ok, but some agents fail" => "正常，但有应用失败",
        "ok, but a suite has no new suite_ticket" => "正常，但有套件没有新的 suite_ticket",
        "ok, but the state fails" => "正常，但状态库有问题",
        "ok, but some token refreshes are held back" => "正常，但有换取被暂缓",
        other => other,
    };
    Text::formatted(status.to_owned(), chinese.to_owned())
}

/// The state of a token.
fn state_of_token(state: &str) -> Text {
    let chinese = match state {
        "valid" => "有效",
        "refused" => "被拒绝",
        "expired" => "已过期",
        "none" => "无",
        other => other,
    };
    Text::formatted(state.to_owned(), chinese.to_owned())
}

/// Why an agent fails. A proxy of an older version has no Chinese text.
fn failure_text(agent: &Value) -> Text {
    let english = show(&agent["failing"]);
    let chinese = agent["failing_zh"].as_str().map_or_else(|| english.clone(), visible);
    Text::formatted(english, chinese)
}

fn component(value: &Value) -> Text {
    match (&value["kind"], &value["ok"]) {
        (Value::Null, _) => text!("none", "无"),
        (kind, Value::Bool(true)) => format_text!("{}, ok", "{}，正常", show(kind)),
        (kind, _) => {
            format_text!("{}, not usable: {}", "{}，不可用：{}", show(kind), show(&value["trouble"]))
        }
    }
}

/// The rates over the last whole minutes; the last one is still running.
fn traffic(minutes: &[Value]) -> Text {
    let whole = &minutes[..minutes.len().saturating_sub(1)];
    let whole = &whole[whole.len().saturating_sub(RATE_MINUTES)..];
    let sum = |key: &str| whole.iter().filter_map(|minute| minute[key].as_u64()).sum::<u64>();
    let (requests, failed) = (sum("requests"), sum("failed"));
    match whole.len() {
        0 => text!("no whole minute yet", "还不到一分钟"),
        count => {
            let rate = requests as f64 / (60 * count) as f64;
            format_text!(
                "{rate:.2} requests/s, failed {failed} of {requests}, in the last {count} min",
                "最近 {count} 分钟：每秒 {rate:.2} 个请求，{requests} 个中失败 {failed} 个"
            )
        }
    }
}

/// Prints the agents and the state of their tokens.
pub fn agents(location: AdminLocation<'_>, only_trouble: bool, as_json: bool) -> Result<(), CliError> {
    let client = ListenerClient::admin(location)?;
    let agents = block_on(async {
        if !only_trouble {
            return all_agents(&client, "").await;
        }
        let mut agents = all_agents(&client, "&trouble=1").await?;
        let failing = all_agents(&client, "&failing=1").await?;
        let is_new: Vec<_> = failing
            .into_iter()
            .filter(|agent| !agents.iter().any(|known| known["name"] == agent["name"]))
            .collect();
        agents.extend(is_new);
        Ok(agents)
    })?;
    if as_json {
        return print(agents.iter().map(|agent| format!("{agent}\n")).collect::<String>());
    }
    if agents.is_empty() {
        return print_text(&match only_trouble {
            true => text!("no agent is in trouble\n", "没有应用有问题\n"),
            false => text!("no agents\n", "没有应用\n"),
        });
    }
    let rows = agents.iter().map(agent_row).collect();
    let titles = [
        text!("AGENT", "应用"),
        text!("TOKEN", "TOKEN"),
        text!("EXPIRES", "过期时间"),
        text!("NEXT TRY", "下次尝试"),
        text!("TROUBLE", "问题"),
        text!("FAILING", "失败原因"),
    ];
    let mut text = Styler::stdout().render_table(&titles, rows);
    text.extend(agents.iter().filter_map(advice_text));
    print(text)
}

/// Since when an agent is in trouble, and what to do.
fn advice_text(agent: &Value) -> Option<String> {
    let trouble = Some(&agent["trouble"]).filter(|trouble| !trouble.is_null())?;
    let advice = |key: &str| Text::formatted(show(&trouble["en"][key]), show(&trouble["zh"][key]));
    let heading = format_text!(
        "\n{}, in trouble since {}: {}; {}\n",
        "\n{} 从 {} 起有问题：{}；{}\n",
        show(&agent["name"]),
        show_time(&trouble["failing_since"]),
        advice("meaning"),
        advice("action")
    );
    let mut text = shown(&heading).to_owned();
    if !trouble["en"]["place"].is_null() {
        text += shown(&format_text!("  Admin console: {}\n", "  管理后台：{}\n", advice("place")));
    }
    if !trouble["address"].is_null() {
        let address = show(&trouble["address"]);
        text += shown(&format_text!("  Address to add: {address}\n", "  要添加的地址：{address}\n"));
    }
    Some(text)
}

pub(super) async fn all_agents(client: &ListenerClient, filter: &str) -> Result<Vec<Value>, CliError> {
    let (mut agents, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/agents?limit={PAGE_LENGTH}{filter}&after={}", encode(&after));
        let mut page = client.get(&path).await?.into_json()?;
        if let Value::Array(found) = page["agents"].take() {
            agents.extend(found);
        }
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return Ok(agents),
        }
    }
}

fn reasons(agent: &Value) -> Option<String> {
    let reasons: Vec<_> = items(&agent["trouble"]["reasons"]).iter().map(show).collect();
    (!reasons.is_empty()).then(|| reasons.join(", "))
}

fn agent_row(agent: &Value) -> Vec<Cell> {
    let state = show(&agent["token"]["state"]);
    let is_failing = !agent["failing"].is_null();
    let style = match state.as_str() {
        "valid" if !is_failing => Style::Good,
        "none" if !is_failing => Style::Plain,
        "refused" => Style::Bad,
        _ if is_failing => Style::Bad,
        _ => Style::Warning,
    };
    let next_try = agent["next_try_in_seconds"].as_u64().filter(|seconds| *seconds > 0);
    vec![
        Cell::plain(show(&agent["name"])),
        Cell::text(style, &state_of_token(&state)),
        Cell::plain(show_time(&agent["token"]["expires_at"])),
        next_try.map_or_else(
            || Cell::plain("-"),
            |seconds| Cell::text(Style::Plain, &format_text!("{seconds} s", "{seconds} 秒")),
        ),
        Cell::optional(reasons(agent)),
        Cell::text(Style::Plain, &failure_text(agent)),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn traffic_leaves_out_the_running_minute() {
        let minute = |requests, failed| json!({ "requests": requests, "failed": failed });
        assert_eq!(traffic(&[]).english(), "no whole minute yet");
        assert_eq!(traffic(&[minute(60, 1)]).english(), "no whole minute yet");
        let text = traffic(&[minute(60, 1), minute(0, 0), minute(9000, 9000)]);
        assert_eq!(text.english(), "0.50 requests/s, failed 1 of 60, in the last 2 min");
    }
}
