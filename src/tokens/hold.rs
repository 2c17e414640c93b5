//! How long an agent whose token was refused again is left alone.

use std::time::Duration;

use tokio::time::Instant;

/// An agent whose renewal brought the refused token back is left alone for this long at first, and twice as long each
/// time after, up to [`LONGEST_HOLD`].
const HOLD: Duration = Duration::from_secs(10);
/// Longest such hold.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Begun when gettoken brought the refused token back, or a new one that was refused at once.
#[derive(Clone, Copy)]
pub(super) struct Hold {
    until: Instant,
    length: Duration,
}

impl Hold {
    /// A hold that begins at `now`: twice as long as the one before, unless that one is long over.
    pub(super) fn after(before: Option<Self>, now: Instant) -> Self {
        let recent = before.filter(|hold| now < hold.until + LONGEST_HOLD);
        let length = recent.map_or(HOLD, |hold| (2 * hold.length).min(LONGEST_HOLD));
        Self { until: now + length, length }
    }

    /// Whether it still binds.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        now < self.until
    }

    /// The same, over by `now`: it is kept to know how long the next is to be.
    pub(super) fn lifted(self, now: Instant) -> Self {
        Self { until: self.until.min(now), ..self }
    }
}
