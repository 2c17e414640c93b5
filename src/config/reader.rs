//! Reads values from a parsed file; every error names its file, line and dotted key.
//!
//! Ours: serde's derives stop at the first error, lose its line wherever a value has two shapes, and quote the value, which
//! may be a secret.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Error, quote, truncate};
pub(super) use super::location::{Location, ParsedText};
use super::source_file::SourceFile;
use super::suggest::{closest, did_you_mean};
use crate::text::Text;
use crate::{format_text, text};

/// The maximum of settings that limit concurrency; far below a semaphore's maximum.
pub(super) const MAX_CONCURRENCY: u64 = 1_000_000;

/// A table with a fixed set of keys.
#[derive(Clone)]
pub(super) struct ConfigTable<'a> {
    location: Location<'a>,
    table: Option<&'a DeTable<'a>>,
    allowed_keys: &'static [&'static str],
}

impl<'a> ConfigTable<'a> {
    /// The root table of what of a file was parsed.
    pub(super) fn root(
        (source, text): (&'a SourceFile<'a>, ParsedText<'a>),
        table: &'a DeTable<'a>,
        allowed_keys: &'static [&'static str],
    ) -> Self {
        let location = Location { source, text, line: None, key: String::new() };
        Self::new(location, Some(table), allowed_keys)
    }

    /// The root table of a file that holds only a part of all tables; for the others in it, the error is `misplaced`.
    pub(super) fn partial_root(
        (source, text): (&'a SourceFile<'a>, ParsedText<'a>),
        table: &'a DeTable<'a>,
        allowed_keys: &'static [&'static str],
        elsewhere: &[&str],
        misplaced: Text,
    ) -> Self {
        let location = Location { source, text, line: None, key: String::new() };
        Self::new_part(location, Some(table), allowed_keys, elsewhere, misplaced)
    }

