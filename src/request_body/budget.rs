//! Memory and disk budget of all replay buffers, with reservations that are returned when dropped.

use std::{
    hash::BuildHasher,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::{HashMap, fast::RandomState};
use parking_lot::Mutex;

use super::block_pool::BlockPool;
use crate::time::log_throttle::LogThrottle;

/// Log lines per minute about buffers that could not be written.
const MAX_WRITE_FAILURE_LINES: u32 = 5;
/// The part of the memory in which free blocks are kept: an eighth.
const MAX_POOLED_SHARE: u64 = 8;

/// The budget that all replay buffers share.
#[derive(Debug)]
pub struct ReplayBudget {
    pub(super) memory: Arc<Budget>,
    pub(super) disk: Arc<Budget>,
    dir: PathBuf,
    /// Clients can cause these without limit, once the disk budget is spent.
    pub(super) write_failure_log: LogThrottle,
}

impl ReplayBudget {
    /// At most `memory` bytes in memory for all bodies together, and `disk` bytes in files under `dir`.
    pub fn new(memory: u64, disk: u64, dir: PathBuf) -> Self {
        Self {
            memory: Arc::new(Budget::new(memory, memory / MAX_POOLED_SHARE)),
            disk: Arc::new(Budget::new(disk, 0)),
            dir,
            write_failure_log: LogThrottle::per_minute(MAX_WRITE_FAILURE_LINES),
        }
    }

    /// Bytes of memory in use: the capacity of the buffers.
    pub fn memory_used(&self) -> u64 {
        self.memory.used()
    }

    /// The bound on [`ReplayBudget::memory_used`].
    pub fn max_memory(&self) -> u64 {
        self.memory.max
    }

    /// Bytes in files, being written to them, or reserved for them.
    pub fn disk_used(&self) -> u64 {
        self.disk.used()
    }

    /// The bound on [`ReplayBudget::disk_used`].
    pub fn max_disk(&self) -> u64 {
        self.disk.max
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Maximum memory of one body: an eighth, so that one large body neither fills the memory nor takes it from all
    /// others.
    pub(super) fn max_memory_per_body(&self) -> u64 {
        self.memory.max / 8
    }

    /// Whether a body of this length fits into memory or into a file now.
    pub(super) fn fits(&self, length: u64) -> bool {
        (length <= self.max_memory_per_body() && length <= self.memory.free()) || length <= self.disk.free()
    }
}

/// The client of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(u64);

impl Owner {
    /// The owner of this client's bodies, as a hash: a body in memory needs no copy of the name. Callers without a
    /// client are one owner.
    pub fn of(client: Option<&str>) -> Self {
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        Self(STATE.hash_one(client))
    }
}

/// A bound and the bytes in use.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    used: AtomicU64,
    pub(super) pool: BlockPool,
    /// By owner, the bytes reserved for bodies of which nothing has arrived.
    unsent: Mutex<HashMap<Owner, u64>>,
}

impl Budget {
    fn new(max: u64, max_pooled: u64) -> Self {
        Self { max, used: AtomicU64::new(0), pool: BlockPool::new(max_pooled), unsent: Mutex::default() }
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that are not in use.
    pub(super) fn free(&self) -> u64 {
        self.max.saturating_sub(self.used())
    }

    /// Drops free blocks that no longer fit beside what is in use.
    fn shrink_pool(&self) {
        if self.pool.bytes() > 0 {
            self.pool.shrink_to(self.free());
        }
    }
}

/// A part of a budget, returned when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Reservation {
    /// A reservation of no bytes.
    pub(super) fn empty(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), bytes: AtomicU64::new(0) }
    }

    /// Reserves bytes even beyond the bound, for what a request cannot do without.
    pub(super) fn forced(budget: &Arc<Budget>, bytes: u64) -> Self {
        budget.used.fetch_add(bytes, Ordering::Relaxed);
        budget.shrink_pool();
        Self { budget: budget.clone(), bytes: AtomicU64::new(bytes) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reserves further bytes, if they fit.
    pub(super) fn try_grow(&self, bytes: u64) -> bool {
        // What is reserved already may be used even while the bound is exceeded, see `forced`.
        if bytes == 0 {
            return true;
        }
        let max = self.budget.max;
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max);
        let grown = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.budget.shrink_pool();
        }
        grown
    }

    /// Grows the reservation to at least `bytes` bytes, if they fit.
    pub(super) fn try_grow_to(&self, bytes: u64) -> bool {
        self.try_grow(bytes.saturating_sub(self.bytes()))
    }

    /// Reserves further bytes for a body of which nothing has arrived, if they fit and the owner's bodies of this kind
    /// then take at most half of what the others leave free.
    pub(super) fn try_grow_unsent(&self, owner: Owner, bytes: u64) -> Option<UnsentMark> {
        let mut unsent = self.budget.unsent.lock();
        let before = unsent.get(&owner).copied().unwrap_or(0);
        let sum = before.checked_add(bytes)?;
        if sum > self.budget.free().saturating_add(before) / 2 || !self.try_grow(bytes) {
            return None;
        }
        unsent.insert(owner, sum);
        Some(UnsentMark { budget: self.budget.clone(), owner, bytes })
    }

    /// Returns all but `bytes` bytes.
    pub(super) fn shrink_to(&self, bytes: u64) {
        let returned = self.bytes().saturating_sub(bytes);
        self.budget.used.fetch_sub(returned, Ordering::Relaxed);
        self.bytes.fetch_sub(returned, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Marks a reservation as that of a body of which nothing has arrived, until dropped.
#[derive(Debug)]
pub(super) struct UnsentMark {
    budget: Arc<Budget>,
    owner: Owner,
    bytes: u64,
}

impl Drop for UnsentMark {
    fn drop(&mut self) {
        let mut unsent = self.budget.unsent.lock();
        if let Some(bytes) = unsent.get_mut(&self.owner) {
            *bytes -= self.bytes;
            if *bytes == 0 {
                unsent.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsent_bodies_of_a_client_leave_half_to_others() {
        let budget = Arc::new(Budget::new(1000, 0));
        let (greedy, other) = (Owner::of(Some("greedy")), Owner::of(Some("other")));
        let reserve = |owner, bytes| {
            let reservation = Reservation::empty(&budget);
            reservation.try_grow_unsent(owner, bytes).map(|mark| (reservation, mark))
        };
        let unsent: Vec<_> = (0..20).filter_map(|_| reserve(greedy, 100)).collect();
        assert_eq!((unsent.len(), budget.used()), (5, 500));
        assert!(reserve(other, 251).is_none());
        let others = reserve(other, 250).expect("half of the rest");
        // Once they arrive, they no longer count against the client.
        let arriving: Vec<_> = unsent.into_iter().map(|(reservation, _)| reservation).collect();
        assert!(reserve(greedy, 126).is_none());
        let further = reserve(greedy, 125).expect("half of the rest");
        assert!(arriving[0].try_grow(125) && !arriving[0].try_grow(1), "all that is free");
        drop((arriving, others, further));
        assert!(budget.used() == 0 && budget.unsent.lock().is_empty());
        assert!(reserve(greedy, u64::MAX).is_none());
    }
}
