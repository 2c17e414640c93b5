//! The paths that accepted a token. A refusal by one of these means that the token was voided; a path that never
//! accepted it may refuse every token.

use std::{
    hash::BuildHasher,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use foldhash::fast::RandomState;

/// The first paths of a token. Most programs call no more, and very many tokens may be alive.
const INLINE_PATHS: usize = 4;
/// Further paths kept per token; one more replaces another.
const MORE_PATHS: usize = 128;
/// Set in the entry of a path that refused the token after it had accepted it.
const REFUSED_BIT: u32 = 1;

/// An upstream path as a hash, seeded per process so that callers cannot construct collisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathKey(u32);

impl PathKey {
    /// The key of a normalized path without a query.
    #[inline]
    pub fn from_path(path: &str) -> Self {
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        // Bit 0 is `REFUSED_BIT`; bit 1 keeps the key from being 0, which marks an empty entry.
        Self((STATE.hash_one(path) as u32 & !REFUSED_BIT) | 2)
    }

    /// The index at which probing starts.
    #[inline]
    fn home_index(self) -> usize {
        (self.0 >> 2) as usize % MORE_PATHS
    }

    /// Linear probing over all entries: a shorter probe would evict a path while other entries are free, and its
    /// refusals would be throttled as if it had never accepted the token.
    fn probe_indices(self) -> impl Iterator<Item = usize> {
        let start = self.home_index();
        (0..MORE_PATHS).map(move |nth| (start + nth) % MORE_PATHS)
    }
}

/// A bounded set of paths.
#[derive(Debug, Default)]
pub(super) struct AcceptedPaths {
    few: [AtomicU32; INLINE_PATHS],
    /// The paths for which there was no place among the few.
    more: OnceLock<Box<[AtomicU32; MORE_PATHS]>>,
}

impl AcceptedPaths {
    /// Records that this path accepted the token.
    #[inline]
    pub(super) fn mark_accepted(&self, path: PathKey) {
        // Only these entries are checked inline; a displaced path, or one that refused, is probed for.
        let is_path = |entry: &AtomicU32| entry.load(Ordering::Relaxed) == path.0;
        let home = || self.more.get().is_some_and(|more| is_path(&more[path.home_index()]));
        if !self.few.iter().any(is_path) && !home() {
            self.insert(path);
        }
    }

    #[cold]
    fn insert(&self, path: PathKey) {
        for entry in &self.few {
            let _ = entry.compare_exchange(0, path.0, Ordering::Relaxed, Ordering::Relaxed);
            if entry.load(Ordering::Relaxed) & !REFUSED_BIT == path.0 {
                return entry.store(path.0, Ordering::Relaxed);
            }
        }
        let more = self.more.get_or_init(|| Box::new([const { AtomicU32::new(0) }; MORE_PATHS]));
        more[probe(more, path).unwrap_or(path.home_index())].store(path.0, Ordering::Relaxed);
    }

    /// Records that this path refused the token.
    pub(super) fn mark_refused(&self, path: PathKey) {
        if let Some(entry) = self.find_entry(path) {
            entry.store(path.0 | REFUSED_BIT, Ordering::Relaxed);
        }
    }

    /// Whether this path ever accepted the token.
    pub(super) fn was_ever_accepted(&self, path: PathKey) -> bool {
        self.find_entry(path).is_some()
    }

    /// Whether this path's last verdict was to accept the token.
    pub(super) fn is_accepted(&self, path: PathKey) -> bool {
        self.find_entry(path).is_some_and(|entry| entry.load(Ordering::Relaxed) == path.0)
    }

    fn find_entry(&self, path: PathKey) -> Option<&AtomicU32> {
        let is_path = |entry: &&AtomicU32| entry.load(Ordering::Relaxed) & !REFUSED_BIT == path.0;
        self.few.iter().find(is_path).or_else(|| {
            let more = self.more.get()?;
            Some(&more[probe(more, path)?]).filter(is_path)
        })
    }
}

/// The index of this path, or else of the first empty entry; entries are never emptied again. `None` if other
/// paths fill all entries.
fn probe(entries: &[AtomicU32; MORE_PATHS], path: PathKey) -> Option<usize> {
    path.probe_indices().find(|index| {
        let key = entries[*index].load(Ordering::Relaxed) & !REFUSED_BIT;
        key == path.0 || key == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_paths_distinguish_accepted_from_never_seen() {
        let (paths, user, list) =
            (AcceptedPaths::default(), PathKey::from_path("/user"), PathKey::from_path("/list"));
        paths.mark_refused(user);
        assert!(!paths.was_ever_accepted(user) && !paths.is_accepted(user));
        paths.mark_accepted(user);
        assert!(paths.was_ever_accepted(user) && paths.is_accepted(user) && !paths.was_ever_accepted(list));
        paths.mark_refused(user);
        assert!(paths.was_ever_accepted(user) && !paths.is_accepted(user));
        paths.mark_accepted(user);
        assert!(paths.is_accepted(user));
    }

    #[test]
    fn accepted_paths_when_full_keep_the_newest() {
        let paths = AcceptedPaths::default();
        for nth in 0..1_000 {
            let path = PathKey::from_path(&format!("/cgi-bin/{nth}"));
            paths.mark_accepted(path);
            assert!(paths.is_accepted(path));
        }
        let kept =
            (0..1_000).filter(|nth| paths.was_ever_accepted(PathKey::from_path(&format!("/cgi-bin/{nth}"))));
        assert!(kept.count() <= INLINE_PATHS + MORE_PATHS);
    }

    #[test]
    fn paths_up_to_the_bound_are_all_kept() {
        let paths = AcceptedPaths::default();
        let paths_to_keep: Vec<_> = (0..INLINE_PATHS + MORE_PATHS)
            .map(|nth| PathKey::from_path(&format!("/cgi-bin/{nth}")))
            .collect();
        paths_to_keep.iter().for_each(|path| paths.mark_accepted(*path));
        let lost = paths_to_keep.iter().filter(|path| !paths.was_ever_accepted(**path)).count();
        assert_eq!(lost, 0);
    }
}
