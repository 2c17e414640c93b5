//! A file while it is read: its text, its line numbers and its warnings.

use std::cell::{OnceCell, RefCell};
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;
use zeroize::Zeroizing;

use super::cut_text::{CutText, line_ends, line_of};
use super::error::{Error, Warning, quote};
use super::loaded_files::{Inputs, SecretMode};
use super::path_error;
use super::regular_file::open_regular;
use super::text_encoding::decode_utf8;
use crate::text::Text;
use crate::{format_text, text};

/// Larger than any real configuration; keeps a device or log file named by mistake out of memory.
const MAX_FILE_BYTES: u64 = 16 << 20;

pub(super) struct SourceFile<'a> {
    path: Arc<Path>,
    /// Wiped on drop, because it may contain secrets in plain text.
    text: Zeroizing<String>,
    /// The offset of each line's end, computed at the first use. An index is needed because a file may have 100,000
    /// entries.
    line_ends: OnceCell<Vec<usize>>,
    /// `None` for a text that is no file.
    inputs: Option<&'a Inputs<'a>>,
    warnings: RefCell<Vec<Warning>>,
    /// Mistakes after which reading went on, to find the others.
    errors: RefCell<Vec<Error>>,
}

impl<'a> SourceFile<'a> {
    /// Reads a file that is no pipe.
    pub(super) fn read(path: &Path, inputs: &'a Inputs<'a>) -> Result<Self, Error> {
        inputs.record_file(path);
        let (file, _) = open_regular(path).map_err(|reason| Error::of_file(path, reason))?;
        Self::read_from(path, || Ok(file), inputs)
    }

    /// Reads a file that may be a pipe, as `<(command)` in a shell is; for what is read only once.
    pub(super) fn read_once(path: &Path, inputs: &'a Inputs<'a>) -> Result<Self, Error> {
        inputs.record_file(path);
        Self::read_from(path, || File::open(path), inputs)
    }

    /// Reads what stands for a file at this path.
    pub(super) fn read_from<R: Read>(
        path: &Path,
        open: impl FnOnce() -> io::Result<R>,
        inputs: &'a Inputs<'a>,
    ) -> Result<Self, Error> {
        let mut bytes = Zeroizing::new(Vec::new());
        let length = open()
            .and_then(|input| input.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|e| Error::of_file(path, path_error::unreadable_message(path, &e)))?;
        if length as u64 > MAX_FILE_BYTES {
            let message =
                text!("is too long for a configuration; at most 16MiB", "作为配置文件太长；最多 16MiB");
            return Err(Error::of_file(path, message));
        }
        let mark_bytes = match decode_utf8(&bytes) {
            Ok(text) => bytes.len() - text.len(),
            Err(error) => {
                return Err(Error { line: Some(error.line), ..Error::of_file(path, error.message()) });
            }
        };
        // In place, since it may be long.
        bytes.drain(..mark_bytes);
        let text = String::from_utf8(mem::take(&mut bytes)).unwrap_or_default();
        Ok(Self { inputs: Some(inputs), ..Self::of_text(path, Zeroizing::new(text)) })
    }

    /// A text from elsewhere, which is read like a file named `name`, and in which secrets are strings.
    pub(super) fn of_text(name: impl AsRef<Path>, text: Zeroizing<String>) -> Self {
        Self {
            path: name.as_ref().into(),
            text,
            line_ends: OnceCell::new(),
            inputs: None,
            warnings: RefCell::default(),
            errors: RefCell::default(),
        }
    }

    /// Whether it is a file, in which a secret can be `{ env }` or `{ file }`.
    pub(super) fn is_file(&self) -> bool {
        self.inputs.is_some()
    }

    pub(super) fn parse(&self) -> Result<DeTable<'_>, Error> {
        // Only the first one: most of those after it follow from it.
        DeTable::parse(&self.text).map(|table| table.into_inner()).map_err(|error| self.syntax_error(&error))
    }

    /// Cuts it at its agents, if they can be read one by one.
    pub(super) fn cut(&self) -> Option<CutText<'_>> {
        CutText::of(&self.text)
    }

    /// Forgets what was recorded, to be read again in another way.
    pub(super) fn restart(&self) {
        self.warnings.take();
        self.errors.take();
    }

    /// Uses only toml's message: its `Display` prints the line, which may contain a secret.
    fn syntax_error(&self, error: &toml::de::Error) -> Error {
        let mut message = format_text!("is not valid TOML: {}", "不是有效的 TOML：{}", error.message());
        if error.message() == "duplicate key" {
            // The span of this error covers a key, which may be shown.
            let key = error.span().and_then(|span| self.text.get(span)).unwrap_or_default();
            message = format_text!("{} is a duplicate key; keep one", "{} 重复出现；只保留一个", quote(key));
        }
        let line = error.span().map(|span| self.line_at(span.start));
        Error { line, ..Error::of_file(&*self.path, message) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path, for the origins of agents and clients.
    pub(super) fn shared_path(&self) -> Arc<Path> {
        self.path.clone()
    }

    /// The line, counted from 1, of the byte at `offset`.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        line_of(self.line_ends.get_or_init(|| line_ends(&self.text)), offset)
    }

    /// Resolves `path` against the directory of this file.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        match self.path.parent() {
            Some(parent) => parent.join(path),
            None => PathBuf::from(path),
        }
    }

    pub(super) fn env(&self, name: &str) -> Option<String> {
        self.inputs.and_then(|inputs| inputs.env(name))
    }

    /// What it is read from, for the files that it includes; `None` if it is no file.
    pub(super) fn inputs(&self) -> Option<&'a Inputs<'a>> {
        self.inputs
    }

    /// Records a file that is about to be read.
    pub(super) fn record_file(&self, path: &Path) {
        if let Some(inputs) = self.inputs {
            inputs.record_file(path);
        }
    }

    pub(super) fn warn(&self, warning: Warning) {
        self.warnings.borrow_mut().push(warning);
    }

    pub(super) fn warning_count(&self) -> usize {
        self.warnings.borrow().len()
    }

    /// The line of the only warning after the first `count`, if there is one; `None`: there is another one than `expected`.
    pub(super) fn expected_warning_after(&self, count: usize, expected: &Text) -> Option<Option<usize>> {
        match self.warnings.borrow().get(count..)? {
            [] => Some(None),
            [Warning { line, message, .. }] if message.is_same_as(expected) => line.map(Some),
            _ => None,
        }
    }

    /// Keeps an error, so that reading can go on.
    pub(super) fn record(&self, error: Error) {
        if !error.is_recorded() {
            self.errors.borrow_mut().push(error);
        }
    }

    pub(super) fn take_errors(&self) -> Vec<Error> {
        self.errors.take()
    }

    /// Notes that the value at this key is wrong, so that what refers to it is not reported too.
    pub(super) fn mark_broken(&self, key: &str) {
        if let Some(inputs) = self.inputs {
            inputs.mark_broken(key);
        }
    }

    /// Whether the value at this key is wrong.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.inputs.is_some_and(|inputs| inputs.is_broken(key))
    }

    /// Whether secrets are read.
    pub(super) fn secrets(&self) -> SecretMode {
        self.inputs.map_or(SecretMode::Required, Inputs::secrets)
    }

    /// The warnings, sorted by line.
    pub(super) fn take_warnings(&self) -> Vec<Warning> {
        let mut warnings = self.warnings.take();
        warnings.sort_by_key(|warning| warning.line);
        warnings
    }
}