    fn new(
        location: Location<'a>,
        table: Option<&'a DeTable<'a>>,
        allowed_keys: &'static [&'static str],
    ) -> Self {
        Self::new_part(location, table, allowed_keys, &[], Text::default())
    }

    /// As [`new`](Self::new); `elsewhere` are keys of another table, for which the error is `misplaced`.
    fn new_part(
        location: Location<'a>,
        table: Option<&'a DeTable<'a>>,
        allowed_keys: &'static [&'static str],
        elsewhere: &[&str],
        misplaced: Text,
    ) -> Self {
        for (key, value) in table.into_iter().flat_map(|table| table.iter()) {
            let name: &str = key.get_ref();
            let location = || location.child(name, Some(key.span().start));
            if allowed_keys.contains(&name) {
                continue;
            }
            if elsewhere.contains(&name) {
                location().source.record(location().error(misplaced.clone()));
                continue;
            }
            let kind = if value.get_ref().is_table() { text!("table", "表") } else { text!("key", "键") };
            let hint = did_you_mean(name, allowed_keys.iter().copied());
            let allowed = allowed_keys.join(", ");
            let message = format_text!(
                "unknown {} {}; {}allowed: {allowed}",
                "未知的{} {}；{}可用：{allowed}",
                kind,
                quote(name),
                hint
            );
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
        item.table(text!("a table", "表"), allowed_keys).unwrap_or_else(|error| {
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

    /// Whether the value at a key of this table was found to be wrong.
    pub(super) fn is_broken_here(&self, key: &'static str) -> bool {
        self.is_broken(&self.location.child(key, None).key)
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
                    location.record(location.error(format_text!(
                        "is missing; write one like {example}",
                        "缺失；请写成 {example}"
                    )));
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
            item.location
                .record(item.type_error(format_text!("tables like [{key}.NAME]", "[{key}.NAME] 这样的表")));
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
    pub(super) fn error(&self, message: Text) -> Error {
        self.location.error(message)
    }

    /// Names the expected and the actual type, never the value, which may be a secret.
    pub(super) fn type_error(&self, expected: Text) -> Error {
        self.error(format_text!("must be {}, not {}", "应为：{}；写的是{}", expected, type_name(self.raw)))
    }

    pub(super) fn as_str(&self) -> Option<&'a str> {
        self.raw.as_str()
    }

    /// Whether it is a table with this key.
    pub(super) fn has_key(&self, key: &str) -> bool {
        matches!(self.raw, DeValue::Table(table) if table.contains_key(key))
    }

    /// A string; `expected` describes it in the error.
    pub(super) fn string(&self, expected: Text) -> Result<&'a str, Error> {
        self.as_str().ok_or_else(|| self.type_error(expected))
    }

    pub(super) fn boolean(&self) -> Result<bool, Error> {
        self.raw.as_bool().ok_or_else(|| self.type_error(text!("true or false", "true 或 false")))
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
            u64::MAX => format_text!("a whole number, {} or more", "不小于 {} 的整数", range.start()),
            end => format_text!("a whole number from {} to {end}", "{} 到 {end} 之间的整数", range.start()),
        };
        let DeValue::Integer(integer) = self.raw else {
            return Err(self.type_error(expected));
        };
        u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                self.error(format_text!(
                    "must be {}, not {}",
                    "应为：{}；写的是 {}",
                    expected,
                    truncate(&integer.to_string())
                ))
            })
    }

    /// A count within `range`.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Result<usize, Error> {
        let number = self.integer(range)?;
        usize::try_from(number)
            .map_err(|_| self.error(text!("is too large for this machine", "对这台机器来说太大")))
    }

    /// A list, which may be empty.
    pub(super) fn list(&self, expected: Text) -> Result<Vec<ConfigValue<'a>>, Error> {
        let DeValue::Array(array) = self.raw else {
            return Err(self.type_error(expected));
        };
        let location = |index, start| Location {
            source: self.location.source,
            text: self.location.text,
            line: Some(self.location.line_at(start)),
            key: format!("{}[{index}]", self.location.key),
        };
        let items = array.iter().enumerate();
        Ok(items
            .map(|(i, value)| ConfigValue { location: location(i, value.span().start), raw: value.get_ref() })
            .collect())
    }

    /// A string or the elements of a list, each still to be read.
    pub(super) fn one_or_list(&self, expected: Text) -> Result<Vec<ConfigValue<'a>>, Error> {
        match self.raw {
            DeValue::String(_) => Ok(vec![self.clone()]),
            _ => self.list(expected),
        }
    }

    /// One of `choices`.
    pub(super) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Error> {
        let names = || choices.iter().map(|(name, _)| *name);
        let allowed = names().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let text = self.string(format_text!("one of {allowed}", "{allowed} 之一"))?;
        let found = choices.iter().find(|(name, _)| *name == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let hint = did_you_mean(text, names());
            self.error(format_text!(
                "{} is not known; {}allowed: {allowed}",
                "未知的值 {}；{}可用：{allowed}",
                quote(text),
                hint
            ))
        })
    }

    pub(super) fn table(
        &self,
        expected: Text,
        allowed_keys: &'static [&'static str],
    ) -> Result<ConfigTable<'a>, Error> {
        match self.raw {
            DeValue::Table(table) => Ok(ConfigTable::new(self.location.clone(), Some(table), allowed_keys)),
            _ => Err(self.type_error(expected)),
        }
    }

    /// A path, resolved against the directory of its file.
    pub(super) fn path(&self) -> Result<PathBuf, Error> {
        let text = self.string(text!("a path", "路径"))?;
        if text.is_empty() || text.contains('\0') {
            return Err(self.error(text!(
                "must be a path, relative to this file or absolute",
                "必须是路径，相对于此文件或绝对路径"
            )));
        }
        Ok(self.location.source.resolve(text))
    }
}

/// Reads each element of a list. All wrong ones are recorded.
pub(super) fn read_all<'a, T>(
    items: &[ConfigValue<'a>],
    mut read: impl FnMut(&ConfigValue<'a>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let read = items.iter().map(|item| read(item).map_err(|error| item.location.record(error)).ok());
    let read: Vec<_> = read.collect();
    read.into_iter().collect::<Option<_>>().ok_or_else(Error::recorded)
}

/// The name of a choice, as [`ConfigValue::one_of`] reads it.
pub(super) fn name_of<T: PartialEq>(choices: &[(&'static str, T)], choice: &T) -> &'static str {
    choices.iter().find(|(_, known)| known == choice).map_or("", |(name, _)| name)
}

fn type_name(value: &DeValue<'_>) -> Text {
    match value {
        DeValue::String(_) => text!("a string", "字符串"),
        DeValue::Integer(_) => text!("a whole number", "整数"),
        DeValue::Float(_) => text!("a fraction", "小数"),
        DeValue::Boolean(_) => text!("true or false", "true 或 false"),
        DeValue::Datetime(_) => text!("a date", "日期"),
        DeValue::Array(_) => text!("a list", "列表"),
        DeValue::Table(_) => text!("a table", "表"),
    }
}
