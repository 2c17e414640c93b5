//! Replicas that share a limit, in simulated time without a store: the fake does what the script does.

use proptest::prelude::*;

use super::*;

/// One limit in the store: when it is full, in microseconds.
struct FakeStoredLimit(i64);

impl FakeStoredLimit {
    fn consume(&mut self, now: i64, taken: u64) -> i64 {
        let tat = self.0.max(now - REPORT_INTERVAL.as_micros() as i64) + taken as i64;
        if taken > 0 {
            self.0 = tat;
        }
        tat - now
    }
}

/// A replica's limiter, and what it admitted.
struct ReplicaLimiter {
    limiter: Arc<RateLimiter>,
    taken: u64,
}

fn replicas(count: usize, limit: RateLimit, base: Instant) -> Vec<ReplicaLimiter> {
    let limiter = |_| {
        let reporter = Arc::new(UsageReporter {
            store: Store::disconnected(),
            pending: Mutex::default(),
            has_pending: Arc::default(),
        });
        let limiter = RateLimiterFactory(Some(reporter)).rate_limiter(limit, String::new);
        let mut limiter = Arc::into_inner(limiter).expect("the only reference");
        limiter.base = base;
        ReplicaLimiter { limiter: Arc::new(limiter), taken: 0 }
    };
    (0..count).map(limiter).collect()
}

proptest! {
    #[test]
    fn replicas_together_stay_near_the_shared_limit(
        replicas_count in 1usize..6,
        count in 1u32..200,
        // Requests per millisecond at each replica, in thousandths, changing over time.
        demand in prop::collection::vec(prop::collection::vec(0u64..400, 6), 1..20),
    ) {
        let limit = RateLimit { requests: count, per: Duration::from_secs(1) };
        let base = Instant::now();
        let mut replica_limiters = replicas(replicas_count, limit, base);
        let mut store = FakeStoredLimit(0);
        let (mut owed, mut peak) = (vec![0; replicas_count], 0);
        let length = 500 * demand.len() as u64;
        for millisecond in 0..length {
            let now = base + Duration::from_millis(millisecond);
            for (nth, replica) in replica_limiters.iter_mut().enumerate() {
                owed[nth] += demand[(millisecond / 500) as usize][nth];
                peak = peak.max(demand[(millisecond / 500) as usize][nth]);
                while owed[nth] >= 1_000 {
                    owed[nth] -= 1_000;
                    replica.taken += u64::from(replica.limiter.try_acquire(now).is_ok());
                }
                // Each replica reports at its own time.
                if millisecond % 200 == 37 * nth as u64 {
                    let (_, taken) = replica.limiter.take_unreported(now).expect("it is shared");
                    let full_in_us = store.consume(millisecond as i64 * 1_000, taken);
                    replica.limiter.apply_shared_usage(now, full_in_us);
                }
            }
        }
        let taken: u64 = replica_limiters.iter().map(|replica| replica.taken).sum();
        let fair = f64::from(count) * (1.0 + (length as f64 + 200.0) / 1_000.0);
        // A replica learns of the others' usage an interval late.
        let unknown = (replicas_count as f64 - 1.0) * f64::from(count).min(peak as f64 / 1_000.0 * 400.0 + 1.0);
        prop_assert!(taken as f64 <= fair + unknown + 1.0, "{taken} of {fair} and {unknown}");
    }

    #[test]
    fn single_replica_loses_almost_nothing_by_reporting(count in 1u32..200, demand in 1u64..400) {
        let limit = RateLimit { requests: count, per: Duration::from_secs(1) };
        let base = Instant::now();
        let (shared, mut alone) = (replicas(1, limit, base).remove(0), RateLimiter::new(limit, None));
        Arc::get_mut(&mut alone).expect("the only reference").base = base;
        let mut store = FakeStoredLimit(0);
        let (mut owed, mut taken, mut taken_alone) = (0, 0i64, 0i64);
        for millisecond in 0..10_000 {
            let now = base + Duration::from_millis(millisecond);
            owed += demand;
            while owed >= 1_000 {
                owed -= 1_000;
                taken += i64::from(shared.limiter.try_acquire(now).is_ok());
                taken_alone += i64::from(alone.try_acquire(now).is_ok());
            }
            if millisecond % 200 == 0 {
                let (_, reported) = shared.limiter.take_unreported(now).expect("it is shared");
                let full_in_us = store.consume(millisecond as i64 * 1_000, reported);
                shared.limiter.apply_shared_usage(now, full_in_us);
            }
        }
        prop_assert!((taken_alone - taken).abs() <= 1 + i64::from(count) / 5, "{taken} and {taken_alone}");
    }
}

#[tokio::test(start_paused = true)]
async fn usage_during_store_outage_is_reported_minus_refill() {
    let base = Instant::now();
    let replica = replicas(1, RateLimit { requests: 10, per: Duration::from_secs(10) }, base).remove(0);
    for _ in 0..10 {
        replica.limiter.try_acquire(base).expect("within the limit");
    }
    let reported = replica.limiter.take_unreported(base).map(|(_, taken)| taken);
    assert_eq!(reported, Some(10_000_000));
    replica.limiter.restore_unreported();
    let reported = replica.limiter.take_unreported(base + Duration::from_secs(7)).map(|(_, taken)| taken);
    assert_eq!(reported, Some(3_000_000));
}
