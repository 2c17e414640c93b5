//! Addresses that require HTTP/1.1 although they offer HTTP/2 (HTTP_1_1_REQUIRED, RFC 9113 §7).

use std::{net::SocketAddr, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How long an address is not offered HTTP/2.
const REMEMBERED_TTL: Duration = Duration::from_secs(10 * 60);

/// The addresses, for all workers, each with the time when it required HTTP/1.1.
#[derive(Default)]
pub(super) struct Http1OnlyAddresses(Mutex<Vec<(SocketAddr, Instant)>>);

impl Http1OnlyAddresses {
    /// Adds an address; returns whether it is new.
    pub(super) fn add(&self, address: SocketAddr) -> bool {
        let mut addresses = self.lock_pruned();
        let is_new = !addresses.iter().any(|(other, _)| *other == address);
        if is_new {
            addresses.push((address, Instant::now()));
        }
        is_new
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.lock_pruned().iter().any(|(other, _)| *other == address)
    }

    /// Forgets the old ones.
    fn lock_pruned(&self) -> MutexGuard<'_, Vec<(SocketAddr, Instant)>> {
        let mut addresses = self.0.lock();
        addresses.retain(|(_, required_at)| required_at.elapsed() < REMEMBERED_TTL);
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_added_once() {
        let addresses = Http1OnlyAddresses::default();
        let [first, second] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(
            [first, first, second, second].map(|address| addresses.add(address)),
            [true, false, true, false]
        );
        assert_eq!(addresses.lock_pruned().len(), 2);
    }
}
