//! Durations: `"30s"`, `"250ms"`, `"5m"`, `"2h"`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{Error, quoted};
use super::section::Item;

/// Larger than any sensible setting, small enough that adding it to an instant never overflows.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// What waits, and has to wait for something.
pub(super) const POSITIVE: RangeInclusive<Duration> = Duration::from_millis(1)..=LONGEST;

/// What may also be switched off by zero.
pub(super) const FROM_ZERO: RangeInclusive<Duration> = Duration::ZERO..=LONGEST;

/// From the largest to the smallest.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

pub(super) fn read(item: &Item<'_>, range: RangeInclusive<Duration>) -> Result<Duration, Error> {
    let text = item.text("a duration like \"75s\" (ms, s, m, h)")?;
    let duration = parse(text).ok_or_else(|| {
        item.error(format!("{} is not a duration; write one like \"75s\" (ms, s, m, h)", quoted(text)))
    })?;
    if duration < *range.start() {
        return Err(item.error(format!(
            "{} is too short; at least {:?}",
            quoted(text),
            write(*range.start())
        )));
    }
    if duration > *range.end() {
        return Err(item.error(format!("{} is too long; at most {:?}", quoted(text), write(*range.end()))));
    }
    Ok(duration)
}

/// Reads a duration like `75s`; none where it is not one. One too large to count becomes the largest there is, which no range contains.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    if number.is_empty() {
        return None;
    }
    // All digits, so the only failure left is overflow.
    let number = number.parse::<u64>().unwrap_or(u64::MAX);
    Some(number.checked_mul(*factor).map_or(Duration::MAX, Duration::from_millis))
}

/// The duration as it would stand in the file, in the largest unit that shows all of it.
pub fn write(duration: Duration) -> String {
    let millis = duration.as_millis();
    let unit = UNITS.iter().find(|(_, factor)| millis != 0 && millis.is_multiple_of(u128::from(*factor)));
    let (name, factor) = unit.unwrap_or(&("s", 1_000));
    format!("{}{name}", millis / u128::from(*factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_each_unit_and_nothing_else() {
        for (text, millis) in
            [("0s", 0), ("250ms", 250), ("75s", 75_000), ("5m", 300_000), ("2h", 7_200_000), ("007s", 7_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "s", "5", "5 s", " 5s", "5s ", "-5s", "+5s", "1.5s", "1h30m", "5S", "5d", "5us", "٣s", "5é"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn counts_what_overflows_as_too_long() {
        for text in ["99999999999999999999999s", "18446744073709551615h", "18446744073709551616ms"] {
            assert!(parse(text).is_some_and(|duration| duration > LONGEST), "{text}");
        }
    }

    proptest! {
        #[test]
        fn survives_any_text(text in any::<String>()) {
            parse(&text);
        }

        #[test]
        fn survives_anything_like_a_duration(text in "[0-9]{0,30}(ms|s|m|h|d|µs)?") {
            parse(&text);
        }

        #[test]
        fn reads_what_it_writes(millis in 0..=u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&write(duration)), Some(duration));
        }

        #[test]
        fn reads_what_it_writes_in_whole_units(number in 0..=1_000_000u64, unit in 0..4usize) {
            let duration = Duration::from_millis(number * UNITS[unit].1);
            prop_assert_eq!(parse(&write(duration)), Some(duration));
        }
    }
}
