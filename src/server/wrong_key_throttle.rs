//! Delays the rejection of wrong keys per address, so that each guess beyond the burst costs its connection up to
//! `MAX_DELAY`; each connection waits on its own, so parallel ones multiply the rate of guesses.
//!
//! A right key is never delayed, whatever its address sent before: many clients may share one address (NAT, a front
//! proxy). Keys that `wecom-proxy key` generates have 256 random bits and do not need this; a key that an operator
//! chose may be weak.

use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use foldhash::quality::RandomState;
use tokio::time::Instant;

use crate::limits::address_limit::peer_network;

/// Sustained rate: one wrong key per interval is rejected without delay.
const EMISSION_INTERVAL: Duration = Duration::from_secs(1);
/// Burst that is rejected without delay: programs with an old key retry several times.
const BURST: u32 = 10;
/// Maximum delay of a rejection: a program whose key was revoked is slowed down but does not time out.
const MAX_DELAY: Duration = Duration::from_millis(100);
/// Bounds the memory; addresses whose hashes collide share a slot.
const SLOTS: usize = 1024;

/// GCRA rate limiter of wrong keys: each slot holds the theoretical arrival time of its next one, in microseconds since
/// `epoch`.
#[derive(Debug)]
pub(super) struct WrongKeyThrottle {
    epoch: Instant,
    hasher: RandomState,
    slots: Box<[AtomicU64]>,
}

impl WrongKeyThrottle {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            // Randomly seeded, so that a client cannot choose an address that shares another's slot.
            hasher: RandomState::default(),
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts a wrong key and returns how long its rejection is delayed.
    pub(super) fn count_wrong_key(&self, peer: Option<IpAddr>, now: Instant) -> Duration {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let now = micros(now.saturating_duration_since(self.epoch));
        let free = now + micros(EMISSION_INTERVAL * BURST);
        // Wrong keys beyond `MAX_DELAY` are not counted, so that an address recovers quickly.
        let next =
            |expected: u64| (expected.max(now) + micros(EMISSION_INTERVAL)).min(free + micros(MAX_DELAY));
        let slot = &self.slots[self.hasher.hash_one(peer_network(peer)) as usize % SLOTS];
        let mut expected = slot.load(Relaxed);
        while let Err(other) = slot.compare_exchange_weak(expected, next(expected), Relaxed, Relaxed) {
            expected = other;
        }
        Duration::from_micros(next(expected).saturating_sub(free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn wrong_keys_over_burst_are_delayed() {
        let (throttle, now) = (WrongKeyThrottle::new(), Instant::now());
        let delays: Vec<_> = (0..30).map(|_| throttle.count_wrong_key(peer("192.0.2.1"), now)).collect();
        assert!(delays[..10].iter().all(Duration::is_zero), "{delays:?}");
        assert!(delays[10..].iter().all(|delay| *delay == MAX_DELAY), "{delays:?}");
        assert_eq!(throttle.count_wrong_key(peer("2001:db8::1"), now), Duration::ZERO);
        // Without delay again as soon as the burst has been restored.
        let later = now + EMISSION_INTERVAL * (BURST + 1);
        assert_eq!(throttle.count_wrong_key(peer("192.0.2.1"), later), Duration::ZERO);
    }

    #[test]
    fn wrong_keys_at_emission_interval_are_not_delayed() {
        let (throttle, now) = (WrongKeyThrottle::new(), Instant::now());
        for nth in 0..100 {
            assert_eq!(
                throttle.count_wrong_key(None, now + EMISSION_INTERVAL * nth),
                Duration::ZERO,
                "{nth}"
            );
        }
    }
}
