//! The members to whom messages go. WeCom drops what one application sends to one member beyond a limit, without an
//! errcode.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher,
    mem,
};

use foldhash::fast::RandomState;

use super::{
    Call, MembersBeyond, QuotaDenied, QuotaUsage, WARNING_INTERVAL_MS, WARNING_RATIO,
    counters::{Counters, Subject},
    rules::{CallQuotas, Rules},
    window::Window,
};
use crate::{config::QuotaScope, text::SharedStr};

const MAX_MEMBERS: usize = 32_768;
/// Members of one message that are counted, as many as WeCom takes: bounds how long others wait for the lock.
const MAX_PER_MESSAGE: usize = 1_000;
/// Bounds the applications and calls of which the last warning is known.
const MAX_WARNED: usize = 4_096;

/// Counters of members. Times are milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Members {
    counters: Counters,
    /// When each application was last warned of a call, by hash.
    warned_at: HashMap<u64, u64, RandomState>,
    /// The usage that is to be warned of.
    warnings: Vec<QuotaUsage>,
    hasher: RandomState,
}

/// A member by hash, and as the message has it.
pub(super) type Member<'a> = (u64, &'a str);

/// The first members, each once; none if the call is of no agent. It takes no lock, as a message may list very many.
/// WeCom's ids of members are the same in upper and lower case.
pub(super) fn distinct<'a>(hasher: &RandomState, call: &Call<'_>, members: &[&'a str]) -> Vec<Member<'a>> {
    let Some((agent, _)) = call.agent else { return Vec::new() };
    let mut lower = Vec::new();
    let mut key = |member: &str| {
        lower.clear();
        lower.extend(member.bytes().map(|byte| byte.to_ascii_lowercase()));
        hasher.hash_one((agent, call.path, &lower))
    };
    let mut seen = HashSet::with_hasher(hasher.clone());
    let keyed = members.iter().map(|member| (key(member), *member));
    keyed.filter(|(key, _)| members.len() == 1 || seen.insert(*key)).take(MAX_PER_MESSAGE).collect()
}

impl Members {
    pub(super) fn new() -> Self {
        Self {
            counters: Counters::new(MAX_MEMBERS),
            warned_at: HashMap::default(),
            warnings: Vec::new(),
            hasher: RandomState::default(),
        }
    }

    /// Applies changed rows; what was counted stays.
    pub(super) fn set_rules(&mut self, rules: &Rules) {
        for counter in self.counters.iter_mut() {
            counter.set_limits(&rules.quotas_of(&counter.path, 0));
        }
    }

    /// Why and how long a message has to wait for the member who frees last.
    pub(super) fn denial(
        &mut self,
        quotas: &CallQuotas,
        members: &[Member<'_>],
        now: u64,
    ) -> Option<QuotaDenied> {
        let mut longest: Option<QuotaDenied> = None;
        for (key, _) in limited(quotas, members) {
            let denied = self.counters.find(*key).and_then(|counter| counter.denial(now));
            if denied.as_ref().map(|denied| denied.wait) > longest.as_ref().map(|longest| longest.wait) {
                longest = denied;
            }
        }
        longest
    }

    /// Counts a message. Returns those whose limit it passes.
    pub(super) fn count<'a>(
        &mut self,
        call: &Call<'_>,
        quotas: &CallQuotas,
        members: &[Member<'a>],
        now: u64,
    ) -> Option<MembersBeyond<'a>> {
        let agent = call.agent.map(|(agent, _)| agent);
        let (mut beyond, mut fullest): (Option<MembersBeyond<'a>>, (f64, u64)) = (None, (0.0, 0));
        for &(key, name) in limited(quotas, members) {
            // Without the name: what is kept says nothing of who is written to.
            let subject = Subject { key, name: None, credential: 0, agent };
            let (_, counter) = self.counters.count(subject, quotas, QuotaScope::Member, 1, now);
            if let Some(window) = counter.windows.iter().find(|window| window.is_exceeded()) {
                beyond.get_or_insert_with(|| first_beyond(name, window)).count += 1;
            }
            let ratio = counter.ratio();
            if ratio > fullest.0 {
                fullest = (ratio, key);
            }
        }
        if fullest.0 >= WARNING_RATIO {
            self.warn(fullest.1, now);
        }
        beyond
    }

    /// Warns of a counter, once an hour for an application and a call.
    fn warn(&mut self, key: u64, now: u64) {
        let Some(counter) = self.counters.find(key) else { return };
        if self.warned_at.len() >= MAX_WARNED {
            self.warned_at.clear();
        }
        let warned_at =
            self.warned_at.entry(self.hasher.hash_one((&counter.agent, &counter.path))).or_insert(0);
        if now.saturating_sub(*warned_at) >= WARNING_INTERVAL_MS {
            *warned_at = now;
            self.warnings.extend(counter.usage(now));
        }
    }

    /// What is to be warned of since the last time.
    pub(super) fn take_warnings(&mut self) -> Vec<QuotaUsage> {
        mem::take(&mut self.warnings)
    }

    pub(super) fn has_warnings(&self) -> bool {
        !self.warnings.is_empty()
    }

    /// The fullest member of each application and call, if at least this share is used.
    pub(super) fn report(&mut self, min_ratio: f64, now: u64) -> Vec<QuotaUsage> {
        let mut fullest = HashMap::<(Option<SharedStr>, SharedStr), QuotaUsage>::new();
        for counter in self.counters.iter_mut() {
            counter.advance(now);
            let (ratio, key) = (counter.ratio(), (counter.agent.clone(), counter.path.clone()));
            if ratio >= min_ratio
                && fullest.get(&key).is_none_or(|fullest| ratio > fullest.ratio)
                && let Some(usage) = counter.usage(now)
            {
                fullest.insert(key, usage);
            }
        }
        fullest.into_values().collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.counters.len()
    }
}

/// The members, if the call has a limit of them.
fn limited<'m, 'a>(quotas: &CallQuotas, members: &'m [Member<'a>]) -> &'m [Member<'a>] {
    let has_limit = quotas.scopes.iter().any(|(scope, _)| *scope == QuotaScope::Member);
    if has_limit { members } else { &[] }
}

fn first_beyond<'a>(member: &'a str, window: &Window) -> MembersBeyond<'a> {
    let per = match window.per().as_secs() {
        1 => "second",
        60 => "minute",
        3600 => "hour",
        _ => "day",
    };
    MembersBeyond { count: 0, first: member, limit: window.limit, per }
}
