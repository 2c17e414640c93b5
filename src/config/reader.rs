//! Reading values out of a parsed file, so that every complaint knows its file, line and dotted key.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Error, Warning, quote, truncate};
use super::source_file::SourceFile;
use super::suggest::did_you_mean;

/// What a semaphore counts with ease and no machine reaches.
pub(super) const MAX_CONCURRENCY: u64 = 1_000_000;

/// Where something stands.
#[derive(Clone)]
pub(super) struct Location<'a> {
    pub(super) source: &'a SourceFile<'a>,
    line: Option<usize>,
    key: String,
}

impl<'a> Location<'a> {
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        Error {
            file: self.source.path().to_owned(),
            line: self.line,
            key: Some(self.key.clone()).filter(|key| !key.is_empty()),
            message: what.into(),
        }
    }

    pub(super) fn warn(&self, text: impl Into<String>) {
        let Error { file, line, key, message: text } = self.error(text);
        self.source.warn(Warning { file, line, key, message: text });
    }

    /// `proxy.toml:12`
    pub(super) fn file_and_line(&self) -> String {
        let file = self.source.path().display();
        self.line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
    }

    /// The place of `key` below this one; where that is not in the file, the line stays.
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
    /// The whole of a file.
    pub(super) fn root(
        document: &'a SourceFile<'a>,
        table: &'a DeTable<'a>,
        allowed: &'static [&'static str],
    ) -> Result<Self, Error> {
        let place = Location { source: document, line: None, key: String::new() };
        Self::new(place, Some(table), allowed)
    }

    fn new(
        place: Location<'a>,
        table: Option<&'a DeTable<'a>>,
        allowed: &'static [&'static str],
    ) -> Result<Self, Error> {
        let unknown = table
            .into_iter()
            .flat_map(|table| table.iter())
            .filter(|(key, _)| !allowed.contains(&key.get_ref().as_ref()))
            .min_by_key(|(key, _)| key.span().start);
        let Some((key, value)) = unknown else {
            return Ok(Self { location: place, table, allowed_keys: allowed });
        };
        let name: &str = key.get_ref();
        let kind = if value.get_ref().is_table() { "table" } else { "key" };
        let meant = did_you_mean(name, allowed.iter().copied());
        let allowed = allowed.join(", ");
        let what = format!("unknown {kind} {}; {meant}allowed: {allowed}", quote(name));
        Err(place.child(name, Some(key.span().start)).error(what))
    }

    /// The section `key` of this one, which may be absent from the file and then has no values.
    pub(super) fn subtable(
        &self,
        key: &'static str,
        allowed: &'static [&'static str],
    ) -> Result<ConfigTable<'a>, Error> {
        match self.find(key) {
            Some(item) => item.table("a table", allowed),
            None => ConfigTable::new(self.location.child(key, None), None, allowed),
        }
    }

    pub(super) fn find(&self, key: &'static str) -> Option<ConfigValue<'a>> {
        debug_assert!(self.allowed_keys.contains(&key), "{key} is read but not among the allowed keys");
        let (key, value) = self.table?.get_key_value(key)?;
        Some(self.value(key, value))
    }

    /// What is wrong with `key` as a whole, wherever it stands, or does not.
    pub(super) fn location_of(&self, key: &'static str) -> Location<'a> {
        self.find(key).map_or_else(|| self.location.child(key, None), |item| item.location)
    }

    /// The value of `key` as `read` understands it, or the default.
    pub(super) fn read_or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&ConfigValue<'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.find(key).map_or(Ok(default), |item| read(&item))
    }

    /// The value of `key`, if there is one.
    pub(super) fn read_optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&ConfigValue<'a>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.find(key).map(|item| read(&item)).transpose()
    }

    /// The value of `key`, which has to be there; `example` is the line to add.
    pub(super) fn read_required<T>(
        &self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&ConfigValue<'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.find(key) {
            Some(item) => read(&item),
            None => {
                Err(self.location.child(key, None).error(format!("is missing; write one like {example}")))
            }
        }
    }

    /// The entries of the table `key`, whose names the file chooses.
    pub(super) fn entries(&self, key: &'static str) -> Result<Vec<(&'a str, ConfigValue<'a>)>, Error> {
        let Some(item) = self.find(key) else {
            return Ok(Vec::new());
        };
        let DeValue::Table(table) = item.raw else {
            return Err(item.type_error(&format!("tables like [{key}.NAME]")));
        };
        let inner = ConfigTable { location: item.location, table: None, allowed_keys: &[] };
        Ok(table.iter().map(|(key, value)| (key.get_ref().as_ref(), inner.value(key, value))).collect())
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

/// One value and where it stands.
#[derive(Clone)]
pub(super) struct ConfigValue<'a> {
    pub(super) location: Location<'a>,
    raw: &'a DeValue<'a>,
}

impl<'a> ConfigValue<'a> {
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        self.location.error(what)
    }

    /// Says what is allowed and what kind of value there is, never the value: it may be a secret.
    pub(super) fn type_error(&self, expected: &str) -> Error {
        self.error(format!("must be {expected}, not {}", type_name(self.raw)))
    }

    pub(super) fn as_str(&self) -> Option<&'a str> {
        self.raw.as_str()
    }

    /// A string; `expected` says what it should be, with an example.
    pub(super) fn string(&self, expected: &str) -> Result<&'a str, Error> {
        self.as_str().ok_or_else(|| self.type_error(expected))
    }

    pub(super) fn boolean(&self) -> Result<bool, Error> {
        self.raw.as_bool().ok_or_else(|| self.type_error("true or false"))
    }

    pub(super) fn is_integer(&self) -> bool {
        self.raw.is_integer()
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

    /// A count within `range`, as memory counts.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Result<usize, Error> {
        let number = self.integer(range)?;
        usize::try_from(number).map_err(|_| self.error("is more than this machine can count"))
    }

    /// A list that may be empty.
    pub(super) fn list(&self, expected: &str) -> Result<Vec<ConfigValue<'a>>, Error> {
        let DeValue::Array(array) = self.raw else {
            return Err(self.type_error(expected));
        };
        let place = |index, start| Location {
            source: self.location.source,
            line: Some(self.location.source.line_at(start)),
            key: format!("{}[{index}]", self.location.key),
        };
        let items = array.iter().enumerate();
        Ok(items
            .map(|(i, value)| ConfigValue { location: place(i, value.span().start), raw: value.get_ref() })
            .collect())
    }

    /// A string or a list of strings; each is left to be read.
    pub(super) fn one_or_list(&self, expected: &str) -> Result<Vec<ConfigValue<'a>>, Error> {
        match self.raw {
            DeValue::String(_) => Ok(vec![self.clone()]),
            _ => self.list(expected),
        }
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Error> {
        let words = || choices.iter().map(|(word, _)| *word);
        let allowed = words().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        let text = self.string(&format!("one of {allowed}"))?;
        let found = choices.iter().find(|(word, _)| *word == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let meant = did_you_mean(text, words());
            self.error(format!("{} is not known; {meant}allowed: {allowed}", quote(text)))
        })
    }

    pub(super) fn table(
        &self,
        expected: &str,
        allowed: &'static [&'static str],
    ) -> Result<ConfigTable<'a>, Error> {
        match self.raw {
            DeValue::Table(table) => ConfigTable::new(self.location.clone(), Some(table), allowed),
            _ => Err(self.type_error(expected)),
        }
    }

    /// A path, relative to the file in which it stands.
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
