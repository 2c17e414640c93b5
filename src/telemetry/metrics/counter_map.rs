//! How often each of a few numbers came.

/// Counts by number: few of them, of which the first is the most frequent, and so found by looking.
#[derive(Debug, Clone)]
pub(super) struct CounterMap<N> {
    entries: Vec<(N, u64)>,
    /// Those for which there was no room.
    other: u64,
}

impl<N> Default for CounterMap<N> {
    fn default() -> Self {
        Self { entries: Vec::new(), other: 0 }
    }
}

impl<N: Copy + Ord> CounterMap<N> {
    /// Counts `more` of a number, as another one where `most` are known already.
    pub(super) fn add(&mut self, number: N, more: u64, most: usize) {
        match self.entries.iter().position(|(known, _)| *known == number) {
            Some(place) => self.entries[place].1 += more,
            None if self.entries.len() < most => self.entries.push((number, more)),
            None => self.other += more,
        }
    }

    /// Counts all that others have.
    pub(super) fn merge(&mut self, others: &Self, most: usize) {
        for (number, count) in &others.entries {
            self.add(*number, *count, most);
        }
        self.other += others.other;
    }

    /// Each number and its count, in order; `None` stands for all that had no room.
    pub(super) fn sorted(&self) -> impl Iterator<Item = (Option<N>, u64)> {
        let mut each = self.entries.clone();
        each.sort_unstable();
        let other = (self.other > 0).then_some((None, self.other));
        each.into_iter().map(|(number, count)| (Some(number), count)).chain(other)
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
