//! A file while it is read: its text, its line numbers and its warnings.

use std::cell::{OnceCell, RefCell};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;
use zeroize::Zeroizing;

use super::error::{Error, Warning, quote};
use super::path_error;

/// Larger than any real configuration; keeps a device or log file named by mistake out of memory.
const MAX_FILE_BYTES: u64 = 16 << 20;

pub(super) struct SourceFile<'a> {
    path: PathBuf,
    /// Wiped on drop, because it may contain secrets in plain text.
    text: Zeroizing<String>,
    /// The offset of each line's end, computed at the first use. An index is needed because a file may have 100,000
    /// entries.
    line_ends: OnceCell<Vec<usize>>,
    env: &'a dyn Fn(&str) -> Option<String>,
    warnings: RefCell<Vec<Warning>>,
}

impl<'a> SourceFile<'a> {
    pub(super) fn read(path: &Path, env: &'a dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let refuse = |message| Error { file: path.to_owned(), line: None, key: None, message };
        let mut text = Zeroizing::new(String::new());
        let length = File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(|e| refuse(path_error::unreadable_message(path, &e)))?;
        if length as u64 > MAX_FILE_BYTES {
            return Err(refuse("is too long for a configuration; at most 16MiB".to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            text,
            line_ends: OnceCell::new(),
            env,
            warnings: RefCell::default(),
        })
    }

    pub(super) fn parse(&self) -> Result<DeTable<'_>, Error> {
        DeTable::parse(&self.text).map(|table| table.into_inner()).map_err(|error| self.syntax_error(&error))
    }

    /// Uses only toml's message: its `Display` prints the line, which may contain a secret.
    fn syntax_error(&self, error: &toml::de::Error) -> Error {
        let mut message = format!("is not valid TOML: {}", error.message());
        if error.message() == "duplicate key" {
            // The span of this error covers a key, which may be shown.
            let key = error.span().and_then(|span| self.text.get(span)).unwrap_or_default();
            message = format!("{} is a duplicate key; keep one", quote(key));
        }
        Error {
            file: self.path.clone(),
            line: error.span().map(|span| self.line_at(span.start)),
            key: None,
            message,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The line, counted from 1, of the byte at `offset`.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        let ends = self.line_ends.get_or_init(|| memchr::memchr_iter(b'\n', self.text.as_bytes()).collect());
        ends.partition_point(|end| *end < offset) + 1
    }

    /// Resolves `path` against the directory of this file.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        match self.path.parent() {
            Some(parent) => parent.join(path),
            None => PathBuf::from(path),
        }
    }

    pub(super) fn env(&self, name: &str) -> Option<String> {
        (self.env)(name)
    }

    /// The lookup of environment variables, for the files that this one includes.
    pub(super) fn env_lookup(&self) -> &'a dyn Fn(&str) -> Option<String> {
        self.env
    }

    pub(super) fn warn(&self, warning: Warning) {
        self.warnings.borrow_mut().push(warning);
    }

    /// The warnings, sorted by line.
    pub(super) fn into_warnings(self) -> Vec<Warning> {
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|warning| warning.line);
        warnings
    }
}
