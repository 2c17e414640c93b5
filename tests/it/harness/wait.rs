//! Waiting for events.

use std::{future::Future, time::Duration};

/// Time limit for expected events: enough on a busy machine, and shorter than most of the proxy's default time-outs, so that
/// an event caused by such a time-out fails the test.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(25);

/// Time after which a case counts as hanging. Generous, because a flood of frames takes long in an unoptimized build on a
/// busy machine.
pub const CASE_TIMEOUT: Duration = Duration::from_secs(120);

/// Waits for an expected event; panics after [`WAIT_TIMEOUT`] with the caller's location.
#[track_caller]
pub fn with_timeout<T>(event: impl Future<Output = T>) -> impl Future<Output = T> {
    let location = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(WAIT_TIMEOUT, event).await {
            Ok(value) => value,
            Err(_) => panic!("timed out at {location}"),
        }
    }
}

/// Waits until a condition holds.
pub async fn wait_for(what: &str, condition: impl AsyncFnMut() -> bool) {
    wait_within(WAIT_TIMEOUT, what, condition).await;
}

/// The same for what takes seconds of CPU time, and so much longer on a busy machine.
pub async fn wait_for_work(what: &str, condition: impl AsyncFnMut() -> bool) {
    wait_within(6 * WAIT_TIMEOUT, what, condition).await;
}

async fn wait_within(longest: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let outcome = tokio::time::timeout(longest, met).await;
    outcome.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}
