//! Connections that no pool may use again, because one to the same address was dead or because the trusted certificates
//! have changed: shared by the pools of all workers.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Those that pools have still to close.
#[derive(Default)]
pub(super) struct SuspectConnections {
    version: AtomicU64,
    suspects: Mutex<Suspects>,
}

/// The suspects of one time.
#[derive(Clone, Default)]
pub(super) struct Suspects {
    ranges: Vec<SuspectRange>,
    /// Connections dialled until then trusted other certificates.
    pub(super) retired_until: Option<Instant>,
}

/// The connections to an address that have been idle since then or longer.
#[derive(Clone, Copy)]
struct SuspectRange {
    address: SocketAddr,
    idle_since: Instant,
}

impl SuspectConnections {
    /// Adds the connections to `address` that have been idle since `idle_since` or longer. Forgets those that no pool
    /// can hold any more, which are closed after `idle_timeout`.
    pub(super) fn add(&self, address: SocketAddr, idle_since: Instant, idle_timeout: Duration) {
        let mut suspects = self.suspects.lock();
        suspects.ranges.retain(|range| range.idle_since.elapsed() < idle_timeout);
        match suspects.ranges.iter_mut().find(|range| range.address == address) {
            // Of two reports that a pool has not seen, the later one must not narrow the other.
            Some(range) => range.idle_since = range.idle_since.max(idle_since),
            None => suspects.ranges.push(SuspectRange { address, idle_since }),
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Adds all connections dialled until now, those with requests too.
    pub(super) fn retire_all(&self) {
        self.suspects.lock().retired_until = Some(Instant::now());
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Changes with each addition, so that a pool need not look before each request.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// A copy, for one look through a pool.
    pub(super) fn snapshot(&self) -> Suspects {
        self.suspects.lock().clone()
    }
}

impl Suspects {
    /// Whether an idle connection to this address is among them.
    pub(super) fn contains(&self, address: Option<SocketAddr>, idle_since: Instant) -> bool {
        self.ranges.iter().any(|range| Some(range.address) == address && idle_since <= range.idle_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_report_does_not_narrow_an_earlier_one() {
        let (suspects, now, second) = (SuspectConnections::default(), Instant::now(), Duration::from_secs(1));
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        suspects.add(address(1), now, 9 * second);
        suspects.add(address(1), now - second, 9 * second);
        suspects.add(address(2), now - second, 9 * second);
        let snapshot = suspects.snapshot();
        assert!(snapshot.contains(Some(address(1)), now));
        assert!(!snapshot.contains(Some(address(1)), now + second));
        assert!(!snapshot.contains(Some(address(2)), now));
    }
}
