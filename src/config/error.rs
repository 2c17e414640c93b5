//! Errors and warnings about a configuration.

use std::collections::{HashMap, HashSet, hash_map::Entry};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::text::{Language, Localized, Text};
use crate::{blocking, format_text};

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
    pub message: Text,
    /// The other mistakes of the same files, in the order of the files; none of them has others.
    pub others: Vec<Error>,
}

/// Bounds the mistakes of an error's text.
const MAX_SHOWN_ERRORS: usize = 100;

impl Error {
    /// A mistake of a whole file.
    pub fn of_file(file: impl Into<PathBuf>, message: Text) -> Self {
        Self { file: file.into(), line: None, key: None, message, others: Vec::new() }
    }

    /// Stands for an error that the file has recorded already.
    pub(super) fn recorded() -> Self {
        Self::of_file("", Text::default())
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.message.is_empty()
    }

    /// One error with the rest as its others, in the order of the lines; `files` is the order of the files.
    pub(super) fn combine(mut errors: Vec<Self>, files: &[PathBuf]) -> Option<Self> {
        let rank = |error: &Self| files.iter().position(|file| *file == error.file);
        errors.sort_by_key(|error| (rank(error), error.line));
        let mut seen = HashSet::new();
        errors.retain(|error| {
            let message = error.message.english().to_owned();
            seen.insert((error.file.clone(), error.line, error.key.clone(), message))
        });
        let mut errors = errors.into_iter();
        let first = errors.next()?;
        Some(Self { others: errors.collect(), ..first })
    }

    /// This mistake and the others.
    pub fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }
}

impl std::error::Error for Error {}

/// In English, for logs.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(Language::English, f)
    }
}

impl Localized for Error {
    fn write(&self, language: Language, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, Self { file, line, key, message, .. }) in self.all().take(MAX_SHOWN_ERRORS).enumerate() {
            if nth > 0 {
                f.write_str("\n")?;
            }
            write_diagnostic(f, file, *line, key.as_deref(), message.get(language))?;
        }
        match (self.others.len() + 1).saturating_sub(MAX_SHOWN_ERRORS) {
            0 => Ok(()),
            more => {
                f.write_str(format_text!("\nand {more} more mistakes", "\n另有 {more} 处错误").get(language))
            }
        }
    }
}

/// A setting that is valid but not advisable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file, as named by the caller or found by `include`.
    pub file: Arc<Path>,
    /// The line, counted from 1.
    pub line: Option<usize>,
    /// The dotted path of the key.
    pub key: Option<String>,
    /// What to change, and why.
    pub message: Text,
}

/// In English, for logs.
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(Language::English, f)
    }
}

impl Localized for Warning {
    fn write(&self, language: Language, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_diagnostic(f, &self.file, self.line, self.key.as_deref(), self.message.get(language))
    }
}

/// The first of several warnings, how many others there are, and the key of the last.
type WarningGroup<'a> = (&'a Warning, usize, Option<&'a str>);

fn count_again<'a>((_, others, last): &mut WarningGroup<'a>, warning: &'a Warning) {
    *others += 1;
    *last = warning.key.as_deref().or(*last);
}

/// The warnings as texts; those that differ only in where they apply are one, at its first place. There may be one for each
/// of very many agents.
pub fn summarize_warnings(warnings: &[Warning]) -> Vec<Text> {
    let mut groups: Vec<WarningGroup<'_>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut last: Option<(&Text, usize)> = None;
    for warning in blocking::in_slices(warnings) {
        if let Some((_, place)) = last.filter(|(message, _)| message.is_same_as(&warning.message)) {
            count_again(&mut groups[place], warning);
            continue;
        }
        // What stands in quotes, such as the name of a file, differs from agent to agent.
        let text: String = warning.message.english().split('"').step_by(2).collect();
        let place = match places.entry(text) {
            Entry::Vacant(place) => {
                groups.push((warning, 0, None));
                *place.insert(groups.len() - 1)
            }
            Entry::Occupied(place) => {
                count_again(&mut groups[*place.get()], warning);
                *place.get()
            }
        };
        last = Some((&warning.message, place));
    }
    let text = |(warning, others, last): WarningGroup<'_>| match (others, last) {
        (0, _) => Text::of(warning),
        (_, None) => format_text!("{} (and {others} more)", "{}（另有 {others} 处）", warning),
        (1, Some(last)) => format_text!("{} (and {last})", "{}（还有 {last}）", warning),
        (_, Some(last)) => format_text!(
            "{} (and {others} more, the last of them {last})",
            "{}（另有 {others} 处，最后一处是 {last}）",
            warning
        ),
    };
    groups.into_iter().map(text).collect()
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
