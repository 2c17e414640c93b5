//! When 100,000 tokens shared by 50 replicas are refreshed: calculated with the real refresh times.

use std::time::Duration;

use super::simulation::rng::SimRng;
use crate::tokens::proactive::{refresh_margin, stagger_delay};
use crate::{secret::Masked, wecom::response::GettokenResponse};

const AGENTS: u64 = 100_000;
const REPLICAS: u64 = 50;
const TOKEN_TTL: Duration = Duration::from_secs(7200);
/// A replica that claims within this time of the first has not received its notification.
const NOTIFICATION_INTERVAL: Duration = Duration::from_millis(10);
const MINUTES: usize = 6 * 60;
/// Earlier minutes are the cold start.
const WARM_UP_MINUTES: usize = 2 * 60;

/// Events per minute.
struct MinuteCounts {
    gettokens: Vec<u64>,
    store_calls: Vec<u64>,
}

impl MinuteCounts {
    fn record(&mut self, at: f64, gettokens: u64, store_calls: u64) {
        let minute = (at / 60.0) as usize;
        if minute < MINUTES {
            self.gettokens[minute] += gettokens;
            self.store_calls[minute] += store_calls;
        }
    }

    /// The peak minute and the mean, per second, after the warm-up.
    fn peak_and_mean(counts: &[u64]) -> (f64, f64) {
        let settled = &counts[WARM_UP_MINUTES..];
        let peak = *settled.iter().max().expect("a minute") as f64 / 60.0;
        (peak, settled.iter().sum::<u64>() as f64 / settled.len() as f64 / 60.0)
    }
}

/// All refreshes, if first uses are spread over `first` and gettoken returns a `new` token ahead of the expiry,
/// or else the same one until then.
fn simulate(first: Duration, ahead: Duration, new: bool) -> MinuteCounts {
    let mut minutes = MinuteCounts { gettokens: vec![0; MINUTES], store_calls: vec![0; MINUTES] };
    let mut rng = SimRng::new(1);
    let mut stagger = rng.fork();
    for agent in 0..AGENTS {
        let mut at = first.as_secs_f64() * rng.below(1_000_000) as f64 / 1e6;
        // One replica claims and stores the token; each of the others reads it on first use.
        minutes.record(at, 1, 2 + REPLICAS - 1);
        for nth in 0.. {
            if at / 60.0 > MINUTES as f64 {
                break;
            }
            let token = Masked::new(format!("a token of agent {agent}, number {nth}"));
            let margin = refresh_margin(ahead, &GettokenResponse { token, expires_in: TOKEN_TTL }, 0.0);
            // The first of many uniformly spread replicas, and how many claim before its notification.
            let even = stagger.below(1_000_000) as f64 / 1e6;
            let first = stagger_delay(margin, 1.0 - even.powf(1.0 / REPLICAS as f64));
            let others = (REPLICAS - 1) * NOTIFICATION_INTERVAL.as_millis() as u64;
            let together = 1
                + others / stagger_delay(margin, 1.0).as_millis() as u64
                + u64::from(stagger.below(stagger_delay(margin, 1.0).as_millis() as u64) < others);
            let renewed = at + (TOKEN_TTL - margin + first).as_secs_f64();
            // Replicas that claim with the first wait and claim again; all others read the notified record.
            minutes.record(renewed, 1, 2 * together + REPLICAS);
            at = if new { renewed } else { at + TOKEN_TTL.as_secs_f64() };
            if !new {
                // At the expiry all replicas claim at once.
                minutes.record(at, 1, 3 * REPLICAS);
            }
        }
    }
    minutes
}

#[test]
fn refreshes_of_100000_agents_are_spread_out() {
    let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
    let five = Duration::from_secs(300);
    for (first, ahead, new, max_ratio) in [
        (hour, five, true, 2.1),
        (hour, five, false, 2.1),
        (hour, hour, true, 2.1),
        (minute, hour, true, 2.1),
        (minute, five, true, 40.0),
        (minute, five, false, 121.0),
    ] {
        let minutes = simulate(first, ahead, new);
        let (peak, mean) = MinuteCounts::peak_and_mean(&minutes.gettokens);
        let (asked_peak, store_calls) = MinuteCounts::peak_and_mean(&minutes.store_calls);
        println!(
            "first uses within {first:?}, {ahead:?} ahead, {}: {:.0} gettokens an hour, {mean:.1} a second, {peak:.1} in the busiest \
             minute ({:.2} times); {store_calls:.0} store calls a second, {asked_peak:.0} in the busiest minute",
            if new { "a new token" } else { "the same token until it expires" },
            mean * 3600.0,
            peak / mean,
        );
        assert!(peak / mean <= max_ratio, "{:.2} times", peak / mean);
    }
}
