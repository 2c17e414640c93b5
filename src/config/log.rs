//! `[log]`: format and level of the log, and the access log.

use std::path::PathBuf;

use super::error::Error;
use super::reader::{ConfigTable, ConfigValue, name_of};
use crate::text;

pub(super) const KEYS: &[&str] = &["format", "level", "access", "access_file"];

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The format of a line.
    pub format: LogFormat,
    /// The level, which `RUST_LOG` overrides.
    pub level: LogLevel,
    /// Which requests the access log contains.
    pub access: LoggedRequests,
    /// The file of the access log, which is stderr without one.
    pub access_file: Option<PathBuf>,
}

/// `log.access`. Requests that the proxy could not serve (status 500 and above) are logged in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedRequests {
    /// `true` or `"all"`
    All,
    /// `false`: no others.
    None,
    /// `"failed"`: also status 400 and above, an errcode other than 0, or an incomplete response.
    Failed,
    /// `"slow"`: also those that take a second or longer.
    Slow,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the five levels are standard")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The name in the file, which `tracing` parses too.
    pub fn as_str(self) -> &'static str {
        name_of(&LEVELS, &self)
    }
}

const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
pub(super) const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
pub(super) const LOGGED_REQUESTS: [(&str, LoggedRequests); 3] =
    [("all", LoggedRequests::All), ("failed", LoggedRequests::Failed), ("slow", LoggedRequests::Slow)];

pub(super) fn read(root: &ConfigTable<'_>) -> LogConfig {
    let section = root.subtable("log", KEYS);
    LogConfig {
        format: section.read_or("format", LogFormat::Text, |item| item.one_of(&FORMATS)),
        level: section.read_or("level", LogLevel::Info, |item| item.one_of(&LEVELS)),
        access: section.read_or("access", LoggedRequests::All, read_access),
        access_file: section.read_optional("access_file", ConfigValue::path),
    }
}

fn read_access(item: &ConfigValue<'_>) -> Result<LoggedRequests, Error> {
    if item.as_str().is_none() {
        let all = item.boolean().map_err(|_| {
            item.type_error(text!(
                "true, false, \"all\", \"failed\" or \"slow\"",
                "true、false、\"all\"、\"failed\" 或 \"slow\""
            ))
        })?;
        return Ok(if all { LoggedRequests::All } else { LoggedRequests::None });
    }
    item.one_of(&LOGGED_REQUESTS)
}
