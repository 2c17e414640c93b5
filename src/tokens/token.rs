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
use crate::{secret::Masked, time::clock::wall_clock, wecom::response::GettokenResponse};

/// How long a token is used that gettoken returns although it should have expired.
pub(super) const PAST_EXPIRY_TTL: Duration = Duration::from_secs(60);

/// An access_token that is or was current.
#[derive(Debug)]
pub struct Token {
    /// The token itself.
    pub value: Masked,
    /// When this replica first got this value.
    pub first_seen: SystemTime,
    /// When it expires, by the response that first had this value.
    pub expires_at: SystemTime,
    /// `first_seen` on the monotonic clock.
    first_seen_instant: Instant,
    /// Until when it is used without another gettoken.
    pub(super) usable_until: Instant,
    /// From when on it may be refreshed proactively.
    pub(super) refresh_at: Instant,
    /// WeCom refused it, and no request succeeded with it since.
    is_refused: AtomicBool,
    /// The paths that accepted this value.
    accepted_paths: Arc<AcceptedPaths>,
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
            first_seen: now,
            expires_at: now - requested_at.elapsed() + response.expires_in,
            first_seen_instant: Instant::now(),
            usable_until,
            refresh_at: usable_until - margin,
            is_refused: AtomicBool::new(false),
            accepted_paths: Arc::default(),
            fence: AtomicU64::new(fence),
        }
    }

    /// The same value returned again: its expiry does not move. It is refreshed halfway to the expiry plus
    /// `stagger`, but not before the time it already had. If it should have expired by now, it is used for
    /// `past_expiry`, because WeCom returns it.
    pub(super) fn reissued(
        &self,
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
        Self {
            value: self.value.clone(),
            first_seen: self.first_seen,
            expires_at: self.expires_at,
            first_seen_instant: self.first_seen_instant,
            usable_until,
            refresh_at: if remaining.is_zero() {
                usable_until
            } else {
                refresh_at.min(usable_until).max(self.refresh_at)
            },
            is_refused: AtomicBool::new(false),
            accepted_paths: self.accepted_paths.clone(),
            fence: AtomicU64::new(fence),
        }
    }

    /// Whether both have the same value.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.value.expose() == other.value.expose()
    }

    /// The fence of its record in the store; 0 if it has none.
    pub(super) fn fence(&self) -> u64 {
        self.fence.load(Ordering::Relaxed)
    }

    /// When this replica first got this value.
    pub(super) fn first_seen_instant(&self) -> Instant {
        self.first_seen_instant
    }

    /// The time since this replica first got this value.
    pub(super) fn age(&self) -> Duration {
        self.first_seen_instant.elapsed()
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
        self.accepted_paths.mark_refused(path);
    }

    /// Records that a request on this path succeeded with it.
    pub fn mark_accepted_on(&self, path: PathKey) {
        if self.is_refused.load(Ordering::Relaxed) {
            self.is_refused.store(false, Ordering::Relaxed);
        }
        self.accepted_paths.mark_accepted(path);
    }

    /// Whether this path ever accepted it.
    pub(super) fn was_ever_accepted_on(&self, path: PathKey) -> bool {
        self.accepted_paths.was_ever_accepted(path)
    }

    /// Whether this path's last verdict was to accept it.
    pub(super) fn is_accepted_on(&self, path: PathKey) -> bool {
        self.accepted_paths.is_accepted(path)
    }

    /// Whether WeCom refused it when it was last used.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }
}
