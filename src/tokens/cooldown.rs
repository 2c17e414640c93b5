//! Cooldown after a refresh that refusals caused: while it lasts, refusals by the paths that it applies to cause no
//! other one.

use std::time::Duration;

use tokio::time::Instant;

use super::PathKey;

/// Duration, counted from the gettoken.
pub(super) const COOLDOWN: Duration = Duration::from_secs(10);
/// Paths that are distinguished; if more refuse, the cooldown applies to all paths.
const MAX_REFUSED_PATHS: usize = 16;

/// The cooldown of one credential's token. If gettoken returned the refused token again it applies to every path. If it
/// returned a new token, it applies to the paths that had refused the old one, because such a path may refuse
/// every token. A path that accepts the current token is exempt: its refusal starts a refresh in spite of the
/// cooldown, and the result starts a new one. If such a refresh returned the same token once more, the next cooldown
/// has no exemption.
#[derive(Debug, Default)]
pub(super) struct Cooldown {
    until: Option<Instant>,
    scope: CooldownScope,
    refused_paths: RefusedPaths,
}

/// The paths that a cooldown applies to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum CooldownScope {
    /// gettoken returned a new token: those that refused the old one and do not accept the new one.
    #[default]
    Refused,
    /// gettoken returned the refused token again: all that do not accept it.
    Unaccepted,
    /// The same, in a refresh during such a cooldown or of another replica, whose refusing paths are unknown: all.
    All,
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
    /// Starts after the gettoken that the refusals of `refused_by` caused.
    pub(super) fn start(&mut self, now: Instant, scope: CooldownScope, refused_by: RefusedPaths) {
        if !self.is_active(now) {
            self.refused_paths = RefusedPaths::default();
        }
        self.refused_paths.overflowed |= refused_by.overflowed;
        refused_by.path_keys.into_iter().for_each(|path| self.refused_paths.insert(path));
        self.scope = scope;
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
        let applies = match self.scope {
            CooldownScope::All => true,
            CooldownScope::Unaccepted => !is_accepted,
            CooldownScope::Refused => !is_accepted && self.refused_paths.contains(path),
        };
        self.until.filter(|until| now < *until && applies)
    }

    /// Whether a refresh now ends a cooldown early that followed the same token.
    pub(super) fn ends_early(&self, now: Instant) -> bool {
        self.scope != CooldownScope::Refused && self.is_active(now)
    }

    /// Whether none was started.
    pub(super) fn is_none(&self) -> bool {
        self.until.is_none()
    }

    fn is_active(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
