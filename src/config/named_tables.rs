//! Collects the tables with free names, `[agents.*]` and `[clients.*]`, from every file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::Error;
use super::reader::{ConfigTable, ConfigValue};
use super::table_name::{MAX_NAME_BYTES, has_valid_characters};
use crate::{format_text, text};

/// Every entry of the table `kind`, by name. Wrong names are recorded; the error for a duplicate name contains both
/// locations.
pub(super) fn collect_named<'a>(
    roots: &[ConfigTable<'a>],
    kind: &'static str,
) -> BTreeMap<&'a str, ConfigValue<'a>> {
    let mut values: BTreeMap<&str, ConfigValue<'_>> = BTreeMap::new();
    for root in roots {
        for (name, item) in root.entries(kind) {
            if let Err(error) = check_name(&item, name) {
                item.location.record(error);
                continue;
            }
            match values.entry(name) {
                Entry::Vacant(entry) => drop(entry.insert(item)),
                Entry::Occupied(first) => {
                    let first = first.get().location.file_and_line();
                    item.location.record(item.error(format_text!(
                        "is already defined in {first}; rename one of them",
                        "已在 {first} 定义；请改其中一个的名字"
                    )));
                }
            }
        }
    }
    values
}

/// Reads each entry; a wrong one is recorded and left out.
pub(super) fn read_each<'a, T>(
    items: &BTreeMap<&'a str, ConfigValue<'a>>,
    mut read: impl FnMut(&'a str, &ConfigValue<'a>) -> Result<T, Error>,
) -> BTreeMap<String, T> {
    let mut values = BTreeMap::new();
    for (name, item) in items {
        match read(name, item) {
            Ok(value) => drop(values.insert((*name).to_owned(), value)),
            Err(error) => item.location.record(error),
        }
    }
    values
}

fn check_name(item: &ConfigValue<'_>, name: &str) -> Result<(), Error> {
    if !has_valid_characters(name) {
        return Err(item.error(text!(
            "is not a name; use letters, digits, _ and -",
            "不是名字；请用字母、数字、_ 和 -"
        )));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(item.error(format_text!(
            "is too long for a name; at most {MAX_NAME_BYTES} characters",
            "太长，不能作为名字；最多 {MAX_NAME_BYTES} 个字符"
        )));
    }
    Ok(())
}
