//! Counts open connections to an upstream, for a metric.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The number of open connections; clones share it.
#[derive(Clone, Default)]
pub(super) struct OpenConnections(Arc<AtomicUsize>);

/// Counts one connection until it is dropped.
pub(super) struct OpenConnection(OpenConnections);

impl OpenConnections {
    /// Counts another one.
    pub(super) fn open(&self) -> OpenConnection {
        self.0.fetch_add(1, Relaxed);
        OpenConnection(self.clone())
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}
