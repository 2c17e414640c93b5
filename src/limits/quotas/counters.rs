//! Counters of quotas in bounded memory.

use std::{mem, time::Duration};

use hashbrown::HashTable;

use super::{QuotaDenied, QuotaUsage, rules::CallQuotas, window::Window};
use crate::{config::QuotaScope, text::SharedStr};

/// How many counters are looked at to find one to evict; each is most likely in no CPU cache.
const EVICTION_SAMPLE: usize = 5;

/// The usage of the quotas that one call has in one scope.
#[derive(Debug)]
pub(super) struct Counter {
    key: u64,
    pub(super) scope: QuotaScope,
    /// The company or the application that is counted; `None` for other scopes.
    subject: Option<SharedStr>,
    /// Hash of the credential that is counted; 0 for other scopes.
    credential: u64,
    /// The agent that first made the call.
    pub(super) agent: Option<SharedStr>,
    pub(super) path: SharedStr,
    pub(super) windows: Windows,
    /// When it was last warned of, in milliseconds since 1970.
    pub(super) warned_at: u64,
    /// Until when WeCom blocks the call.
    pub(super) held_until: u64,
    /// Whether it is listed as changed.
    pub(super) is_changed: bool,
}

/// The windows of a counter. Most calls have at most two, which take no memory of their own.
#[derive(Debug, Default)]
pub(super) struct Windows {
    few: [Option<Window>; 2],
    more: Vec<Window>,
}

impl Windows {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Window> {
        self.few.iter().flatten().chain(&self.more)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Window> {
        self.few.iter_mut().flatten().chain(&mut self.more)
    }

    fn push(&mut self, window: Window) {
        match self.few.iter_mut().find(|few| few.is_none()) {
            Some(few) => *few = Some(window),
            None => self.more.push(window),
        }
    }
}

impl Counter {
    /// The window that is used most.
    pub(super) fn fullest(&self) -> Option<&Window> {
        self.windows.iter().max_by(|left, right| left.ratio().total_cmp(&right.ratio()))
    }

    pub(super) fn ratio(&self) -> f64 {
        self.fullest().map_or(0.0, Window::ratio)
    }

    /// Why and how long a request has to wait for this counter.
    pub(super) fn denial(&mut self, now: u64) -> Option<QuotaDenied> {
        self.advance(now);
        let wait = |until: u64| Duration::from_millis(until.saturating_sub(now).max(1));
        if self.held_until > now {
            let quota = self.fullest().map(|window| window.describe(self.scope, &self.path));
            return Some(QuotaDenied { wait: wait(self.held_until), is_held: true, quota: quota? });
        }
        let spent = self.windows.iter().filter(|window| window.is_nearly_spent());
        let last = spent.max_by_key(|window| window.frees_at(now))?;
        let quota = last.describe(self.scope, &self.path);
        Some(QuotaDenied { wait: wait(last.frees_at(now)), is_held: false, quota })
    }

    /// The usage of its fullest window. What WeCom blocks is spent, whatever was counted.
    pub(super) fn usage(&self, now: u64) -> Option<QuotaUsage> {
        let window = self.fullest()?;
        let held_for = self.held_until.checked_sub(now).filter(|left| *left > 0).map(Duration::from_millis);
        let min_ratio = if held_for.is_some() { 1.0 } else { 0.0 };
        Some(QuotaUsage {
            agent: self.agent.as_ref().map(String::from).unwrap_or_default(),
            quota: window.describe(self.scope, &self.path),
            path: self.path.to_string(),
            per: self.scope,
            limit: window.known_limit(),
            window: window.per(),
            used: window.used(),
            ratio: window.ratio().max(min_ratio),
            spent_in: window.spent_in(now),
            held_for,
        })
    }

    /// Its name among all replicas.
    pub(super) fn name(&self) -> String {
        let (scope, path) = (self.scope.name(), &self.path);
        match self.scope {
            QuotaScope::Credential => format!("{scope}:{:016x}:{path}", self.credential),
            _ => format!("{scope}:{}:{path}", self.subject.as_deref().unwrap_or_default()),
        }
    }

    pub(super) fn advance(&mut self, now: u64) {
        self.windows.iter_mut().for_each(|window| window.advance(now));
    }

    fn add(&mut self, now: u64, count: u32) {
        self.windows.iter_mut().for_each(|window| window.add(now, count));
    }

    /// What decides whether it is evicted.
    fn eviction_rank(&self, now: u64) -> EvictionRank {
        let longest = self.windows.iter().map(|window| window.per().as_secs()).max().unwrap_or_default();
        let is_held = self.held_until > now;
        let unused_at = (now / 1000 + longest + longest / 60 + 2).max(self.held_until.div_ceil(1000));
        EvictionRank {
            unused_at: u32::try_from(unused_at).unwrap_or(u32::MAX),
            ratio: if is_held { f32::MAX } else { self.ratio() as f32 },
        }
    }

