//! How many renewals may be made in an hour by all agents together.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);

/// What a renewal counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// For a refusal of a token that had worked: it may use all there is.
    Worked,
    /// Any other: it may use half.
    Other,
}

/// The renewals of the last hour that count.
#[derive(Debug, Default)]
pub(super) struct Hourly {
    worked: VecDeque<Instant>,
    other: VecDeque<Instant>,
}

impl Hourly {
    /// Counts one where `most` allows it; else when it will.
    pub(super) fn take(&mut self, now: Instant, class: Class, most: usize) -> Result<(), Instant> {
        for calls in [&mut self.worked, &mut self.other] {
            while calls.front().is_some_and(|call| now.saturating_duration_since(*call) >= HOUR) {
                calls.pop_front();
            }
        }
        let free_at = |call: Option<&Instant>| call.map_or(now, |call| *call + HOUR);
        if class == Class::Other && self.other.len() >= most / 2 {
            return Err(free_at(self.other.front()));
        }
        if self.worked.len() + self.other.len() >= most {
            return Err(free_at(self.worked.front().into_iter().chain(self.other.front()).min()));
        }
        self.of(class).push_back(now);
        Ok(())
    }

    /// Takes back what was counted at this instant.
    pub(super) fn give_back(&mut self, at: Instant, class: Class) {
        let calls = self.of(class);
        if let Some(nth) = calls.iter().rposition(|call| *call == at) {
            calls.remove(nth);
        }
    }

    fn of(&mut self, class: Class) -> &mut VecDeque<Instant> {
        match class {
            Class::Worked => &mut self.worked,
            Class::Other => &mut self.other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_hour_holds_at_most_its_renewals_and_half_of_other_kinds() {
        let (mut hourly, start) = (Hourly::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let taken = (0..7200).filter(|second| hourly.take(at(*second), Class::Other, 300).is_ok()).count();
        assert_eq!(taken, 2 * 150);
        let (mut hourly, now) = (Hourly::default(), at(0));
        assert_eq!((0..300).filter(|_| hourly.take(now, Class::Other, 300).is_ok()).count(), 150);
        assert_eq!((0..300).filter(|_| hourly.take(at(9), Class::Worked, 300).is_ok()).count(), 150);
        assert_eq!(hourly.take(at(10), Class::Worked, 300), Err(at(3600)));
        hourly.give_back(at(9), Class::Worked);
        assert!(hourly.take(at(10), Class::Worked, 300).is_ok());
        assert!(hourly.take(at(10), Class::Worked, 300).is_err());
    }
}
