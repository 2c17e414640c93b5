//! How much memory and disk all kept bodies may take together, and reservations of it that give themselves back.

use std::{
    hash::BuildHasher,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::{HashMap, fast::RandomState};

/// The memory and the disk that all kept bodies share.
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

    /// Bytes of memory that kept bodies take now: the capacity of their buffers.
    pub fn memory_used(&self) -> u64 {
        self.memory.used()
    }

    /// Bytes that kept bodies take in files now, or that are on their way there.
    pub fn disk_used(&self) -> u64 {
        self.disk.state().used
    }

    /// The most that [`Shelf::in_files`] can be.
    pub fn max_disk(&self) -> u64 {
        self.disk.max
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Most memory of one body: an eighth, so that one large upload neither fills the memory nor takes it from all the
    /// others.
    pub(super) fn max_memory_per_body(&self) -> u64 {
        self.memory.max / 8
    }

    /// Whether a body of this length could be kept in memory now.
    pub(super) fn fits_memory(&self, length: u64) -> bool {
        length <= self.max_memory_per_body() && length <= self.memory.max.saturating_sub(self.memory.used())
    }
}

/// A bound and what is taken of it.
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

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Reservation {
    /// Nothing of it yet.
    pub(super) fn empty(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), bytes: AtomicU64::new(0) }
    }

    /// So many bytes, whether they fit or not: for what a request cannot do without.
    pub(super) fn forced(budget: &Arc<Budget>, bytes: u64) -> Self {
        budget.used.fetch_add(bytes, Ordering::Relaxed);
        Self { budget: budget.clone(), bytes: AtomicU64::new(bytes) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes so many bytes more, if they fit.
    pub(super) fn try_grow(&self, bytes: u64) -> bool {
        let max = self.budget.max;
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max);
        let taken = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if taken {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Gives back all but so many bytes.
    pub(super) fn shrink_to(&self, bytes: u64) {
        let back = self.bytes().saturating_sub(bytes);
        self.budget.used.fetch_sub(back, Ordering::Relaxed);
        self.bytes.fetch_sub(back, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// The client whose bodies share its part of the disk; a default one shares with no other and has no bound of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner(Option<u64>);

impl Owner {
    /// The owner of this client's bodies, as a hash: a body that is kept in memory needs no copy of the name.
    pub fn of(client: &str) -> Self {
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        Self(Some(STATE.hash_one(client)))
    }
}

/// The bound on all files, and what each client has of it.
///
/// The first body of a client may take all that is free. With further ones the client may have as much as it leaves free:
/// half of the disk if it is alone, a third if two do the same. So no client can take it all from the others.
#[derive(Debug)]
pub(super) struct DiskBudget {
    max: u64,
    state: Mutex<DiskState>,
}

#[derive(Debug, Default)]
struct DiskState {
    used: u64,
    /// Only clients that have something.
    owners: HashMap<u64, Part>,
}

/// What one client has.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    bytes: u64,
    bodies: u64,
}

impl DiskBudget {
    fn new(max: u64) -> Self {
        Self { max, state: Mutex::default() }
    }

    /// Whether another body of so many bytes would fit now. It is not reserved: an announcement costs a client nothing.
    pub(super) fn fits(&self, owner: Owner, bytes: u64) -> bool {
        self.state().fits(self.max, owner, false, bytes)
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskState {
    /// Whether so many bytes more fit; `counted` where the body that needs them has some already.
    fn fits(&self, max: u64, Owner(owner): Owner, counted: bool, more: u64) -> bool {
        let Some(free) = max.checked_sub(self.used).and_then(|free| free.checked_sub(more)) else {
            return false;
        };
        let part = owner.and_then(|owner| self.owners.get(&owner)).copied().unwrap_or_default();
        part.bodies == u64::from(counted) || part.bytes + more <= free
    }
}

/// What one body has of the disk; given back when dropped.
#[derive(Debug)]
pub(super) struct DiskReserved {
    budget: Arc<DiskBudget>,
    owner: Owner,
    bytes: AtomicU64,
}

impl DiskReserved {
    /// Nothing of it yet.
    pub(super) fn none(budget: &Arc<DiskBudget>, owner: Owner) -> Self {
        Self { budget: budget.clone(), owner, bytes: AtomicU64::new(0) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Makes it so many bytes at least, if they fit.
    pub(super) fn try_grow_to(&self, bytes: u64) -> bool {
        let mut state = self.budget.state();
        let has = self.bytes();
        let more = bytes.saturating_sub(has);
        if more == 0 {
            return true;
        }
        if !state.fits(self.budget.max, self.owner, has > 0, more) {
            return false;
        }
        state.used += more;
        if let Some(owner) = self.owner.0 {
            let part = state.owners.entry(owner).or_default();
            part.bytes += more;
            part.bodies += u64::from(has == 0);
        }
        self.bytes.store(has + more, Ordering::Relaxed);
        true
    }
}

impl Drop for DiskReserved {
    fn drop(&mut self) {
        let has = self.bytes();
        if has == 0 {
            return;
        }
        let mut state = self.budget.state();
        state.used -= has;
        let Some(owner) = self.owner.0 else { return };
        if let Some(part) = state.owners.get_mut(&owner) {
            part.bytes -= has;
            part.bodies -= 1;
            if part.bodies == 0 {
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
        let body = |owner| DiskReserved::none(&budget, owner);
        let alone = body(greedy);
        assert!(alone.try_grow_to(1000) && !alone.try_grow_to(1001), "one body may take all of it");
        drop(alone);
        let bodies: Vec<_> = (0..20).map(|_| body(greedy)).collect();
        assert_eq!(bodies.iter().filter(|body| body.try_grow_to(100)).count(), 5);
        assert!(budget.fits(other, 500) && !budget.fits(other, 501) && !budget.fits(greedy, 1));
        let theirs: Vec<_> = (0..20).map(|_| body(other)).collect();
        assert_eq!(theirs.iter().filter(|body| body.try_grow_to(100)).count(), 2);
        assert!(budget.fits(Owner::of("third"), 300));
        let unowned = body(Owner::default());
        assert!(unowned.try_grow_to(300) && !body(Owner::default()).try_grow_to(1));
        drop((bodies, theirs, unowned));
        let state = budget.state();
        assert_eq!((state.used, state.owners.len()), (0, 0));
    }
}
