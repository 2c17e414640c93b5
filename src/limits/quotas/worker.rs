//! What one worker counts.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Call, MembersBeyond, QuotaDenied, Quotas, members};
use crate::{blocking, config::QuotaMode, time::clock::unix_now_millis};

/// From this many calls of one worker on, they are merged at once.
const MERGED_AT_ONCE: usize = 16_384;
/// Bounds the calls of one worker that wait to be merged; further ones are not counted.
const MAX_PENDING: usize = 4 * MERGED_AT_ONCE;

/// What a worker has counted, and what is merged of it. Two maps, so that a merge stops no worker.
#[derive(Debug, Default)]
pub(super) struct WorkerBuffer {
    /// Contended by the merge only.
    pending: Mutex<PendingCalls>,
    /// Used by the merge only. Between merges, its counts are 0: entries are kept, so that a call that is made again
    /// allocates nothing.
    merged: Mutex<PendingCalls>,
}

/// Calls that are not merged yet, by hash of agent, path and credential.
#[derive(Debug, Default)]
struct PendingCalls {
    calls: HashMap<u64, PendingCall, RandomState>,
    has_new: bool,
}

/// A call, and how often it was made since the last merge.
#[derive(Debug)]
pub(super) struct PendingCall {
    agent: Option<(Box<str>, Box<str>)>,
    path: Box<str>,
    credential: Option<u64>,
    count: u32,
    /// `count` at the last merge.
    last_count: u32,
}

impl WorkerBuffer {
    /// Hands over what was counted since the last time, with how often. Yields the CPU meanwhile: it may be much.
    pub(super) fn merge(&self, mut count: impl FnMut(&Call<'_>, u32)) {
        let mut merged = self.merged.lock();
        mem::swap(&mut *self.pending.lock(), &mut *merged);
        merged.has_new = false;
        for call in blocking::in_slices(merged.calls.values_mut()) {
            call.last_count = mem::take(&mut call.count);
            if call.last_count > 0 {
                count(&call.as_call(), call.last_count);
            }
        }
        merged.calls.retain(|_, call| call.last_count > 0);
        if merged.calls.len() >= MERGED_AT_ONCE {
            blocking::in_slices(mem::take(&mut merged.calls)).for_each(drop);
        }
    }
}

impl PendingCall {
    fn new(call: &Call<'_>) -> Self {
        let Call { agent, path, credential } = *call;
        let agent = agent.map(|(name, corpid)| (name.into(), corpid.into()));
        Self { agent, path: path.into(), credential, count: 1, last_count: 0 }
    }

    fn as_call(&self) -> Call<'_> {
        let agent = self.agent.as_ref().map(|(name, corpid)| (&**name, &**corpid));
        Call { agent, path: &self.path, credential: self.credential }
    }
}

/// The quotas as one worker sees them.
#[derive(Debug)]
pub struct WorkerQuotas {
    quotas: Arc<Quotas>,
    buffer: Arc<WorkerBuffer>,
    hasher: RandomState,
}

impl WorkerQuotas {
    /// A buffer of its own for a worker.
    pub fn new(quotas: &Arc<Quotas>) -> Self {
        let buffer = Arc::<WorkerBuffer>::default();
        quotas.workers.lock().push(buffer.clone());
        Self { quotas: quotas.clone(), buffer, hasher: RandomState::default() }
    }

    /// What is done about quotas.
    pub fn mode(&self) -> QuotaMode {
        self.quotas.mode()
    }

    /// Counts a call that is made now.
    pub fn count(&self, call: &Call<'_>) {
        let agent = call.agent.map_or("", |(name, _)| name);
        let key = self.hasher.hash_one((agent, call.path, call.credential.unwrap_or_default()));
        let mut pending = self.buffer.pending.lock();
        let is_first = !mem::replace(&mut pending.has_new, true);
        let mut is_full = false;
        if let Some(known) = pending.calls.get_mut(&key) {
            known.count = known.count.saturating_add(1);
        } else if pending.calls.len() < MAX_PENDING {
            pending.calls.insert(key, PendingCall::new(call));
            is_full = pending.calls.len() == MERGED_AT_ONCE;
        }
        drop(pending);
        if is_first {
            self.quotas.has_pending.notify_one();
        }
        if is_full {
            self.quotas.has_full_buffer.notify_one();
        }
    }

    /// Counts a call that is made now, in the mode `shape`: whatever is left.
    pub fn count_at_once(&self, call: &Call<'_>) {
        self.quotas.with_tracker(|tracker| tracker.count(call, 1, unix_now_millis()));
    }

    /// Counts a call, and the members that its message goes to, unless it would spend a quota.
    pub fn try_take(&self, call: &Call<'_>, members: &[&str]) -> Result<(), QuotaDenied> {
        let members = members::distinct(&self.quotas.member_hasher, call, members);
        self.quotas.with_tracker(|tracker| tracker.try_take(call, &members, unix_now_millis()))
    }

    /// WeCom has refused the call with errcode 45009.
    pub fn hold(&self, call: &Call<'_>) {
        let Some(held) = self.quotas.with_tracker(|tracker| tracker.hold(call, unix_now_millis())) else {
            return;
        };
        tracing::warn!(
            agent = held.agent,
            quota = held.quota,
            held_s = held.held_for.map(|held_for| held_for.as_secs()),
            "WeCom has blocked a call with errcode 45009, requests for it get 429 until the block ends: make fewer calls"
        );
    }

    /// Whether messages to members may be limited on paths other than that of `message/send`.
    pub fn limits_members(&self) -> bool {
        self.quotas.limits_members.load(Relaxed)
    }

    /// Whether a call has limits of the members that its message goes to.
    pub fn has_member_limit(&self, path: &str) -> bool {
        self.quotas.tracker.lock().has_member_limit(path)
    }

    /// Counts a message to members that WeCom accepted. Returns those for whom WeCom drops it in silence, and logs how
    /// many.
    pub fn count_members<'a>(&self, call: &Call<'_>, members: &[&'a str]) -> Option<MembersBeyond<'a>> {
        let members = members::distinct(&self.quotas.member_hasher, call, members);
        let beyond =
            self.quotas.with_tracker(|tracker| tracker.count_members(call, &members, unix_now_millis()))?;
        if let Some(suppressed) = self.quotas.member_warnings.allow() {
            let agent = call.agent.map_or("", |(name, _)| name);
            tracing::warn!(
                agent,
                path = call.path,
                members = beyond.count,
                suppressed,
                "messages beyond WeCom's limit for one member ({} a {}), which WeCom drops without an errcode",
                beyond.limit,
                beyond.per
            );
        }
        Some(beyond)
    }
}
