//! The part of the test harness that [`crate::raw_http`] uses.

use std::{future::Future, time::Duration};

/// Waits for an expected event; panics after 60 s.
pub async fn with_timeout<T>(event: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(Duration::from_secs(60), event).await;
    outcome.unwrap_or_else(|_| panic!("timed out"))
}
