//! Reads values from a parsed file; every error names its file, line and dotted key.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Error, Warning, quote, truncate};
use super::origin::Origin;
use super::source_file::SourceFile;
use super::suggest::{closest, did_you_mean};

/// The maximum of settings that limit concurrency; far below a semaphore's maximum.
pub(super) const MAX_CONCURRENCY: u64 = 1_000_000;

/// The file, line and key of a value.
#[derive(Clone)]
pub(super) struct Location<'a> {
    pub(super) source: &'a SourceFile<'a>,
    line: Option<usize>,
    key: String,
}

impl<'a> Location<'a> {
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error {
            file: self.source.path().to_owned(),
            line: self.line,
            key: Some(self.key.clone()).filter(|key| !key.is_empty()),
            message: message.into(),
            others: Vec::new(),
        }
    }

    /// Keeps an error of the value here, so that reading can go on.
    pub(super) fn record(&self, error: Error) {
        self.source.mark_broken(&self.key);
        self.source.record(error);
    }

    pub(super) fn warn(&self, message: impl Into<String>) {
        let Error { file, line, key, message, .. } = self.error(message);
        self.source.warn(Warning { file, line, key, message });
    }

    /// `proxy.toml:12`
    pub(super) fn file_and_line(&self) -> String {
        let file = self.source.path().display();
        self.line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
    }

    /// This location as the origin of an agent or client.
    pub(super) fn origin(&self) -> Origin {
        Origin::File { file: self.source.shared_path(), line: self.line.unwrap_or_default() }
    }

    /// The location of `key` below this one. Without an offset, because the key is not in the file, the line is this
    /// one's.
    fn child(&self, key: &str, offset: Option<usize>) -> Self {
        let key = if is_bare_key(key) { key.to_owned() } else { quote(key) };
        Location {
            source: self.source,
            line: offset.map(|offset| self.source.line_at(offset)).or(self.line),
            key: if self.key.is_empty() { key } else { format!("{}.{key}", self.key) },
        }
    }
}

fn is_bare_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A table with a fixed set of keys.
#[derive(Clone)]
pub(super) struct ConfigTable<'a> {
    location: Location<'a>,
    table: Option<&'a DeTable<'a>>,
    allowed_keys: &'static [&'static str],
}

