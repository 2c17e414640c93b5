//! A token and its dates.

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
use crate::{secret::Masked, wecom::response::GettokenResponse};

/// An access_token that was current at some time. Its value shows only through [`Masked::expose`].
#[derive(Debug)]
pub struct Token {
    /// The token itself.
    pub value: Masked,
    /// When this value was first handed out here.
    pub first_seen: SystemTime,
    /// When it expires, by what WeCom said when this value was first seen.
    pub expires_at: SystemTime,
    /// When this value was first handed out here, by a clock that nobody sets.
    first_seen_instant: Instant,
    /// Until when it is used without asking again.
    pub(super) usable_until: Instant,
    /// From when on it is worth renewing.
    pub(super) refresh_at: Instant,
    /// The upstream refused it, and nothing went well with it since.
    is_refused: AtomicBool,
    /// Where this value was accepted.
    accepted_paths: Arc<AcceptedPaths>,
    /// Which of two in the store that replicas share is the newer; 0 for one that is not known there.
    fence: AtomicU64,
}

impl Token {
    /// A token whose value was not seen before. Its life is counted from the asking, not from the answer.
    /// It is renewed `lead` before it expires.
    pub(super) fn new(grant: GettokenResponse, fence: u64, asked: Instant, lead: Duration) -> Self {
        let now = wall_clock();
        let usable_until = asked + grant.expires_in;
        Self {
            value: grant.token,
            first_seen: now,
            expires_at: now - asked.elapsed() + grant.expires_in,
            first_seen_instant: Instant::now(),
            usable_until,
            refresh_at: usable_until - lead,
            is_refused: AtomicBool::new(false),
            accepted_paths: Arc::default(),
            fence: AtomicU64::new(fence),
        }
    }

    /// The same value once more: its expiry does not move. It is asked for again halfway to the expiry, or later by
    /// `stagger`; one that should have expired by now is believed for `past_expiry`, for WeCom hands it out.
    pub(super) fn reissued(&self, fence: u64, asked: Instant, past_expiry: Duration, stagger: f64) -> Self {
        let left = self.usable_until.saturating_duration_since(asked);
        let usable_until = if left.is_zero() { asked + past_expiry } else { self.usable_until };
        let next = asked + (left / 2).max(Duration::from_secs(1)) + stagger_delay(left / 2, stagger);
        Self {
            value: self.value.clone(),
            first_seen: self.first_seen,
            expires_at: self.expires_at,
            first_seen_instant: self.first_seen_instant,
            usable_until,
            refresh_at: if left.is_zero() {
                usable_until
            } else {
                next.min(usable_until).max(self.refresh_at)
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

    /// See the field.
    pub(super) fn fence(&self) -> u64 {
        self.fence.load(Ordering::Relaxed)
    }

    /// When this value first came here.
    pub(super) fn first_seen_instant(&self) -> Instant {
        self.first_seen_instant
    }

    /// How long it has been known here.
    pub(super) fn age(&self) -> Duration {
        self.first_seen_instant.elapsed()
    }

    /// Whether the record of this fence is no newer; where the store does not know this one, by how old both are.
    pub(super) fn is_newer_than(&self, fence: u64, age: Duration) -> bool {
        match self.fence() {
            0 => self.age() < age,
            known => known >= fence,
        }
    }

    /// Notes under which fence the store knows it.
    pub(super) fn set_fence(&self, fence: u64) {
        self.fence.store(fence, Ordering::Relaxed);
    }

    /// Notes that the upstream refused it. It goes on serving while no other can be had: it may have been refused for one
    /// API only.
    pub(super) fn mark_refused(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// The same, where it is known which path refused it.
    pub(super) fn mark_refused_on(&self, path: PathKey) {
        self.mark_refused();
        self.accepted_paths.mark_refused(path);
    }

    /// Notes that a request went well with it on this path.
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

    /// Whether this path accepted it when it last judged it.
    pub(super) fn is_accepted_on(&self, path: PathKey) -> bool {
        self.accepted_paths.is_accepted(path)
    }

    /// Whether it was refused when last used.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }
}

/// The time of day. In tests it moves with tokio's clock, which may be paused.
#[cfg(not(test))]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
pub(crate) fn wall_clock() -> SystemTime {
    static BASE: std::sync::LazyLock<(SystemTime, std::time::Instant)> =
        std::sync::LazyLock::new(|| (SystemTime::now(), std::time::Instant::now()));
    BASE.0 + Instant::now().into_std().saturating_duration_since(BASE.1)
}
