//! Counters of quotas in bounded memory.

use std::{collections::HashMap, sync::Arc, time::Duration};

use foldhash::fast::RandomState;

use super::{QuotaDenied, QuotaUsage, rules::CallQuotas, window::Window};
use crate::config::QuotaScope;

/// How many counters are looked at to find one to evict; each is most likely in no CPU cache.
const EVICTION_SAMPLE: usize = 5;

/// The usage of the quotas that one call has in one scope.
#[derive(Debug)]
pub(super) struct Counter {
    key: u64,
    pub(super) scope: QuotaScope,
    /// The company or the application that is counted; empty for other scopes.
    pub(super) subject: Arc<str>,
    /// Hash of the credential that is counted; 0 for other scopes.
    credential: u64,
    /// The agent that first made the call.
    pub(super) agent: Arc<str>,
    pub(super) path: Arc<str>,
    pub(super) windows: Vec<Window>,
    /// When it was last warned of, in milliseconds since 1970.
    pub(super) warned_at: u64,
    /// Until when WeCom blocks the call.
    pub(super) held_until: u64,
    /// Whether it is listed as changed.
    pub(super) is_changed: bool,
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
            agent: self.agent.to_string(),
            quota: window.describe(self.scope, &self.path),
            path: self.path.to_string(),
            per: self.scope,
            limit: window.known_limit(),
            window: window.per,
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
            _ => format!("{scope}:{}:{path}", self.subject),
        }
    }

    pub(super) fn advance(&mut self, now: u64) {
        self.windows.iter_mut().for_each(|window| window.advance(now));
    }

    pub(super) fn add(&mut self, now: u64, count: u32) {
        self.windows.iter_mut().for_each(|window| window.add(now, count));
    }

    /// Applies changed limits; what was counted stays.
    pub(super) fn set_limits(&mut self, quotas: &CallQuotas) {
        let limits = quotas.scopes.iter().find(|(scope, _)| *scope == self.scope);
        let limits = limits.map(|(_, limits)| limits.as_slice()).unwrap_or_default();
        let mut before = std::mem::take(&mut self.windows);
        self.windows = limits
            .iter()
            .map(|(limit, per)| match before.iter().position(|window| window.per == *per) {
                Some(nth) => before.swap_remove(nth).with_limit(*limit),
                None => Window::new(*limit, *per),
            })
            .collect();
    }
}

/// Who is counted, by hash and for display.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) key: u64,
    pub(super) name: &'a str,
    /// Hash of the credential that is counted; 0 for other scopes.
    pub(super) credential: u64,
    pub(super) agent: &'a str,
}

/// Counters by key, at most `max`; a new one evicts one that is little used.
#[derive(Debug)]
pub(super) struct Counters {
    max: usize,
    slots: Vec<Counter>,
    index: HashMap<u64, u32, RandomState>,
    /// State of a generator of pseudo-random numbers (xorshift).
    random: u64,
}

impl Counters {
    pub(super) fn new(max: usize) -> Self {
        Self { max, slots: Vec::new(), index: HashMap::default(), random: 0x9e37_79b9_7f4a_7c15 }
    }

    pub(super) fn find(&mut self, key: u64) -> Option<&mut Counter> {
        self.index.get(&key).map(|slot| &mut self.slots[*slot as usize])
    }

    /// The counter and its slot, made where it is missing.
    pub(super) fn entry(
        &mut self,
        subject: Subject<'_>,
        quotas: &CallQuotas,
        scope: QuotaScope,
        now: u64,
    ) -> (usize, &mut Counter) {
        let slot = match self.index.get(&subject.key) {
            Some(slot) => *slot as usize,
            None => self.insert(subject, quotas, scope, now),
        };
        (slot, &mut self.slots[slot])
    }

    fn insert(&mut self, subject: Subject<'_>, quotas: &CallQuotas, scope: QuotaScope, now: u64) -> usize {
        let mut counter = Counter {
            key: subject.key,
            scope,
            subject: subject.name.into(),
            credential: subject.credential,
            agent: subject.agent.into(),
            path: quotas.path.clone(),
            windows: Vec::new(),
            warned_at: 0,
            held_until: 0,
            is_changed: false,
        };
        counter.set_limits(quotas);
        let slot = if self.slots.len() < self.max {
            self.slots.push(counter);
            self.slots.len() - 1
        } else {
            let slot = self.least_used(now);
            let evicted = std::mem::replace(&mut self.slots[slot], counter);
            self.index.remove(&evicted.key);
            slot
        };
        self.index.insert(subject.key, slot as u32);
        slot
    }

    /// The slot of the counter that is used least, of a few.
    fn least_used(&mut self, now: u64) -> usize {
        let mut least = (0, f64::INFINITY);
        for _ in 0..EVICTION_SAMPLE {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let slot = (self.random % self.slots.len() as u64) as usize;
            let counter = &mut self.slots[slot];
            counter.advance(now);
            let ratio = if counter.held_until > now { f64::MAX } else { counter.ratio() };
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
