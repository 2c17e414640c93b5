//! Holds back refusals of wrong keys, by the address they come from, so that guessing is slow and costs the guesser alone.
//!
//! A right key is never held back, whatever its address sent before: many clients may share one address (NAT, a front
//! proxy). Keys that `wecom-proxy key` makes have 256 random bits and need none of this; a key of somebody's own may be weak.

use std::{
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use foldhash::quality::RandomState;
use tokio::time::Instant;

/// One wrong key in this time is answered at once, for as long as one likes.
const INTERVAL: Duration = Duration::from_secs(1);
/// So many at once are too: programs with an old key try again a few times.
const BURST: u32 = 10;
/// Longest that a refusal is held back: a program whose key was withdrawn is slowed down, and does not time out.
const MAX_DELAY: Duration = Duration::from_millis(100);
/// Bounds the memory: addresses that fall on the same slot share it.
const SLOTS: usize = 1024;

/// Wrong keys of all addresses: in each slot the theoretical arrival time of its next one (GCRA), in microseconds since
/// `born`.
#[derive(Debug)]
pub(super) struct Guesses {
    born: Instant,
    hasher: RandomState,
    slots: Box<[AtomicU64]>,
}

impl Guesses {
    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            // A random one: nobody can choose an address that shares another's slot.
            hasher: RandomState::default(),
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts a wrong key. How long its refusal is to be held back.
    pub(super) fn delay(&self, peer: Option<IpAddr>, now: Instant) -> Duration {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let now = micros(now.saturating_duration_since(self.born));
        let free = now + micros(INTERVAL * BURST);
        // Wrong keys beyond the longest delay count no more: an address is forgiven soon.
        let next = |expected: u64| (expected.max(now) + micros(INTERVAL)).min(free + micros(MAX_DELAY));
        let slot = &self.slots[self.hasher.hash_one(network(peer)) as usize % SLOTS];
        let mut expected = slot.load(Relaxed);
        while let Err(other) = slot.compare_exchange_weak(expected, next(expected), Relaxed, Relaxed) {
            expected = other;
        }
        Duration::from_micros(next(expected).saturating_sub(free))
    }
}

/// What one guesser has: an IPv4 address, an IPv6 network of 64 bits, or all unix sockets together.
fn network(peer: Option<IpAddr>) -> Option<IpAddr> {
    Some(match peer?.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn few_are_answered_at_once_and_more_are_held_back() {
        let (guesses, now) = (Guesses::new(), Instant::now());
        let delays: Vec<_> = (0..30).map(|_| guesses.delay(peer("192.0.2.1"), now)).collect();
        assert!(delays[..10].iter().all(Duration::is_zero), "{delays:?}");
        assert!(delays[10..].iter().all(|delay| *delay == MAX_DELAY), "{delays:?}");
        assert_eq!(guesses.delay(peer("2001:db8::1"), now), Duration::ZERO);
        // Forgiven as soon as its burst is there again.
        let later = now + INTERVAL * (BURST + 1);
        assert_eq!(guesses.delay(peer("192.0.2.1"), later), Duration::ZERO);
    }

    #[test]
    fn one_a_second_is_never_held_back() {
        let (guesses, now) = (Guesses::new(), Instant::now());
        for nth in 0..100 {
            assert_eq!(guesses.delay(None, now + INTERVAL * nth), Duration::ZERO, "{nth}");
        }
    }

    #[test]
    fn a_network_of_64_bits_is_one_guesser() {
        assert_eq!(network(peer("2001:db8::1")), network(peer("2001:db8::ffff:1:2:3")));
        assert_ne!(network(peer("2001:db8::1")), network(peer("2001:db8:0:1::1")));
        assert_eq!(network(peer("::ffff:192.0.2.1")), peer("192.0.2.1"));
    }
}
