//! Delays the rejection of wrong keys per address, so that each guess beyond the burst costs its connection up to
//! `MAX_DELAY`; each connection waits on its own, so parallel ones multiply the rate of guesses.
//!
//! A right key is never delayed, whatever its address sent before: many clients may share one address (NAT, a front
//! proxy). Keys that `wecom-proxy key` generates have 256 random bits and do not need this; a key that an operator
//! chose may be weak.

use std::{net::IpAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use crate::limits::{address_limit::AddressTimes, as_nanoseconds};

/// Sustained rate: one wrong key per interval is rejected without delay.
const EMISSION_INTERVAL: Duration = Duration::from_secs(1);
/// Burst that is rejected without delay: programs with an old key retry several times.
const BURST: u32 = 10;
/// Maximum delay of a rejection: a program whose key was revoked is slowed down but does not time out.
const MAX_DELAY: Duration = Duration::from_millis(100);
/// Addresses that are told apart.
const SLOTS: usize = 1024;

/// GCRA rate limiter of wrong keys.
#[derive(Debug)]
pub(super) struct WrongKeyThrottle(AddressTimes);

impl WrongKeyThrottle {
    pub(super) fn new() -> Self {
        Self(AddressTimes::new(SLOTS))
    }

    /// Counts a wrong key and returns how long its rejection is delayed.
    pub(super) fn count_wrong_key(&self, peer: Option<IpAddr>, now: Instant) -> Duration {
        let (slot, now) = self.0.get(peer, now);
        let free = now + as_nanoseconds(EMISSION_INTERVAL * BURST);
        // Wrong keys beyond `MAX_DELAY` are not counted, so that an address recovers quickly.
        let (interval, max_delay) = (as_nanoseconds(EMISSION_INTERVAL), as_nanoseconds(MAX_DELAY));
        let next = |expected: u64| (expected.max(now) + interval).min(free + max_delay);
        let before = slot.fetch_update(Relaxed, Relaxed, |expected| Some(next(expected)));
        let (Ok(expected) | Err(expected)) = before;
        Duration::from_nanos(next(expected).saturating_sub(free))
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
