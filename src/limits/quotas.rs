//! WeCom's quotas: how much of each is used, and what to do before one is spent.
//!
//! A request adds one to a buffer of its worker. A task merges the buffers once a second into the `Tracker`, which
//! knows the quotas of each call; requests wait for neither. Only in the mode `shape` does a request ask the tracker
//! itself. Replicas that share a store exchange what they used, so that a quota is kept approximately across them, as a
//! rate limit is.

mod buckets;
mod counters;
mod members;
mod rules;
mod shared;
mod tracker;
mod window;
mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify, time::timeout};

pub use self::worker::WorkerQuotas;
use self::{rules::Rules, tracker::Tracker, worker::WorkerBuffer};
use crate::{
    config::{QuotaLimit, QuotaMode, QuotaScope, QuotasConfig},
    store::Store,
    text::SharedStr,
    time::{clock::unix_now_millis, log_throttle::LogThrottle},
    wecom::quotas::MESSAGE_SEND,
};

/// How long calls are collected before they are merged.
const MERGE_INTERVAL: Duration = Duration::from_secs(1);
/// Quotas of which less is used are not reported.
const MIN_REPORTED_RATIO: f64 = 0.5;
/// Bounds a report.
const MAX_REPORTED: usize = 100;
/// Warnings of dropped messages in a minute.
const MAX_MEMBER_WARNINGS: u32 = 5;
/// From this share on, the operator is warned, at most once in [`WARNING_INTERVAL_MS`].
const WARNING_RATIO: f64 = 0.8;
const WARNING_INTERVAL_MS: u64 = 3_600_000;

/// A call as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Name and corpid of the agent, unless the call carries a credential of its own.
    pub agent: Option<(&'a SharedStr, &'a SharedStr)>,
    /// The normalized path.
    pub path: &'a str,
    /// Hash of the credential in the query, where that has quotas.
    pub credential: Option<u64>,
}

/// A call would spend a quota.
#[derive(Debug)]
pub struct QuotaDenied {
    /// Until it can be made, if others make none meanwhile.
    pub wait: Duration,
    /// WeCom blocks the call: waiting for less than `wait` is useless.
    pub is_held: bool,
    /// The quota, as text.
    pub quota: String,
}

/// The members whom a message will not reach, as WeCom drops it for them in silence.
#[derive(Debug, PartialEq, Eq)]
pub struct MembersBeyond<'a> {
    /// How many they are.
    pub count: usize,
    /// One of them.
    pub first: &'a str,
    /// How many messages of one application reach that member, in a second, minute, hour or day.
    pub limit: u32,
    /// The name of that time.
    pub per: &'static str,
}

/// The usage of a quota.
#[derive(Debug, Clone)]
pub struct QuotaUsage {
    /// The agent that first made the call.
    pub agent: String,
    /// The quota, as text.
    pub quota: String,
    /// The call.
    pub path: String,
    /// What is counted together. Of members, the one whose quota is used most.
    pub per: QuotaScope,
    /// Calls in a window, if known.
    pub limit: Option<u32>,
    /// Length of the window.
    pub window: Duration,
    /// Calls in the last window.
    pub used: u32,
    /// `used` in terms of `limit`; at least 1 while WeCom blocks the call.
    pub ratio: f64,
    /// The time until it is spent, if calls go on as they do.
    pub spent_in: Option<Duration>,
    /// For how long calls are refused, because WeCom refuses them.
    pub held_for: Option<Duration>,
}

/// The quotas of all workers.
#[derive(Debug)]
pub struct Quotas {
    mode: AtomicU8,
    /// Whether `[[quotas.limit]]` limits the messages to members of any call beside `message/send`.
    limits_members: AtomicBool,
    applied: Mutex<Vec<QuotaLimit>>,
    tracker: Mutex<Tracker>,
    /// Makes the keys of members, outside the tracker so that no lock is held meanwhile.
    member_hasher: RandomState,
    workers: Mutex<Vec<Arc<WorkerBuffer>>>,
    has_pending: Notify,
    /// A worker has counted so many calls that they are merged at once.
    has_full_buffer: Notify,
    member_warnings: LogThrottle,
    not_counted_warnings: LogThrottle,
}

impl Quotas {
    /// Quotas of which nothing is used.
    pub fn new(config: &QuotasConfig) -> Arc<Self> {
        Arc::new(Self {
            mode: AtomicU8::new(config.mode as u8),
            limits_members: AtomicBool::new(limits_members(config)),
            applied: Mutex::new(config.limits.clone()),
            tracker: Mutex::new(Tracker::new(Rules::new(&config.limits))),
            member_hasher: RandomState::default(),
            workers: Mutex::default(),
            has_pending: Notify::new(),
            has_full_buffer: Notify::new(),
            member_warnings: LogThrottle::per_minute(MAX_MEMBER_WARNINGS),
            not_counted_warnings: LogThrottle::per_minute(1),
        })
    }