impl<'a> ConfigTable<'a> {
    /// The root table of a file.
    pub(super) fn root(
        source: &'a SourceFile<'a>,
        table: &'a DeTable<'a>,
        allowed_keys: &'static [&'static str],
    ) -> Self {
        let location = Location { source, line: None, key: String::new() };
        Self::new(location, Some(table), allowed_keys)
    }

    /// The root table of a file that holds only a part of all tables; for the others in it, the error is `misplaced`.
    pub(super) fn partial_root(
        source: &'a SourceFile<'a>,
        table: &'a DeTable<'a>,
        allowed_keys: &'static [&'static str],
        elsewhere: &[&str],
        misplaced: &str,
    ) -> Self {
        let location = Location { source, line: None, key: String::new() };
        Self::new_part(location, Some(table), allowed_keys, elsewhere, misplaced)
    }

    fn new(
        location: Location<'a>,
        table: Option<&'a DeTable<'a>>,
        allowed_keys: &'static [&'static str],
    ) -> Self {
        Self::new_part(location, table, allowed_keys, &[], "")
    }

    /// As [`new`](Self::new); `elsewhere` are keys of another table, for which the error is `misplaced`.
    fn new_part(
        location: Location<'a>,
        table: Option<&'a DeTable<'a>>,
        allowed_keys: &'static [&'static str],
        elsewhere: &[&str],
        misplaced: &str,
    ) -> Self {
        for (key, value) in table.into_iter().flat_map(|table| table.iter()) {
            let name: &str = key.get_ref();
            let location = || location.child(name, Some(key.span().start));
            if allowed_keys.contains(&name) {
                continue;
            }
            if elsewhere.contains(&name) {
                location().source.record(location().error(misplaced));
                continue;
            }
            let kind = if value.get_ref().is_table() { "table" } else { "key" };
            let hint = did_you_mean(name, allowed_keys.iter().copied());
            let allowed = allowed_keys.join(", ");
            let message = format!("unknown {kind} {}; {hint}allowed: {allowed}", quote(name));
            location().source.record(location().error(message));
        }
        Self { location, table, allowed_keys }
    }

    /// The table `key` of this one; empty if the file does not contain it, or contains something else there.
    pub(super) fn subtable(
        &self,
        key: &'static str,
        allowed_keys: &'static [&'static str],
    ) -> ConfigTable<'a> {
        let empty = || ConfigTable::new(self.location.child(key, None), None, allowed_keys);
        let Some(item) = self.find(key) else { return empty() };
        item.table("a table", allowed_keys).unwrap_or_else(|error| {
            item.location.record(error);
            empty()
        })
    }

    /// Keeps an error of the whole table, so that reading can go on.
    pub(super) fn record(&self, error: Error) {
        self.location.record(error);
    }

    pub(super) fn find(&self, key: &'static str) -> Option<ConfigValue<'a>> {
        debug_assert!(self.allowed_keys.contains(&key), "{key} is read but not among the allowed keys");
        let (key, value) = self.table?.get_key_value(key)?;
        Some(self.value(key, value))
    }

    /// Whether the file has this key, which need not be an allowed one.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether the value at a key of the file, such as `agents.hr`, was found to be wrong.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.location.source.is_broken(key)
    }

    /// The location of `key`, also if the file does not contain it.
    pub(super) fn location_of(&self, key: &'static str) -> Location<'a> {
        self.find(key).map_or_else(|| self.location.child(key, None), |item| item.location)
    }

    /// The value of `key`, read by `read`, or the default. A wrong value is recorded, and reading goes on with the default.
    pub(super) fn read_or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&ConfigValue<'a>) -> Result<T, Error>,
    ) -> T {
        self.read_optional(key, read).unwrap_or(default)
    }

    /// The value of `key`, read by `read`, if there is one. A wrong value is recorded, and counts as none.
    pub(super) fn read_optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&ConfigValue<'a>) -> Result<T, Error>,
    ) -> Option<T> {
        let item = self.find(key)?;
        read(&item).map_err(|error| item.location.record(error)).ok()
    }

    /// The value of `key`, which is required; the error shows `example` as the line to add. The error is recorded, so that
    /// the caller can read the other keys of the table before it returns.
    pub(super) fn read_required<T>(
        &self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&ConfigValue<'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.find(key) {
            Some(item) => read(&item).map_err(|error| {
                item.location.record(error);
                Error::recorded()
            }),
            None => {
                let location = self.location.child(key, None);
                // A mistyped key is reported already.
                if !self.has_mistyped(key) {
                    location.record(location.error(format!("is missing; write one like {example}")));
                }
                Err(Error::recorded())
            }
        }
    }

    pub(super) fn has_unknown_keys(&self) -> bool {
        let keys = self.table.into_iter().flat_map(|table| table.keys());
        keys.map(|key| key.get_ref().as_ref()).any(|name: &str| !self.allowed_keys.contains(&name))
    }

    /// Whether an unknown key of the table is likely meant to be this one.
    fn has_mistyped(&self, key: &str) -> bool {
        let keys = self.table.into_iter().flat_map(|table| table.keys()).map(|key| key.get_ref().as_ref());
        keys.filter(|name| !self.allowed_keys.contains(name))
            .any(|name| closest(name, self.allowed_keys.iter().copied()) == Some(key))
    }

    /// The entries of the table `key`, which has free names. Anything else there is recorded.
    pub(super) fn entries(&self, key: &'static str) -> Vec<(&'a str, ConfigValue<'a>)> {
        let Some(item) = self.find(key) else {
            return Vec::new();
        };
        let DeValue::Table(table) = item.raw else {
            item.location.record(item.type_error(&format!("tables like [{key}.NAME]")));
            return Vec::new();
        };
        let parent = ConfigTable { location: item.location, table: None, allowed_keys: &[] };
        table.iter().map(|(key, value)| (key.get_ref().as_ref(), parent.value(key, value))).collect()
    }

    fn value(
        &self,
        key: &'a Spanned<toml::de::DeString<'a>>,
        value: &'a Spanned<DeValue<'a>>,
    ) -> ConfigValue<'a> {
        ConfigValue {
            location: self.location.child(key.get_ref(), Some(key.span().start)),
            raw: value.get_ref(),
        }
    }
}

