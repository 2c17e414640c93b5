//! Bounds the reads of large responses: a client that stops reading keeps the last read in memory.

use std::rc::Rc;

use super::pool::Pool;

/// Size of the first read of a response; small responses fit.
pub(super) const SMALL_READ_BYTES: usize = 8 * 1024;
/// Maximum size of a read of a large response, while few are in progress.
const LARGE_READ_BYTES: usize = 1024 * 1024;
/// Shared by the large reads of a worker.
const MAX_LARGE_READS_BYTES: usize = 64 * 1024 * 1024;

/// Counts a large response in the pool while it is in progress.
pub(super) struct LargeResponse(Rc<Pool>);

impl LargeResponse {
    pub(super) fn new(pool: &Rc<Pool>) -> Self {
        pool.large_responses.update(|large| large + 1);
        Self(pool.clone())
    }

    /// Maximum bytes of the next read.
    pub(super) fn read_bytes(&self) -> usize {
        (MAX_LARGE_READS_BYTES / self.0.large_responses.get().max(1))
            .clamp(SMALL_READ_BYTES, LARGE_READ_BYTES)
    }
}

impl Drop for LargeResponse {
    fn drop(&mut self) {
        self.0.large_responses.update(|large| large - 1);
    }
}
