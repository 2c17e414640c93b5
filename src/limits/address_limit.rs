//! A rate limit for each network address, for callers without a key.

use std::{
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr},
    sync::{OnceLock, atomic::AtomicU64},
    time::Duration,
};

use foldhash::quality::RandomState;
use tokio::time::Instant;

use super::{Gcra, as_nanoseconds};
use crate::config::RateLimit;

/// Addresses of an [`AddressLimit`]; they take 64 KiB.
const SLOTS: usize = 8192;

/// A theoretical arrival time (GCRA) for each address, in nanoseconds since `base`. Addresses whose hashes collide share
/// one. Shared by all workers.
#[derive(Debug)]
pub struct AddressTimes {
    base: Instant,
    /// Randomly seeded, so that a caller cannot choose an address that shares another's slot.
    hasher: RandomState,
    count: usize,
    /// Allocated on first use.
    slots: OnceLock<Box<[AtomicU64]>>,
}

impl AddressTimes {
    /// Room for `count` addresses.
    pub fn new(count: usize) -> Self {
        Self { base: Instant::now(), hasher: RandomState::default(), count, slots: OnceLock::new() }
    }

    /// The time of this address, and `now` as such a time. `None` stands for all Unix sockets together.
    pub fn get(&self, peer: Option<IpAddr>, now: Instant) -> (&AtomicU64, u64) {
        let slots = self.slots.get_or_init(|| (0..self.count).map(|_| AtomicU64::new(0)).collect());
        let slot = &slots[self.hasher.hash_one(peer_network(peer)) as usize % self.count];
        (slot, as_nanoseconds(now.saturating_duration_since(self.base)))
    }
}

/// A rate limiter with a GCRA for each address.
#[derive(Debug)]
pub struct AddressLimit {
    gcra: Gcra,
    times: AddressTimes,
}

impl AddressLimit {
    /// A limit of which nothing is used.
    pub fn new(limit: RateLimit) -> Self {
        Self { gcra: Gcra::from_limit(limit), times: AddressTimes::new(SLOTS) }
    }

    /// Takes one request of this address; if none is left, returns how long until one is.
    pub fn try_acquire(&self, peer: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let (slot, now) = self.times.get(peer, now);
        self.gcra.try_acquire_shared(slot, now)
    }
}

/// The network that one caller controls: an IPv4 address, an IPv6 /64 prefix, or `None` for all Unix sockets together.
pub fn peer_network(peer: Option<IpAddr>) -> Option<IpAddr> {
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
    fn address_over_its_limit_waits_and_others_do_not() {
        let limit = AddressLimit::new(RateLimit { requests: 60, per: Duration::from_secs(60) });
        let now = Instant::now();
        assert!((0..60).all(|_| limit.try_acquire(peer("192.0.2.1"), now).is_ok()));
        let wait = limit.try_acquire(peer("192.0.2.1"), now).expect_err("the limit is exhausted");
        assert!(wait <= Duration::from_secs(1) && !wait.is_zero(), "{wait:?}");
        assert!(limit.try_acquire(peer("192.0.2.1"), now + wait).is_ok());
        assert!((0..60).all(|_| limit.try_acquire(peer("2001:db8::1"), now).is_ok()));
        assert!(limit.try_acquire(peer("2001:db8::2"), now).is_err(), "the same /64 prefix");
        assert!((0..60).all(|_| limit.try_acquire(None, now).is_ok()));
    }

    #[test]
    fn ipv6_peers_of_one_64_prefix_share_a_network() {
        assert_eq!(peer_network(peer("2001:db8::1")), peer_network(peer("2001:db8::ffff:1:2:3")));
        assert_ne!(peer_network(peer("2001:db8::1")), peer_network(peer("2001:db8:0:1::1")));
        assert_eq!(peer_network(peer("::ffff:192.0.2.1")), peer("192.0.2.1"));
    }
}
