//! Where a value is: its file, line and key.

use super::cut_text::{CutText, TablePart};
use super::error::{Error, Warning, quote};
use super::origin::Origin;
use super::source_file::SourceFile;
use crate::text::Text;

/// The file, line and key of a value.
#[derive(Clone)]
pub(super) struct Location<'a> {
    pub(super) source: &'a SourceFile<'a>,
    pub(super) text: ParsedText<'a>,
    pub(super) line: Option<usize>,
    pub(super) key: String,
}

/// What of a file was parsed, by which offsets become lines.
#[derive(Clone, Copy)]
pub(super) enum ParsedText<'a> {
    Whole,
    /// What is left of a file without the tables that are read by themselves.
    Rest(&'a CutText<'a>),
    Table(TablePart<'a>),
}

impl<'a> Location<'a> {
    /// The line in the file of the byte at `offset` of the parsed text.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        match self.text {
            ParsedText::Whole => self.source.line_at(offset),
            ParsedText::Rest(cut) => cut.line_at(offset),
            ParsedText::Table(part) => part.line_at(offset),
        }
    }

    pub(super) fn error(&self, message: Text) -> Error {
        let key = Some(self.key.clone()).filter(|key| !key.is_empty());
        Error { line: self.line, key, ..Error::of_file(self.source.path(), message) }
    }

    /// Keeps an error of the value here, so that reading can go on.
    pub(super) fn record(&self, error: Error) {
        self.source.mark_broken(&self.key);
        self.source.record(error);
    }

    /// Keeps an error with this text.
    pub(super) fn record_text(&self, message: Text) {
        self.record(self.error(message));
    }

    pub(super) fn warn(&self, message: Text) {
        let key = Some(self.key.clone()).filter(|key| !key.is_empty());
        self.source.warn(Warning { file: self.source.shared_path(), line: self.line, key, message });
    }

    /// `proxy.toml:12`
    pub(super) fn file_and_line(&self) -> String {
        let file = self.source.path().display();
        self.line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
    }

    /// This location as the origin of an agent or client.
    pub(super) fn origin(&self) -> Origin {
        Origin::File { file: self.source.shared_path(), line: self.line.unwrap_or_default().into() }
    }

    /// The location of `key` below this one. Without an offset, because the key is not in the file, the line is this
    /// one's.
    pub(super) fn child(&self, key: &str, offset: Option<usize>) -> Self {
        let key = if is_bare_key(key) { key.to_owned() } else { quote(key) };
        Location {
            source: self.source,
            text: self.text,
            line: offset.map(|offset| self.line_at(offset)).or(self.line),
            key: if self.key.is_empty() { key } else { format!("{}.{key}", self.key) },
        }
    }
}

fn is_bare_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
