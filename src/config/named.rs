//! Tables whose names the file chooses, `[agents.*]` and `[clients.*]`, gathered from every file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::Error;
use super::section::{Item, Section};

/// Names travel inside passes, which have a longest length themselves.
const LONGEST_NAME: usize = 64;

/// Every entry of the table `kind`, by name; the same name twice is refused with both places.
pub(super) fn gather<'a>(
    roots: &[Section<'a>],
    kind: &'static str,
) -> Result<BTreeMap<&'a str, Item<'a>>, Error> {
    let mut all: BTreeMap<&str, Item<'_>> = BTreeMap::new();
    for root in roots {
        for (name, item) in root.entries(kind)? {
            check_name(&item, name)?;
            match all.entry(name) {
                Entry::Vacant(free) => drop(free.insert(item)),
                Entry::Occupied(first) => {
                    let first = first.get().place.shown();
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
pub fn is_name(name: &str) -> bool {
    has_only_letters(name) && name.len() <= LONGEST_NAME
}

fn has_only_letters(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn check_name(item: &Item<'_>, name: &str) -> Result<(), Error> {
    if !has_only_letters(name) {
        return Err(item.error("is not a name; use letters, digits, _ and -"));
    }
    if name.len() > LONGEST_NAME {
        return Err(item.error(format!("is too long for a name; at most {LONGEST_NAME} characters")));
    }
    Ok(())
}
