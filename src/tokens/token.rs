//! A token and its lifetime.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{
    accepted_paths::{AcceptedPaths, PathKey},
    proactive::stagger_delay,
};
use crate::{
    secret::Masked,
    time::clock::{since_epoch, wall_clock},
    wecom::response::GettokenResponse,
};

/// How long a token is used that gettoken returns although it should have expired.
pub(super) const PAST_EXPIRY_TTL: Duration = Duration::from_secs(60);

/// An access_token that is or was current. Very many can be alive: times are kept as milliseconds apart from each other.
#[derive(Debug)]
pub struct Token {
    /// The token itself.
    pub value: Masked,
    /// Until when it is used without another gettoken.
    pub(super) usable_until: Instant,
    /// How long before that it may be refreshed proactively.
    refresh_margin_ms: u32,
    /// How long before that this replica first got this value.
    usable_for_ms: u32,
    /// When this replica first got this value, in milliseconds since 1970.
    first_seen_ms: u64,
    /// How long after that it expires, by the response that first had this value.
    expires_in_ms: u32,
    /// WeCom refused it, and no request succeeded with it since.
    is_refused: AtomicBool,
    /// The paths that accepted this value, unless `first` has them.
    accepted_paths: AcceptedPaths,
    /// The token that first had this value.
    first: Option<Arc<Self>>,
    /// The fence of its record in the store; 0 if it has none.
    fence: AtomicU64,
}

impl Token {
    /// A token with a new value. Its lifetime counts from the request, not from the response. It is refreshed
    /// `margin` before it expires.
    pub(super) fn new(
        response: GettokenResponse,
        fence: u64,
        requested_at: Instant,
        margin: Duration,
    ) -> Self {
        let now = wall_clock();
        let usable_until = requested_at + response.expires_in;
        Self {
            value: response.token,
            usable_until,
            refresh_margin_ms: millis(margin),
            usable_for_ms: millis(usable_until.saturating_duration_since(Instant::now())),
            first_seen_ms: since_epoch(now).as_millis() as u64,
            expires_in_ms: millis(response.expires_in.saturating_sub(requested_at.elapsed())),
            is_refused: AtomicBool::new(false),
            accepted_paths: AcceptedPaths::default(),
            first: None,
            fence: AtomicU64::new(fence),
        }
    }

    /// The same value returned again: its expiry does not move. It is refreshed halfway to the expiry plus
    /// `stagger`, but not before the time it already had. If it should have expired by now, it is used for
    /// `past_expiry`, because WeCom returns it.
    pub(super) fn reissued(
        self: &Arc<Self>,
        fence: u64,
        requested_at: Instant,
        past_expiry: Duration,
        stagger: f64,
    ) -> Self {
        let remaining = self.usable_until.saturating_duration_since(requested_at);
        let usable_until = if remaining.is_zero() { requested_at + past_expiry } else { self.usable_until };
        let refresh_at = requested_at
            + (remaining / 2).max(Duration::from_secs(1))
            + stagger_delay(remaining / 2, stagger);
        let refresh_at = if remaining.is_zero() {
            usable_until
        } else {
            refresh_at.min(usable_until).max(self.refresh_at())
        };
        Self {
            value: self.value.clone(),
            usable_until,
            refresh_margin_ms: millis(usable_until.saturating_duration_since(refresh_at)),
            usable_for_ms: millis(usable_until.saturating_duration_since(self.first_seen_instant())),
            first_seen_ms: self.first_seen_ms,
            expires_in_ms: self.expires_in_ms,
            is_refused: AtomicBool::new(false),
            accepted_paths: AcceptedPaths::default(),
            first: Some(self.first.as_ref().unwrap_or(self).clone()),
            fence: AtomicU64::new(fence),
        }
    }

    /// From when on it may be refreshed proactively.
    pub(super) fn refresh_at(&self) -> Instant {
        before(self.usable_until, self.refresh_margin_ms)
    }

    /// When this replica first got this value.
    pub fn first_seen(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.first_seen_ms)
    }

    /// When it expires, by the response that first had this value.
    pub fn expires_at(&self) -> SystemTime {
        self.first_seen() + Duration::from_millis(self.expires_in_ms.into())
    }

    fn accepted_paths(&self) -> &AcceptedPaths {
        self.first.as_ref().map_or(&self.accepted_paths, |first| &first.accepted_paths)
    }

    /// Whether both have the same value.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.value.expose() == other.value.expose()
    }

    /// The fence of its record in the store; 0 if it has none.
    pub(super) fn fence(&self) -> u64 {
        self.fence.load(Ordering::Relaxed)
    }

    /// The same as [`Self::first_seen`] on the monotonic clock.
    pub(super) fn first_seen_instant(&self) -> Instant {
        before(self.usable_until, self.usable_for_ms)
    }

    /// The time since this replica first got this value.
    pub(super) fn age(&self) -> Duration {
        self.first_seen_instant().elapsed()
    }

    /// Whether this token is at least as new as the record of this fence; if the store has no record of this
    /// token, their ages decide.
    pub(super) fn is_at_least_as_new_as(&self, fence: u64, age: Duration) -> bool {
        match self.fence() {
            0 => self.age() < age,
            known => known >= fence,
        }
    }

    /// Sets the fence of its record in the store.
    pub(super) fn set_fence(&self, fence: u64) {
        self.fence.store(fence, Ordering::Relaxed);
    }

    /// Records that WeCom refused it. It stays in use while there is no other, because WeCom may have refused it
    /// for one API only.
    pub(super) fn mark_refused(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// The same, if the path that refused it is known.
    pub(super) fn mark_refused_on(&self, path: PathKey) {
        self.mark_refused();
        self.accepted_paths().mark_refused(path);
    }

    /// Records that a request on this path succeeded with it.
    pub fn mark_accepted_on(&self, path: PathKey) {
        if self.is_refused.load(Ordering::Relaxed) {
            self.is_refused.store(false, Ordering::Relaxed);
        }
        self.accepted_paths().mark_accepted(path);
    }

    /// Whether this path ever accepted it.
    pub(super) fn was_ever_accepted_on(&self, path: PathKey) -> bool {
        self.accepted_paths().was_ever_accepted(path)
    }

    /// Whether this path's last verdict was to accept it.
    pub(super) fn is_accepted_on(&self, path: PathKey) -> bool {
        self.accepted_paths().is_accepted(path)
    }

    /// Whether WeCom refused it when it was last used.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn before(instant: Instant, ms: u32) -> Instant {
    instant.checked_sub(Duration::from_millis(ms.into())).unwrap_or(instant)
}
