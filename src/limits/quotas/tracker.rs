//! The usage of all quotas that this process sees.

use std::{collections::HashMap, hash::BuildHasher, mem, sync::Arc};

use foldhash::fast::RandomState;

use super::{
    Call, MembersBeyond, QuotaDenied, QuotaUsage, WARNING_INTERVAL_MS, WARNING_RATIO,
    counters::{Counter, Counters, Subject},
    members::{Member, Members},
    rules::{CallQuotas, Rules},
};
use crate::{config::QuotaScope, text::SharedStr};

/// Bounds of the memory: about 220 bytes for a counter that is little used, 1.5 KiB for one in use all the time.
const MAX_COUNTERS: usize = 32_768;
/// Bounds the paths whose quotas are kept; callers choose paths.
const MAX_CALLS: usize = 4_096;

/// Counters of calls and of members. Times are milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Tracker {
    rules: Rules,
    calls: HashMap<SharedStr, Arc<CallQuotas>, RandomState>,
    /// Those of the last call: many calls in a row have the same path.
    last_quotas: Option<Arc<CallQuotas>>,
    counters: Counters,
    members: Members,
    /// Slots of counters that changed since the last [`Self::take_changed`].
    changed: Vec<u32>,
    hasher: RandomState,
}

/// Calls with one path that are to be counted for the address.
pub(super) struct AddressCalls {
    quotas: Arc<CallQuotas>,
    /// The agent of the first one.
    agent: Option<SharedStr>,
    count: u32,
}

