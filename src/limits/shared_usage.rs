//! Rate limits that replicas share. Each replica takes from its own limiter and reports to the store soon after;
//! the store returns how much all replicas together took, and the replica's limiter is raised to that.
//!
//! No request waits for the store, so for one [`REPORT_INTERVAL`] a replica may admit requests that others have
//! used up. The excess is paid back: it delays the refill of all limiters.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

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

/// How long a replica collects usage before it reports it.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// Most limits in one script call, because the store serves no other call meanwhile.
const MAX_LIMITS_PER_CALL: usize = 256;

/// Creates rate limiters, local or shared.
#[derive(Clone, Default)]
pub struct RateLimiterFactory(Option<Arc<UsageReporter>>);

/// Collects usage and reports it to the store.
struct UsageReporter {
    store: Arc<Store>,
    pending: Mutex<Vec<Arc<RateLimiter>>>,
    has_pending: Arc<Notify>,
}

/// The usage of one limiter.
pub(super) struct SharedUsage {
    name: String,
    reporter: Arc<UsageReporter>,
    unreported: AtomicU64,
    /// Taken from `unreported` for the report under way.
    in_report: AtomicU64,
    is_pending: AtomicBool,
    /// Whether the store has all usage but `unreported`.
    is_synced: AtomicBool,
}

impl RateLimiterFactory {
    /// Limiters shared through this store; a task on `runtime` reports their usage.
    pub fn with_store(store: &Arc<Store>, runtime: &Handle) -> Self {
        let has_pending = Arc::new(Notify::new());
        let reporter = Arc::new(UsageReporter {
            store: store.clone(),
            pending: Mutex::default(),
            has_pending: has_pending.clone(),
        });
        let weak_reporter = Arc::downgrade(&reporter);
        runtime.spawn(async move {
            loop {
                has_pending.notified().await;
                sleep(REPORT_INTERVAL).await;
                let Some(reporter) = weak_reporter.upgrade() else { return };
                reporter.report().await;
            }
        });
        Self(Some(reporter))
    }

    /// A limiter of which nothing is used; `name` identifies it among all replicas.
    pub fn rate_limiter(&self, limit: RateLimit, name: impl FnOnce() -> String) -> Arc<RateLimiter> {
        let shared_usage = self.0.as_ref().map(|reporter| SharedUsage {
            // A changed limit has a key of its own.
            name: format!("{}:{limit}", name()),
            reporter: reporter.clone(),
            unreported: AtomicU64::new(0),
            in_report: AtomicU64::new(0),
            is_pending: AtomicBool::new(false),
            is_synced: AtomicBool::new(false),
        });
        RateLimiter::new(limit, shared_usage)
    }
}

impl UsageReporter {
    fn enqueue(&self, limiter: Arc<RateLimiter>) {
        self.pending.lock().push(limiter);
        self.has_pending.notify_one();
    }

    /// Reports what was taken since the last report.
    async fn report(&self) {
        let pending = std::mem::take(&mut *self.pending.lock());
        for limiters in pending.chunks(MAX_LIMITS_PER_CALL) {
            let now = Instant::now();
            let usage_us: Vec<_> =
                limiters.iter().filter_map(|limiter| limiter.take_unreported(now)).collect();
            match self.store.consume_limits(&usage_us, REPORT_INTERVAL).await {
                Ok(full_in_us) => {
                    limiters.iter().zip(full_in_us).for_each(|(limiter, full_in_us)| {
                        limiter.apply_shared_usage(Instant::now(), full_in_us)
                    });
                }
                Err(Unavailable) => limiters.iter().for_each(|limiter| limiter.restore_unreported()),
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
    /// Records usage; 0 where the limiter had nothing left, so that the limiter still learns of the other
    /// replicas.
    pub(super) fn record(&self, limiter: &Arc<RateLimiter>, taken: u64) {
        self.unreported.fetch_add(taken, Ordering::Relaxed);
        if !self.is_pending.load(Ordering::Relaxed) && !self.is_pending.swap(true, Ordering::AcqRel) {
            self.reporter.enqueue(limiter.clone());
        }
    }
}

impl RateLimiter {
    /// The name, and the refill time of the unreported usage in microseconds.
    fn take_unreported(&self, now: Instant) -> Option<(&str, u64)> {
        let shared_usage = self.shared_usage.as_ref()?;
        shared_usage.is_pending.store(false, Ordering::Release);
        let requests = shared_usage.unreported.swap(0, Ordering::AcqRel);
        shared_usage.in_report.store(requests, Ordering::Relaxed);
        let refill_ns = requests.saturating_mul(self.gcra.emission_interval_ns);
        let unrefilled_ns =
            self.tat_ns.load(Ordering::Relaxed).saturating_sub(self.nanoseconds_since_base(now));
        // Usage during an outage that is refilled by now needs no report.
        let is_synced = shared_usage.is_synced.load(Ordering::Relaxed);
        let reported_ns = if is_synced { refill_ns } else { refill_ns.min(unrefilled_ns) };
        Some((&shared_usage.name, reported_ns / 1_000))
    }

    /// Raises the limiter to the shared usage: all that replicas took is refilled in `full_in_us` microseconds.
    fn apply_shared_usage(&self, now: Instant, full_in_us: i64) {
        let Some(shared_usage) = &self.shared_usage else { return };
        shared_usage.is_synced.store(true, Ordering::Relaxed);
        let full_in_ns = as_nanoseconds(Duration::from_micros(full_in_us.try_into().unwrap_or_default()));
        let unreported =
            shared_usage.unreported.load(Ordering::Relaxed).saturating_mul(self.gcra.emission_interval_ns);
        let tat = self.nanoseconds_since_base(now).saturating_add(full_in_ns).saturating_add(unreported);
        self.tat_ns.fetch_max(tat, Ordering::Relaxed);
    }

    /// Adds the usage of a failed report back to `unreported`.
    fn restore_unreported(&self) {
        if let Some(shared_usage) = &self.shared_usage {
            shared_usage.is_synced.store(false, Ordering::Relaxed);
            shared_usage
                .unreported
                .fetch_add(shared_usage.in_report.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
