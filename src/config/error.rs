//! Errors and warnings about a configuration.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a configuration is refused. Never contains a secret or a line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The file, as named by the caller or found by `include`.
    pub file: PathBuf,
    /// The line, counted from 1, if the error has one.
    pub line: Option<usize>,
    /// The dotted path of the key, like `server.listen`.
    pub key: Option<String>,
    /// The error and what is allowed.
    pub message: String,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_diagnostic(f, &self.file, self.line, self.key.as_deref(), &self.message)
    }
}

/// A setting that is valid but not advisable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file, as named by the caller or found by `include`.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: Option<usize>,
    /// The dotted path of the key.
    pub key: Option<String>,
    /// What to change, and why.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_diagnostic(f, &self.file, self.line, self.key.as_deref(), &self.message)
    }
}

fn write_diagnostic(
    f: &mut fmt::Formatter<'_>,
    file: &Path,
    line: Option<usize>,
    key: Option<&str>,
    text: &str,
) -> fmt::Result {
    write!(f, "{}", file.display())?;
    if let Some(line) = line {
        write!(f, ":{line}")?;
    }
    if let Some(key) = key {
        write!(f, ": {key}")?;
    }
    write!(f, ": {text}")
}

/// Quotes `text` for a message: on one line, and truncated. Not for secrets.
pub(super) fn quote(text: &str) -> String {
    format!("{:?}", truncate(text))
}

/// Truncates `text` to 80 characters and `…`.
pub(super) fn truncate(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
