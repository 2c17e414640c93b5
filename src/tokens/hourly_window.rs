//! Sliding window over the refreshes of all agents in the last hour.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);

/// The priority of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// For a refusal of a token that the path had accepted: may use the whole window.
    High,
    /// For all others: may use half of it.
    Normal,
}

/// The refreshes of the last hour, by priority.
#[derive(Debug, Default)]
pub(super) struct HourlyWindow {
    high: VecDeque<Instant>,
    normal: VecDeque<Instant>,
}

impl HourlyWindow {
    /// Counts one refresh if fewer than `max` are in the window and, for [`Priority::Normal`], fewer than `max / 2`
    /// of that priority. Error: when both will be so, at the earliest.
    pub(super) fn try_acquire(
        &mut self,
        now: Instant,
        priority: Priority,
        max: usize,
    ) -> Result<(), Instant> {
        self.forget_old(now);
        let free_at = |call: Option<&Instant>| call.map_or(now, |call| *call + HOUR);
        if priority == Priority::Normal && self.normal.len() >= max / 2 {
            return Err(free_at(self.normal.front()));
        }
        if self.high.len() + self.normal.len() >= max {
            return Err(free_at(self.high.front().into_iter().chain(self.normal.front()).min()));
        }
        self.refreshes_of(priority).push_back(now);
        Ok(())
    }

    /// The refreshes in the window.
    pub(super) fn count(&mut self, now: Instant) -> usize {
        self.forget_old(now);
        self.high.len() + self.normal.len()
    }

    fn forget_old(&mut self, now: Instant) {
        for calls in [&mut self.high, &mut self.normal] {
            while calls.front().is_some_and(|call| now.saturating_duration_since(*call) >= HOUR) {
                calls.pop_front();
            }
        }
    }

    /// Removes the refresh counted at this instant.
    pub(super) fn release(&mut self, at: Instant, priority: Priority) {
        let calls = self.refreshes_of(priority);
        if let Some(index) = calls.iter().rposition(|call| *call == at) {
            calls.remove(index);
        }
    }

    fn refreshes_of(&mut self, priority: Priority) -> &mut VecDeque<Instant> {
        match priority {
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
