//! One bounded buffer for each worker, and their collector, which takes what they contain. A worker's lock is contended
//! by the collector only.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;

/// The buffers of all workers, with the count of what did not fit.
pub(super) struct WorkerBuffers<T> {
    buffers: Mutex<Vec<Arc<Mutex<T>>>>,
    /// A buffer accepts nothing more above this size.
    max_bytes: usize,
    dropped: AtomicU64,
}

impl<T: Default> WorkerBuffers<T> {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { buffers: Mutex::default(), max_bytes, dropped: AtomicU64::new(0) }
    }

    /// Adds a buffer.
    pub(super) fn add(&self) -> Arc<Mutex<T>> {
        let buffer = Arc::<Mutex<T>>::default();
        self.buffers.lock().push(buffer.clone());
        buffer
    }

    /// The size in bytes up to which a buffer accepts more.
    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Counts what was dropped.
    pub(super) fn count_dropped(&self, count: u64) {
        self.dropped.fetch_add(count, Relaxed);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// All buffers at present. The list is copied, so that its lock is not held while they are emptied.
    pub(super) fn all(&self) -> Vec<Arc<Mutex<T>>> {
        self.buffers.lock().clone()
    }
}

/// The share of one of `workers` workers in a bound of all, and at least `min_bytes`.
pub(super) fn share(max_bytes: usize, workers: usize, min_bytes: usize) -> usize {
    (max_bytes / workers.max(1)).max(min_bytes)
}
