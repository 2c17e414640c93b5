//! Reading values out of a parsed file, so that every complaint knows its file, line and dotted key.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::Document;
use super::error::{Error, Warning, quoted, shortened};
use super::near::suggestion;

/// What a semaphore counts with ease and no machine reaches.
pub(super) const MOST_AT_ONCE: u64 = 1_000_000;

/// Where something stands.
#[derive(Clone)]
pub(super) struct Place<'a> {
    pub(super) document: &'a Document<'a>,
    line: Option<usize>,
    key: String,
}

impl<'a> Place<'a> {
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        Error {
            file: self.document.path().to_owned(),
            line: self.line,
            key: Some(self.key.clone()).filter(|key| !key.is_empty()),
            what: what.into(),
        }
    }

    pub(super) fn warn(&self, text: impl Into<String>) {
        let Error { file, line, key, what: text } = self.error(text);
        self.document.warn(Warning { file, line, key, text });
    }

    /// `proxy.toml:12`
    pub(super) fn shown(&self) -> String {
        let file = self.document.path().display();
        self.line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
    }

    /// The place of `key` below this one; where that is not in the file, the line stays.
    fn below(&self, key: &str, offset: Option<usize>) -> Self {
        let key = if is_bare(key) { key.to_owned() } else { quoted(key) };
        Place {
            document: self.document,
            line: offset.map(|offset| self.document.line(offset)).or(self.line),
            key: if self.key.is_empty() { key } else { format!("{}.{key}", self.key) },
        }
    }
}

fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A table with a fixed set of keys.
#[derive(Clone)]
pub(super) struct Section<'a> {
    place: Place<'a>,
    table: Option<&'a DeTable<'a>>,
    allowed: &'static [&'static str],
}

impl<'a> Section<'a> {
    /// The whole of a file.
    pub(super) fn root(
        document: &'a Document<'a>,
        table: &'a DeTable<'a>,
        allowed: &'static [&'static str],
    ) -> Result<Self, Error> {
        let place = Place { document, line: None, key: String::new() };
        Self::open(place, Some(table), allowed)
    }

    fn open(
        place: Place<'a>,
        table: Option<&'a DeTable<'a>>,
        allowed: &'static [&'static str],
    ) -> Result<Self, Error> {
        let unknown = table
            .into_iter()
            .flat_map(|table| table.iter())
            .filter(|(key, _)| !allowed.contains(&key.get_ref().as_ref()))
            .min_by_key(|(key, _)| key.span().start);
        let Some((key, value)) = unknown else {
            return Ok(Self { place, table, allowed });
        };
        let name: &str = key.get_ref();
        let kind = if value.get_ref().is_table() { "table" } else { "key" };
        let meant = suggestion(name, allowed.iter().copied());
        let allowed = allowed.join(", ");
        let what = format!("unknown {kind} {}; {meant}allowed: {allowed}", quoted(name));
        Err(place.below(name, Some(key.span().start)).error(what))
    }

    /// The section `key` of this one, which may be absent from the file and then has no values.
    pub(super) fn section(
        &self,
        key: &'static str,
        allowed: &'static [&'static str],
    ) -> Result<Section<'a>, Error> {
        match self.find(key) {
            Some(item) => item.section("a table", allowed),
            None => Section::open(self.place.below(key, None), None, allowed),
        }
    }

    pub(super) fn find(&self, key: &'static str) -> Option<Item<'a>> {
        debug_assert!(self.allowed.contains(&key), "{key} is read but not among the allowed keys");
        let (key, value) = self.table?.get_key_value(key)?;
        Some(self.item(key, value))
    }

    /// What is wrong with `key` as a whole, wherever it stands, or does not.
    pub(super) fn place(&self, key: &'static str) -> Place<'a> {
        self.find(key).map_or_else(|| self.place.below(key, None), |item| item.place)
    }

    /// The value of `key` as `read` understands it, or the default.
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Item<'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.find(key).map_or(Ok(default), |item| read(&item))
    }

    /// The value of `key`, if there is one.
    pub(super) fn maybe<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Item<'a>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.find(key).map(|item| read(&item)).transpose()
    }

    /// The value of `key`, which has to be there; `example` is the line to add.
    pub(super) fn need<T>(
        &self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Item<'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.find(key) {
            Some(item) => read(&item),
            None => Err(self.place.below(key, None).error(format!("is missing; write one like {example}"))),
        }
    }

    /// The entries of the table `key`, whose names the file chooses.
    pub(super) fn entries(&self, key: &'static str) -> Result<Vec<(&'a str, Item<'a>)>, Error> {
        let Some(item) = self.find(key) else {
            return Ok(Vec::new());
        };
        let DeValue::Table(table) = item.value else {
            return Err(item.wrong_type(&format!("tables like [{key}.NAME]")));
        };
        let inner = Section { place: item.place, table: None, allowed: &[] };
        Ok(table.iter().map(|(key, value)| (key.get_ref().as_ref(), inner.item(key, value))).collect())
    }

    fn item(&self, key: &'a Spanned<toml::de::DeString<'a>>, value: &'a Spanned<DeValue<'a>>) -> Item<'a> {
        Item { place: self.place.below(key.get_ref(), Some(key.span().start)), value: value.get_ref() }
    }
}

