//! Where the future of an attempt is placed: it is the largest of a request, and only HTTP/1 pools it.

use std::future::Future;

/// Where the future of an attempt is placed. It is far larger than the future of a request that waits for its token.
pub trait AttemptPlacement {
    /// Places the attempt and returns a future that drives it.
    fn place<F: Future>(attempt: F) -> impl Future<Output = F::Output>;
}

/// Inline in the request's future, for HTTP/1: `server::http1::handler_pool` reuses that future.
pub struct Inline;

/// In a separate allocation, which exists only during the attempt.
pub struct Boxed;

impl AttemptPlacement for Inline {
    fn place<F: Future>(attempt: F) -> impl Future<Output = F::Output> {
        attempt
    }
}

impl AttemptPlacement for Boxed {
    fn place<F: Future>(attempt: F) -> impl Future<Output = F::Output> {
        Box::pin(attempt)
    }
}
