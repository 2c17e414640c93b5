//! Where an agent or client is defined.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where an agent or client is defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In `proxy.toml` or a file that it includes.
    File {
        /// The file, as named by the caller or found by `include`.
        file: Arc<Path>,
        /// The line of its table, counted from 1.
        line: Line,
    },
    /// In the state.
    State {
        /// The version of its record.
        version: u64,
        /// Chosen at random when the record was created; a name that was deleted comes back with another one.
        generation: u64,
    },
}

/// A line that may come to be another one, when lines above it are inserted or deleted.
#[derive(Debug)]
pub struct Line(AtomicUsize);

impl Line {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<usize> for Line {
    fn from(line: usize) -> Self {
        Self(line.into())
    }
}

impl Clone for Line {
    fn clone(&self) -> Self {
        self.get().into()
    }
}

impl PartialEq for Line {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Line {}

impl Origin {
    /// Whether it is the same as another one but for the line, which is taken over.
    pub fn follow(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { file, .. }, Self::File { file: same, line }) if file == same => {
                self.move_to(line.get());
                true
            }
            _ => self == other,
        }
    }

    /// Sets the line of one in a file.
    pub fn move_to(&self, moved: usize) {
        if let Self::File { line, .. } = self {
            line.0.store(moved, Ordering::Relaxed);
        }
    }

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
            Self::File { file, line } => write!(f, "{}:{}", file.display(), line.get()),
            Self::State { .. } => f.write_str("state"),
        }
    }
}
