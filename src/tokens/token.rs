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
    ahead::late,
    paths::{PathKey, WorkedPaths},
};
use crate::{secret::Masked, wecom::reply::Grant};

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
    seen: Instant,
    /// Until when it is used without asking again.
    pub(super) usable_until: Instant,
    /// From when on it is worth renewing.
    pub(super) renew_at: Instant,
    /// The upstream refused it, and nothing went well with it since.
    refused: AtomicBool,
    /// Where this value was accepted.
    paths: Arc<WorkedPaths>,
    /// Which of two in the store that replicas share is the newer; 0 for one that is not known there.
    fence: AtomicU64,
}

impl Token {
    /// A token whose value was not seen before. Its life is counted from the asking, not from the answer.
    /// It is renewed `lead` before it expires.
    pub(super) fn granted(grant: Grant, fence: u64, asked: Instant, lead: Duration) -> Self {
        let now = wall_clock();
        let usable_until = asked + grant.expires_in;
        Self {
            value: grant.token,
            first_seen: now,
            expires_at: now - asked.elapsed() + grant.expires_in,
            seen: Instant::now(),
            usable_until,
            renew_at: usable_until - lead,
            refused: AtomicBool::new(false),
            paths: Arc::default(),
            fence: AtomicU64::new(fence),
        }
    }

    /// The same value once more: its expiry does not move. It is asked for again halfway to the expiry, or later by
    /// `stagger`; one that should have expired by now is believed for `past_expiry`, for WeCom hands it out.
    pub(super) fn granted_again(
        &self,
        fence: u64,
        asked: Instant,
        past_expiry: Duration,
        stagger: f64,
    ) -> Self {
        let left = self.usable_until.saturating_duration_since(asked);
        let usable_until = if left.is_zero() { asked + past_expiry } else { self.usable_until };
        let next = asked + (left / 2).max(Duration::from_secs(1)) + late(left / 2, stagger);
        Self {
            value: self.value.clone(),
            first_seen: self.first_seen,
            expires_at: self.expires_at,
            seen: self.seen,
            usable_until,
            renew_at: if left.is_zero() { usable_until } else { next.min(usable_until).max(self.renew_at) },
            refused: AtomicBool::new(false),
            paths: self.paths.clone(),
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
    pub(super) fn seen(&self) -> Instant {
        self.seen
    }

    /// How long it has been known here.
    pub(super) fn age(&self) -> Duration {
        self.seen.elapsed()
    }

    /// Whether the record of this fence is no newer; where the store does not know this one, by how old both are.
    pub(super) fn is_newer_than(&self, fence: u64, age: Duration) -> bool {
        match self.fence() {
            0 => self.age() < age,
            known => known >= fence,
        }
    }

    /// Notes under which fence the store knows it.
    pub(super) fn is_stored_as(&self, fence: u64) {
        self.fence.store(fence, Ordering::Relaxed);
    }

    /// Notes that the upstream refused it. It goes on serving while no other can be had: it may have been refused for one
    /// API only.
    pub(super) fn refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// The same, where it is known which path refused it.
    pub(super) fn refused_on(&self, path: PathKey) {
        self.refused();
        self.paths.refused(path);
    }

    /// Notes that a request went well with it on this path.
    pub fn worked_on(&self, path: PathKey) {
        if self.refused.load(Ordering::Relaxed) {
            self.refused.store(false, Ordering::Relaxed);
        }
        self.paths.worked(path);
    }

    /// Whether this path ever accepted it.
    pub(super) fn had_worked_on(&self, path: PathKey) -> bool {
        self.paths.had_worked(path)
    }

    /// Whether this path accepted it when it last judged it.
    pub(super) fn works_on(&self, path: PathKey) -> bool {
        self.paths.works(path)
    }

    /// Whether it was refused when last used.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
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
