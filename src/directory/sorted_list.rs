//! A sorted list whose copies share what they have in common, so that a change copies one chunk and the list of chunks.

use std::{cmp::Ordering, sync::Arc};

/// Longest chunk; a longer one is split.
const MAX_CHUNK: usize = 512;

type Chunk<T> = Arc<Vec<Arc<T>>>;

/// Shared entries in the order of `compare`, which differ in it.
pub(super) struct SortedList<T> {
    /// None is empty.
    chunks: Arc<Vec<Chunk<T>>>,
    compare: fn(&T, &T) -> Ordering,
}

impl<T> Clone for SortedList<T> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), compare: self.compare }
    }
}

impl<T> SortedList<T> {
    pub(super) fn new(compare: fn(&T, &T) -> Ordering) -> Self {
        Self { chunks: Arc::default(), compare }
    }

    /// All entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The entries from the first one on for which `is_before` is false; it is true for those before it.
    pub(super) fn iter_from(&self, is_before: impl Fn(&T) -> bool) -> impl Iterator<Item = &Arc<T>> {
        let first = self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| is_before(last)));
        let chunks = &self.chunks[first..];
        let skipped = chunks.first().map_or(0, |chunk| chunk.partition_point(|entry| is_before(entry)));
        chunks.iter().flat_map(|chunk| chunk.iter()).skip(skipped)
    }

    /// Inserts an entry, in place of the one that compares as equal.
    pub(super) fn insert(&mut self, entry: Arc<T>) {
        let compare = self.compare;
        let chunks = Arc::make_mut(&mut self.chunks);
        let is_before = |other: &T| compare(other, &entry) == Ordering::Less;
        let mut nth = chunks.partition_point(|chunk| chunk.last().is_some_and(|last| is_before(last)));
        // Sorted entries fill chunk after chunk.
        if nth == chunks.len() {
            match chunks.last() {
                Some(last) if last.len() < MAX_CHUNK => nth -= 1,
                _ => chunks.push(Arc::default()),
            }
        }
        let chunk = Arc::make_mut(&mut chunks[nth]);
        let at = chunk.partition_point(|other| is_before(other));
        match chunk.get_mut(at) {
            Some(other) if compare(other, &entry) == Ordering::Equal => *other = entry,
            _ => chunk.insert(at, entry),
        }
        if chunk.len() > MAX_CHUNK {
            let rest = chunk.split_off(MAX_CHUNK / 2);
            chunks.insert(nth + 1, Arc::new(rest));
        }
    }

    /// Removes the entry that compares as equal.
    pub(super) fn remove(&mut self, entry: &T) {
        let compare = self.compare;
        let is_before = |other: &T| compare(other, entry) == Ordering::Less;
        let nth = self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| is_before(last)));
        let Some(chunk) = self.chunks.get(nth) else { return };
        let at = chunk.partition_point(|other| is_before(other));
        if chunk.get(at).is_none_or(|other| compare(other, entry) != Ordering::Equal) {
            return;
        }
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks[nth].len() == 1 {
            chunks.remove(nth);
        } else {
            Arc::make_mut(&mut chunks[nth]).remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn items(list: &SortedList<u16>) -> Vec<u16> {
        list.iter().map(|entry| **entry).collect()
    }

    proptest! {
        #[test]
        fn list_is_a_sorted_set_and_its_copies_are_independent(
            changes in prop::collection::vec((0u8..5, 0u16..2000), 0..3000),
            copied_at in 0usize..3000,
            from in 0u16..2000,
        ) {
            let (mut list, mut model) = (SortedList::new(u16::cmp), BTreeSet::new());
            let mut copy = (list.clone(), model.clone());
            for (nth, (kind, entry)) in changes.into_iter().enumerate() {
                if nth == copied_at {
                    copy = (list.clone(), model.clone());
                }
                if kind == 0 {
                    list.remove(&entry);
                    model.remove(&entry);
                } else {
                    list.insert(Arc::new(entry));
                    model.insert(entry);
                }
            }
            for (list, model) in [(list, model), copy] {
                prop_assert_eq!(items(&list), model.iter().copied().collect::<Vec<_>>());
                let rest = list.iter_from(|entry| *entry < from).map(|entry| **entry);
                prop_assert_eq!(rest.collect::<Vec<_>>(), model.range(from..).copied().collect::<Vec<_>>());
                prop_assert!(list.chunks.iter().all(|chunk| (1..=MAX_CHUNK).contains(&chunk.len())));
            }
        }
    }

    #[test]
    fn sorted_entries_fill_their_chunks() {
        let mut list = SortedList::new(u32::cmp);
        (0..100_000).for_each(|entry| list.insert(Arc::new(entry)));
        assert_eq!(list.chunks.len(), 100_000usize.div_ceil(MAX_CHUNK));
        (0..100_000).for_each(|entry| list.remove(&entry));
        assert!(list.chunks.is_empty());
    }
}
