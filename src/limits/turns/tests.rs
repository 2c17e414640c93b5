//! What holds for every crowd. The crowds are drawn from seeds, so that a failure comes again.

use std::collections::HashMap;

use super::*;

/// Numbers that are the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// The first clients come far more often than the others, as floods do.
    fn flow(&mut self) -> Flow {
        let client = if self.below(4) > 0 { self.below(2) } else { self.below(8) };
        Flow([client, self.below(3), self.below(3)])
    }
}

/// Places as [`super::super::places`] has them, one step after the other.
struct Crowd {
    total: usize,
    turns: Turns<()>,
    held: Vec<Flow>,
    waiting: Vec<(Flow, u64)>,
}

impl Crowd {
    fn new(total: usize) -> Self {
        Self { total, turns: Turns::new(), held: Vec::new(), waiting: Vec::new() }
    }

    fn free(&self) -> usize {
        self.total - self.held.len()
    }

    fn come(&mut self, flow: Flow) {
        if self.turns.may_hold(&flow, self.free()) {
            self.turns.hold(&flow);
            self.held.push(flow);
        } else {
            let number = self.turns.wait(flow, ());
            self.waiting.push((flow, number));
        }
    }

    /// Serves all whose turn it is.
    fn serve(&mut self) -> Vec<Flow> {
        let mut served = Vec::new();
        while self.free() > 0
            && let Some((flow, ())) = self.turns.next(self.free())
        {
            let first = self.waiting.iter().position(|(other, _)| *other == flow).expect("it waited");
            self.waiting.remove(first);
            self.held.push(flow);
            served.push(flow);
        }
        served
    }

    fn leave(&mut self, nth: usize) {
        let flow = self.held.swap_remove(nth);
        self.turns.let_go(&flow);
    }

    fn check(&self) {
        assert!(self.held.len() <= self.total, "more than there are");
        assert_eq!((self.turns.root.held, self.turns.waiting()), (self.held.len(), self.waiting.len()));
        for (flow, _) in &self.waiting {
            assert!(!self.turns.may_hold(flow, self.free()), "{flow:?} waits and need not");
        }
    }
}

#[test]
fn whatever_comes_and_goes_nobody_waits_who_need_not_and_nothing_is_left_behind() {
    for seed in 0..300 {
        let mut chance = Chance(seed);
        let mut crowd = Crowd::new(1 + chance.below(80) as usize);
        for _ in 0..400 {
            match chance.below(8) {
                0..4 => crowd.come(chance.flow()),
                4 if !crowd.waiting.is_empty() => {
                    let nth = chance.below(crowd.waiting.len() as u64) as usize;
                    let (flow, number) = crowd.waiting.remove(nth);
                    assert!(crowd.turns.leave(&flow, number).is_some(), "it waited");
                    assert!(crowd.turns.leave(&flow, number).is_none(), "it waits no longer");
                }
                _ if !crowd.held.is_empty() => {
                    let nth = chance.below(crowd.held.len() as u64) as usize;
                    crowd.leave(nth);
                }
                _ => {}
            }
            crowd.serve();
            crowd.check();
        }
        while !crowd.held.is_empty() {
            crowd.leave(0);
            crowd.serve();
            crowd.check();
        }
        assert!(
            crowd.waiting.is_empty()
                && crowd.turns.root.below.is_empty()
                && crowd.turns.root.order.is_empty()
        );
    }
}

#[test]
fn between_two_turns_of_one_client_no_other_has_more_than_one() {
    for seed in 0..100 {
        let mut chance = Chance(seed);
        let mut crowd = Crowd::new(1 + chance.below(12) as usize);
        for _ in 0..300 {
            crowd.come(chance.flow());
        }
        let mut since: HashMap<u64, HashMap<u64, usize>> = HashMap::new();
        while !crowd.held.is_empty() {
            let nth = chance.below(crowd.held.len() as u64) as usize;
            crowd.leave(nth);
            for served in crowd.serve() {
                let client = served.0[0];
                since.insert(client, HashMap::new());
                for (waiting, others) in &mut since {
                    if *waiting != client && crowd.waiting.iter().any(|(flow, _)| flow.0[0] == *waiting) {
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
fn one_who_comes_after_a_flood_is_served_next_however_long_the_row_is() {
    // Many agents and paths give a flood no more turns.
    for (agents, paths) in [(1, 1), (50, 1), (50, 50)] {
        let mut crowd = Crowd::new(4);
        for nth in 0..1000 {
            crowd.come(Flow([1, nth % agents, nth % paths]));
        }
        crowd.come(Flow([2, 0, 0]));
        crowd.leave(0);
        let first = crowd.serve();
        crowd.leave(0);
        let second = crowd.serve();
        assert!(first.iter().chain(&second).any(|flow| flow.0[0] == 2), "{first:?} {second:?}");
    }
}

#[test]
fn the_same_between_agents_of_one_client_and_between_endpoints_of_one_agent() {
    for late in [Flow([1, 2, 1]), Flow([1, 1, 2])] {
        let mut crowd = Crowd::new(1);
        for _ in 0..100 {
            crowd.come(Flow([1, 1, 1]));
        }
        crowd.come(late);
        let mut served = Vec::new();
        for _ in 0..2 {
            crowd.leave(0);
            served.append(&mut crowd.serve());
        }
        assert!(served.contains(&late), "{served:?}");
    }
}

#[test]
fn floods_that_hold_what_they_get_leave_a_place_to_the_next_client() {
    for total in [64, 256, 2048] {
        let mut crowd = Crowd::new(total);
        for client in 0..2 {
            for _ in 0..total {
                crowd.come(Flow([client, 0, 0]));
            }
        }
        assert!(crowd.free() > 0, "all {total} are gone");
        assert!(crowd.held.len() * 10 >= total * 9, "only {} of {total} serve", crowd.held.len());
        crowd.come(Flow([9, 0, 0]));
        assert_eq!(crowd.held.last(), Some(&Flow([9, 0, 0])));
    }
}
