//! Leak check: sends 200,000 requests of all kinds to the program as a separate process, with upstream faults and client
//! aborts. Afterwards its memory, file descriptors, temporary files, threads and connections must be as after the first
//! 20,000 requests.
//!
//! It is a bench so that it is built with optimization, which so many requests need: `cargo bench --bench leaks`.

#![allow(unreachable_pub, dead_code, reason = "the shared test modules contain more than is used here")]

#[path = "../../tests/it/harness/raw_http.rs"]
mod raw_http;

#[path = "../../tests/it/harness/wait.rs"]
mod harness;

mod calls;
mod leak_detector;
mod process;

use std::{process::ExitCode, sync::Arc, time::Instant};

use self::{calls::LeakScenario, process::ResourceUsage};

/// Requests before the first measurement: buffers, pools and the allocator's arenas have reached their size then.
const WARM_UP_REQUESTS: u64 = 20_000;
const MEASURED_REQUESTS: u64 = 200_000;
/// Allowed growth of the resident memory since the first measurement. A leak in one request of twenty would exceed it from
/// 839 bytes each.
const MAX_GROWTH_BYTES: u64 = 8 << 20;
/// Number of concurrent clients.
const CLIENT_COUNT: u64 = 16;

fn main() -> ExitCode {
    // `cargo test --benches` runs this program too, but must not run the check.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.expect("a runtime").block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let scenario = Arc::new(LeakScenario::start().await);
    let start = Instant::now();
    run_calls(&scenario, WARM_UP_REQUESTS).await;
    let before = scenario.process.usage_when_idle(&scenario.wecom).await;
    run_calls(&scenario, MEASURED_REQUESTS).await;
    let after = scenario.process.usage_when_idle(&scenario.wecom).await;
    eprintln!(
        "{MEASURED_REQUESTS} requests in {:.0?}\nbefore: {before:?}\nafter:  {after:?}",
        start.elapsed()
    );
    scenario.print_outcomes();
    compare(&before, &after)
}

/// Makes this many requests, of every kind in turn, from `CLIENT_COUNT` concurrent clients.
async fn run_calls(scenario: &Arc<LeakScenario>, requests: u64) {
    let clients: Vec<_> = (0..CLIENT_COUNT)
        .map(|index| {
            let scenario = scenario.clone();
            tokio::spawn(async move { scenario.run_calls(index, requests / CLIENT_COUNT).await })
        })
        .collect();
    for client in clients {
        client.await.expect("no panic");
    }
}

fn compare(before: &ResourceUsage, after: &ResourceUsage) -> Result<(), String> {
    let growth = after.memory_bytes.saturating_sub(before.memory_bytes);
    if growth > MAX_GROWTH_BYTES {
        return Err(format!("resident memory grew by {:.1} MiB", growth as f64 / f64::from(1 << 20)));
    }
    for ((resource, before), (_, after)) in before.counts().into_iter().zip(after.counts()) {
        if after > before {
            return Err(format!("{resource} grew from {before} to {after}"));
        }
    }
    Ok(())
}
