//! Counters by number, for a small set of numbers.

/// Maximum of errcodes counted per agent; bounds the number of series, whatever the upstream returns.
pub(super) const MAX_ERRCODES: usize = 64;

/// Counters by number. A linear search is enough: there are not many numbers, and the most frequent one is usually
/// first.
#[derive(Debug, Clone, Default)]
pub(super) struct CounterMap<N> {
    entries: Vec<(N, u64)>,
    /// The count of all numbers beyond the limit.
    other: u64,
}

impl<N: Copy + Ord> CounterMap<N> {
    /// Adds `count` to a number, or to the other numbers if it is new and there are `max` numbers already.
    pub(super) fn add(&mut self, number: N, count: u64, max: usize) {
        match self.entries.iter().position(|(known, _)| *known == number) {
            Some(index) => self.entries[index].1 += count,
            None if self.entries.len() < max => self.entries.push((number, count)),
            None => self.other += count,
        }
    }

    /// Adds the counts of another map.
    pub(super) fn merge(&mut self, other: &Self, max: usize) {
        for (number, count) in &other.entries {
            self.add(*number, *count, max);
        }
        self.other += other.other;
    }

    /// The numbers in order with their counts; `None` is the sum of all numbers beyond the limit.
    pub(super) fn sorted(&self) -> impl Iterator<Item = (Option<N>, u64)> {
        let mut entries = self.entries.clone();
        entries.sort_unstable();
        let other = (self.other > 0).then_some((None, self.other));
        entries.into_iter().map(|(number, count)| (Some(number), count)).chain(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_beyond_limit_are_counted_as_other() {
        let mut counts = CounterMap::default();
        for number in [7, 3, 7, 5, 9, 7, 3] {
            counts.add(number, 1, 2);
        }
        assert_eq!(counts.sorted().collect::<Vec<_>>(), [(Some(3), 2), (Some(7), 3), (None, 2)]);
        let mut more = CounterMap::default();
        more.add(9, 1, 2);
        more.merge(&counts, 2);
        assert_eq!(more.sorted().collect::<Vec<_>>(), [(Some(7), 3), (Some(9), 1), (None, 4)]);
    }
}
