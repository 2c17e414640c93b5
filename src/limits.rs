//! How often, and how many at once: a bucket for each client and agent that has a limit, and the places among the requests
//! in flight.
//!
//! A bucket is a moment: until when what was taken is paid back, at the limit's pace. Where replicas share a store they
//! tell each other how much they took, a few times a second and never while a request waits (`shared`).

pub mod concurrency_limit;
mod fair_queue;
pub mod wait_limit;

mod replicas;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use self::replicas::RateLimiterFactory;
use self::replicas::SharedUsage;
use crate::config::RateLimit;

/// A limit and how much of it is used: `limit.count` requests may come at once, then they are refilled evenly over
/// `limit.per`.
pub struct RateLimiter {
    limit: RateLimit,
    gcra: Gcra,
    /// What times are counted from.
    base: Instant,
    /// When all that was taken is refilled, in nanoseconds.
    tat_ns: AtomicU64,
    /// Where other replicas take from the same limit.
    shared_usage: Option<SharedUsage>,
}

/// A limit in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Gcra {
    /// How long one request's worth takes to refill.
    emission_interval_ns: u64,
    /// How long an empty bucket takes.
    burst_ns: u64,
}

impl Gcra {
    fn from_limit(limit: RateLimit) -> Self {
        let one = as_nanoseconds(limit.per) / u64::from(limit.requests.max(1));
        let emission_interval_ns = one.max(1);
        Self {
            emission_interval_ns,
            burst_ns: emission_interval_ns.saturating_mul(u64::from(limit.requests.max(1))),
        }
    }

    /// Takes one at `now` from a bucket that is full at `full_at`: when it is full after that, or how long until there is one.
    fn try_acquire(self, full_at: u64, now: u64) -> Result<u64, u64> {
        let next = full_at.max(now).saturating_add(self.emission_interval_ns);
        let early = (next - now).saturating_sub(self.burst_ns);
        if early == 0 { Ok(next) } else { Err(early) }
    }
}

impl RateLimiter {
    fn new(limit: RateLimit, counted: Option<SharedUsage>) -> Arc<Self> {
        let (pace, base) = (Gcra::from_limit(limit), Instant::now());
        Arc::new(Self { limit, gcra: pace, base, tat_ns: AtomicU64::new(0), shared_usage: counted })
    }

    /// What it was made from.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Takes one request's worth; when there is none, how long until there is.
    pub fn try_acquire(self: &Arc<Self>, now: Instant) -> Result<(), Duration> {
        let now = self.nanoseconds_since_base(now);
        let mut full_at = self.tat_ns.load(Ordering::Relaxed);
        let taken = loop {
            let next = match self.gcra.try_acquire(full_at, now) {
                Ok(next) => next,
                Err(early) => break Err(Duration::from_nanos(early)),
            };
            match self.tat_ns.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break Ok(()),
                Err(other) => full_at = other,
            }
        };
        if let Some(counted) = &self.shared_usage {
            counted.record(self, u64::from(taken.is_ok()));
        }
        taken
    }

    fn nanoseconds_since_base(&self, now: Instant) -> u64 {
        as_nanoseconds(now.saturating_duration_since(self.base))
    }
}

fn as_nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.limit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rate_limiter_when_exhausted_returns_retry_after() {
        let bucket = RateLimiter::new(RateLimit { requests: 3, per: Duration::from_secs(3600) }, None);
        let now = Instant::now();
        assert!((0..3).all(|_| bucket.try_acquire(now).is_ok()));
        let wait = bucket.try_acquire(now).expect_err("an empty bucket");
        assert!((1190..=1200).contains(&wait.as_secs()), "{wait:?}");
        assert!(bucket.try_acquire(now + wait).is_ok() && bucket.try_acquire(now + wait).is_err());
        assert!((0..3).all(|_| bucket.try_acquire(now + 3 * Duration::from_secs(3600)).is_ok()));
    }

    proptest! {
        #[test]
        fn rate_limiter_any_window_is_within_burst_plus_refill(
            count in 1u32..50, per in prop_oneof![Just(1u64), Just(60), Just(3600)],
            steps in prop::collection::vec(0u64..2_000, 1..400),
        ) {
            let bucket = RateLimiter::new(RateLimit { requests: count, per: Duration::from_secs(per) }, None);
            let (mut now, mut taken) = (bucket.base, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                match bucket.try_acquire(now) {
                    Ok(()) => taken.push(now),
                    Err(wait) => prop_assert!(wait <= Duration::from_secs(per)),
                }
            }
            for (nth, from) in taken.iter().enumerate() {
                let refilled = |to: &Instant| (*to - *from).as_secs_f64() * f64::from(count) / per as f64;
                for (more, to) in taken[nth..].iter().enumerate() {
                    prop_assert!((more + 1) as f64 <= f64::from(count) + refilled(to) + 0.001);
                }
            }
        }

        #[test]
        fn gcra_of_any_limit_does_not_overflow(count in any::<u32>(), per in any::<u64>(), at in any::<u64>(), now in any::<u64>()) {
            let _ = Gcra::from_limit(RateLimit { requests: count, per: Duration::from_secs(per) }).try_acquire(at, now);
        }
    }
}
