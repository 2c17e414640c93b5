//! Replicas that share a limit, in a time of their own and without a store: what the script does is done here.

use proptest::prelude::*;

use super::*;

/// One limit as the store has it: when its bucket is full, in microseconds.
struct FakeStoredLimit(i64);

impl FakeStoredLimit {
    fn consume(&mut self, now: i64, taken: u64) -> i64 {
        let full_at = self.0.max(now - REPORT_INTERVAL.as_micros() as i64) + taken as i64;
        if taken > 0 {
            self.0 = full_at;
        }
        full_at - now
    }
}

/// A replica's bucket, whose requests are told to the store every so many milliseconds.
struct ReplicaLimiter {
    limiter: Arc<RateLimiter>,
    taken: u64,
}

fn replicas(count: usize, limit: RateLimit, base: Instant) -> Vec<ReplicaLimiter> {
    let bucket = |_| {
        let counter = Arc::new(UsageReporter {
            store: Store::disconnected(),
            pending: Mutex::default(),
            has_pending: Arc::default(),
        });
        let bucket = RateLimiterFactory(Some(counter)).rate_limiter(limit, String::new);
        let mut bucket = Arc::into_inner(bucket).expect("nobody else has it");
        bucket.base = base;
        ReplicaLimiter { limiter: Arc::new(bucket), taken: 0 }
    };
    (0..count).map(bucket).collect()
}

proptest! {
    #[test]
    fn replicas_together_stay_near_the_shared_limit(
        replicas_count in 1usize..6,
        count in 1u32..200,
        // Requests a millisecond at each replica, in thousandths, changing as time goes by.
        demand in prop::collection::vec(prop::collection::vec(0u64..400, 6), 1..20),
    ) {
        let limit = RateLimit { requests: count, per: Duration::from_secs(1) };
        let base = Instant::now();
        let mut all = replicas(replicas_count, limit, base);
        let mut store = FakeStoredLimit(0);
        let (mut owed, mut peak) = (vec![0; replicas_count], 0);
        let length = 500 * demand.len() as u64;
        for millisecond in 0..length {
            let now = base + Duration::from_millis(millisecond);
            for (nth, replica) in all.iter_mut().enumerate() {
                owed[nth] += demand[(millisecond / 500) as usize][nth];
                peak = peak.max(demand[(millisecond / 500) as usize][nth]);
                while owed[nth] >= 1_000 {
                    owed[nth] -= 1_000;
                    replica.taken += u64::from(replica.limiter.try_acquire(now).is_ok());
                }
                // Each at a moment of its own.
                if millisecond % 200 == 37 * nth as u64 {
                    let (_, taken) = replica.limiter.take_unreported(now).expect("it is shared");
                    let ahead = store.consume(millisecond as i64 * 1_000, taken);
                    replica.limiter.apply_shared_usage(now, ahead);
                }
            }
        }
        let taken: u64 = all.iter().map(|replica| replica.taken).sum();
        let fair = f64::from(count) * (1.0 + (length as f64 + 200.0) / 1_000.0);
        // Of what the others take a replica knows nothing for an interval.
        let unknown = (replicas_count as f64 - 1.0) * f64::from(count).min(peak as f64 / 1_000.0 * 400.0 + 1.0);
        prop_assert!(taken as f64 <= fair + unknown + 1.0, "{taken} of {fair} and {unknown}");
    }

    #[test]
    fn single_replica_loses_almost_nothing_by_reporting(count in 1u32..200, demand in 1u64..400) {
        let limit = RateLimit { requests: count, per: Duration::from_secs(1) };
        let base = Instant::now();
        let (shared, mut alone) = (replicas(1, limit, base).remove(0), RateLimiter::new(limit, None));
        Arc::get_mut(&mut alone).expect("nobody else has it").base = base;
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
                let (_, told) = shared.limiter.take_unreported(now).expect("it is shared");
                let ahead = store.consume(millisecond as i64 * 1_000, told);
                shared.limiter.apply_shared_usage(now, ahead);
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
        replica.limiter.try_acquire(base).expect("there is some");
    }
    let told = replica.limiter.take_unreported(base).map(|(_, taken)| taken);
    assert_eq!(told, Some(10_000_000));
    replica.limiter.restore_unreported();
    let told = replica.limiter.take_unreported(base + Duration::from_secs(7)).map(|(_, taken)| taken);
    assert_eq!(told, Some(3_000_000));
}
