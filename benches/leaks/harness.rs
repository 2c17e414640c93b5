//! What [`crate::wire`] wants of a stage.

use std::{future::Future, time::Duration};

/// Waits for what must come, and fails where it does not.
pub async fn with_timeout<T>(coming: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), coming).await;
    waited.unwrap_or_else(|_| panic!("waited in vain"))
}
