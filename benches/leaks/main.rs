//! Whether anything stays behind: 200,000 requests of all kinds against the program as a process of its own, with an
//! upstream that misbehaves and clients that leave. Afterwards its memory, its file descriptors, its temporary files, its
//! threads and its connections are what they were after the first 20,000.
//!
//! It is built as `benches/` are, with optimization, for that many take too long without: `cargo bench --bench leaks`.

#![allow(unreachable_pub, dead_code, reason = "what the stories have is more than is needed here")]

#[path = "../../tests/it/wire.rs"]
mod wire;

mod calls;
mod confidant;
mod program;
mod stage;

use std::{process::ExitCode, sync::Arc, time::Instant};

use self::{calls::Scene, program::Weight};

/// Before it is weighed for the first time: buffers, pools and the allocator's arenas have their size then.
const WARM_UP: u64 = 20_000;
const REQUESTS: u64 = 200_000;
/// More memory than at the first weighing. One leaked byte in twenty of the requests would be more than 64 bytes each.
const MOST_GROWTH: u64 = 8 << 20;
/// How many clients call at once.
const CLIENTS: u64 = 16;

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
    let scene = Arc::new(Scene::set().await);
    let began = Instant::now();
    calls(&scene, WARM_UP).await;
    let before = scene.program.at_rest(&scene.wecom).await;
    calls(&scene, REQUESTS).await;
    let after = scene.program.at_rest(&scene.wecom).await;
    eprintln!("{REQUESTS} requests in {:.0?}\nbefore: {before:?}\nafter:  {after:?}", began.elapsed());
    scene.say_what_happened();
    compare(&before, &after)
}

/// So many requests, of every kind in turn, from some clients at once.
async fn calls(scene: &Arc<Scene>, requests: u64) {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|nth| {
            let scene = scene.clone();
            tokio::spawn(async move { scene.calls(nth, requests / CLIENTS).await })
        })
        .collect();
    for client in clients {
        client.await.expect("no panic");
    }
}

fn compare(before: &Weight, after: &Weight) -> Result<(), String> {
    let grown = after.memory.saturating_sub(before.memory);
    if grown > MOST_GROWTH {
        return Err(format!("its memory has grown by {:.1} MiB", grown as f64 / f64::from(1 << 20)));
    }
    for ((what, before), (_, after)) in before.counts().into_iter().zip(after.counts()) {
        if after > before {
            return Err(format!("there were {before} {what}, and there are {after}"));
        }
    }
    Ok(())
}
