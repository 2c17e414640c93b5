//! Invariants under random load. The load is drawn from seeds, so that a failure can be repeated.

use std::collections::HashMap;

use super::*;

/// Numbers that are the same for the same seed.
struct TestRng(u64);

impl TestRng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// The first clients come far more often than the others, as floods do.
    fn flow_key(&mut self) -> FlowKey {
        let client = if self.below(4) > 0 { self.below(2) } else { self.below(8) };
        FlowKey([client, self.below(3), self.below(3)])
    }
}

/// A single-threaded model of [`super::super::concurrency_limit`].
struct SimLimit {
    total: usize,
    fair_queue: FairQueue<()>,
    held: Vec<FlowKey>,
    queued: Vec<(FlowKey, u64)>,
}

impl SimLimit {
    fn new(total: usize) -> Self {
        Self { total, fair_queue: FairQueue::new(), held: Vec::new(), queued: Vec::new() }
    }

    fn available(&self) -> usize {
        self.total - self.held.len()
    }

    fn arrive(&mut self, flow: FlowKey) {
        if self.fair_queue.may_acquire(&flow, self.available()) {
            self.fair_queue.count_acquired(&flow);
            self.held.push(flow);
        } else {
            let id = self.fair_queue.enqueue(flow, ());
            self.queued.push((flow, id));
        }
    }

    /// Grants permits to all waiters that are next.
    fn grant_waiters(&mut self) -> Vec<FlowKey> {
        let mut served = Vec::new();
        while self.available() > 0
            && let Some((flow, ())) = self.fair_queue.dequeue(self.available())
        {
            let first = self.queued.iter().position(|(other, _)| *other == flow).expect("it waited");
            self.queued.remove(first);
            self.held.push(flow);
            served.push(flow);
        }
        served
    }

    fn release(&mut self, nth: usize) {
        let flow = self.held.swap_remove(nth);
        self.fair_queue.count_released(&flow);
    }

    fn check_invariants(&self) {
        assert!(self.held.len() <= self.total, "more permits than exist");
        assert_eq!(
            (self.fair_queue.root.held, self.fair_queue.queued()),
            (self.held.len(), self.queued.len())
        );
        for (flow, _) in &self.queued {
            assert!(
                !self.fair_queue.may_acquire(flow, self.available()),
                "{flow:?} waits although it could have a permit"
            );
        }
    }
}

#[test]
fn fair_queue_under_random_load_keeps_its_invariants() {
    for seed in 0..300 {
        let mut rng = TestRng(seed);
        let mut sim = SimLimit::new(1 + rng.below(80) as usize);
        for _ in 0..400 {
            match rng.below(8) {
                0..4 => sim.arrive(rng.flow_key()),
                4 if !sim.queued.is_empty() => {
                    let nth = rng.below(sim.queued.len() as u64) as usize;
                    let (flow, id) = sim.queued.remove(nth);
                    assert!(sim.fair_queue.remove(&flow, id).is_some(), "it waited");
                    assert!(sim.fair_queue.remove(&flow, id).is_none(), "it was removed");
                }
                _ if !sim.held.is_empty() => {
                    let nth = rng.below(sim.held.len() as u64) as usize;
                    sim.release(nth);
                }
                _ => {}
            }
            sim.grant_waiters();
            sim.check_invariants();
        }
        while !sim.held.is_empty() {
            sim.release(0);
            sim.grant_waiters();
            sim.check_invariants();
        }
        assert!(
            sim.queued.is_empty()
                && sim.fair_queue.root.children.is_empty()
                && sim.fair_queue.root.round_robin.is_empty()
        );
    }
}

#[test]
fn clients_that_wait_are_served_in_turns() {
    for seed in 0..100 {
        let mut rng = TestRng(seed);
        let mut sim = SimLimit::new(1 + rng.below(12) as usize);
        for _ in 0..300 {
            sim.arrive(rng.flow_key());
        }
        let mut since: HashMap<u64, HashMap<u64, usize>> = HashMap::new();
        while !sim.held.is_empty() {
            let nth = rng.below(sim.held.len() as u64) as usize;
            sim.release(nth);
            for served in sim.grant_waiters() {
                let client = served.0[0];
                since.insert(client, HashMap::new());
                for (waiting, others) in &mut since {
                    if *waiting != client && sim.queued.iter().any(|(flow, _)| flow.0[0] == *waiting) {
                        let turns = others.entry(client).or_default();
                        *turns += 1;
                        assert!(*turns <= 2, "client {waiting} was skipped, seed {seed}");
                    }
                }
            }
        }
    }
}

#[test]
fn client_arriving_after_a_flood_is_served_next() {
    // Many agents and paths give a flood no more turns.
    for (agents, paths) in [(1, 1), (50, 1), (50, 50)] {
        let mut sim = SimLimit::new(4);
        for nth in 0..1000 {
            sim.arrive(FlowKey([1, nth % agents, nth % paths]));
        }
        sim.arrive(FlowKey([2, 0, 0]));
        sim.release(0);
        let first = sim.grant_waiters();
        sim.release(0);
        let second = sim.grant_waiters();
        assert!(first.iter().chain(&second).any(|flow| flow.0[0] == 2), "{first:?} {second:?}");
    }
}

#[test]
fn agents_and_endpoints_of_a_client_are_served_in_turns() {
    for late in [FlowKey([1, 2, 1]), FlowKey([1, 1, 2])] {
        let mut sim = SimLimit::new(1);
        for _ in 0..100 {
            sim.arrive(FlowKey([1, 1, 1]));
        }
        sim.arrive(late);
        let mut served = Vec::new();
        for _ in 0..2 {
            sim.release(0);
            served.append(&mut sim.grant_waiters());
        }
        assert!(served.contains(&late), "{served:?}");
    }
}

#[test]
fn floods_that_hold_permits_leave_one_to_the_next_client() {
    for total in [64, 256, 2048] {
        let mut sim = SimLimit::new(total);
        for client in 0..2 {
            for _ in 0..total {
                sim.arrive(FlowKey([client, 0, 0]));
            }
        }
        assert!(sim.available() > 0, "all {total} permits in use");
        assert!(sim.held.len() * 10 >= total * 9, "only {} of {total} granted", sim.held.len());
        sim.arrive(FlowKey([9, 0, 0]));
        assert_eq!(sim.held.last(), Some(&FlowKey([9, 0, 0])));
    }
}
