//! Exchanges that failed, were retried or were slow: they outlive the ordinary ones, of which a busy proxy has the last
//! seconds only.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    sync::Arc,
};

use parking_lot::Mutex;

use super::exchange::{Exchange, ExchangeFilter};
use crate::telemetry::access_log::AccessLogEntry;

/// Exchanges in a worker's second ring.
pub(super) const RING_CAPACITY: usize = 500;
/// Exchanges kept of each agent, whatever the others do.
const MAX_PER_AGENT: usize = 10;
/// Agents of which exchanges are kept; bounds the memory to about 12 MiB.
const MAX_AGENTS: usize = 2000;

/// The newest notable exchanges of each agent, without details.
#[derive(Default)]
pub(super) struct NotableByAgent(Mutex<NotableAgents>);

#[derive(Default)]
struct NotableAgents {
    agents: HashMap<Arc<str>, NotableAgent>,
    /// The agents by their newest exchange, so that the one to evict is found without a scan.
    by_age: BTreeMap<u64, Arc<str>>,
    /// Exchanges so far.
    pushed: u64,
}

struct NotableAgent {
    newest: u64,
    exchanges: VecDeque<Exchange>,
}

impl NotableByAgent {
    /// Keeps the exchange, unless another worker or a reader has the lock: no request waits for what is only looked at.
    pub(super) fn push(&self, entry: &AccessLogEntry<'_>) {
        if let Some(mut agents) = self.0.try_lock() {
            agents.push(entry);
        }
    }

    /// The matching ones, in no order. Locks for one agent at a time, because workers wait for the lock.
    pub(super) fn matching(&self, filter: &ExchangeFilter) -> Vec<Exchange> {
        let agents: Vec<_> = match &filter.agent {
            Some(agent) => vec![agent.as_str().into()],
            None => self.0.lock().agents.keys().cloned().collect(),
        };
        let mut found = Vec::new();
        for agent in agents {
            if let Some(kept) = self.0.lock().agents.get(&agent) {
                found.extend(kept.exchanges.iter().filter(|exchange| filter.matches(exchange)).cloned());
            }
        }
        found
    }
}

impl NotableAgents {
    fn push(&mut self, entry: &AccessLogEntry<'_>) {
        self.pushed += 1;
        let newest = self.pushed;
        let agent = entry.agent.unwrap_or_default();
        let Some(kept) = self.agents.get_mut(agent) else {
            let agent: Arc<str> = agent.into();
            let mut exchange = self.evict_if_full().unwrap_or_default();
            exchange.overwrite(entry, None);
            self.by_age.insert(newest, agent.clone());
            self.agents.insert(agent, NotableAgent { newest, exchanges: [exchange].into() });
            return;
        };
        if let Some(agent) = self.by_age.remove(&mem::replace(&mut kept.newest, newest)) {
            self.by_age.insert(newest, agent);
        }
        let is_full = kept.exchanges.len() >= MAX_PER_AGENT;
        let mut exchange = is_full.then(|| kept.exchanges.pop_front()).flatten().unwrap_or_default();
        exchange.overwrite(entry, None);
        kept.exchanges.push_back(exchange);
    }

    /// Makes room by dropping the agent whose newest exchange is the oldest. Returns that exchange, to be overwritten.
    fn evict_if_full(&mut self) -> Option<Exchange> {
        if self.agents.len() < MAX_AGENTS {
            return None;
        }
        let (_, oldest) = self.by_age.pop_first()?;
        self.agents.remove(&oldest)?.exchanges.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn agents_beyond_the_limit_replace_the_one_that_failed_longest_ago() {
        let notable = NotableByAgent::default();
        let push = |nth: usize, agent: &str| {
            let ended_at = SystemTime::UNIX_EPOCH + Duration::from_secs(nth as u64);
            notable.push(&AccessLogEntry { agent: Some(agent), ended_at, ..AccessLogEntry::default() });
        };
        for nth in 0..MAX_AGENTS {
            push(nth, &format!("agent-{nth}"));
        }
        push(MAX_AGENTS, "agent-0");
        push(MAX_AGENTS + 1, "new");
        let count = |agent: &str| {
            notable
                .matching(&ExchangeFilter { agent: Some(agent.to_owned()), ..ExchangeFilter::default() })
                .len()
        };
        assert_eq!([count("agent-0"), count("agent-1"), count("agent-2"), count("new")], [2, 0, 1, 1]);
        assert_eq!(notable.matching(&ExchangeFilter::default()).len(), MAX_AGENTS + 1);
    }

    #[test]
    fn eviction_scans_nothing_and_the_newest_agent_is_always_kept() {
        let notable = NotableByAgent::default();
        for nth in 0..10_000 {
            let agent = format!("agent-{nth}");
            notable.push(&AccessLogEntry { agent: Some(&agent), ..AccessLogEntry::default() });
            let known = notable.0.lock();
            // One entry of age for each agent: what is evicted is the first of them.
            assert_eq!(known.agents.len(), known.by_age.len());
            assert!(known.agents.len() <= MAX_AGENTS && known.agents[&*agent].exchanges.len() == 1);
            assert_eq!(known.by_age.last_key_value().map(|(_, newest)| &**newest), Some(&*agent));
        }
        let known = notable.0.lock();
        let expected: Vec<_> = (8_000..10_000).map(|nth| format!("agent-{nth}")).collect();
        assert!(known.by_age.values().map(|agent| &**agent).eq(expected.iter().map(String::as_str)));
    }

    #[test]
    fn exchange_is_skipped_rather_than_waiting_for_the_lock() {
        let notable = NotableByAgent::default();
        let held = notable.0.lock();
        notable.push(&AccessLogEntry { agent: Some("hr"), ..AccessLogEntry::default() });
        assert!(held.agents.is_empty());
        drop(held);
        notable.push(&AccessLogEntry { agent: Some("hr"), ..AccessLogEntry::default() });
        assert_eq!(notable.matching(&ExchangeFilter::default()).len(), 1);
    }
}
