//! `[log]`: format and level of the log, and the access log.

use super::error::Error;
use super::reader::{ConfigTable, ConfigValue};

pub(super) const KEYS: &[&str] = &["format", "level", "access"];

/// `[log]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The format of a line.
    pub format: LogFormat,
    /// The level, which `RUST_LOG` overrides.
    pub level: LogLevel,
    /// Whether each request is logged.
    pub access: bool,
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
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

const LEVELS: [LogLevel; 5] =
    [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

pub(super) fn read(root: &ConfigTable<'_>) -> Result<LogConfig, Error> {
    let section = root.subtable("log", KEYS)?;
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Ok(LogConfig {
        format: section.read_or("format", LogFormat::Text, |item| item.one_of(&formats))?,
        level: section.read_or("level", LogLevel::Info, |item| {
            item.one_of(&LEVELS.map(|level| (level.as_str(), level)))
        })?,
        access: section.read_or("access", true, ConfigValue::boolean)?,
    })
}
