//! Whether anything stays behind: 200,000 requests of all kinds against the program as a process of its own, with an
//! upstream that misbehaves and clients that leave. Afterwards its memory, its file descriptors, its temporary files, its
//! threads and its connections are what they were after the first 20,000.
//!
//! It is built as `benches/` are, with optimization, for that many take too long without: `cargo bench --bench leaks`.

#![allow(unreachable_pub, dead_code, reason = "what the stories have is more than is needed here")]

#[path = "../../tests/it/raw_http.rs"]
mod raw_http;

mod calls;
mod harness;
mod leak_detector;
mod process;

use std::{process::ExitCode, sync::Arc, time::Instant};

use self::{calls::LeakScenario, process::ResourceUsage};

/// Before it is weighed for the first time: buffers, pools and the allocator's arenas have their size then.
const WARM_UP_REQUESTS: u64 = 20_000;
const MEASURED_REQUESTS: u64 = 200_000;
/// More memory than at the first weighing. One leaked byte in twenty of the requests would be more than 64 bytes each.
const MAX_GROWTH_BYTES: u64 = 8 << 20;
/// How many clients call at once.
const CLIENT_COUNT: u64 = 16;

fn main() -> ExitCode {
    // `cargo test --benches` builds everything and wants none of this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.expect("a runtime").block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("{words}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let scene = Arc::new(LeakScenario::start().await);
    let began = Instant::now();
    run_calls(&scene, WARM_UP_REQUESTS).await;
    let before = scene.process.usage_when_idle(&scene.wecom).await;
    run_calls(&scene, MEASURED_REQUESTS).await;
    let after = scene.process.usage_when_idle(&scene.wecom).await;
    eprintln!(
        "{MEASURED_REQUESTS} requests in {:.0?}\nbefore: {before:?}\nafter:  {after:?}",
        began.elapsed()
    );
    scene.print_outcomes();
    compare(&before, &after)
}

/// So many requests, of every kind in turn, from some clients at once.
async fn run_calls(scene: &Arc<LeakScenario>, requests: u64) {
    let clients: Vec<_> = (0..CLIENT_COUNT)
        .map(|nth| {
            let scene = scene.clone();
            tokio::spawn(async move { scene.run_calls(nth, requests / CLIENT_COUNT).await })
        })
        .collect();
    for client in clients {
        client.await.expect("no panic");
    }
}

fn compare(before: &ResourceUsage, after: &ResourceUsage) -> Result<(), String> {
    let grown = after.memory_bytes.saturating_sub(before.memory_bytes);
    if grown > MAX_GROWTH_BYTES {
        return Err(format!("its memory has grown by {:.1} MiB", grown as f64 / f64::from(1 << 20)));
    }
    for ((what, before), (_, after)) in before.counts().into_iter().zip(after.counts()) {
        if after > before {
            return Err(format!("there were {before} {what}, and there are {after}"));
        }
    }
    Ok(())
}
