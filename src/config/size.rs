//! Sizes: `"64MiB"`, or a plain number of bytes.

use std::ops::RangeInclusive;

use super::error::{Error, quote};
use super::reader::ConfigValue;
use super::units;
use crate::{format_text, text};

/// Units with their bytes, from the largest to the smallest. KB, MB and GB are refused, because they are ambiguous:
/// 1000 or 1024.
const UNITS: [(&str, u64); 5] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("", 1)];

/// The largest file offset, which is signed.
pub(super) const MAX_SIZE_BYTES: u64 = i64::MAX as u64;

/// Reads a size in bytes.
pub(super) fn read(item: &ConfigValue<'_>, range: RangeInclusive<u64>) -> Result<u64, Error> {
    let expected = text!(
        "a size like \"64MiB\" (B, KiB, MiB, GiB) or a plain number of bytes",
        "\"64MiB\" 这样的大小（B、KiB、MiB、GiB），或字节数"
    );
    if item.is_integer() {
        return item.integer(range);
    }
    let text = item.string(expected.clone())?;
    let size = parse(text)
        .ok_or_else(|| item.error(format_text!("{} is not {}", "{} 不是 {}", quote(text), expected)))?;
    if size < *range.start() {
        return Err(item.error(format_text!(
            "{} is too small; at least {:?}",
            "{} 太小；至少 {:?}",
            quote(text),
            format(*range.start())
        )));
    }
    if size > *range.end() {
        return Err(item.error(format_text!("{} is too large", "{} 太大", quote(text))));
    }
    Ok(size)
}

/// Parses a size like `64MiB`. An overflow becomes `u64::MAX`, which every range excludes.
fn parse(text: &str) -> Option<u64> {
    units::parse(text, &UNITS)
}

/// Formats the size in the file's syntax, in the largest unit that needs no fraction.
pub fn format(bytes: u64) -> String {
    units::format(bytes.into(), &UNITS, "B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_accepts_each_unit_only() {
        for (text, bytes) in
            [("0", 0), ("12", 12), ("12B", 12), ("3KiB", 3072), ("64MiB", 64 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "64 MiB", "64MB", "64mib", "64M", "-1B", "1.5GiB", "1TiB", "1_000", "٣B"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn parse_overflow_exceeds_maximum() {
        for text in ["18446744073709551616", "99999999999999999999GiB", "18446744073709551615KiB"] {
            assert!(parse(text).is_some_and(|size| size > MAX_SIZE_BYTES), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in any::<String>()) {
            parse(&text);
        }

        #[test]
        fn parse_never_panics_on_number_and_unit(text in "[0-9]{0,30}(B|KiB|MiB|GiB|KB)?") {
            parse(&text);
        }

        #[test]
        fn parse_reads_formatted_size(bytes in any::<u64>()) {
            prop_assert_eq!(parse(&format(bytes)), Some(bytes));
        }

        #[test]
        fn parse_reads_formatted_whole_units(number in 0..=1_000_000u64, unit in 0..4usize) {
            let bytes = number * UNITS[unit].1;
            prop_assert_eq!(parse(&format(bytes)), Some(bytes));
        }
    }
}
