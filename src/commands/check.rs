//! `check`: validates the configuration and shows what it says; with `--online` it asks WeCom about each agent too.

mod json;
mod online;

use std::path::Path;

use super::{
    Failed, on_runtime,
    paint::{Cell, Paint, Tone},
    prepared, say,
};
use crate::{
    app::Prepared,
    config::{AgentSet, Client, Config, Warning},
    doctor::{self, Report},
};

/// How to check, and what to print.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Ask WeCom about each agent.
    pub online: bool,
    /// Print one JSON object instead of tables.
    pub json: bool,
}

/// Prints the agents and clients, warnings to stderr, and what WeCom says of each agent where it is asked.
pub fn check(path: &Path, Manner { online, json }: Manner) -> Result<(), Failed> {
    let prepared = match prepared(path) {
        Ok(prepared) => prepared,
        Err(refused) => {
            if json {
                say(json::refused(path, &refused))?;
            }
            return Err(refused.into());
        }
    };
    if !json {
        warn(prepared.warnings());
        say(format!("{}\n{} is valid\n", overview(prepared.config(), Paint::stdout()), path.display()))?;
    }
    let report = if online { Some(ask(&prepared)?) } else { None };
    match (&report, json) {
        (report, true) => say(json::valid(prepared.config(), report.as_ref()))?,
        (Some(report), false) => say(online::text(prepared.config(), report, Paint::stdout()))?,
        (None, false) => {}
    }
    match report {
        Some(report) if !report.is_fine() => Err(Failed::other(online::summary(&report))),
        _ => Ok(()),
    }
}

fn ask(prepared: &Prepared) -> Result<Report, Failed> {
    on_runtime(async { Ok(doctor::examine(prepared.config(), prepared.upstream()).await) })
}

/// In one piece: there may be one for each of very many agents.
fn warn(warnings: &[Warning]) {
    let mark = Paint::stderr().text(Tone::Warning, "warning");
    eprint!("{}", warnings.iter().map(|warning| format!("{mark}: {warning}\n")).collect::<String>());
}

fn overview(config: &Config, paint: Paint) -> String {
    let agents = config.agents.values().map(|agent| {
        vec![
            Cell::plain(&agent.name),
            Cell::plain(&agent.corpid),
            Cell::maybe(agent.agentid),
            Cell::of(Tone::Good, "found"),
            Cell::maybe(agent.limit.as_ref()),
        ]
    });
    let mut text = paint.table(&["AGENT", "CORPID", "AGENTID", "SECRET", "LIMIT"], agents.collect());
    text.push('\n');
    if config.clients.is_empty() {
        text.push_str("No clients: the proxy is open to whoever reaches it.\n");
        return text;
    }
    let clients = config.clients.values().map(|client| {
        vec![
            Cell::plain(&client.name),
            Cell::plain(agents_of(client).join(", ")),
            Cell::plain(allowed(client).join(", ")),
            Cell::maybe(client.limit.as_ref()),
        ]
    });
    text.push_str(&paint.table(&["CLIENT", "AGENTS", "ALLOW", "LIMIT"], clients.collect()));
    if config.is_open() {
        text.push_str("\nCallers without a key are served too (server.open).\n");
    }
    text
}

/// The agents it may use; `*` for all.
fn agents_of(client: &Client) -> Vec<&str> {
    match &client.agents {
        AgentSet::All => vec!["*"],
        AgentSet::Named(names) => names.iter().map(String::as_str).collect(),
    }
}

fn allowed(client: &Client) -> Vec<String> {
    client.allow.iter().map(ToString::to_string).collect()
}