/// One value and where it stands.
#[derive(Clone)]
pub(super) struct Item<'a> {
    pub(super) place: Place<'a>,
    value: &'a DeValue<'a>,
}

impl<'a> Item<'a> {
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        self.place.error(what)
    }

    /// Says what is allowed and what kind of value there is, never the value: it may be a secret.
    pub(super) fn wrong_type(&self, expected: &str) -> Error {
        self.error(format!("must be {expected}, not {}", kind(self.value)))
    }

    pub(super) fn as_str(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    /// A string; `expected` says what it should be, with an example.
    pub(super) fn text(&self, expected: &str) -> Result<&'a str, Error> {
        self.as_str().ok_or_else(|| self.wrong_type(expected))
    }

    pub(super) fn boolean(&self) -> Result<bool, Error> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub(super) fn is_number(&self) -> bool {
        self.value.is_integer()
    }

    /// A whole number within `range`.
    pub(super) fn number(&self, range: RangeInclusive<u64>) -> Result<u64, Error> {
        let expected = match *range.end() {
            u64::MAX => format!("a whole number, {} or more", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        let DeValue::Integer(integer) = self.value else {
            return Err(self.wrong_type(&expected));
        };
        u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.error(format!("must be {expected}, not {}", shortened(&integer.to_string()))))
    }

    /// A count within `range`, as memory counts.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Result<usize, Error> {
        let number = self.number(range)?;
        usize::try_from(number).map_err(|_| self.error("is more than this machine can count"))
    }

    /// A list that may be empty.
    pub(super) fn list(&self, expected: &str) -> Result<Vec<Item<'a>>, Error> {
        let DeValue::Array(array) = self.value else {
            return Err(self.wrong_type(expected));
        };
        let place = |index, start| Place {
            document: self.place.document,
            line: Some(self.place.document.line(start)),
            key: format!("{}[{index}]", self.place.key),
        };
        let items = array.iter().enumerate();
        Ok(items
            .map(|(i, value)| Item { place: place(i, value.span().start), value: value.get_ref() })
            .collect())
    }

    /// A string or a list of strings; each is left to be read.
    pub(super) fn one_or_list(&self, expected: &str) -> Result<Vec<Item<'a>>, Error> {
        match self.value {
            DeValue::String(_) => Ok(vec![self.clone()]),
            _ => self.list(expected),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Error> {
        let words = || choices.iter().map(|(word, _)| *word);
        let allowed = words().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        let text = self.text(&format!("one of {allowed}"))?;
        let found = choices.iter().find(|(word, _)| *word == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let meant = suggestion(text, words());
            self.error(format!("{} is not known; {meant}allowed: {allowed}", quoted(text)))
        })
    }

    pub(super) fn section(
        &self,
        expected: &str,
        allowed: &'static [&'static str],
    ) -> Result<Section<'a>, Error> {
        match self.value {
            DeValue::Table(table) => Section::open(self.place.clone(), Some(table), allowed),
            _ => Err(self.wrong_type(expected)),
        }
    }

    /// A path, relative to the file in which it stands.
    pub(super) fn path(&self) -> Result<PathBuf, Error> {
        let text = self.text("a path")?;
        if text.is_empty() || text.contains('\0') {
            return Err(self.error("must be a path, relative to this file or absolute"));
        }
        Ok(self.place.document.resolve(text))
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
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
