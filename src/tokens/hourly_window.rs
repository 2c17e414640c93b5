//! How many renewals may be made in an hour by all agents together.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);

/// What a renewal counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// For a refusal of a token that had worked: it may use all there is.
    High,
    /// Any other: it may use half.
    Normal,
}

/// The renewals of the last hour that count.
#[derive(Debug, Default)]
pub(super) struct HourlyWindow {
    high: VecDeque<Instant>,
    normal: VecDeque<Instant>,
}

impl HourlyWindow {
    /// Counts one where `most` allows it; else when it will.
    pub(super) fn try_acquire(&mut self, now: Instant, class: Priority, most: usize) -> Result<(), Instant> {
        for calls in [&mut self.high, &mut self.normal] {
            while calls.front().is_some_and(|call| now.saturating_duration_since(*call) >= HOUR) {
                calls.pop_front();
            }
        }
        let free_at = |call: Option<&Instant>| call.map_or(now, |call| *call + HOUR);
        if class == Priority::Normal && self.normal.len() >= most / 2 {
            return Err(free_at(self.normal.front()));
        }
        if self.high.len() + self.normal.len() >= most {
            return Err(free_at(self.high.front().into_iter().chain(self.normal.front()).min()));
        }
        self.refreshes_of(class).push_back(now);
        Ok(())
    }

    /// Takes back what was counted at this instant.
    pub(super) fn release(&mut self, at: Instant, class: Priority) {
        let calls = self.refreshes_of(class);
        if let Some(nth) = calls.iter().rposition(|call| *call == at) {
            calls.remove(nth);
        }
    }

    fn refreshes_of(&mut self, class: Priority) -> &mut VecDeque<Instant> {
        match class {
            Priority::High => &mut self.high,
            Priority::Normal => &mut self.normal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hourly_window_caps_total_and_normal_at_half() {
        let (mut hourly, start) = (HourlyWindow::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let taken =
            (0..7200).filter(|second| hourly.try_acquire(at(*second), Priority::Normal, 300).is_ok()).count();
        assert_eq!(taken, 2 * 150);
        let (mut hourly, now) = (HourlyWindow::default(), at(0));
        assert_eq!((0..300).filter(|_| hourly.try_acquire(now, Priority::Normal, 300).is_ok()).count(), 150);
        assert_eq!((0..300).filter(|_| hourly.try_acquire(at(9), Priority::High, 300).is_ok()).count(), 150);
        assert_eq!(hourly.try_acquire(at(10), Priority::High, 300), Err(at(3600)));
        hourly.release(at(9), Priority::High);
        assert!(hourly.try_acquire(at(10), Priority::High, 300).is_ok());
        assert!(hourly.try_acquire(at(10), Priority::High, 300).is_err());
    }
}
