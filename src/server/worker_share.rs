//! Spreads connections over the workers. All of them accept from one socket, and the one that runs first would take every
//! connection of a burst: the few connections of a proxy in front then leave the other workers without work.

use std::{cell::Cell, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::sleep;

use super::Server;

/// How long a worker with more than its share leaves new connections to the others, which the same event wakes. It takes
/// one then, so that none waits for a worker that is busy.
const ACCEPT_DELAY: Duration = Duration::from_millis(1);

thread_local! {
    /// Open connections of this worker, of all its listeners.
    static OPEN: Cell<usize> = const { Cell::new(0) };
}

/// Counts a connection that this worker serves, until dropped.
pub(super) struct CountedConnection(());

impl CountedConnection {
    pub(super) fn new() -> Self {
        OPEN.set(OPEN.get() + 1);
        Self(())
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        OPEN.set(OPEN.get() - 1);
    }
}

/// Waits a little if this worker has more than its share of the connections.
pub(super) async fn leave_to_others(server: &Server) {
    if exceeds_share(OPEN.get(), server.open_connections(), server.workers.load(Relaxed)) {
        sleep(ACCEPT_DELAY).await;
    }
}

/// Whether `own` exceeds an equal part of `total` by more than an eighth and one.
fn exceeds_share(own: usize, total: usize, workers: usize) -> bool {
    workers > 1 && 8 * own * workers > 9 * total + 8 * workers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One worker after the other takes as many of 8, 64 and 1,000 connections as it may before the next one runs.
    #[test]
    fn burst_is_spread_over_the_workers() {
        for workers in [2, 16] {
            for connections in [8, 64, 1_000] {
                let mut open = vec![0; workers];
                let mut total = 0;
                while total < connections {
                    for own in &mut open {
                        // What a worker does after its wait, if all others are busy.
                        let mut has_waited = true;
                        while total < connections && (has_waited || !exceeds_share(*own, total, workers)) {
                            has_waited &= !exceeds_share(*own, total, workers);
                            (*own, total) = (*own + 1, total + 1);
                        }
                    }
                }
                let (most, share) = (open.iter().max().copied().unwrap_or(0), connections.div_ceil(workers));
                assert!(most < 2 * share + 2, "{workers} workers, {connections}: {open:?}");
            }
        }
        assert!(!exceeds_share(1_000, 1_000, 1));
    }
}
