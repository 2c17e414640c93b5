//! The wall clock, for what needs no more than the second to be right: asked once a second, and counted on from there.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// How long a reading serves.
const READING_TTL: Duration = Duration::from_secs(1);

/// What the wall clock says at `now`, which has just been asked for.
pub fn wall_clock_at(now: Instant) -> SystemTime {
    thread_local! {
        static LAST_READING: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
    }
    match LAST_READING.get() {
        Some((then, wall)) if now >= then && now - then < READING_TTL => wall + (now - then),
        _ => {
            let wall = SystemTime::now();
            LAST_READING.set(Some((now, wall)));
            wall
        }
    }
}

/// Seconds since the Unix epoch, read from the system clock.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wall_clock_advances_and_is_reread_after_ttl() {
        let began = Instant::now();
        let first = wall_clock_at(began);
        assert_eq!(wall_clock_at(began + Duration::from_millis(999)), first + Duration::from_millis(999));
        let asked = SystemTime::now();
        let again = wall_clock_at(began + READING_TTL);
        assert!(again >= asked && again < first + READING_TTL, "the clock of this test stands still");
        assert_eq!(wall_clock_at(began + READING_TTL), again);
    }
}
