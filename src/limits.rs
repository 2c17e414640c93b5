//! How often, and how many at once: a bucket for each client and agent that has a limit, and the places among the requests
//! in flight.
//!
//! A bucket is a moment: until when what was taken is paid back, at the limit's pace. Where replicas share a store they
//! tell each other how much they took, a few times a second and never while a request waits (`shared`).

pub mod places;
mod turns;
pub mod waiting;

mod shared;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::shared::Counted;
pub use self::shared::Limits;
use crate::config::Limit;

/// A limit and how much of it is used: `limit.count` requests may come at once, then they are refilled evenly over
/// `limit.per`.
pub struct Bucket {
    limit: Limit,
    pace: Pace,
    /// What times are counted from.
    base: Instant,
    /// When all that was taken is refilled, in nanoseconds.
    full_at: AtomicU64,
    /// Where other replicas take from the same limit.
    counted: Option<Counted>,
}

/// A limit in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// How long one request's worth takes to refill.
    one: u64,
    /// How long an empty bucket takes.
    all: u64,
}

impl Pace {
    fn of(limit: Limit) -> Self {
        let one = nanoseconds(limit.per) / u64::from(limit.count.max(1));
        let one = one.max(1);
        Self { one, all: one.saturating_mul(u64::from(limit.count.max(1))) }
    }

    /// Takes one at `now` from a bucket that is full at `full_at`: when it is full after that, or how long until there is one.
    fn take(self, full_at: u64, now: u64) -> Result<u64, u64> {
        let next = full_at.max(now).saturating_add(self.one);
        let early = (next - now).saturating_sub(self.all);
        if early == 0 { Ok(next) } else { Err(early) }
    }
}

impl Bucket {
    fn new(limit: Limit, counted: Option<Counted>) -> Arc<Self> {
        let (pace, base) = (Pace::of(limit), Instant::now());
        Arc::new(Self { limit, pace, base, full_at: AtomicU64::new(0), counted })
    }

    /// What it was made from.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Takes one request's worth; when there is none, how long until there is.
    pub fn take(self: &Arc<Self>, now: Instant) -> Result<(), Duration> {
        let now = self.since(now);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        let taken = loop {
            let next = match self.pace.take(full_at, now) {
                Ok(next) => next,
                Err(early) => break Err(Duration::from_nanos(early)),
            };
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break Ok(()),
                Err(other) => full_at = other,
            }
        };
        if let Some(counted) = &self.counted {
            counted.note(self, u64::from(taken.is_ok()));
        }
        taken
    }

    fn since(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.base))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.limit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_gives_its_count_and_then_says_how_long_to_wait() {
        let bucket = Bucket::new(Limit { count: 3, per: Duration::from_secs(3600) }, None);
        let now = Instant::now();
        assert!((0..3).all(|_| bucket.take(now).is_ok()));
        let wait = bucket.take(now).expect_err("an empty bucket");
        assert!((1190..=1200).contains(&wait.as_secs()), "{wait:?}");
        assert!(bucket.take(now + wait).is_ok() && bucket.take(now + wait).is_err());
        assert!((0..3).all(|_| bucket.take(now + 3 * Duration::from_secs(3600)).is_ok()));
    }

    proptest! {
        #[test]
        fn any_stretch_of_time_holds_its_count_and_what_is_refilled(
            count in 1u32..50, per in prop_oneof![Just(1u64), Just(60), Just(3600)],
            steps in prop::collection::vec(0u64..2_000, 1..400),
        ) {
            let bucket = Bucket::new(Limit { count, per: Duration::from_secs(per) }, None);
            let (mut now, mut taken) = (bucket.base, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                match bucket.take(now) {
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
        fn any_limit_has_a_pace(count in any::<u32>(), per in any::<u64>(), at in any::<u64>(), now in any::<u64>()) {
            let _ = Pace::of(Limit { count, per: Duration::from_secs(per) }).take(at, now);
        }
    }
}
