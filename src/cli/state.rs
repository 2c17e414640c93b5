//! `state`: backs the state up, checks it, and changes its key; each also while the program runs.

use std::path::Path;

use super::{CliError, block_on, load_without_secrets, print};
use crate::{
    config::{self, StateConfig},
    state::{self, CheckReport, MaintenanceError},
};

/// Unreadable records that a report names.
const MAX_NAMED_RECORDS: usize = 10;

impl From<MaintenanceError> for CliError {
    fn from(error: MaintenanceError) -> Self {
        if error.is_configuration() { Self::config(error) } else { Self::other(error) }
    }
}

/// Copies the state into a new file.
pub fn state_backup(config: &Path, target: &Path) -> Result<(), CliError> {
    state::maintenance::backup(&configured(config)?, target)?;
    print(format!("{} is a copy of the state; it needs the same key\n", target.display()))
}

/// Reads and decrypts the whole state, and prints how many records there are.
pub fn state_check(config: &Path) -> Result<(), CliError> {
    let state = with_key(config)?;
    let report = block_on(async { Ok(state::maintenance::check(&state).await?) })?;
    print(check_text(&report))?;
    unreadable_error(&report.unreadable)
}

/// Encrypts everything under the current key that is encrypted under the old one.
pub fn state_rekey(config: &Path) -> Result<(), CliError> {
    let state = with_key(config)?;
    let report = block_on(async { Ok(state::maintenance::rekey(&state).await?) })?;
    let key = match state {
        StateConfig::File(_) => "state.key",
        StateConfig::Shared(_) => "tokens.store.key",
    };
    print(format!(
        "encrypted under {key} now: {}, before: {}\n",
        count(report.resealed + report.current),
        count(report.current)
    ))?;
    unreadable_error(&report.unreadable)?;
    print("old_key is no longer needed by this state\n")
}

/// `[state]` of the file. Other secrets need not be set in the shell that runs the command.
fn configured(path: &Path) -> Result<StateConfig, CliError> {
    load_without_secrets(path)?.state.ok_or_else(|| {
        CliError::config(format!("{}: there is no [state]; add the table with path and key", path.display()))
    })
}

fn with_key(path: &Path) -> Result<StateConfig, CliError> {
    let state = configured(path)?;
    let (section, keys) = match &state {
        StateConfig::File(file) => ("state", [Some(&file.key), file.old_key.as_ref()]),
        StateConfig::Shared(redis) => ("tokens.store", [Some(&redis.key), redis.old_key.as_ref()]),
    };
    for (name, key) in ["key", "old_key"].into_iter().zip(keys) {
        if key.is_some_and(config::is_unread) {
            let path = path.display();
            let message = format!(
                "{path}: {section}.{name}: its environment variable is not set here, or its file cannot be read"
            );
            return Err(CliError::config(message));
        }
    }
    Ok(state)
}

fn check_text(report: &CheckReport) -> String {
    let mut text = String::new();
    if let Some(schema) = report.schema {
        text += &format!("schema version {schema}\n");
    }
    for (collection, records) in &report.counts {
        text += &format!("{collection}: {}\n", count(*records));
    }
    if report.under_old_key > 0 {
        text += &format!(
            "encrypted under old_key: {}; `wecom-proxy state rekey` changes that\n",
            count(report.under_old_key)
        );
    }
    if report.unreadable.is_empty() {
        text += "every record can be read\n";
    }
    text
}

fn count(records: usize) -> String {
    format!("{records} record{}", if records == 1 { "" } else { "s" })
}

fn unreadable_error(unreadable: &[String]) -> Result<(), CliError> {
    if unreadable.is_empty() {
        return Ok(());
    }
    let named = unreadable[..unreadable.len().min(MAX_NAMED_RECORDS)].join(", ");
    let rest = unreadable.len().saturating_sub(MAX_NAMED_RECORDS);
    let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    Err(CliError::other(format!(
        "damaged, or encrypted under a key that is not configured: {named}{rest}; write these again, or restore a file \
         made by `wecom-proxy state backup`"
    )))
}
