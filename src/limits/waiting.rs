//! Caps the requests that wait for a token or a ticket; beyond the cap a request fails at once.
//!
//! As many may wait as may be in flight, 1024 at least: a request that has its token needs a place in flight next, and more
//! of them would only wait again. A permit counts twice, first for its agent and first for its client, by the rule of
//! [`Places`]: neither an agent whose gettoken hangs, however many clients call through it, nor a client that calls through
//! many such agents leaves the others without one.

use std::sync::Arc;

use super::places::{LEAST_ROOM, Place, Places};

/// Bounds how many requests wait, shared by all workers.
#[derive(Debug)]
pub struct WaitLimit {
    by_agent: Arc<Places>,
    by_client: Arc<Places>,
}

/// The right to wait; given back when it is dropped.
#[derive(Debug)]
pub struct WaitPermit {
    _by_agent: Place,
    _by_client: Place,
}

impl WaitLimit {
    /// A limit for a proxy with so many places in flight.
    pub fn new(max_in_flight: usize) -> Self {
        let places = || Arc::new(Places::new(max_in_flight.max(LEAST_ROOM)));
        Self { by_agent: places(), by_client: places() }
    }

    /// A permit for a request of this client through this agent; `None` where they, or all together, have too many.
    pub fn try_acquire(&self, client: Option<&str>, agent: Option<&str>) -> Option<WaitPermit> {
        let (by_agent, by_client) = (&self.by_agent, &self.by_client);
        // The order of the names is the order in which they are counted.
        let _by_agent = by_agent.try_take(|| by_agent.flow(agent, client, ""))?;
        let _by_client = by_client.try_take(|| by_client.flow(client, agent, ""))?;
        Some(WaitPermit { _by_agent, _by_client })
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.by_agent.taken()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 4096;

    fn fill(limit: &WaitLimit, flows: impl Fn(usize) -> (String, String)) -> Vec<WaitPermit> {
        let permits = (0..3 * MAX).filter_map(|nth| {
            let (client, agent) = flows(nth);
            limit.try_acquire(Some(&client), Some(&agent))
        });
        permits.collect()
    }

    #[test]
    fn a_hanging_agent_leaves_permits_to_other_agents() {
        for clients in [1, 10, 1000] {
            let limit = WaitLimit::new(MAX);
            let held = fill(&limit, |nth| (format!("c{}", nth % clients), "hr".into()));
            assert!((MAX * 8 / 10..MAX).contains(&held.len()), "{clients} clients: {}", held.len());
            let others: Vec<_> =
                (0..100).filter_map(|_| limit.try_acquire(Some("c0"), Some("ops"))).collect();
            assert_eq!(others.len(), 100, "{clients} clients");
            drop((held, others));
            assert_eq!(limit.waiting(), 0);
        }
    }

    #[test]
    fn a_client_of_many_agents_leaves_permits_to_other_clients() {
        let limit = WaitLimit::new(MAX);
        let held = fill(&limit, |nth| ("crm".into(), format!("a{}", nth % 1000)));
        assert!((MAX * 8 / 10..MAX).contains(&held.len()), "{}", held.len());
        let others: Vec<_> =
            (0..100).filter_map(|_| limit.try_acquire(Some("billing"), Some("a0"))).collect();
        assert_eq!(others.len(), 100);
    }

    #[test]
    fn few_in_flight_still_let_a_thousand_wait() {
        let limit = WaitLimit::new(1);
        assert!(fill(&limit, |_| ("crm".into(), "hr".into())).len() > LEAST_ROOM * 8 / 10);
    }
}