    /// Applies changed limits; what was counted stays.
    pub(super) fn set_limits(&mut self, quotas: &CallQuotas) {
        let limits = quotas.scopes.iter().find(|(scope, _)| *scope == self.scope);
        let limits = limits.map(|(_, limits)| limits.as_slice()).unwrap_or_default();
        let Windows { few, more } = mem::take(&mut self.windows);
        let mut before: Vec<_> = few.into_iter().flatten().chain(more).collect();
        for (limit, per) in limits {
            self.windows.push(match before.iter().position(|window| window.per() == *per) {
                Some(nth) => before.swap_remove(nth).with_limit(*limit),
                None => Window::new(*limit, *per),
            });
        }
    }
}

/// How much a counter is used, as of its last call. Apart from the counters, whose memory is in no CPU cache.
#[derive(Debug, Clone, Copy)]
struct EvictionRank {
    /// When nothing of it is left, in seconds since 1970.
    unused_at: u32,
    ratio: f32,
}

impl EvictionRank {
    fn ratio(self, now: u64) -> f32 {
        if now / 1000 >= u64::from(self.unused_at) { 0.0 } else { self.ratio }
    }
}

/// Who is counted, by hash and for display.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) key: u64,
    pub(super) name: Option<&'a SharedStr>,
    /// Hash of the credential that is counted; 0 for other scopes.
    pub(super) credential: u64,
    pub(super) agent: Option<&'a SharedStr>,
}

/// Counters by key, at most `max`; a new one evicts one that is little used.
#[derive(Debug)]
pub(super) struct Counters {
    max: usize,
    slots: Vec<Counter>,
    /// Of the counters in `slots`.
    ranks: Vec<EvictionRank>,
    /// The slots by the keys, which are hashes, and a part of each key, so that most others are not looked at.
    index: HashTable<(u32, u32)>,
    /// State of a generator of pseudo-random numbers (xorshift).
    random: u64,
}

impl Counters {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            slots: Vec::new(),
            ranks: Vec::new(),
            index: HashTable::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn slot_of(&self, key: u64) -> Option<usize> {
        let Self { slots, index, .. } = self;
        let found = index.find(key, |(part, slot)| *part == key as u32 && slots[*slot as usize].key == key);
        found.map(|(_, slot)| *slot as usize)
    }

    pub(super) fn find(&mut self, key: u64) -> Option<&mut Counter> {
        self.slot_of(key).map(|slot| &mut self.slots[slot])
    }

    /// Counts calls, and returns their counter and its slot.
    pub(super) fn count(
        &mut self,
        subject: Subject<'_>,
        quotas: &CallQuotas,
        scope: QuotaScope,
        count: u32,
        now: u64,
    ) -> (usize, &mut Counter) {
        let slot = self.slot_or_insert(subject, quotas, scope, now);
        let counter = &mut self.slots[slot];
        counter.add(now, count);
        self.ranks[slot] = counter.eviction_rank(now);
        (slot, counter)
    }

    /// WeCom blocks the call of this counter until then.
    pub(super) fn hold(&mut self, key: u64, until: u64, now: u64) {
        let Some(slot) = self.slot_of(key) else { return };
        let counter = &mut self.slots[slot];
        counter.held_until = counter.held_until.max(until);
        self.ranks[slot] = counter.eviction_rank(now);
    }

    /// The counter, made where it is missing.
    pub(super) fn entry(
        &mut self,
        subject: Subject<'_>,
        quotas: &CallQuotas,
        scope: QuotaScope,
        now: u64,
    ) -> &mut Counter {
        let slot = self.slot_or_insert(subject, quotas, scope, now);
        &mut self.slots[slot]
    }

    fn slot_or_insert(
        &mut self,
        subject: Subject<'_>,
        quotas: &CallQuotas,
        scope: QuotaScope,
        now: u64,
    ) -> usize {
        self.slot_of(subject.key).unwrap_or_else(|| self.insert(subject, quotas, scope, now))
    }

    fn insert(&mut self, subject: Subject<'_>, quotas: &CallQuotas, scope: QuotaScope, now: u64) -> usize {
        let mut counter = Counter {
            key: subject.key,
            scope,
            subject: subject.name.cloned(),
            credential: subject.credential,
            agent: subject.agent.cloned(),
            path: quotas.path.clone(),
            windows: Windows::default(),
            warned_at: 0,
            held_until: 0,
            is_changed: false,
        };
        counter.set_limits(quotas);
        let slot = if self.slots.len() < self.max {
            self.ranks.push(counter.eviction_rank(now));
            self.slots.push(counter);
            self.slots.len() - 1
        } else {
            let slot = self.least_used(now);
            self.ranks[slot] = counter.eviction_rank(now);
            let evicted = mem::replace(&mut self.slots[slot], counter);
            if let Ok(entry) = self.index.find_entry(evicted.key, |(_, other)| *other == slot as u32) {
                entry.remove();
            }
            slot
        };
        let slots = &self.slots;
        let entry = (subject.key as u32, slot as u32);
        self.index.insert_unique(subject.key, entry, |(_, slot)| slots[*slot as usize].key);
        slot
    }

    /// The slot of the counter that is used least, of a few.
    fn least_used(&mut self, now: u64) -> usize {
        let mut least = (0, f32::INFINITY);
        for _ in 0..EVICTION_SAMPLE {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let slot = (self.random % self.slots.len() as u64) as usize;
            let ratio = self.ranks[slot].ratio(now);
            if ratio < least.1 {
                least = (slot, ratio);
            }
        }
        least.0
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Counter> {
        self.slots.iter_mut()
    }

    pub(super) fn at(&mut self, slot: usize) -> Option<&mut Counter> {
        self.slots.get_mut(slot)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
