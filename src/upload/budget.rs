//! How much memory and disk all kept bodies may take together, and reservations of it that give themselves back.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The memory and the disk that all kept bodies share.
#[derive(Debug)]
pub struct Shelf {
    pub(super) memory: Arc<Budget>,
    pub(super) disk: Arc<Budget>,
    dir: PathBuf,
}

impl Shelf {
    /// At most `memory` bytes in memory for all bodies together, and `disk` bytes in files under `dir`.
    pub fn new(memory: u64, disk: u64, dir: PathBuf) -> Self {
        Self { memory: Arc::new(Budget::new(memory)), disk: Arc::new(Budget::new(disk)), dir }
    }

    /// Bytes of memory that kept bodies take now: the capacity of their buffers.
    pub fn in_memory(&self) -> u64 {
        self.memory.used()
    }

    /// Bytes that kept bodies take in files now, are on their way there, or were announced.
    pub fn in_files(&self) -> u64 {
        self.disk.used()
    }

    /// The most that [`Shelf::in_files`] can be.
    pub fn max_in_files(&self) -> u64 {
        self.disk.max
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Most memory of one body: an eighth, so that one large upload neither fills the memory nor takes it from all the
    /// others.
    pub(super) fn share(&self) -> u64 {
        self.memory.max / 8
    }

    /// Whether a body of this length could be kept in memory now.
    pub(super) fn fits_memory(&self, length: u64) -> bool {
        length <= self.share() && length <= self.memory.max.saturating_sub(self.memory.used())
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
pub(super) struct Reserved {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Reserved {
    /// Nothing of it yet.
    pub(super) fn none(budget: &Arc<Budget>) -> Self {
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

    /// Makes it so many bytes at least, if they fit.
    pub(super) fn grow_to(&self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes());
        more == 0 || self.grow(more)
    }

    /// Takes so many bytes more, if they fit.
    pub(super) fn grow(&self, bytes: u64) -> bool {
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

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}
