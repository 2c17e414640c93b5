//! `check`: validates the configuration and shows what it says; with `--online` it asks WeCom about each agent too.

mod json;
mod online_text;

use std::path::Path;

use super::online_check::{self, OnlineReport};
use super::{
    CliError, block_on, prepare, print,
    style::{Cell, Style, Styler},
};
use crate::{
    app::PreparedConfig,
    config::{AgentSet, ClientConfig, Config, Warning},
};

/// How to check, and what to print.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Ask WeCom about each agent.
    pub online: bool,
    /// Print one JSON object instead of tables.
    pub json: bool,
}

/// Prints the agents and clients, warnings to stderr, and what WeCom says of each agent where it is asked.
pub fn check(path: &Path, CheckOptions { online, json }: CheckOptions) -> Result<(), CliError> {
    let prepared = match prepare(path) {
        Ok(prepared) => prepared,
        Err(refused) => {
            if json {
                print(json::invalid_config(path, &refused))?;
            }
            return Err(refused.into());
        }
    };
    if !json {
        print_warnings(prepared.warnings());
        print(format!(
            "{}\n{} is valid\n",
            overview_text(prepared.config(), Styler::stdout()),
            path.display()
        ))?;
    }
    let report = if online { Some(run_online_check(&prepared)?) } else { None };
    match (&report, json) {
        (report, true) => print(json::valid_config(prepared.config(), report.as_ref()))?,
        (Some(report), false) => {
            print(online_text::report_text(prepared.config(), report, Styler::stdout()))?
        }
        (None, false) => {}
    }
    match report {
        Some(report) if !report.is_ok() => Err(CliError::other(online_text::summary(&report))),
        _ => Ok(()),
    }
}

fn run_online_check(prepared: &PreparedConfig) -> Result<OnlineReport, CliError> {
    block_on(async { Ok(online_check::run(prepared.config(), prepared.upstream()).await) })
}

/// In one piece: there may be one for each of very many agents.
fn print_warnings(warnings: &[Warning]) {
    let mark = Styler::stderr().apply(Style::Warning, "warning");
    eprint!("{}", warnings.iter().map(|warning| format!("{mark}: {warning}\n")).collect::<String>());
}

fn overview_text(config: &Config, paint: Styler) -> String {
    let agents = config.agents.values().map(|agent| {
        vec![
            Cell::plain(&agent.name),
            Cell::plain(&agent.corpid),
            Cell::optional(agent.agentid),
            Cell::styled(Style::Good, "found"),
            Cell::optional(agent.limit.as_ref()),
        ]
    });
    let mut text = paint.render_table(&["AGENT", "CORPID", "AGENTID", "SECRET", "LIMIT"], agents.collect());
    text.push('\n');
    if config.clients.is_empty() {
        text.push_str("No clients: the proxy is open to whoever reaches it.\n");
        return text;
    }
    let clients = config.clients.values().map(|client| {
        vec![
            Cell::plain(&client.name),
            Cell::plain(allowed_agents(client).join(", ")),
            Cell::plain(allowed_calls(client).join(", ")),
            Cell::optional(client.limit.as_ref()),
        ]
    });
    text.push_str(&paint.render_table(&["CLIENT", "AGENTS", "ALLOW", "LIMIT"], clients.collect()));
    if config.is_open() {
        text.push_str("\nCallers without a key are served too (server.open).\n");
    }
    text
}

/// The agents it may use; `*` for all.
fn allowed_agents(client: &ClientConfig) -> Vec<&str> {
    match &client.agents {
        AgentSet::All => vec!["*"],
        AgentSet::Named(names) => names.iter().map(String::as_str).collect(),
    }
}

fn allowed_calls(client: &ClientConfig) -> Vec<String> {
    client.allow.iter().map(ToString::to_string).collect()
}
