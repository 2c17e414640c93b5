//! `check`: validates the configuration and shows its agents and clients; `--online` also checks each agent at WeCom.

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

/// The options of `check`.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Check each agent at WeCom, and the store.
    pub online: bool,
    /// Print one JSON object instead of tables.
    pub json: bool,
}

/// Prints the agents and clients and the result of the online check to stdout, warnings to stderr.
pub fn check(path: &Path, CheckOptions { online, json }: CheckOptions) -> Result<(), CliError> {
    let prepared = match prepare(path) {
        Ok(prepared) => prepared,
        Err(error) => {
            if json {
                print(json::invalid_config(path, &error))?;
            }
            return Err(error.into());
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

/// Prints all warnings with one write, because there may be one for each of very many agents.
fn print_warnings(warnings: &[Warning]) {
    let label = Styler::stderr().apply(Style::Warning, "warning");
    eprint!("{}", warnings.iter().map(|warning| format!("{label}: {warning}\n")).collect::<String>());
}

fn overview_text(config: &Config, styler: Styler) -> String {
    let agents = config.agents.values().map(|agent| {
        vec![
            Cell::plain(&agent.name),
            Cell::plain(&agent.corpid),
            Cell::optional(agent.agentid),
            Cell::styled(Style::Good, "found"),
            Cell::optional(agent.limit.as_ref()),
        ]
    });
    let mut text = styler.render_table(&["AGENT", "CORPID", "AGENTID", "SECRET", "LIMIT"], agents.collect());
    text.push('\n');
    if config.clients.is_empty() {
        text.push_str("No clients: the proxy is open to every client that can connect.\n");
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
    text.push_str(&styler.render_table(&["CLIENT", "AGENTS", "ALLOW", "LIMIT"], clients.collect()));
    if config.is_open() {
        text.push_str("\nCallers without a key are served too (server.open).\n");
    }
    text
}

/// The agents that the client may use; `*` for all.
fn allowed_agents(client: &ClientConfig) -> Vec<&str> {
    match &client.agents {
        AgentSet::All => vec!["*"],
        AgentSet::Named(names) => names.iter().map(String::as_str).collect(),
    }
}

fn allowed_calls(client: &ClientConfig) -> Vec<String> {
    client.allow.iter().map(ToString::to_string).collect()
}
