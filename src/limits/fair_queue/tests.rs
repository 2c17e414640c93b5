//! What holds for every crowd. The crowds are drawn from seeds, so that a failure comes again.

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

/// Places as [`super::super::places`] has them, one step after the other.
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
            let number = self.fair_queue.enqueue(flow, ());
            self.queued.push((flow, number));
        }
    }

    /// Serves all whose turn it is.
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
        assert!(self.held.len() <= self.total, "more than there are");
        assert_eq!(
            (self.fair_queue.root.held, self.fair_queue.queued()),
            (self.held.len(), self.queued.len())
        );
        for (flow, _) in &self.queued {
            assert!(!self.fair_queue.may_acquire(flow, self.available()), "{flow:?} waits and need not");
        }
    }
}

#[test]
fn fair_queue_under_random_load_keeps_its_invariants() {
    for seed in 0..300 {
        let mut chance = TestRng(seed);
        let mut crowd = SimLimit::new(1 + chance.below(80) as usize);
        for _ in 0..400 {
            match chance.below(8) {
                0..4 => crowd.arrive(chance.flow_key()),
                4 if !crowd.queued.is_empty() => {
                    let nth = chance.below(crowd.queued.len() as u64) as usize;
                    let (flow, number) = crowd.queued.remove(nth);
                    assert!(crowd.fair_queue.remove(&flow, number).is_some(), "it waited");
                    assert!(crowd.fair_queue.remove(&flow, number).is_none(), "it waits no longer");
                }
                _ if !crowd.held.is_empty() => {
                    let nth = chance.below(crowd.held.len() as u64) as usize;
                    crowd.release(nth);
                }
                _ => {}
            }
            crowd.grant_waiters();
            crowd.check_invariants();
        }
        while !crowd.held.is_empty() {
            crowd.release(0);
            crowd.grant_waiters();
            crowd.check_invariants();
        }
        assert!(
            crowd.queued.is_empty()
                && crowd.fair_queue.root.children.is_empty()
                && crowd.fair_queue.root.round_robin.is_empty()
        );
    }
}

#[test]
fn clients_that_wait_are_served_in_turns() {
    for seed in 0..100 {
        let mut chance = TestRng(seed);
        let mut crowd = SimLimit::new(1 + chance.below(12) as usize);
        for _ in 0..300 {
            crowd.arrive(chance.flow_key());
        }
        let mut since: HashMap<u64, HashMap<u64, usize>> = HashMap::new();
        while !crowd.held.is_empty() {
            let nth = chance.below(crowd.held.len() as u64) as usize;
            crowd.release(nth);
            for served in crowd.grant_waiters() {
                let client = served.0[0];
                since.insert(client, HashMap::new());
                for (waiting, others) in &mut since {
                    if *waiting != client && crowd.queued.iter().any(|(flow, _)| flow.0[0] == *waiting) {
                        let turns = others.entry(client).or_default();
                        *turns += 1;
                        assert!(*turns <= 2, "client {waiting} was passed over, seed {seed}");
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
        let mut crowd = SimLimit::new(4);
        for nth in 0..1000 {
            crowd.arrive(FlowKey([1, nth % agents, nth % paths]));
        }
        crowd.arrive(FlowKey([2, 0, 0]));
        crowd.release(0);
        let first = crowd.grant_waiters();
        crowd.release(0);
        let second = crowd.grant_waiters();
        assert!(first.iter().chain(&second).any(|flow| flow.0[0] == 2), "{first:?} {second:?}");
    }
}

#[test]
fn agents_and_endpoints_of_a_client_are_served_in_turns() {
    for late in [FlowKey([1, 2, 1]), FlowKey([1, 1, 2])] {
        let mut crowd = SimLimit::new(1);
        for _ in 0..100 {
            crowd.arrive(FlowKey([1, 1, 1]));
        }
        crowd.arrive(late);
        let mut served = Vec::new();
        for _ in 0..2 {
            crowd.release(0);
            served.append(&mut crowd.grant_waiters());
        }
        assert!(served.contains(&late), "{served:?}");
    }
}

#[test]
fn floods_that_hold_permits_leave_one_to_the_next_client() {
    for total in [64, 256, 2048] {
        let mut crowd = SimLimit::new(total);
        for client in 0..2 {
            for _ in 0..total {
                crowd.arrive(FlowKey([client, 0, 0]));
            }
        }
        assert!(crowd.available() > 0, "all {total} are gone");
        assert!(crowd.held.len() * 10 >= total * 9, "only {} of {total} serve", crowd.held.len());
        crowd.arrive(FlowKey([9, 0, 0]));
        assert_eq!(crowd.held.last(), Some(&FlowKey([9, 0, 0])));
    }
}
