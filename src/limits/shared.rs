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

use super::{Bucket, nanoseconds};
use crate::{
    config::Limit,
    store::{Away, Store},
};

/// How long a replica keeps to itself what it took.
const INTERVAL: Duration = Duration::from_millis(200);
/// Most limits in one question to the store: it serves nobody else meanwhile.
const AT_ONCE: usize = 256;

/// Makes buckets: each for itself, or shared.
#[derive(Default)]
pub struct Limits(Option<Arc<Counter>>);

/// What was taken and is to be told.
struct Counter {
    store: Arc<Store>,
    listed: Mutex<Vec<Arc<Bucket>>>,
    some: Arc<Notify>,
}

/// One bucket's part of it.
pub(super) struct Counted {
    name: String,
    counter: Arc<Counter>,
    untold: AtomicU64,
    /// What is just being told.
    telling: AtomicU64,
    is_listed: AtomicBool,
    /// Whether the store knows all but `untold`.
    is_known: AtomicBool,
}

impl Limits {
    /// Limits that are shared by this store; they are told to it on `runtime`.
    pub fn sharing(store: &Arc<Store>, runtime: &Handle) -> Self {
        let some = Arc::new(Notify::new());
        let counter =
            Arc::new(Counter { store: store.clone(), listed: Mutex::default(), some: some.clone() });
        let weak = Arc::downgrade(&counter);
        runtime.spawn(async move {
            loop {
                some.notified().await;
                sleep(INTERVAL).await;
                let Some(counter) = weak.upgrade() else { return };
                counter.tell().await;
            }
        });
        Self(Some(counter))
    }

    /// A full bucket; `name` says whose limit it is.
    pub fn bucket(&self, limit: Limit, name: impl FnOnce() -> String) -> Arc<Bucket> {
        let counted = self.0.as_ref().map(|counter| Counted {
            // Another limit is another bucket.
            name: format!("{}:{limit}", name()),
            counter: counter.clone(),
            untold: AtomicU64::new(0),
            telling: AtomicU64::new(0),
            is_listed: AtomicBool::new(false),
            is_known: AtomicBool::new(false),
        });
        Bucket::new(limit, counted)
    }
}

impl Counter {
    fn list(&self, bucket: Arc<Bucket>) {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).push(bucket);
        self.some.notify_one();
    }

    /// Tells the store what was taken since the last time.
    async fn tell(&self) {
        let listed = std::mem::take(&mut *self.listed.lock().unwrap_or_else(PoisonError::into_inner));
        for buckets in listed.chunks(AT_ONCE) {
            let now = Instant::now();
            let taken: Vec<_> = buckets.iter().filter_map(|bucket| bucket.to_tell(now)).collect();
            match self.store.count(&taken, INTERVAL).await {
                Ok(ahead) => {
                    buckets.iter().zip(ahead).for_each(|(bucket, ahead)| bucket.heard(Instant::now(), ahead));
                }
                Err(Away) => buckets.iter().for_each(|bucket| bucket.is_alone()),
            }
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.some.notify_one();
    }
}

impl Counted {
    /// Notes that so much was taken, 0 where there was nothing left to take.
    pub(super) fn note(&self, bucket: &Arc<Bucket>, taken: u64) {
        self.untold.fetch_add(taken, Ordering::Relaxed);
        if !self.is_listed.load(Ordering::Relaxed) && !self.is_listed.swap(true, Ordering::AcqRel) {
            self.counter.list(bucket.clone());
        }
    }
}

impl Bucket {
    /// The bucket's name, and how long what was taken and is not told takes to refill, in microseconds.
    fn to_tell(&self, now: Instant) -> Option<(&str, u64)> {
        let counted = self.counted.as_ref()?;
        counted.is_listed.store(false, Ordering::Release);
        let taken = counted.untold.swap(0, Ordering::AcqRel);
        counted.telling.store(taken, Ordering::Relaxed);
        let taken = taken.saturating_mul(self.pace.one);
        let left = self.full_at.load(Ordering::Relaxed).saturating_sub(self.since(now));
        // What was taken while the store was away, and is refilled by now, is nobody's business.
        let taken = if counted.is_known.load(Ordering::Relaxed) { taken } else { taken.min(left) };
        Some((&counted.name, taken / 1_000))
    }

    /// Makes the bucket as empty as the one of all replicas, which is full in `ahead` microseconds.
    fn heard(&self, now: Instant, ahead: i64) {
        let Some(counted) = &self.counted else { return };
        counted.is_known.store(true, Ordering::Relaxed);
        let ahead = nanoseconds(Duration::from_micros(ahead.try_into().unwrap_or_default()));
        let untold = counted.untold.load(Ordering::Relaxed).saturating_mul(self.pace.one);
        let full_at = self.since(now).saturating_add(ahead).saturating_add(untold);
        self.full_at.fetch_max(full_at, Ordering::Relaxed);
    }

    /// The store was not there to be told: the replica goes on by itself.
    fn is_alone(&self) {
        if let Some(counted) = &self.counted {
            counted.is_known.store(false, Ordering::Relaxed);
            counted.untold.fetch_add(counted.telling.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
