//! The timestamp of a line: RFC 3339 in UTC with microseconds. Formats all but the microseconds only once a second.

use std::time::{Duration, SystemTime};

const SECONDS_PER_DAY: u64 = 86_400;

/// The last formatted timestamp.
pub(super) struct TimestampCache {
    text: [u8; 27],
    second: u64,
}

impl Default for TimestampCache {
    fn default() -> Self {
        Self { text: *b"1970-01-01T00:00:00.000000Z", second: 0 }
    }
}

impl TimestampCache {
    /// Formats `time`; a time before 1970 as the epoch.
    pub(super) fn format(&mut self, time: SystemTime) -> &[u8] {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            self.format_second();
        }
        write_digits(&mut self.text[20..26], u64::from(since.subsec_micros()));
        &self.text
    }

    fn format_second(&mut self) {
        let (day, second) = (self.second / SECONDS_PER_DAY, self.second % SECONDS_PER_DAY);
        let (year, month, date) = civil_from_days(day);
        let parts = [
            (0..4, year),
            (5..7, month),
            (8..10, date),
            (11..13, second / 3600),
            (14..16, second / 60 % 60),
            (17..19, second % 60),
        ];
        for (range, number) in parts {
            write_digits(&mut self.text[range], number);
        }
    }
}

/// Year, month and day of the month of a day counted from 1970. Counts years from March, so that the leap day is the
/// last day of a year, in eras of 400 years.
fn civil_from_days(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, date)
}

/// Fills `out` with the number's last digits.
fn write_digits(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(cache: &mut TimestampCache, seconds: u64, micros: u32) -> String {
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, micros * 1000 + 999);
        String::from_utf8(cache.format(time).to_vec()).expect("ASCII")
    }

    #[test]
    fn format_handles_leap_days_and_epoch_bounds() {
        let mut cache = TimestampCache::default();
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (0, 1, "1970-01-01T00:00:00.000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000Z"),
            (951_868_799, 999_999, "2000-02-29T23:59:59.999999Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000Z"),
            (1_709_164_800, 5, "2024-02-29T00:00:00.000005Z"),
            (1_767_225_599, 123_456, "2025-12-31T23:59:59.123456Z"),
            (1_767_225_600, 0, "2026-01-01T00:00:00.000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(format(&mut cache, seconds, micros), text);
        }
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(cache.format(before), b"1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn civil_from_days_counts_800_years_without_gap() {
        let (mut year, mut month, mut date) = (1970, 1, 1);
        for day in 0..800 * 365 {
            assert_eq!(civil_from_days(day), (year, month, date));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (date, month) = if date < last { (date + 1, month) } else { (1, month + 1) };
            (month, year) = if month < 13 { (month, year) } else { (1, year + 1) };
        }
    }
}
