//! `config`: prints the JSON Schema of the file, and what the file comes to.

use std::path::Path;

use serde_json::{Map, Value};

use super::{CliError, input::load_input, print};
use crate::config::{self, SecretMode};

/// Prints the JSON Schema of `proxy.toml`.
pub fn config_schema() -> Result<(), CliError> {
    print(config::SCHEMA)
}

/// Prints the configuration without its secrets as TOML, files that it includes among it; `effective`: with the defaults
/// of omitted settings.
pub fn config_show(path: &Path, effective: bool) -> Result<(), CliError> {
    let config = load_input(path, SecretMode::Optional).map_err(CliError::from)?;
    let mut tables = config::effective(&config);
    if !effective {
        let agent = "[agents.a]\ncorpid = \"w\"\nsecret = \"secret\"\n[admin]\n";
        let defaults = config::load_input("defaults", agent.as_bytes(), &|_| None, SecretMode::Required);
        let defaults = config::effective(&defaults.map_err(CliError::from)?);
        tables.retain(|name, table| match (defaults.get(name), table) {
            // These have names, not defaults.
            (Some(Value::Object(defaults)), Value::Object(table)) if name != "agents" => {
                table.retain(|key, value| defaults.get(key) != Some(value));
                !table.is_empty() || name == "admin"
            }
            _ => true,
        });
    }
    let tables: Map<String, Value> = tables;
    let mut text = toml::to_string(&tables).map_err(CliError::foreign)?;
    if effective && let Some(traces) = &config.traces {
        // The environment has no place in the file.
        text += "\n# Traces, by admin.otlp and the environment:\n";
        for (name, value, source) in &traces.shown {
            text += &format!("# {name} = {value:?} ({source})\n");
        }
    }
    print(text)
}