    /// Merges what workers count, on this runtime, until the quotas are dropped; with a store, exchanges it with other
    /// replicas.
    pub fn spawn_merging(self: &Arc<Self>, store: Option<Arc<Store>>, runtime: &Handle) {
        let weak = Arc::downgrade(self);
        runtime.spawn(async move {
            while let Some(quotas) = weak.upgrade() {
                // A worker that counts nothing more leaves this task asleep.
                let notified = async { quotas.has_pending.notified().await };
                if timeout(Duration::from_secs(60), notified).await.is_err() {
                    continue;
                }
                let _ = timeout(MERGE_INTERVAL, quotas.has_full_buffer.notified()).await;
                let changed = quotas.merge();
                if let Some(store) = &store {
                    quotas.exchange(store, &changed).await;
                }
            }
        });
    }

    /// Applies a changed configuration; what was counted stays, unless it is off.
    pub fn reload(&self, config: &QuotasConfig) {
        let mut applied = self.applied.lock();
        self.mode.store(config.mode as u8, Relaxed);
        self.limits_members.store(limits_members(config), Relaxed);
        if config.mode == QuotaMode::Off {
            *self.tracker.lock() = Tracker::new(Rules::new(&config.limits));
        } else if *applied != config.limits {
            self.tracker.lock().set_rules(Rules::new(&config.limits));
        }
        applied.clone_from(&config.limits);
    }

    /// What is done about quotas.
    pub fn mode(&self) -> QuotaMode {
        match self.mode.load(Relaxed) {
            mode if mode == QuotaMode::Observe as u8 => QuotaMode::Observe,
            mode if mode == QuotaMode::Shape as u8 => QuotaMode::Shape,
            _ => QuotaMode::Off,
        }
    }

    /// The quotas of which more than half is used, the fullest first.
    pub fn report(&self) -> Vec<QuotaUsage> {
        if self.mode() == QuotaMode::Off {
            return Vec::new();
        }
        self.merge_pending();
        self.tracker.lock().report(MIN_REPORTED_RATIO, MAX_REPORTED, unix_now_millis())
    }

    /// Merges the calls of all workers.
    fn merge_pending(&self) {
        let (workers, now) = (self.workers.lock().clone(), unix_now_millis());
        for worker in workers {
            let mut of_address = None;
            worker.merge(|calls| {
                let mut tracker = self.tracker.lock();
                for call in calls {
                    tracker.count_one_of_many(&call.as_call(), call.count, now, &mut of_address);
                }
            });
            self.tracker.lock().count_address_calls(of_address, now);
        }
    }

    /// Merges the calls of all workers, and warns of quotas that are nearly spent. Returns the slots of the counters that
    /// changed since the last time.
    fn merge(&self) -> Vec<u32> {
        self.merge_pending();
        self.warn_of_not_counted();
        let (mut tracker, now) = (self.tracker.lock(), unix_now_millis());
        let changed = tracker.take_changed();
        let warnings = tracker.take_warnings(&changed, now);
        drop(tracker);
        warnings.iter().for_each(warn);
        changed
    }

    fn warn_of_not_counted(&self) {
        let calls: u64 = self.workers.lock().iter().map(|worker| worker.take_not_counted()).sum();
        if calls > 0
            && let Some(suppressed) = self.not_counted_warnings.allow()
        {
            tracing::warn!(
                calls,
                suppressed,
                "WeCom's quotas were not counted for some calls, too many waited to be counted: more is used than reported"
            );
        }
    }

    /// Calls `f` with the tracker, and lets the merging task look at what changed.
    fn with_tracker<T>(&self, f: impl FnOnce(&mut Tracker) -> T) -> T {
        let mut tracker = self.tracker.lock();
        let had_changed = tracker.has_changed();
        let result = f(&mut tracker);
        if !had_changed && tracker.has_changed() {
            self.has_pending.notify_one();
        }
        result
    }
}

fn warn(usage: &QuotaUsage) {
    let QuotaUsage { agent, quota, used, limit, spent_in, per, .. } = usage;
    let spent_in_s = spent_in.map(|spent_in| spent_in.as_secs());
    let message = match per {
        QuotaScope::Member => {
            "WeCom's quota of messages to one member is nearly spent, beyond it messages are dropped without an errcode: send \
             fewer; quotas.mode = \"shape\" keeps below it"
        }
        _ => {
            "WeCom's quota is nearly spent, beyond it calls get errcode 45009: make fewer calls; quotas.mode = \"shape\" keeps below \
             it"
        }
    };
    tracing::warn!(agent, quota, used, limit, spent_in_s, "{message}");
}

fn limits_members(config: &QuotasConfig) -> bool {
    config.limits.iter().any(|row| row.per == QuotaScope::Member && row.path.as_str() != MESSAGE_SEND)
}

#[cfg(test)]
mod tests;
