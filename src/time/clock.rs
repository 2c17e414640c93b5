//! Wall clock with one-second accuracy: read once a second and extrapolated by the monotonic clock.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// How long a reading is extrapolated.
const READING_TTL: Duration = Duration::from_secs(1);

/// The wall-clock time at `now`, which must be the current instant.
pub fn wall_clock_at(now: Instant) -> SystemTime {
    thread_local! {
        static LAST_READING: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
    }
    if let Some((read_at, wall)) = LAST_READING.get()
        && let Some(age) = now.checked_duration_since(read_at).filter(|age| *age < READING_TTL)
    {
        return wall + age;
    }
    let wall = SystemTime::now();
    LAST_READING.set(Some((now, wall)));
    wall
}

/// The time of day. In tests it follows tokio's clock, which can be paused.
#[cfg(not(test))]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
pub(crate) fn wall_clock() -> SystemTime {
    static BASE: std::sync::LazyLock<(SystemTime, std::time::Instant)> =
        std::sync::LazyLock::new(|| (SystemTime::now(), std::time::Instant::now()));
    BASE.0 + Instant::now().into_std().saturating_duration_since(BASE.1)
}

/// Seconds since the Unix epoch, read from the system clock.
pub fn unix_now() -> u64 {
    unix_seconds(SystemTime::now())
}

/// Milliseconds since the Unix epoch, read from the system clock.
pub fn unix_now_millis() -> u64 {
    u64::try_from(since_epoch(SystemTime::now()).as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since the Unix epoch.
pub fn unix_seconds(time: SystemTime) -> u64 {
    since_epoch(time).as_secs()
}

/// The time since the Unix epoch; zero before it.
pub fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wall_clock_advances_and_is_reread_after_ttl() {
        let start = Instant::now();
        let first = wall_clock_at(start);
        assert_eq!(wall_clock_at(start + Duration::from_millis(999)), first + Duration::from_millis(999));
        let before = SystemTime::now();
        let second = wall_clock_at(start + READING_TTL);
        assert!(second >= before && second < first + READING_TTL, "the paused clock does not advance");
        assert_eq!(wall_clock_at(start + READING_TTL), second);
    }
}
