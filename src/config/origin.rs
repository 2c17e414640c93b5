//! Where an agent or client is defined.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where an agent or client is defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In `proxy.toml` or a file that it includes.
    File {
        /// The file, as named by the caller or found by `include`.
        file: Arc<Path>,
        /// The line of its table, counted from 1.
        line: usize,
    },
    /// In the state.
    State {
        /// The version of its record.
        version: u64,
        /// Chosen at random when the record was created; a name that was deleted comes back with another one.
        generation: u64,
    },
}

impl Origin {
    /// Whether it is defined in a file.
    pub fn is_file(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    /// The generation of an entry in the state; 0 for one in a file.
    pub fn generation(&self) -> u64 {
        match self {
            Self::File { .. } => 0,
            Self::State { generation, .. } => *generation,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line } => write!(f, "{}:{line}", file.display()),
            Self::State { .. } => f.write_str("state"),
        }
    }
}
