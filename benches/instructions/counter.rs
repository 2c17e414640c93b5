//! What is counted and what is not. Callgrind is told of two functions by name, and so they must stay functions of their
//! own, neither inlined nor generic.

use std::hint::black_box;

/// What switches counting on while it runs, or off if it is on. It is one pattern: of two names that begin alike callgrind
/// forgets one.
pub use self::toggles::ALL as TOGGLES;
/// What is done twice for each part: to warm up, and for good.
pub use self::toggles::COUNTED;

/// Rounds that are counted apart: what happens once, such as the first growth of a buffer, is no part's cost.
const WARM_UP_ROUNDS: u32 = 20;

/// Names of parts in the order in which they were counted, with their rounds.
#[derive(Default)]
pub struct Counter(Vec<(&'static str, u32)>);

impl Counter {
    /// Has a part done so many times.
    pub fn count<T>(&mut self, name: &'static str, rounds: u32, mut round: impl FnMut() -> T) {
        let mut round = || _ = black_box(round());
        for rounds in [WARM_UP_ROUNDS, rounds] {
            toggles::on(rounds, &mut round);
        }
        self.0.push((name, rounds));
    }

    /// The parts so far.
    pub fn parts(&self) -> &[(&'static str, u32)] {
        &self.0
    }
}

/// Does what a part needs and what is not its cost.
pub fn uncounted<T>(make: impl FnOnce() -> T) -> T {
    let (mut make, mut made) = (Some(make), None);
    toggles::off(&mut || made = make.take().map(|make| make()));
    made.expect("it was called once")
}

/// The two functions, and no others. What follows the last call in each keeps it from becoming a jump, which callgrind would
/// not see come back.
mod toggles {
    use std::hint::black_box;

    pub const ALL: &str = concat!(module_path!(), "::*");
    pub const COUNTED: &str = concat!(module_path!(), "::on");

    #[inline(never)]
    pub fn on(rounds: u32, round: &mut dyn FnMut()) {
        for _ in 0..rounds {
            round();
        }
        black_box(());
    }

    #[inline(never)]
    pub fn off(call: &mut dyn FnMut()) {
        call();
        black_box(());
    }
}
