//! Durations: `"30s"`, `"250ms"`, `"5m"`, `"2h"`. `humantime` would also take `"1day 2h"` and `"30 sec"`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{Error, quote};
use super::reader::ConfigValue;
use super::units;
use crate::{format_text, text};

/// Larger than any useful setting, and small enough that adding it to an instant never overflows.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);

/// The range of timeouts that must not be zero.
pub(super) const POSITIVE_RANGE: RangeInclusive<Duration> = Duration::from_millis(1)..=MAX_DURATION;

/// The range of durations that zero disables.
pub(super) const RANGE_WITH_ZERO: RangeInclusive<Duration> = Duration::ZERO..=MAX_DURATION;

/// Units with their milliseconds, from the largest to the smallest.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

pub(super) fn read(item: &ConfigValue<'_>, range: RangeInclusive<Duration>) -> Result<Duration, Error> {
    let text =
        item.string(text!("a duration like \"75s\" (ms, s, m, h)", "\"75s\" 这样的时长（ms、s、m、h）"))?;
    let duration = parse(text).ok_or_else(|| {
        item.error(format_text!(
            "{} is not a duration; write one like \"75s\" (ms, s, m, h)",
            "{} 不是时长；请写成 \"75s\"（ms、s、m、h）",
            quote(text)
        ))
    })?;
    if duration < *range.start() {
        return Err(item.error(format_text!(
            "{} is too short; at least {:?}",
            "{} 太短；至少 {:?}",
            quote(text),
            format(*range.start())
        )));
    }
    if duration > *range.end() {
        return Err(item.error(format_text!(
            "{} is too long; at most {:?}",
            "{} 太长；最多 {:?}",
            quote(text),
            format(*range.end())
        )));
    }
    Ok(duration)
}

/// Parses a duration like `75s`. An overflow becomes one that every range excludes.
pub fn parse(text: &str) -> Option<Duration> {
    units::parse(text, &UNITS).map(Duration::from_millis)
}

/// Formats the duration in the file's syntax, in the largest unit that needs no fraction.
pub fn format(duration: Duration) -> String {
    units::format(duration.as_millis(), &UNITS, "s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_accepts_each_unit_only() {
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
    fn parse_overflow_exceeds_maximum() {
        for text in ["99999999999999999999999s", "18446744073709551615h", "18446744073709551616ms"] {
            assert!(parse(text).is_some_and(|duration| duration > MAX_DURATION), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in any::<String>()) {
            parse(&text);
        }

        #[test]
        fn parse_never_panics_on_number_and_unit(text in "[0-9]{0,30}(ms|s|m|h|d|µs)?") {
            parse(&text);
        }

        #[test]
        fn parse_reads_formatted_duration(millis in 0..=u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }

        #[test]
        fn parse_reads_formatted_whole_units(number in 0..=1_000_000u64, unit in 0..4usize) {
            let duration = Duration::from_millis(number * UNITS[unit].1);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }
    }
}
