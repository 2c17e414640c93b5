//! `state`: backs the state up, checks it, and changes its key; each also while the program runs.

use std::path::Path;

use super::{CliError, block_on, language::shown, load_without_secrets, print, print_text};
use crate::{
    config::{self, StateConfig},
    format_text,
    state::{self, CheckReport, MaintenanceError},
    text,
    text::Text,
};

/// Unreadable records that a report names.
const MAX_NAMED_RECORDS: usize = 10;

impl From<MaintenanceError> for CliError {
    fn from(error: MaintenanceError) -> Self {
        let message = Text::of(&error);
        if error.is_configuration() { Self::config(message) } else { Self::other(message) }
    }
}

/// Copies the state into a new file.
pub fn state_backup(config: &Path, target: &Path) -> Result<(), CliError> {
    state::maintenance::backup(&configured(config)?, target)?;
    print_text(&format_text!(
        "{} is a copy of the state; it needs the same key\n",
        "{} 是状态的副本，使用它需要同一个密钥\n",
        target.display()
    ))
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
    print_text(&format_text!(
        "encrypted under {key} now: {}, before: {}\n",
        "现在用 {key} 加密的：{}，之前：{}\n",
        count(report.resealed + report.current),
        count(report.current)
    ))?;
    unreadable_error(&report.unreadable)?;
    print_text(&text!("old_key is no longer needed by this state\n", "此状态不再需要 old_key\n"))
}

/// `[state]` of the file. Other secrets need not be set in the shell that runs the command.
fn configured(path: &Path) -> Result<StateConfig, CliError> {
    load_without_secrets(path)?.state.ok_or_else(|| {
        CliError::config(format_text!(
            "{}: there is no [state]; add the table with path and key",
            "{}：没有 [state]；请添加这个表，写 path 和 key",
            path.display()
        ))
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
            let message = format_text!(
                "{path}: {section}.{name}: its environment variable is not set here, or its file cannot be read",
                "{path}：{section}.{name}：它的环境变量在这里没有设置，或它的文件无法读取"
            );
            return Err(CliError::config(message));
        }
    }
    Ok(state)
}

fn check_text(report: &CheckReport) -> String {
    let mut text = String::new();
    let mut add = |line: Text| text += shown(&line);
    if let Some(schema) = report.schema {
        add(format_text!("schema version {schema}\n", "结构版本 {schema}\n"));
    }
    for (collection, records) in &report.counts {
        add(format_text!("{collection}: {}\n", "{collection}：{}\n", count(*records)));
    }
    if report.under_old_key > 0 {
        add(format_text!(
            "encrypted under old_key: {}; `wecom-proxy state rekey` changes that\n",
            "用 old_key 加密的：{}；`wecom-proxy state rekey` 会改用新密钥\n",
            count(report.under_old_key)
        ));
    }
    if report.unreadable.is_empty() {
        add(text!("every record can be read\n", "所有记录都能读取\n"));
    }
    text
}

fn count(records: usize) -> Text {
    let plural = if records == 1 { "" } else { "s" };
    Text::formatted(format!("{records} record{plural}"), format!("{records} 条记录"))
}

fn unreadable_error(unreadable: &[String]) -> Result<(), CliError> {
    if unreadable.is_empty() {
        return Ok(());
    }
    let named = unreadable[..unreadable.len().min(MAX_NAMED_RECORDS)].join(", ");
    let rest = match unreadable.len().saturating_sub(MAX_NAMED_RECORDS) {
        0 => Text::default(),
        rest => format_text!(" and {rest} more", " 等，另有 {rest} 条"),
    };
    Err(CliError::other(format_text!(
        "damaged, or encrypted under a key that is not configured: {named}{}; write these again, or restore a file made by \
         `wecom-proxy state backup`",
        "已损坏，或用没有配置的密钥加密：{named}{}；请重新写入，或恢复 `wecom-proxy state backup` 生成的文件",
        rest
    )))
}
