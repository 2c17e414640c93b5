//! Exchange of usage with other replicas, once a second and outside of requests.

use std::{mem, time::Duration};

use super::Quotas;
use crate::{
    store::{QuotaCount, Store},
    time::clock::unix_now_millis,
};

/// Usage below this share of a limit is not exchanged, which spares the store most counters.
const MIN_SHARED_PERCENT: u64 = 1;
/// Most counts in one script call, because the store serves no other call meanwhile.
const MAX_COUNTS_PER_CALL: usize = 256;

/// The count of one window of a counter.
struct Unreported {
    slot: u32,
    /// Whose counter is in the slot: another one may take its place meanwhile.
    counter: String,
    per: Duration,
    count: QuotaCount,
}

impl Quotas {
    /// Adds what this replica used to what all used, for the counters in these slots, and takes over the totals.
    pub(super) async fn exchange(&self, store: &Store, changed: &[u32]) {
        let unreported = self.take_unreported(changed);
        for unreported in unreported.chunks(MAX_COUNTS_PER_CALL) {
            let counts: Vec<_> = unreported.iter().map(|unreported| &unreported.count).collect();
            let totals = store.count_quotas(&counts).await.ok();
            let (mut tracker, now) = (self.tracker.lock(), unix_now_millis());
            for (nth, Unreported { slot, counter, per, count }) in unreported.iter().enumerate() {
                let found = tracker.counter(*slot).filter(|found| found.name() == *counter);
                let windows = found.into_iter().flat_map(|found| found.windows.iter_mut());
                for window in windows.filter(|window| window.per() == *per) {
                    match totals.as_ref().and_then(|totals| totals.get(nth)) {
                        Some(total) => window.set_total(u32::try_from(*total).unwrap_or(0), now),
                        None => window.unreported = window.unreported.saturating_add(count.calls),
                    }
                }
            }
        }
    }

    fn take_unreported(&self, changed: &[u32]) -> Vec<Unreported> {
        let (mut tracker, mut unreported) = (self.tracker.lock(), Vec::new());
        for slot in changed {
            let Some(found) = tracker.counter(*slot) else { continue };
            let counter = found.name();
            for window in found.windows.iter_mut() {
                if u64::from(window.own()) * 100 < u64::from(window.limit) * MIN_SHARED_PERCENT {
                    continue;
                }
                let calls = mem::take(&mut window.unreported);
                let (bucket_ms, lifetime, offset_ms) = window.shared_buckets();
                let name = format!("{counter}:{}", window.per().as_secs());
                let count = QuotaCount { name, bucket_ms, lifetime, offset_ms, calls };
                unreported.push(Unreported {
                    slot: *slot,
                    counter: counter.clone(),
                    per: window.per(),
                    count,
                });
            }
        }
        unreported
    }
}
