//! `[log]`: what is logged, and how.

use super::error::Error;
use super::section::{Item, Section};

pub(super) const KEYS: &[&str] = &["format", "level", "access"];

/// `[log]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or for programs.
    pub format: LogFormat,
    /// `RUST_LOG` overrides it.
    pub level: Level,
    /// Whether each request gets a line.
    pub access: bool,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the five levels mean what they mean everywhere")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// As it stands in the file, which is also what `tracing` parses.
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

const LEVELS: [Level; 5] = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];

pub(super) fn read(root: &Section<'_>) -> Result<Log, Error> {
    let section = root.section("log", KEYS)?;
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Ok(Log {
        format: section.or("format", LogFormat::Text, |item| item.choice(&formats))?,
        level: section
            .or("level", Level::Info, |item| item.choice(&LEVELS.map(|level| (level.as_str(), level))))?,
        access: section.or("access", true, Item::boolean)?,
    })
}
