//! Caps the requests that wait for the first bytes of a body, for a token, or for a ticket; beyond the cap a request
//! fails at once.
//!
//! As many may wait as may be in flight, 1024 at least: a request that has its token needs an in-flight permit
//! next, and more requests would only wait again. A request takes permits from two limits, each with the reserve
//! of [`ConcurrencyLimit`]: in `by_agent` the agent is the outer level and the client the inner one, in
//! `by_client` the other way round. So neither an agent whose gettoken hangs, whatever its clients, nor a client
//! that calls through many such agents takes the permits of the others.
//!
//! A request counts once for each started 4 KiB of its headers and target in memory, so the cap bounds the memory of waiting
//! requests too.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::concurrency_limit::{ConcurrencyLimit, MIN_QUEUE_CAPACITY, Permit};

/// Memory of headers and target per unit of the cap.
const UNIT_BYTES: usize = 4 * 1024;

/// Bounds the waiting requests; shared by all workers.
#[derive(Debug)]
pub struct WaitLimit {
    by_agent: Arc<ConcurrencyLimit>,
    by_client: Arc<ConcurrencyLimit>,
    requests: Arc<AtomicUsize>,
}

/// The permit to wait; released when dropped.
#[derive(Debug)]
pub struct WaitPermit {
    _units: Box<[Permit]>,
    requests: Arc<AtomicUsize>,
}

impl Drop for WaitPermit {
    fn drop(&mut self) {
        self.requests.fetch_sub(1, Relaxed);
    }
}

impl WaitLimit {
    /// The limit for a proxy with this `max_in_flight`.
    pub fn new(max_in_flight: usize) -> Self {
        let limit = || Arc::new(ConcurrencyLimit::new(max_in_flight.max(MIN_QUEUE_CAPACITY)));
        Self { by_agent: limit(), by_client: limit(), requests: Arc::default() }
    }

    /// A permit for a request of this client through this agent whose headers and target take this much memory; `None`
    /// where they, or all requests together, have too many.
    pub fn try_acquire(
        &self,
        client: Option<&str>,
        agent: Option<&str>,
        header_bytes: usize,
    ) -> Option<WaitPermit> {
        let (by_agent, by_client) = (&self.by_agent, &self.by_client);
        let count = header_bytes.div_ceil(UNIT_BYTES).max(1);
        let mut units = Vec::with_capacity(2 * count);
        for _ in 0..count {
            // The outer level comes first: `by_agent` counts per agent before it counts per client.
            units.push(by_agent.try_acquire(|| by_agent.flow_key(agent, client, ""))?);
            units.push(by_client.try_acquire(|| by_client.flow_key(client, agent, ""))?);
        }
        self.requests.fetch_add(1, Relaxed);
        Some(WaitPermit { _units: units.into(), requests: self.requests.clone() })
    }

    /// Number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.requests.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 4096;

    fn fill(limit: &WaitLimit, flows: impl Fn(usize) -> (String, String)) -> Vec<WaitPermit> {
        let permits = (0..3 * MAX).filter_map(|nth| {
            let (client, agent) = flows(nth);
            limit.try_acquire(Some(&client), Some(&agent), 300)
        });
        permits.collect()
    }

    #[test]
    fn hanging_agent_leaves_permits_to_other_agents() {
        for clients in [1, 10, 1000] {
            let limit = WaitLimit::new(MAX);
            let permits = fill(&limit, |nth| (format!("c{}", nth % clients), "hr".into()));
            assert!((MAX * 8 / 10..MAX).contains(&permits.len()), "{clients} clients: {}", permits.len());
            let others: Vec<_> =
                (0..100).filter_map(|_| limit.try_acquire(Some("c0"), Some("ops"), 300)).collect();
            assert_eq!(others.len(), 100, "{clients} clients");
            drop((permits, others));
            assert_eq!(limit.waiting(), 0);
        }
    }

    #[test]
    fn client_of_many_agents_leaves_permits_to_other_clients() {
        let limit = WaitLimit::new(MAX);
        let permits = fill(&limit, |nth| ("crm".into(), format!("a{}", nth % 1000)));
        assert!((MAX * 8 / 10..MAX).contains(&permits.len()), "{}", permits.len());
        let others: Vec<_> =
            (0..100).filter_map(|_| limit.try_acquire(Some("billing"), Some("a0"), 300)).collect();
        assert_eq!(others.len(), 100);
    }

    #[test]
    fn small_in_flight_limit_still_lets_a_thousand_wait() {
        let limit = WaitLimit::new(1);
        assert!(fill(&limit, |_| ("crm".into(), "hr".into())).len() > MIN_QUEUE_CAPACITY * 8 / 10);
    }

    #[test]
    fn header_text_counts_per_started_4_kib() {
        let limit = WaitLimit::new(MAX);
        let fill = |bytes| (0..MAX).map_while(|_| limit.try_acquire(None, None, bytes)).collect::<Vec<_>>();
        for (bytes, units) in [(0, 1), (4096, 1), (4097, 2), (58 * 1024, 15)] {
            let permits = fill(bytes);
            assert_eq!(limit.waiting(), permits.len());
            let in_use = limit.by_agent.in_use();
            assert_eq!(
                (in_use, limit.by_client.in_use()),
                (permits.len() * units, permits.len() * units),
                "{bytes}"
            );
            assert!((MAX * 8 / 10..MAX).contains(&in_use), "{bytes}: {in_use}");
            drop(permits);
            assert_eq!((limit.waiting(), limit.by_agent.in_use(), limit.by_client.in_use()), (0, 0, 0));
        }
    }
}
