//! Many short lives by chance: requests, refusals, renewals that go well or not, and time, in any order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    super::{Replacement, TokenSlot},
    fake::{Fake, Says, at_once, pass, path, serial, settle},
};
use tokio::time::Instant;

const RUNS: u64 = 300;
const STEPS: usize = 80;

/// Chance that can be repeated.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// One request as the proxy makes it, its flight as long as `travel`.
async fn request(fake: Fake, slot: Arc<TokenSlot>, travel: Duration) {
    let Ok(token) = slot.current().await else { return };
    let accepted = fake.accepts("a", &token);
    tokio::time::sleep(travel).await;
    if accepted {
        return;
    }
    let next = match slot.replace(&token, path()).await {
        Replacement::Renewed(next) => {
            assert!(serial(&next) > serial(&token), "{} after {}", serial(&next), serial(&token));
            next
        }
        Replacement::SameAgain(next) => {
            assert_eq!(serial(&next), serial(&token));
            next
        }
        Replacement::Held(_) | Replacement::Unavailable(_) => return,
    };
    tokio::time::sleep(travel).await;
    if !fake.accepts("a", &next) {
        slot.refused_again(&next, path());
    }
}

async fn run(seed: u64) -> usize {
    let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let fake = Fake::new([2, 60, 7200][chance.below(3) as usize]);
    let slot = fake.slot();
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
            6 => fake.then_always(Says::Behaves),
            7 => fake.next(&[[Says::Same, Says::New, Says::Refuses(-1), Says::Refuses(45009), Says::Panics]
                [chance.below(5) as usize]]),
            8 => fake.hold(chance.below(2) == 0),
            9 if !requests.is_empty() => {
                let nth = chance.below(requests.len() as u64) as usize;
                requests[nth].abort();
            }
            10 => pass(chance.below(100) as f64).await,
            _ => pass(chance.below(1_000) as f64 / 1_000.0).await,
        }
        settle().await;
        if slot.ready(Instant::now()).is_some() {
            at_once(&slot).expect("there is a token, so nobody waits and nobody fails");
        }
        assert!(fake.most_in_flight() <= 1, "two gettokens at once");
    }
    fake.hold(false);
    for request in requests {
        let ended = tokio::time::timeout(Duration::from_secs(60), request).await.expect("nobody hangs");
        assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()), "a request broke a promise");
    }
    assert!(fake.most_in_flight() <= 1, "two gettokens at once");
    ended.load(Ordering::Relaxed)
}

#[test]
fn no_order_of_events_breaks_a_promise() {
    let mut ended = 0;
    for seed in 1..=RUNS {
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