/// A value and its location.
#[derive(Clone)]
pub(super) struct ConfigValue<'a> {
    pub(super) location: Location<'a>,
    raw: &'a DeValue<'a>,
}

impl<'a> ConfigValue<'a> {
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        self.location.error(message)
    }

    /// Names the expected and the actual type, never the value, which may be a secret.
    pub(super) fn type_error(&self, expected: &str) -> Error {
        self.error(format!("must be {expected}, not {}", type_name(self.raw)))
    }

    pub(super) fn as_str(&self) -> Option<&'a str> {
        self.raw.as_str()
    }

    /// Whether it is a table with this key.
    pub(super) fn has_key(&self, key: &str) -> bool {
        matches!(self.raw, DeValue::Table(table) if table.contains_key(key))
    }

    /// A string; `expected` describes it in the error.
    pub(super) fn string(&self, expected: &str) -> Result<&'a str, Error> {
        self.as_str().ok_or_else(|| self.type_error(expected))
    }

    pub(super) fn boolean(&self) -> Result<bool, Error> {
        self.raw.as_bool().ok_or_else(|| self.type_error("true or false"))
    }

    pub(super) fn is_integer(&self) -> bool {
        self.raw.is_integer()
    }

    pub(super) fn is_list(&self) -> bool {
        self.raw.is_array()
    }

    /// A whole number within `range`.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, Error> {
        let expected = match *range.end() {
            u64::MAX => format!("a whole number, {} or more", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        let DeValue::Integer(integer) = self.raw else {
            return Err(self.type_error(&expected));
        };
        u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.error(format!("must be {expected}, not {}", truncate(&integer.to_string()))))
    }

    /// A count within `range`.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Result<usize, Error> {
        let number = self.integer(range)?;
        usize::try_from(number).map_err(|_| self.error("is too large for this machine"))
    }

    /// A list, which may be empty.
    pub(super) fn list(&self, expected: &str) -> Result<Vec<ConfigValue<'a>>, Error> {
        let DeValue::Array(array) = self.raw else {
            return Err(self.type_error(expected));
        };
        let location = |index, start| Location {
            source: self.location.source,
            line: Some(self.location.source.line_at(start)),
            key: format!("{}[{index}]", self.location.key),
        };
        let items = array.iter().enumerate();
        Ok(items
            .map(|(i, value)| ConfigValue { location: location(i, value.span().start), raw: value.get_ref() })
            .collect())
    }

    /// A string or the elements of a list, each still to be read.
    pub(super) fn one_or_list(&self, expected: &str) -> Result<Vec<ConfigValue<'a>>, Error> {
        match self.raw {
            DeValue::String(_) => Ok(vec![self.clone()]),
            _ => self.list(expected),
        }
    }

    /// One of `choices`.
    pub(super) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Error> {
        let names = || choices.iter().map(|(name, _)| *name);
        let allowed = names().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let text = self.string(&format!("one of {allowed}"))?;
        let found = choices.iter().find(|(name, _)| *name == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let hint = did_you_mean(text, names());
            self.error(format!("{} is not known; {hint}allowed: {allowed}", quote(text)))
        })
    }

    pub(super) fn table(
        &self,
        expected: &str,
        allowed_keys: &'static [&'static str],
    ) -> Result<ConfigTable<'a>, Error> {
        match self.raw {
            DeValue::Table(table) => Ok(ConfigTable::new(self.location.clone(), Some(table), allowed_keys)),
            _ => Err(self.type_error(expected)),
        }
    }

    /// A path, resolved against the directory of its file.
    pub(super) fn path(&self) -> Result<PathBuf, Error> {
        let text = self.string("a path")?;
        if text.is_empty() || text.contains('\0') {
            return Err(self.error("must be a path, relative to this file or absolute"));
        }
        Ok(self.location.source.resolve(text))
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
