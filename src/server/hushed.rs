//! A few lines a minute about what clients can make happen without end, and how many there would have been.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many lines in each [`WHILE`].
const FEW: u32 = 5;
/// See [`FEW`].
const WHILE: Duration = Duration::from_secs(60);

/// What was said of one kind of trouble, and what was not.
#[derive(Debug, Default)]
pub(super) struct Hushed(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    since: Option<Instant>,
    lines: u32,
    unsaid: u64,
}

impl Hushed {
    /// It happened again. Where that is to be said, how often it happened before without being spoken of.
    pub(super) fn speak(&self) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.since.is_none_or(|since| since.elapsed() >= WHILE) {
            (told.since, told.lines) = (Some(Instant::now()), 0);
        }
        if told.lines == FEW {
            told.unsaid += 1;
            return None;
        }
        told.lines += 1;
        Some(std::mem::take(&mut told.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_are_said_and_the_others_counted() {
        let hushed = Hushed::default();
        assert_eq!((0..8).filter_map(|_| hushed.speak()).collect::<Vec<_>>(), [0; 5]);
        tokio::time::advance(WHILE).await;
        assert_eq!((0..8).filter_map(|_| hushed.speak()).collect::<Vec<_>>(), [3, 0, 0, 0, 0]);
        tokio::time::advance(WHILE).await;
        assert_eq!(hushed.speak(), Some(3));
    }
}
