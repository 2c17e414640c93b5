//! A rate limit for each network address, for callers without a key.

use std::{
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use tokio::time::Instant;

use super::{Gcra, as_nanoseconds};
use crate::config::RateLimit;

/// Bounds the memory (64 KiB, allocated on first use); addresses whose hashes collide share a slot.
const SLOTS: usize = 8192;

/// A rate limiter with a GCRA for each address: each slot holds a theoretical arrival time, in nanoseconds since
/// `base`. Shared by all workers.
#[derive(Debug)]
pub struct AddressLimit {
    gcra: Gcra,
    base: Instant,
    /// Randomly seeded, so that a caller cannot choose an address that shares another's slot.
    hasher: RandomState,
    slots: OnceLock<Box<[AtomicU64]>>,
}

impl AddressLimit {
    /// A limit of which nothing is used.
    pub fn new(limit: RateLimit) -> Self {
        Self {
            gcra: Gcra::from_limit(limit),
            base: Instant::now(),
            hasher: RandomState::default(),
            slots: OnceLock::new(),
        }
    }

    /// Takes one request of this address; if none is left, returns how long until one is. `None` stands for all Unix
    /// sockets together.
    pub fn try_acquire(&self, peer: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let slots = self.slots.get_or_init(|| (0..SLOTS).map(|_| AtomicU64::new(0)).collect());
        let slot = &slots[self.hasher.hash_one(peer_network(peer)) as usize % SLOTS];
        let now = as_nanoseconds(now.saturating_duration_since(self.base));
        let taken = slot.fetch_update(Relaxed, Relaxed, |tat| self.gcra.try_acquire(tat, now).ok());
        let wait = |tat| self.gcra.try_acquire(tat, now).err().unwrap_or_default();
        taken.map(drop).map_err(|tat| Duration::from_nanos(wait(tat)))
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
