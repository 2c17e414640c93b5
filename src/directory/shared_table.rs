//! A hash table whose copies share what they have in common, so that a change copies a few entries however many there
//! are. Not a persistent map of a crate: lookups are on the path of each request, and here they cost two loads more than
//! in a plain hash table.

use std::{array, sync::Arc};

use hashbrown::HashTable;

/// Shards of a group, and groups of a table. With 100,000 entries, a shard has 24.
const FANOUT: usize = 64;

type Shard<T> = Arc<HashTable<T>>;
type Group<T> = Arc<[Shard<T>; FANOUT]>;

/// Entries by their hashes. A clone shares all of them; a change of the clone copies one shard.
#[derive(Clone)]
pub(super) struct SharedTable<T> {
    groups: Arc<[Group<T>; FANOUT]>,
    len: usize,
}

impl<T> Default for SharedTable<T> {
    fn default() -> Self {
        let shard: Shard<T> = Arc::default();
        let group: Group<T> = Arc::new(array::from_fn(|_| shard.clone()));
        Self { groups: Arc::new(array::from_fn(|_| group.clone())), len: 0 }
    }
}

impl<T: Clone> SharedTable<T> {
    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// An entry with this hash for which `is_match` is true.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_match: impl FnMut(&T) -> bool) -> Option<&T> {
        self.shard(hash).find(hash, is_match)
    }

    /// All entries with this hash, and perhaps others.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = &T> {
        self.shard(hash).iter_hash(hash)
    }

    /// Adds an entry; one that is equal stays, too. `hasher` returns the hash of an entry.
    pub(super) fn insert(&mut self, entry: T, hasher: impl Fn(&T) -> u64) {
        let hash = hasher(&entry);
        self.shard_mut(hash).insert_unique(hash, entry, hasher);
        self.len += 1;
    }

    /// Removes an entry with this hash for which `is_match` is true.
    pub(super) fn remove(&mut self, hash: u64, is_match: impl Fn(&T) -> bool) {
        // A shard without such an entry is not copied.
        if self.find(hash, &is_match).is_none() {
            return;
        }
        if let Ok(entry) = self.shard_mut(hash).find_entry(hash, is_match) {
            entry.remove();
            self.len -= 1;
        }
    }

    #[inline]
    fn shard(&self, hash: u64) -> &HashTable<T> {
        let (group, shard) = indices(hash);
        &self.groups[group][shard]
    }

    fn shard_mut(&mut self, hash: u64) -> &mut HashTable<T> {
        let (group, shard) = indices(hash);
        Arc::make_mut(&mut Arc::make_mut(&mut Arc::make_mut(&mut self.groups)[group])[shard])
    }
}

/// Group and shard, by bits from the middle of the hash: a shard uses those at both ends.
#[inline]
fn indices(hash: u64) -> (usize, usize) {
    ((hash >> 32) as usize % FANOUT, (hash >> 40) as usize % FANOUT)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, hash::BuildHasher};

    use foldhash::fast::FixedState;
    use proptest::prelude::*;

    use super::*;

    fn hash(entry: &u16) -> u64 {
        FixedState::default().hash_one(entry)
    }

    fn contains(table: &SharedTable<u16>, entry: u16) -> bool {
        table.find(hash(&entry), |other| *other == entry).is_some()
    }

    proptest! {
        #[test]
        fn table_is_a_set_and_its_copies_are_independent(
            changes in prop::collection::vec((any::<bool>(), 0u16..300), 0..400),
            copied_at in 0usize..400,
        ) {
            let (mut table, mut model) = (SharedTable::default(), BTreeSet::new());
            let mut copy = (table.clone(), model.clone());
            for (nth, (add, entry)) in changes.into_iter().enumerate() {
                if nth == copied_at {
                    copy = (table.clone(), model.clone());
                }
                if !add {
                    model.remove(&entry);
                    table.remove(hash(&entry), |other| *other == entry);
                } else if model.insert(entry) {
                    table.insert(entry, hash);
                }
            }
            for (table, model) in [(table, model), copy] {
                prop_assert_eq!(table.len(), model.len());
                for entry in 0..300 {
                    prop_assert_eq!(contains(&table, entry), model.contains(&entry), "{}", entry);
                }
            }
        }
    }

    #[test]
    fn change_of_a_copy_copies_one_shard() {
        let mut table = SharedTable::default();
        for entry in 0..50_000u16 {
            table.insert(entry, hash);
        }
        let mut copy = table.clone();
        copy.insert(50_000, hash);
        let changed = |(left, right): (&Group<u16>, &Group<u16>)| {
            left.iter().zip(right.iter()).filter(|(left, right)| !Arc::ptr_eq(left, right)).count()
        };
        let changed: usize = table.groups.iter().zip(copy.groups.iter()).map(changed).sum();
        assert_eq!(changed, 1);
        let largest = table.groups.iter().flat_map(|group| group.iter()).map(|shard| shard.len()).max();
        assert!(largest < Some(64), "{largest:?}");
        assert!(contains(&copy, 50_000) && !contains(&table, 50_000));
    }
}
