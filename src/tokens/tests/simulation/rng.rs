//! A repeatable random generator.

use parking_lot::Mutex;

pub(in super::super) struct SimRng(u64);

impl SimRng {
    pub(in super::super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator that does not depend on later uses of this one.
    pub(in super::super) fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }

    pub(in super::super) fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    pub(in super::super) fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub(in super::super) fn into_shared(self) -> SimSharedRng {
        SimSharedRng(Mutex::new(self))
    }

    /// SplitMix64.
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

pub(in super::super) struct SimSharedRng(Mutex<SimRng>);

impl SimSharedRng {
    /// From 0 to 1.
    pub(in super::super) fn fraction(&self) -> f64 {
        self.0.lock().below(1_001) as f64 / 1_000.0
    }
}
