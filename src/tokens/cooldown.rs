//! The pause after a renewal that refusals caused, in which refusals cause no other.

use std::time::Duration;

use tokio::time::Instant;

use super::PathKey;

/// How long it lasts from the gettoken on.
pub(super) const COOLDOWN: Duration = Duration::from_secs(10);
/// Paths that are told apart; where more refuse, it applies to all.
const MAX_REFUSED_PATHS: usize = 16;

/// The pause of one agent. Where gettoken brought the refused token back it applies to every path; where it brought a new
/// one, to the paths that had refused the old one, because such a path may refuse every token. It never applies to a path on
/// which the present token works, unless the one before it ended early too.
#[derive(Debug, Default)]
pub(super) struct Cooldown {
    until: Option<Instant>,
    all_paths: bool,
    no_early_end: bool,
    refused_paths: RefusedPaths,
}

/// A bounded set of paths that refused a token.
#[derive(Debug, Default)]
pub(super) struct RefusedPaths {
    path_keys: Vec<PathKey>,
    overflowed: bool,
}

impl RefusedPaths {
    pub(super) fn insert(&mut self, path: PathKey) {
        if self.contains(path) {
            return;
        }
        match self.path_keys.len() < MAX_REFUSED_PATHS {
            true => self.path_keys.push(path),
            false => self.overflowed = true,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.path_keys.is_empty()
    }

    fn contains(&self, path: PathKey) -> bool {
        self.overflowed || self.path_keys.contains(&path)
    }
}

impl Cooldown {
    /// Begins with the gettoken that these refusals caused. `early` where it was made before the last pause was over.
    pub(super) fn start(&mut self, now: Instant, same: bool, early: bool, refused_by: RefusedPaths) {
        if !self.is_active(now) {
            self.refused_paths = RefusedPaths::default();
        }
        self.refused_paths.overflowed |= refused_by.overflowed;
        refused_by.path_keys.into_iter().for_each(|path| self.refused_paths.insert(path));
        (self.all_paths, self.no_early_end) = (same, same && early);
        self.until = Some(now + COOLDOWN);
    }

    /// Adds a path that refused a new token as it had refused the old one; `got` is when that token came.
    pub(super) fn extend_to(&mut self, path: PathKey, now: Instant, got: Instant) {
        if now >= got + COOLDOWN {
            return;
        }
        if !self.is_active(now) {
            *self = Self { until: Some(got + COOLDOWN), ..Self::default() };
        }
        self.refused_paths.insert(path);
    }

    /// Until when a refusal by this path causes no renewal; `works` where the path accepted the present token when it last
    /// judged it.
    pub(super) fn blocked_until(&self, now: Instant, path: PathKey, works: bool) -> Option<Instant> {
        let applies = match self.all_paths {
            true => self.no_early_end || !works,
            false => !works && self.refused_paths.contains(path),
        };
        self.until.filter(|until| now < *until && applies)
    }

    /// Whether a renewal now ends a pause early that applied to every path.
    pub(super) fn ends_early(&self, now: Instant) -> bool {
        self.all_paths && self.is_active(now)
    }

    fn is_active(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
