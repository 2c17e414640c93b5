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
    let (ready, health, overview) = block_on(async {
        let ready = client.get("/readyz").await?;
        let health = serde_json::from_slice(&ready.body).unwrap_or_default();
        Ok::<_, CliError>((ready.status, health, client.get("/api/overview").await?.into_json()?))
    })?;
    match as_json {
        true => print(format!("{}\n", serde_json::json!({ "ready": health, "overview": overview })))?,
        false => print(status_text(&client.address(), &health, &overview, Styler::stdout()))?,
    }
    match ready {
        StatusCode::OK => Ok(()),
        status => Err(CliError::other(format_text!("not ready ({})", "未就绪（{}）", status.as_u16()))),
    }
}

fn status_text(address: &str, health: &Value, overview: &Value, styler: Styler) -> String {
    let status = show(&health["status"]);
    let style = if status == "ok" { Style::Good } else { Style::Warning };
    let (version, status) = (show(&overview["version"]), styler.apply(style, &status));
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
        (text!("state", "状态"), Cell::text(Style::Plain, &component(&health["state"]))),
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
    let mut text = shown(&heading).to_owned() + &styler.render_rows(rows.collect());
    for (agent, error) in failing.as_object().into_iter().flatten() {
        text += &format!("\n{}: {}\n", styler.apply(Style::Bad, &visible(agent)), show(error));
    }
    text
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
        Cell::styled(style, state),
        Cell::plain(show_time(&agent["token"]["expires_at"])),
        Cell::optional(next_try.map(|seconds| format!("{seconds} s"))),
        Cell::optional(reasons(agent)),
        Cell::plain(show(&agent["failing"])),
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
