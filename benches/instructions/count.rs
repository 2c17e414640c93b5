//! What is counted and what is not. Callgrind is told these two functions by name, and so they must stay functions, with
//! nothing of them inlined, and no other function's name may contain theirs.

use std::hint::black_box;

/// Counting is on in here, unless it is off further in.
pub const COUNTED: &str = "rounds_that_count";
/// Counting is off in here.
pub const LEFT_OUT: &str = "is_left_out_of_it";

/// Rounds before counting begins: what happens once, such as the first growth of a buffer, is no part's cost.
const WARM_UP: u32 = 20;

/// Names of parts in the order in which they were counted, with their rounds.
#[derive(Default)]
pub struct Counter(Vec<(&'static str, u32)>);

impl Counter {
    /// Has a part done so many times.
    pub fn count<T>(&mut self, name: &'static str, rounds: u32, mut round: impl FnMut() -> T) {
        let mut round = || _ = black_box(round());
        for _ in 0..WARM_UP {
            round();
        }
        rounds_that_count(rounds, &mut round);
        self.0.push((name, rounds));
    }

    /// The parts so far.
    pub fn parts(&self) -> &[(&'static str, u32)] {
        &self.0
    }
}

#[inline(never)]
fn rounds_that_count(rounds: u32, round: &mut dyn FnMut()) {
    for _ in 0..rounds {
        round();
    }
    // What follows the last call keeps it from becoming a jump, which callgrind would not see come back.
    black_box(rounds);
}

/// Does what a part needs and what is not its cost.
pub fn aside<T>(make: impl FnOnce() -> T) -> T {
    let (mut make, mut made) = (Some(make), None);
    is_left_out_of_it(&mut || made = make.take().map(|make| make()));
    made.expect("it was called once")
}

#[inline(never)]
fn is_left_out_of_it(call: &mut dyn FnMut()) {
    call();
    black_box(());
}
