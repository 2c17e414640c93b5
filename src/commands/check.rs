//! `check`: validates the configuration and shows what it says.

use std::path::Path;

use super::{Failed, prepare, say};
use crate::config::{AgentSet, Config};

/// Prints the agents and clients, and warnings to stderr.
pub fn check(path: &Path) -> Result<(), Failed> {
    let prepared = prepare(path)?;
    // In one piece: there may be one for each of very many agents.
    eprint!(
        "{}",
        prepared.warnings().iter().map(|warning| format!("warning: {warning}\n")).collect::<String>()
    );
    say(format!("{}\n{} is valid\n", overview(prepared.config()), path.display()))
}

fn overview(config: &Config) -> String {
    let agents = config.agents.values().map(|agent| {
        let agentid = agent.agentid.map_or_else(|| "-".to_owned(), |agentid| agentid.to_string());
        let limit = agent.limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        vec![agent.name.clone(), agent.corpid.clone(), agentid, "found".to_owned(), limit]
    });
    let mut text = table(&["AGENT", "CORPID", "AGENTID", "SECRET", "LIMIT"], agents.collect());
    text.push('\n');
    if config.clients.is_empty() {
        text.push_str("No clients: the proxy is open to whoever reaches it.\n");
        return text;
    }
    let clients = config.clients.values().map(|client| {
        let agents = match &client.agents {
            AgentSet::All => "*".to_owned(),
            AgentSet::Named(names) => names.iter().cloned().collect::<Vec<_>>().join(", "),
        };
        let allow = client.allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let limit = client.limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        vec![client.name.clone(), agents, allow, limit]
    });
    text.push_str(&table(&["CLIENT", "AGENTS", "ALLOW", "LIMIT"], clients.collect()));
    if config.is_open() {
        text.push_str("\nCallers without a key are served too (server.open).\n");
    }
    text
}

/// Rows under their titles, each column as wide as its widest cell.
fn table(titles: &[&str], rows: Vec<Vec<String>>) -> String {
    let titles: Vec<_> = titles.iter().map(ToString::to_string).collect();
    let rows: Vec<_> = std::iter::once(titles).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
