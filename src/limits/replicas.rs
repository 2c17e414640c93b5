//! Limits that replicas share. Each takes from its own bucket and tells the store soon after; from the store it hears how
//! empty the limit's one bucket is for all of them together, and makes its own as empty as that.
//!
//! No request waits for it, and so a replica may let through for one [`INTERVAL`] what others have used up. It is paid
//! back: what went through beyond the limit empties the buckets for as long as it takes to refill that.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep},
};

use super::{RateLimiter, as_nanoseconds};
use crate::{
    config::RateLimit,
    store::{Store, Unavailable},
};

/// How long a replica keeps to itself what it took.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// Most limits in one question to the store: it serves nobody else meanwhile.
const MAX_LIMITS_PER_CALL: usize = 256;

/// Makes buckets: each for itself, or shared.
#[derive(Default)]
pub struct RateLimiterFactory(Option<Arc<UsageReporter>>);

/// What was taken and is to be told.
struct UsageReporter {
    store: Arc<Store>,
    pending: Mutex<Vec<Arc<RateLimiter>>>,
    has_pending: Arc<Notify>,
}

/// One bucket's part of it.
pub(super) struct SharedUsage {
    name: String,
    reporter: Arc<UsageReporter>,
    unreported: AtomicU64,
    /// What is just being told.
    in_report: AtomicU64,
    is_pending: AtomicBool,
    /// Whether the store knows all but `untold`.
    is_synced: AtomicBool,
}

impl RateLimiterFactory {
    /// Limits that are shared by this store; they are told to it on `runtime`.
    pub fn with_store(store: &Arc<Store>, runtime: &Handle) -> Self {
        let some = Arc::new(Notify::new());
        let counter = Arc::new(UsageReporter {
            store: store.clone(),
            pending: Mutex::default(),
            has_pending: some.clone(),
        });
        let weak = Arc::downgrade(&counter);
        runtime.spawn(async move {
            loop {
                some.notified().await;
                sleep(REPORT_INTERVAL).await;
                let Some(counter) = weak.upgrade() else { return };
                counter.report().await;
            }
        });
        Self(Some(counter))
    }

    /// A full bucket; `name` says whose limit it is.
    pub fn rate_limiter(&self, limit: RateLimit, name: impl FnOnce() -> String) -> Arc<RateLimiter> {
        let counted = self.0.as_ref().map(|counter| SharedUsage {
            // Another limit is another bucket.
            name: format!("{}:{limit}", name()),
            reporter: counter.clone(),
            unreported: AtomicU64::new(0),
            in_report: AtomicU64::new(0),
            is_pending: AtomicBool::new(false),
            is_synced: AtomicBool::new(false),
        });
        RateLimiter::new(limit, counted)
    }
}

impl UsageReporter {
    fn enqueue(&self, bucket: Arc<RateLimiter>) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(bucket);
        self.has_pending.notify_one();
    }

    /// Tells the store what was taken since the last time.
    async fn report(&self) {
        let listed = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        for buckets in listed.chunks(MAX_LIMITS_PER_CALL) {
            let now = Instant::now();
            let taken: Vec<_> = buckets.iter().filter_map(|bucket| bucket.take_unreported(now)).collect();
            match self.store.consume_limits(&taken, REPORT_INTERVAL).await {
                Ok(ahead) => {
                    buckets
                        .iter()
                        .zip(ahead)
                        .for_each(|(bucket, ahead)| bucket.apply_shared_usage(Instant::now(), ahead));
                }
                Err(Unavailable) => buckets.iter().for_each(|bucket| bucket.restore_unreported()),
            }
        }
    }
}

impl Drop for UsageReporter {
    fn drop(&mut self) {
        self.has_pending.notify_one();
    }
}

impl SharedUsage {
    /// Notes that so much was taken, 0 where there was nothing left to take.
    pub(super) fn record(&self, bucket: &Arc<RateLimiter>, taken: u64) {
        self.unreported.fetch_add(taken, Ordering::Relaxed);
        if !self.is_pending.load(Ordering::Relaxed) && !self.is_pending.swap(true, Ordering::AcqRel) {
            self.reporter.enqueue(bucket.clone());
        }
    }
}

impl RateLimiter {
    /// The bucket's name, and how long what was taken and is not told takes to refill, in microseconds.
    fn take_unreported(&self, now: Instant) -> Option<(&str, u64)> {
        let counted = self.shared_usage.as_ref()?;
        counted.is_pending.store(false, Ordering::Release);
        let taken = counted.unreported.swap(0, Ordering::AcqRel);
        counted.in_report.store(taken, Ordering::Relaxed);
        let taken = taken.saturating_mul(self.gcra.emission_interval_ns);
        let left = self.tat_ns.load(Ordering::Relaxed).saturating_sub(self.nanoseconds_since_base(now));
        // What was taken while the store was away, and is refilled by now, is nobody's business.
        let taken = if counted.is_synced.load(Ordering::Relaxed) { taken } else { taken.min(left) };
        Some((&counted.name, taken / 1_000))
    }

    /// Makes the bucket as empty as the one of all replicas, which is full in `ahead` microseconds.
    fn apply_shared_usage(&self, now: Instant, ahead: i64) {
        let Some(counted) = &self.shared_usage else { return };
        counted.is_synced.store(true, Ordering::Relaxed);
        let ahead = as_nanoseconds(Duration::from_micros(ahead.try_into().unwrap_or_default()));
        let untold =
            counted.unreported.load(Ordering::Relaxed).saturating_mul(self.gcra.emission_interval_ns);
        let full_at = self.nanoseconds_since_base(now).saturating_add(ahead).saturating_add(untold);
        self.tat_ns.fetch_max(full_at, Ordering::Relaxed);
    }

    /// The store was not there to be told: the replica goes on by itself.
    fn restore_unreported(&self) {
        if let Some(counted) = &self.shared_usage {
            counted.is_synced.store(false, Ordering::Relaxed);
            counted.unreported.fetch_add(counted.in_report.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
