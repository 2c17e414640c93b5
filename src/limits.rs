//! How often, and how many at once: a bucket for each client and agent that has a limit, and the places among the requests
//! in flight.

pub mod places;
mod turns;

use std::{fmt, num::NonZeroU32, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};

use crate::config::Limit;

/// A limit and how much of it is used.
pub struct Bucket {
    limit: Limit,
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
}

impl Bucket {
    /// A full bucket: `limit.count` requests may come at once, then they are refilled evenly over `limit.per`.
    pub fn new(limit: Limit) -> Self {
        let count = NonZeroU32::new(limit.count).unwrap_or(NonZeroU32::MIN);
        let refill = (limit.per / limit.count.max(1)).max(Duration::from_nanos(1));
        // A period of more than nothing makes a quota; the floor above sees to that.
        let quota = Quota::with_period(refill).unwrap_or(Quota::per_second(count)).allow_burst(count);
        let clock = DefaultClock::default();
        Self { limit, limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock }
    }

    /// What it was made from.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Takes one request's worth; when there is none, how long until there is.
    pub fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|early| early.wait_time_from(self.clock.now()))
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_count_and_then_says_how_long_to_wait() {
        let bucket = Bucket::new(Limit { count: 3, per: Duration::from_secs(3600) });
        assert!((0..3).all(|_| bucket.take().is_ok()));
        let wait = bucket.take().expect_err("an empty bucket");
        assert!((1190..=1200).contains(&wait.as_secs()), "{wait:?}");
    }
}
