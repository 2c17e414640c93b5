//! Switches counting on and off. Callgrind finds the two toggle functions by name, so they must not be inlined or generic.

use std::hint::black_box;

/// Pattern of the functions on entry and exit of which callgrind toggles counting. It is one pattern, because callgrind
/// ignores the second of two names with a common prefix.
pub use self::toggles::ALL as TOGGLES;
/// The function that runs the rounds of a case. It is called twice per case: to warm up, then to count.
pub use self::toggles::COUNTED;

/// Rounds before the counted ones, so that single events such as the first growth of a buffer are not counted.
const WARM_UP_ROUNDS: u32 = 20;

/// Names of the cases in the order of counting, with their rounds.
#[derive(Default)]
pub struct Counter(Vec<(&'static str, u32)>);

impl Counter {
    /// Counts a case with this number of rounds.
    pub fn count<T>(&mut self, name: &'static str, rounds: u32, mut round: impl FnMut() -> T) {
        let mut round = || _ = black_box(round());
        for rounds in [WARM_UP_ROUNDS, rounds] {
            toggles::on(rounds, &mut round);
        }
        self.0.push((name, rounds));
    }

    /// The cases so far.
    pub fn cases(&self) -> &[(&'static str, u32)] {
        &self.0
    }
}

/// Runs preparation of a case without counting it.
pub fn uncounted<T>(prepare: impl FnOnce() -> T) -> T {
    let (mut prepare, mut prepared) = (Some(prepare), None);
    toggles::off(&mut || prepared = prepare.take().map(|prepare| prepare()));
    prepared.expect("called once")
}

/// The two toggle functions, and no others. The statement after the call prevents a tail call, whose return callgrind would
/// not see.
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
