//! The wall clock, for what needs no more than the second to be right: asked once a second, and counted on from there.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// How long a reading serves.
const FRESH: Duration = Duration::from_secs(1);

/// What the wall clock says at `now`, which has just been asked for.
pub fn wall(now: Instant) -> SystemTime {
    thread_local! {
        static READ: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
    }
    match READ.get() {
        Some((then, wall)) if now >= then && now - then < FRESH => wall + (now - then),
        _ => {
            let wall = SystemTime::now();
            READ.set(Some((now, wall)));
            wall
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_and_is_asked_again() {
        let began = Instant::now();
        let first = wall(began);
        assert_eq!(wall(began + Duration::from_millis(999)), first + Duration::from_millis(999));
        let asked = SystemTime::now();
        let again = wall(began + FRESH);
        assert!(again >= asked && again < first + FRESH, "the clock of this test stands still");
        assert_eq!(wall(began + FRESH), again);
    }
}
