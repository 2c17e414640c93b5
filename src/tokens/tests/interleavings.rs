//! Many short lives by chance: requests, refusals, renewals that go well or not, and time, in any order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::fake_gettoken::{
    FakeGettoken, FakeResponse, advance, path, poll_current, run_ready_tasks, serial,
};
use crate::tokens::{AgentToken, Replacement};
use tokio::time::Instant;

const SEEDS: u64 = 300;
const STEPS: usize = 80;

/// Chance that can be repeated.
struct XorShift(u64);

impl XorShift {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// One request as the proxy makes it, its flight as long as `travel`.
async fn request(fake: FakeGettoken, slot: Arc<AgentToken>, travel: Duration) {
    let Ok(token) = slot.current_or_fetch().await else { return };
    let accepted = fake.accepts("a", &token);
    tokio::time::sleep(travel).await;
    if accepted {
        return;
    }
    let next = match slot.replace_refused(&token, path()).await {
        Replacement::Refreshed(next) => {
            assert!(serial(&next) > serial(&token), "{} after {}", serial(&next), serial(&token));
            next
        }
        Replacement::Unchanged(next) => {
            assert_eq!(serial(&next), serial(&token));
            next
        }
        Replacement::Throttled(_) | Replacement::Unavailable(_) => return,
    };
    tokio::time::sleep(travel).await;
    if !fake.accepts("a", &next) {
        slot.mark_refused_again(&next, path());
    }
}

async fn run(seed: u64) -> usize {
    let mut chance = XorShift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let fake = FakeGettoken::new([2, 60, 7200][chance.below(3) as usize]);
    let slot = fake.agent_token();
    let ended = Arc::new(AtomicUsize::new(0));
    let mut requests = Vec::new();
    for _ in 0..STEPS {
        match chance.below(12) {
            0..=4 => {
                let travel = Duration::from_millis(chance.below(3_000));
                let (story, ended) = (request(fake.clone(), slot.clone(), travel), ended.clone());
                requests.push(tokio::spawn(async move {
                    story.await;
                    ended.fetch_add(1, Ordering::Relaxed);
                }));
            }
            5 => fake.revoke("a"),
            6 => fake.set_default_response(FakeResponse::Normal),
            7 => fake.queue_responses(&[[
                FakeResponse::SameToken,
                FakeResponse::NewToken,
                FakeResponse::Errcode(-1),
                FakeResponse::Errcode(45009),
                FakeResponse::Panic,
            ][chance.below(5) as usize]]),
            8 => fake.set_paused(chance.below(2) == 0),
            9 if !requests.is_empty() => {
                let nth = chance.below(requests.len() as u64) as usize;
                requests[nth].abort();
            }
            10 => advance(chance.below(100) as f64).await,
            _ => advance(chance.below(1_000) as f64 / 1_000.0).await,
        }
        run_ready_tasks().await;
        if slot.cached(Instant::now()).is_some() {
            poll_current(&slot).expect("there is a token, so nobody waits and nobody fails");
        }
        assert!(fake.max_in_flight() <= 1, "two gettokens at once");
    }
    fake.set_paused(false);
    for request in requests {
        let ended = tokio::time::timeout(Duration::from_secs(60), request).await.expect("nobody hangs");
        assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()), "a request broke a promise");
    }
    assert!(fake.max_in_flight() <= 1, "two gettokens at once");
    ended.load(Ordering::Relaxed)
}

#[test]
fn random_interleavings_keep_every_invariant() {
    let mut ended = 0;
    for seed in 1..=SEEDS {
        // Shown only when the test fails: the last one is the one to repeat.
        println!("seed {seed}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let run = async {
            let watched = tokio::time::timeout(Duration::from_secs(1_000_000), run(seed));
            watched.await.unwrap_or_else(|_| panic!("it hangs"))
        };
        ended += runtime.expect("a runtime").block_on(run);
    }
    assert!(ended > 5_000, "only {ended} requests came to their end");
}
