//! Memory and disk budget of all replay buffers, with reservations that are returned when dropped.

use std::{
    hash::BuildHasher,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::{HashMap, fast::RandomState};

/// The budget that all replay buffers share.
#[derive(Debug)]
pub struct ReplayBudget {
    pub(super) memory: Arc<Budget>,
    pub(super) disk: Arc<DiskBudget>,
    dir: PathBuf,
}

impl ReplayBudget {
    /// At most `memory` bytes in memory for all bodies together, and `disk` bytes in files under `dir`.
    pub fn new(memory: u64, disk: u64, dir: PathBuf) -> Self {
        Self { memory: Arc::new(Budget::new(memory)), disk: Arc::new(DiskBudget::new(disk)), dir }
    }

    /// Bytes of memory in use: the capacity of the buffers.
    pub fn memory_used(&self) -> u64 {
        self.memory.used()
    }

    /// Bytes in files, or being written to them.
    pub fn disk_used(&self) -> u64 {
        self.disk.state().used
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

    /// Whether a body of this length fits into memory now.
    pub(super) fn fits_memory(&self, length: u64) -> bool {
        length <= self.max_memory_per_body() && length <= self.memory.max.saturating_sub(self.memory.used())
    }
}

/// A bound and the bytes in use.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    used: AtomicU64,
}

impl Budget {
    fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0) }
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
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
        Self { budget: budget.clone(), bytes: AtomicU64::new(bytes) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reserves further bytes, if they fit.
    pub(super) fn try_grow(&self, bytes: u64) -> bool {
        let max = self.budget.max;
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max);
        let grown = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        grown
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

/// The client whose bodies share its part of the disk; the default shares with none and has no bound of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner(Option<u64>);

impl Owner {
    /// The owner of this client's bodies, as a hash: a body in memory needs no copy of the name.
    pub fn of(client: &str) -> Self {
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        Self(Some(STATE.hash_one(client)))
    }
}

/// Disk budget of all files, and what each client uses of it.
///
/// A client's first body may use all that is free. With further ones the client may use as much as it leaves free: half
/// of the disk if it is alone, a third if two clients do the same. So no client can take everything from the others.
#[derive(Debug)]
pub(super) struct DiskBudget {
    max: u64,
    state: Mutex<DiskState>,
}

#[derive(Debug, Default)]
struct DiskState {
    used: u64,
    /// Only clients with a reservation.
    owners: HashMap<u64, OwnerUsage>,
}

/// What one client uses.
#[derive(Debug, Clone, Copy, Default)]
struct OwnerUsage {
    bytes: u64,
    bodies: u64,
}

impl DiskBudget {
    fn new(max: u64) -> Self {
        Self { max, state: Mutex::default() }
    }

    /// Whether another body of `bytes` bytes would fit now. Nothing is reserved: declaring a length costs a client
    /// nothing.
    pub(super) fn fits(&self, owner: Owner, bytes: u64) -> bool {
        self.state().fits(self.max, owner, false, bytes)
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskState {
    /// Whether `more` bytes fit; `is_counted`: the body that needs them has a reservation already.
    fn fits(&self, max: u64, Owner(owner): Owner, is_counted: bool, more: u64) -> bool {
        let Some(free) = max.checked_sub(self.used).and_then(|free| free.checked_sub(more)) else {
            return false;
        };
        let usage = owner.and_then(|owner| self.owners.get(&owner)).copied().unwrap_or_default();
        usage.bodies == u64::from(is_counted) || usage.bytes + more <= free
    }
}

/// Disk reservation of one body, returned when dropped.
#[derive(Debug)]
pub(super) struct DiskReservation {
    budget: Arc<DiskBudget>,
    owner: Owner,
    bytes: AtomicU64,
}

impl DiskReservation {
    /// A reservation of no bytes.
    pub(super) fn empty(budget: &Arc<DiskBudget>, owner: Owner) -> Self {
        Self { budget: budget.clone(), owner, bytes: AtomicU64::new(0) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Grows the reservation to at least `bytes` bytes, if they fit.
    pub(super) fn try_grow_to(&self, bytes: u64) -> bool {
        let mut state = self.budget.state();
        let reserved = self.bytes();
        let more = bytes.saturating_sub(reserved);
        if more == 0 {
            return true;
        }
        if !state.fits(self.budget.max, self.owner, reserved > 0, more) {
            return false;
        }
        state.used += more;
        if let Some(owner) = self.owner.0 {
            let usage = state.owners.entry(owner).or_default();
            usage.bytes += more;
            usage.bodies += u64::from(reserved == 0);
        }
        self.bytes.store(reserved + more, Ordering::Relaxed);
        true
    }
}

impl Drop for DiskReservation {
    fn drop(&mut self) {
        let reserved = self.bytes();
        if reserved == 0 {
            return;
        }
        let mut state = self.budget.state();
        state.used -= reserved;
        let Some(owner) = self.owner.0 else { return };
        if let Some(usage) = state.owners.get_mut(&owner) {
            usage.bytes -= reserved;
            usage.bodies -= 1;
            if usage.bodies == 0 {
                state.owners.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_leaves_others_as_much_of_the_disk_as_it_has() {
        let budget = Arc::new(DiskBudget::new(1000));
        let (greedy, other) = (Owner::of("greedy"), Owner::of("other"));
        let body = |owner| DiskReservation::empty(&budget, owner);
        let single = body(greedy);
        assert!(single.try_grow_to(1000) && !single.try_grow_to(1001), "one body may take all of it");
        drop(single);
        let bodies: Vec<_> = (0..20).map(|_| body(greedy)).collect();
        assert_eq!(bodies.iter().filter(|body| body.try_grow_to(100)).count(), 5);
        assert!(budget.fits(other, 500) && !budget.fits(other, 501) && !budget.fits(greedy, 1));
        let other_bodies: Vec<_> = (0..20).map(|_| body(other)).collect();
        assert_eq!(other_bodies.iter().filter(|body| body.try_grow_to(100)).count(), 2);
        assert!(budget.fits(Owner::of("third"), 300));
        let unowned = body(Owner::default());
        assert!(unowned.try_grow_to(300) && !body(Owner::default()).try_grow_to(1));
        drop((bodies, other_bodies, unowned));
        let state = budget.state();
        assert_eq!((state.used, state.owners.len()), (0, 0));
    }
}
