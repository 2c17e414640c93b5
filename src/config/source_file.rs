//! One file while it is read: its text, its lines, and what was noticed in it.

use std::cell::{OnceCell, RefCell};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;
use zeroize::Zeroizing;

use super::error::{Error, Warning, quote};
use super::files;

/// Far beyond any real file; keeps a device or a log file named by mistake out of memory.
const MAX_FILE_BYTES: u64 = 16 << 20;

pub(super) struct SourceFile<'a> {
    path: PathBuf,
    /// May hold secrets in plain text, so it is wiped.
    text: Zeroizing<String>,
    /// Where each line ends, found when the first line number is asked for: a file may have a hundred thousand entries.
    line_ends: OnceCell<Vec<usize>>,
    env: &'a dyn Fn(&str) -> Option<String>,
    warnings: RefCell<Vec<Warning>>,
}

impl<'a> SourceFile<'a> {
    pub(super) fn read(path: &Path, env: &'a dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let refuse = |what| Error { file: path.to_owned(), line: None, key: None, message: what };
        let mut text = Zeroizing::new(String::new());
        let length = File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(|e| refuse(files::unreadable_message(path, &e)))?;
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

    /// toml's own `Display` would print the line, and with it a secret; its message holds none of the text.
    fn syntax_error(&self, error: &toml::de::Error) -> Error {
        let mut what = format!("is not valid TOML: {}", error.message());
        if error.message() == "duplicate key" {
            // What such a span covers is surely a key, which may be shown.
            let key = error.span().and_then(|span| self.text.get(span)).unwrap_or_default();
            what = format!("{} stands here twice; keep one", quote(key));
        }
        Error {
            file: self.path.clone(),
            line: error.span().map(|span| self.line_at(span.start)),
            key: None,
            message: what,
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

    /// `path` as it is meant in this file: relative to it.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        match self.path.parent() {
            Some(parent) => parent.join(path),
            None => PathBuf::from(path),
        }
    }

    pub(super) fn env(&self, name: &str) -> Option<String> {
        (self.env)(name)
    }

    /// The same lookup, for the files that this one includes.
    pub(super) fn env_lookup(&self) -> &'a dyn Fn(&str) -> Option<String> {
        self.env
    }

    pub(super) fn warn(&self, warning: Warning) {
        self.warnings.borrow_mut().push(warning);
    }

    /// The warnings, by line.
    pub(super) fn into_warnings(self) -> Vec<Warning> {
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|warning| warning.line);
        warnings
    }
}
