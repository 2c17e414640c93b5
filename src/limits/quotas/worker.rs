//! What one worker counts.

use std::{
    cell::RefCell,
    hash::BuildHasher,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Call, MembersBeyond, QuotaDenied, Quotas, members};
use crate::{blocking, config::QuotaMode, text::SharedStr, time::clock::unix_now_millis};

/// From this many entries of one worker on, they are merged at once.
const MERGED_AT_ONCE: usize = 4_096;
/// Bounds the entries of one worker that wait to be merged; the calls of further ones are not counted.
const MAX_PENDING: usize = 16 * MERGED_AT_ONCE;
/// Entries that are merged under one lock of the tracker, which workers may wait for.
const MERGED_UNDER_LOCK: usize = 64;
/// Calls whose entries are found again. An entry that is not found is followed by another one of the same call, and both
/// are merged.
const FOUND_CALLS: usize = 4_096;
/// Paths whose text a worker has once.
const KNOWN_PATHS: usize = 64;

/// What a worker has counted, and what is merged of it. Two lists, so that a merge stops no worker.
#[derive(Debug, Default)]
pub(super) struct WorkerBuffer {
    /// Contended by the merge only.
    pending: Mutex<Vec<PendingCall>>,
    /// Used by the merge only; empty between merges.
    merged: Mutex<Vec<PendingCall>>,
    /// Calls beyond [`MAX_PENDING`] since this was last looked at.
    not_counted: AtomicU64,
}

/// A call, and how often it was made since the last merge. Its texts are those of the agent and of the worker's paths,
/// because with very many agents almost every request adds an entry.
#[derive(Debug)]
pub(super) struct PendingCall {
    key: u64,
    agent: Option<(SharedStr, SharedStr)>,
    path: SharedStr,
    credential: Option<u64>,
    pub(super) count: u32,
}

/// How a worker finds its entries and paths again.
#[derive(Debug)]
struct KnownCalls {
    /// The positions of entries, by hash. One may be of another call, or of one that is merged.
    positions: Box<[u16; FOUND_CALLS]>,
    paths: [Option<SharedStr>; KNOWN_PATHS],
}

impl WorkerBuffer {
    /// Hands over what was counted since the last time, in slices between which it yields the CPU; nothing if another
    /// thread is doing so.
    pub(super) fn merge(&self, mut count: impl FnMut(&[PendingCall])) {
        let Some(mut merged) = self.merged.try_lock() else { return };
        mem::swap(&mut *self.pending.lock(), &mut *merged);
        for slice in merged.chunks(MERGED_UNDER_LOCK) {
            count(slice);
            blocking::yield_cpu();
        }
        merged.clear();
        merged.shrink_to(MERGED_AT_ONCE);
    }

    /// How many calls were not counted since the last time, because too many waited to be merged.
    pub(super) fn take_not_counted(&self) -> u64 {
        self.not_counted.swap(0, Relaxed)
    }
}

impl PendingCall {
    pub(super) fn as_call(&self) -> Call<'_> {
        let agent = self.agent.as_ref().map(|(name, corpid)| (name, corpid));
        Call { agent, path: &self.path, credential: self.credential }
    }
}

impl KnownCalls {
    /// The text of a path, which other entries share.
    fn path(&mut self, path: &str, hash: u64) -> SharedStr {
        let known = &mut self.paths[hash as usize % KNOWN_PATHS];
        match known {
            Some(known) if *known == *path => known.clone(),
            _ => known.insert(path.into()).clone(),
        }
    }
}

/// The quotas as one worker sees them.
#[derive(Debug)]
pub struct WorkerQuotas {
    quotas: Arc<Quotas>,
    buffer: Arc<WorkerBuffer>,
    known: RefCell<KnownCalls>,
    hasher: RandomState,
}

impl WorkerQuotas {
    /// A buffer of its own for a worker.
    pub fn new(quotas: &Arc<Quotas>) -> Self {
        let buffer = Arc::<WorkerBuffer>::default();
        quotas.workers.lock().push(buffer.clone());
        let known =
            KnownCalls { positions: Box::new([0; FOUND_CALLS]), paths: [const { None }; KNOWN_PATHS] };
        Self { quotas: quotas.clone(), buffer, known: RefCell::new(known), hasher: RandomState::default() }
    }

    /// What is done about quotas.
    pub fn mode(&self) -> QuotaMode {
        self.quotas.mode()
    }

    /// Counts a call that is made now.
    pub fn count(&self, call: &Call<'_>) {
        // By the address of the name: an entry keeps the name, so no other one comes to lie there.
        let agent = call.agent.map_or(0, |(name, _)| name.as_ptr().addr());
        let path_hash = self.hasher.hash_one(call.path);
        let key = path_hash ^ self.hasher.hash_one((agent, call.credential.unwrap_or_default()));
        let mut known_calls = self.known.borrow_mut();
        let position = &mut known_calls.positions[key as usize % FOUND_CALLS];
        let mut pending = self.buffer.pending.lock();
        if let Some(known) = pending.get_mut(usize::from(*position)).filter(|known| known.key == key) {
            known.count = known.count.saturating_add(1);
            return;
        }
        let count = pending.len();
        if count >= MAX_PENDING {
            self.buffer.not_counted.fetch_add(1, Relaxed);
            return;
        }
        *position = count as u16;
        let Call { agent, path, credential } = *call;
        let agent = agent.map(|(name, corpid)| (name.clone(), corpid.clone()));
        pending.push(PendingCall {
            key,
            agent,
            path: known_calls.path(path, path_hash),
            credential,
            count: 1,
        });
        drop(pending);
        match count + 1 {
            1 => self.quotas.has_pending.notify_one(),
            MERGED_AT_ONCE => self.quotas.has_full_buffer.notify_one(),
            _ => {}
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
            let agent = call.agent.map_or("", |(name, _)| name.as_str());
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
