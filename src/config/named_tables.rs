//! Tables whose names the file chooses, `[agents.*]` and `[clients.*]`, gathered from every file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::Error;
use super::reader::{ConfigTable, ConfigValue};

/// Names travel inside passes, which have a longest length themselves.
const MAX_NAME_BYTES: usize = 64;

/// Every entry of the table `kind`, by name; the same name twice is refused with both places.
pub(super) fn collect_named<'a>(
    roots: &[ConfigTable<'a>],
    kind: &'static str,
) -> Result<BTreeMap<&'a str, ConfigValue<'a>>, Error> {
    let mut all: BTreeMap<&str, ConfigValue<'_>> = BTreeMap::new();
    for root in roots {
        for (name, item) in root.entries(kind)? {
            check_name(&item, name)?;
            match all.entry(name) {
                Entry::Vacant(free) => drop(free.insert(item)),
                Entry::Occupied(first) => {
                    let first = first.get().location.file_and_line();
                    return Err(
                        item.error(format!("stands in {first} already; give one of them another name"))
                    );
                }
            }
        }
    }
    Ok(all)
}

/// Whether an agent or client may have this name.
pub fn is_valid_name(name: &str) -> bool {
    has_valid_characters(name) && name.len() <= MAX_NAME_BYTES
}

fn has_valid_characters(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn check_name(item: &ConfigValue<'_>, name: &str) -> Result<(), Error> {
    if !has_valid_characters(name) {
        return Err(item.error("is not a name; use letters, digits, _ and -"));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(item.error(format!("is too long for a name; at most {MAX_NAME_BYTES} characters")));
    }
    Ok(())
}
