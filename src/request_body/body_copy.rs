//! A copy of the beginning of a body.

use std::mem;

use super::budget::{ReplayBudget, Reservation};

/// Size of the first allocation.
const MIN_CAPACITY: usize = 1024;

/// A copy of the beginning of a body, whose memory counts as that of the replay buffers.
pub struct BodyCopy {
    bytes: Vec<u8>,
    reservation: Reservation,
}

impl BodyCopy {
    /// An empty copy.
    pub fn new(budget: &ReplayBudget) -> Self {
        Self { bytes: Vec::new(), reservation: Reservation::empty(&budget.memory) }
    }

    /// What was copied.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes what was copied out; it no longer counts.
    pub fn take(&mut self) -> Vec<u8> {
        self.reservation.shrink_to(0);
        mem::take(&mut self.bytes)
    }

    /// Appends a part; false if it does not fit into the budget, which empties the copy.
    pub fn extend(&mut self, part: &[u8]) -> bool {
        let wanted = self.bytes.len() + part.len();
        if wanted > self.bytes.capacity() {
            let capacity = wanted.next_power_of_two().max(MIN_CAPACITY);
            if !self.reservation.try_grow_to(capacity as u64) {
                self.take();
                return false;
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(part);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_takes_memory_of_the_budget_and_gives_up_without() {
        let budget = ReplayBudget::new(4096, 0, std::env::temp_dir());
        let mut first = BodyCopy::new(&budget);
        assert!(first.extend(b"a") && first.extend(&[b'b'; 1024]));
        assert_eq!((first.bytes().len(), first.bytes.capacity(), budget.memory_used()), (1025, 2048, 2048));
        let mut second = BodyCopy::new(&budget);
        assert!(second.extend(&[b'c'; 2048]) && !second.extend(b"c"));
        assert_eq!((second.bytes(), second.bytes.capacity(), budget.memory_used()), (&b""[..], 0, 2048));
        assert!(first.extend(&[b'd'; 2000]));
        drop((first, second));
        assert_eq!(budget.memory_used(), 0);
    }
}
