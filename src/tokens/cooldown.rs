//! Cooldown after a refresh that refusals caused: while it lasts, refusals by the paths that it applies to cause no
//! other one.

use std::time::Duration;

use tokio::time::Instant;

use super::PathKey;

/// Duration, counted from the gettoken.
pub(super) const COOLDOWN: Duration = Duration::from_secs(10);
/// Paths that are distinguished; if more refuse, the cooldown applies to all paths.
const MAX_REFUSED_PATHS: usize = 16;

/// The cooldown of one agent. If gettoken returned the refused token again it applies to every path. If it
/// returned a new token, it applies to the paths that had refused the old one, because such a path may refuse
/// every token. A path that accepts the current token is exempt: its refusal starts a refresh in spite of the
/// cooldown, and the result starts a new one. If such a refresh returned the same token once more, the next cooldown
/// has no exemption.
#[derive(Debug, Default)]
pub(super) struct Cooldown {
    until: Option<Instant>,
    all_paths: bool,
    /// With `all_paths`: the paths that accept the current token too.
    includes_accepted_paths: bool,
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
    /// Starts after the gettoken that the refusals of `refused_by` caused. `unchanged`: it returned the refused
    /// token. `early`: the refresh began during a cooldown for all paths, or the refusing paths are unknown (another
    /// replica's refresh).
    pub(super) fn start(&mut self, now: Instant, unchanged: bool, early: bool, refused_by: RefusedPaths) {
        if !self.is_active(now) {
            self.refused_paths = RefusedPaths::default();
        }
        self.refused_paths.overflowed |= refused_by.overflowed;
        refused_by.path_keys.into_iter().for_each(|path| self.refused_paths.insert(path));
        (self.all_paths, self.includes_accepted_paths) = (unchanged, unchanged && early);
        self.until = Some(now + COOLDOWN);
    }

    /// Adds a path that refused a new token as it had refused the old one; `first_seen` is when the new token
    /// arrived.
    pub(super) fn extend_to(&mut self, path: PathKey, now: Instant, first_seen: Instant) {
        if now >= first_seen + COOLDOWN {
            return;
        }
        if !self.is_active(now) {
            *self = Self { until: Some(first_seen + COOLDOWN), ..Self::default() };
        }
        self.refused_paths.insert(path);
    }

    /// Until when a refusal by this path causes no refresh. `is_accepted`: the path's last verdict on the
    /// current token was to accept it.
    pub(super) fn blocked_until(&self, now: Instant, path: PathKey, is_accepted: bool) -> Option<Instant> {
        let applies = match self.all_paths {
            true => self.includes_accepted_paths || !is_accepted,
            false => !is_accepted && self.refused_paths.contains(path),
        };
        self.until.filter(|until| now < *until && applies)
    }

    /// Whether a refresh now ends a cooldown early that applies to every path.
    pub(super) fn ends_early(&self, now: Instant) -> bool {
        self.all_paths && self.is_active(now)
    }

    fn is_active(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
