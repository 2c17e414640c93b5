//! Where the future of an attempt is stored: it is the largest of a request, and not every transport pools it.

use std::future::Future;

/// Where the future of an attempt is stored. It is far larger than the future of a request that waits for its token.
pub trait AttemptStorage {
    /// Stores the attempt and returns a future that drives it.
    fn store<F: Future>(attempt: F) -> impl Future<Output = F::Output>;
}

/// Inline in the request's future, for a transport that pools these.
pub struct Inline;

/// In a separate allocation, which exists only during the attempt.
pub struct Boxed;

impl AttemptStorage for Inline {
    fn store<F: Future>(attempt: F) -> impl Future<Output = F::Output> {
        attempt
    }
}

impl AttemptStorage for Boxed {
    fn store<F: Future>(attempt: F) -> impl Future<Output = F::Output> {
        Box::pin(attempt)
    }
}