impl Tracker {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            calls: HashMap::default(),
            last_quotas: None,
            counters: Counters::new(MAX_COUNTERS),
            members: Members::new(),
            changed: Vec::new(),
            hasher: RandomState::default(),
        }
    }

    /// Applies changed rows; what was counted stays.
    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.calls.clear();
        self.last_quotas = None;
        let Self { rules, counters, members, .. } = self;
        for counter in counters.iter_mut() {
            counter.set_limits(&rules.quotas_of(&counter.path, 0));
        }
        members.set_rules(rules);
    }

    /// Counts calls that are made whatever is left.
    pub(super) fn count(&mut self, call: &Call<'_>, count: u32, now: u64) {
        let quotas = self.quotas_of(call.path);
        for (scope, _) in &quotas.scopes {
            if let Some(subject) = self.subject(call, &quotas, *scope) {
                self.add(subject, &quotas, *scope, count, now);
            }
        }
    }

    /// The same for one of very many calls. Those of an address are added up, as long as the path is the same;
    /// [`Self::count_address_calls`] counts the last of them.
    pub(super) fn count_one_of_many(
        &mut self,
        call: &Call<'_>,
        count: u32,
        now: u64,
        of_address: &mut Option<AddressCalls>,
    ) {
        let quotas = self.quotas_of(call.path);
        for (scope, _) in &quotas.scopes {
            if *scope != QuotaScope::Address {
                if let Some(subject) = self.subject(call, &quotas, *scope) {
                    self.add(subject, &quotas, *scope, count, now);
                }
                continue;
            }
            match of_address {
                Some(calls) if Arc::ptr_eq(&calls.quotas, &quotas) => {
                    calls.count = calls.count.saturating_add(count);
                }
                _ => {
                    let agent = call.agent.map(|(agent, _)| agent.clone());
                    let calls = AddressCalls { quotas: quotas.clone(), agent, count };
                    self.count_address_calls(of_address.replace(calls), now);
                }
            }
        }
    }

    /// Counts calls of the address.
    pub(super) fn count_address_calls(&mut self, calls: Option<AddressCalls>, now: u64) {
        let Some(AddressCalls { quotas, agent, count }) = calls else { return };
        let key = self.key(QuotaScope::Address, None, 0, &quotas);
        let subject = Subject { key, name: None, credential: 0, agent: agent.as_ref() };
        self.add(subject, &quotas, QuotaScope::Address, count, now);
    }

    fn add(&mut self, subject: Subject<'_>, quotas: &CallQuotas, scope: QuotaScope, count: u32, now: u64) {
        let (slot, counter) = self.counters.count(subject, quotas, scope, count, now);
        if !mem::replace(&mut counter.is_changed, true) {
            self.changed.push(slot as u32);
        }
    }

    /// Counts a call, and the members that its message goes to, unless one of its quotas is nearly spent or held.
    pub(super) fn try_take(
        &mut self,
        call: &Call<'_>,
        members: &[Member<'_>],
        now: u64,
    ) -> Result<(), QuotaDenied> {
        let quotas = self.quotas_of(call.path);
        let mut denied = self.members.denial(&quotas, members, now);
        for (scope, _) in &quotas.scopes {
            let Some(subject) = self.subject(call, &quotas, *scope) else { continue };
            let Some(counter) = self.counters.find(subject.key) else { continue };
            let found = counter.denial(now);
            if found.as_ref().map(|found| (found.is_held, found.wait))
                > denied.as_ref().map(|denied| (denied.is_held, denied.wait))
            {
                denied = found;
            }
        }
        match denied {
            Some(denied) => Err(denied),
            None => {
                self.count(call, 1, now);
                self.members.count(call, &quotas, members, now);
                Ok(())
            }
        }
    }

    /// WeCom blocks the call: the quota that is used most is held as long as that lasts. Returns its usage if it was not
    /// held before.
    pub(super) fn hold(&mut self, call: &Call<'_>, now: u64) -> Option<QuotaUsage> {
        let quotas = self.quotas_of(call.path);
        let mut fullest = None;
        for (scope, _) in &quotas.scopes {
            let Some(subject) = self.subject(call, &quotas, *scope) else { continue };
            let counter = self.counters.entry(subject, &quotas, *scope, now);
            counter.advance(now);
            if fullest.is_none_or(|(_, ratio)| counter.ratio() > ratio) {
                fullest = Some((subject.key, counter.ratio()));
            }
        }
        let counter = fullest.and_then(|(key, _)| self.counters.find(key))?;
        let ends_at = counter.fullest()?.block_ends_at(now);
        let was_held = counter.held_until > now;
        let key = fullest.map(|(key, _)| key)?;
        self.counters.hold(key, ends_at, now);
        self.counters.find(key)?.usage(now).filter(|_| !was_held)
    }

    /// Counts a message to members. Returns those whose limit it passes.
    pub(super) fn count_members<'a>(
        &mut self,
        call: &Call<'_>,
        members: &[Member<'a>],
        now: u64,
    ) -> Option<MembersBeyond<'a>> {
        let quotas = self.quotas_of(call.path);
        self.members.count(call, &quotas, members, now)
    }

    /// Whether a call has limits of the members to whom it goes.
    pub(super) fn has_member_limit(&mut self, path: &str) -> bool {
        self.quotas_of(path).scopes.iter().any(|(scope, _)| *scope == QuotaScope::Member)
    }

    /// The usage of the counters that changed and are worth a warning now.
    pub(super) fn take_warnings(&mut self, changed: &[u32], now: u64) -> Vec<QuotaUsage> {
        let mut warnings = self.members.take_warnings();
        for slot in changed {
            let Some(counter) = self.counters.at(*slot as usize) else { continue };
            let is_due = now.saturating_sub(counter.warned_at) >= WARNING_INTERVAL_MS;
            if is_due && counter.ratio() >= WARNING_RATIO {
                counter.warned_at = now;
                warnings.extend(counter.usage(now));
            }
        }
        warnings
    }

    /// The slots of the counters that changed since.
    pub(super) fn take_changed(&mut self) -> Vec<u32> {
        let changed = mem::take(&mut self.changed);
        for slot in &changed {
            if let Some(counter) = self.counters.at(*slot as usize) {
                counter.is_changed = false;
            }
        }
        changed
    }

    /// Whether a counter changed since the last [`Self::take_changed`], or a warning is due.
    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty() || self.members.has_warnings()
    }

    pub(super) fn counter(&mut self, slot: u32) -> Option<&mut Counter> {
        self.counters.at(slot as usize)
    }

    /// The quotas of which at least this share is used, or that are held; the fullest first.
    pub(super) fn report(&mut self, min_ratio: f64, max: usize, now: u64) -> Vec<QuotaUsage> {
        let mut report = self.members.report(min_ratio, now);
        for counter in self.counters.iter_mut() {
            counter.advance(now);
            if counter.ratio() >= min_ratio || counter.held_until > now {
                report.extend(counter.usage(now));
            }
        }
        report.sort_by(|left, right| right.ratio.total_cmp(&left.ratio));
        report.truncate(max);
        report
    }

    fn quotas_of(&mut self, path: &str) -> Arc<CallQuotas> {
        if let Some(last) = self.last_quotas.as_ref().filter(|last| last.path == *path) {
            return last.clone();
        }
        let quotas = match self.calls.get(path) {
            Some(known) => known.clone(),
            None => {
                if self.calls.len() >= MAX_CALLS {
                    self.calls.clear();
                }
                let quotas = Arc::new(self.rules.quotas_of(path, self.hasher.hash_one(path)));
                self.calls.insert(quotas.path.clone(), quotas.clone());
                quotas
            }
        };
        self.last_quotas = Some(quotas.clone());
        quotas
    }

    /// Who is counted in a scope; `None` if the call is not counted there.
    fn subject<'a>(&self, call: &Call<'a>, quotas: &CallQuotas, scope: QuotaScope) -> Option<Subject<'a>> {
        let (name, credential) = match scope {
            QuotaScope::Corp => (Some(call.agent?.1), 0),
            QuotaScope::Agent => (Some(call.agent?.0), 0),
            QuotaScope::Address => (None, 0),
            QuotaScope::Credential => (None, call.credential?),
            QuotaScope::Member => return None,
        };
        let key = self.key(scope, name, credential, quotas);
        Some(Subject { key, name, credential, agent: call.agent.map(|(agent, _)| agent) })
    }

    fn key(&self, scope: QuotaScope, name: Option<&SharedStr>, credential: u64, quotas: &CallQuotas) -> u64 {
        self.hasher.hash_one((name, credential, quotas.path_hash ^ scope as u64))
    }

    #[cfg(test)]
    pub(super) fn counter_count(&self) -> usize {
        self.counters.len() + self.members.len()
    }
}
