//! Chance that can be repeated.

use std::sync::{Mutex, PoisonError};

pub(in super::super) struct Chance(u64);

impl Chance {
    pub(in super::super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another that does not depend on how often this one is asked later.
    pub(in super::super) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(in super::super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(in super::super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub(in super::super) fn shared(self) -> Shared {
        Shared(Mutex::new(self))
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

pub(in super::super) struct Shared(Mutex<Chance>);

impl Shared {
    /// From 0 to 1.
    pub(in super::super) fn unit(&self) -> f64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).below(1_001) as f64 / 1_000.0
    }
}
