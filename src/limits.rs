//! Rate limits of clients and agents, and the concurrency limit for requests in flight.
//!
//! A rate limiter is GCRA: it stores the time at which all that was taken is refilled (theoretical arrival
//! time). Replicas that share a store exchange how much they took, a few times a second, in the background: no
//! request waits for it (`shared_usage`). Ours, in 70 lines: `governor` adds 7 packages, and cannot raise a limiter to
//! what other replicas took, nor say how much of it is used.

pub mod address_limit;
pub mod concurrency_limit;
mod fair_queue;
pub mod quotas;
pub mod wait_limit;

mod shared_usage;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use self::shared_usage::RateLimiterFactory;
use self::shared_usage::SharedUsage;
use crate::config::RateLimit;

/// A rate limiter: `limit.requests` requests may come at once, and are refilled evenly over `limit.per`.
pub struct RateLimiter {
    limit: RateLimit,
    gcra: Gcra,
    /// The origin of `tat_ns`.
    base: Instant,
    /// Theoretical arrival time: when all that was taken is refilled, in nanoseconds since `base`.
    tat_ns: AtomicU64,
    /// Set if other replicas take from the same limit.
    shared_usage: Option<SharedUsage>,
}

/// GCRA parameters of a limit.
#[derive(Debug, Clone, Copy)]
struct Gcra {
    /// Refill time of one request.
    emission_interval_ns: u64,
    /// Refill time of the whole limit.
    burst_ns: u64,
}

impl Gcra {
    fn from_limit(limit: RateLimit) -> Self {
        let interval = as_nanoseconds(limit.per) / u64::from(limit.requests.max(1));
        let emission_interval_ns = interval.max(1);
        Self {
            emission_interval_ns,
            burst_ns: emission_interval_ns.saturating_mul(u64::from(limit.requests.max(1))),
        }
    }

    /// Takes one request at `now`. Returns the new TAT, or the time until a request is allowed; all in
    /// nanoseconds.
    fn try_acquire(self, tat: u64, now: u64) -> Result<u64, u64> {
        let next = tat.max(now).saturating_add(self.emission_interval_ns);
        let wait = (next - now).saturating_sub(self.burst_ns);
        if wait == 0 { Ok(next) } else { Err(wait) }
    }

    /// Takes one request from a TAT that all workers share; if none is left, returns how long until one is.
    #[inline]
    fn try_acquire_shared(self, shared_tat: &AtomicU64, now: u64) -> Result<(), Duration> {
        let mut tat = shared_tat.load(Ordering::Relaxed);
        loop {
            let next = self.try_acquire(tat, now).map_err(Duration::from_nanos)?;
            match shared_tat.compare_exchange_weak(tat, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(changed) => tat = changed,
            }
        }
    }
}

impl RateLimiter {
    fn new(limit: RateLimit, shared_usage: Option<SharedUsage>) -> Arc<Self> {
        let (gcra, base) = (Gcra::from_limit(limit), Instant::now());
        Arc::new(Self { limit, gcra, base, tat_ns: AtomicU64::new(0), shared_usage })
    }

    /// The configured limit.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Takes one request; if none is left, returns how long until one is.
    pub fn try_acquire(self: &Arc<Self>, now: Instant) -> Result<(), Duration> {
        let now = self.nanoseconds_since_base(now);
        let result = self.gcra.try_acquire_shared(&self.tat_ns, now);
        if let Some(shared_usage) = &self.shared_usage {
            shared_usage.record(self, u64::from(result.is_ok()));
        }
        result
    }

    /// The used share of the limit, from 0 to 1.
    pub fn used_ratio(&self, now: Instant) -> f64 {
        let ahead = self.tat_ns.load(Ordering::Relaxed).saturating_sub(self.nanoseconds_since_base(now));
        (ahead as f64 / self.gcra.burst_ns as f64).min(1.0)
    }

    fn nanoseconds_since_base(&self, now: Instant) -> u64 {
        as_nanoseconds(now.saturating_duration_since(self.base))
    }
}

pub(crate) fn as_nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateLimiter({})", self.limit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rate_limiter_when_exhausted_returns_retry_after() {
        let limiter = RateLimiter::new(RateLimit { requests: 3, per: Duration::from_secs(3600) }, None);
        let now = Instant::now();
        assert!((0..3).all(|_| limiter.try_acquire(now).is_ok()));
        let wait = limiter.try_acquire(now).expect_err("the limit is exhausted");
        assert!((1190..=1200).contains(&wait.as_secs()), "{wait:?}");
        assert!(limiter.used_ratio(now) > 0.999 && limiter.used_ratio(now + wait) < 0.7);
        assert!(limiter.try_acquire(now + wait).is_ok() && limiter.try_acquire(now + wait).is_err());
        assert!((0..3).all(|_| limiter.try_acquire(now + 3 * Duration::from_secs(3600)).is_ok()));
    }

    proptest! {
        #[test]
        fn rate_limiter_any_window_is_within_burst_plus_refill(
            count in 1u32..50, per in prop_oneof![Just(1u64), Just(60), Just(3600)],
            steps in prop::collection::vec(0u64..2_000, 1..400),
        ) {
            let limiter = RateLimiter::new(RateLimit { requests: count, per: Duration::from_secs(per) }, None);
            let (mut now, mut result) = (limiter.base, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                match limiter.try_acquire(now) {
                    Ok(()) => result.push(now),
                    Err(wait) => prop_assert!(wait <= Duration::from_secs(per)),
                }
            }
            for (nth, from) in result.iter().enumerate() {
                let refilled = |to: &Instant| (*to - *from).as_secs_f64() * f64::from(count) / per as f64;
                for (more, to) in result[nth..].iter().enumerate() {
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
