//! Long work in slices, between which other threads get the CPU.
//!
//! Between its ticks, up to 4 ms apart, Linux chooses a thread only when one wakes up, sleeps or yields. Where a third
//! thread goes to sleep, it may choose a thread of the lowest priority although a worker is runnable. So that one has to
//! yield; and so has a thread of the ordinary priority.

use std::{
    cell::Cell,
    collections::BTreeMap,
    ops::{
        Bound::{Excluded, Unbounded},
        DerefMut,
    },
    thread,
    time::{Duration, Instant},
};

/// Entries of a slice that take up to a microsecond each: less time than a request.
const MAX_SLICE: usize = 64;
/// Longest time after a yield without another one.
const MAX_UNYIELDED: Duration = Duration::from_micros(500);

#[cfg(test)]
thread_local! {
    static YIELDS: Cell<usize> = const { Cell::new(0) };
}

/// How often this thread has reached the end of a slice.
#[cfg(test)]
pub(crate) fn yields() -> usize {
    YIELDS.get()
}

thread_local! {
    /// Whether the thread has nothing but such work. The thread of a runtime has other tasks too, such as token refreshes.
    static MAY_YIELD: Cell<bool> = const { Cell::new(false) };
    /// Before this, the thread does not yield again.
    static NEXT_YIELD: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Lets [`yield_cpu`] yield on this thread.
pub(super) fn allow_yields() {
    MAY_YIELD.set(true);
}

/// Lets a thread that waits for this CPU run, if this thread is one of those for long work. Not to be called while a lock
/// is held that a worker or a token refresh needs.
pub(crate) fn yield_cpu() {
    #[cfg(test)]
    YIELDS.with(|yields| yields.set(yields.get() + 1));
    if !MAY_YIELD.get() {
        return;
    }
    let begun_at = Instant::now();
    if NEXT_YIELD.get().is_none_or(|next| begun_at >= next) {
        thread::yield_now();
        NEXT_YIELD.set(Some(next_yield(begun_at, Instant::now())));
    }
}

/// Where others take all CPU time, each yield lasts as long as they are due, so that the work would never end.
fn next_yield(begun_at: Instant, ended_at: Instant) -> Instant {
    ended_at + (ended_at - begun_at).min(MAX_UNYIELDED)
}

/// These items, with the CPU yielded after each `length` of them.
pub(crate) fn in_slices_of<I: IntoIterator>(length: usize, items: I) -> impl Iterator<Item = I::Item> {
    let mut left = length;
    items.into_iter().inspect(move |_| {
        left -= 1;
        if left == 0 {
            left = length;
            yield_cpu();
        }
    })
}

/// The same for items that take up to a microsecond.
pub(crate) fn in_slices<I: IntoIterator>(items: I) -> impl Iterator<Item = I::Item> {
    in_slices_of(MAX_SLICE, items)
}

/// Visits all entries of a map that others lock too: it is locked for [`MAX_SLICE`] of them at a time.
pub(crate) fn visit_in_slices<K: Ord + Clone, V, G: DerefMut<Target = BTreeMap<K, V>>>(
    lock: impl Fn() -> G,
    mut visit: impl FnMut(&K, &mut V),
) {
    let mut last = None;
    loop {
        let mut map = lock();
        let after = last.as_ref().map_or(Unbounded, Excluded);
        let (mut visited, mut key) = (0, None);
        for (next, value) in map.range_mut((after, Unbounded)).take(MAX_SLICE) {
            visit(next, value);
            (visited, key) = (visited + 1, Some(next));
        }
        last = key.cloned();
        drop(map);
        if visited < MAX_SLICE {
            return;
        }
        yield_cpu();
    }
}

/// What `copy` makes of all entries of a map, which is locked as in [`visit_in_slices`].
pub(crate) fn copy_in_slices<K: Ord + Clone, V, T, G: DerefMut<Target = BTreeMap<K, V>>>(
    lock: impl Fn() -> G,
    copy: impl Fn(&K, &V) -> T,
) -> Vec<T> {
    let mut copies = Vec::new();
    visit_in_slices(lock, |key, value| copies.push(copy(key, value)));
    copies
}

/// Removes the entries for whose keys `keep` is false from a map that others lock too. It is locked for [`MAX_SLICE`] of
/// them at a time, and not while `keep` runs.
pub(crate) fn retain_in_slices<K: Ord + Clone, V, G: DerefMut<Target = BTreeMap<K, V>>>(
    lock: impl Fn() -> G,
    keep: impl Fn(&K) -> bool,
) {
    let keys = copy_in_slices(&lock, |key, _| key.clone());
    let gone: Vec<_> = in_slices(keys).filter(|key| !keep(key)).collect();
    for slice in gone.chunks(MAX_SLICE) {
        let mut map = lock();
        for key in slice {
            map.remove(key);
        }
        drop(map);
        yield_cpu();
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn yields_of(work: impl FnOnce()) -> usize {
        let before = yields();
        work();
        yields() - before
    }

    #[test]
    fn yields_are_no_longer_than_the_work_between_them_within_a_bound() {
        let begun_at = Instant::now();
        for (lasts_us, works_us) in [(0, 0), (30, 30), (500, 500), (4_000, 500)] {
            let ended_at = begun_at + Duration::from_micros(lasts_us);
            assert_eq!(next_yield(begun_at, ended_at), ended_at + Duration::from_micros(works_us));
        }
    }

    #[test]
    fn only_threads_of_long_work_yield() {
        yield_cpu();
        assert!(NEXT_YIELD.get().is_none());
        allow_yields();
        yield_cpu();
        assert!(NEXT_YIELD.get().is_some());
    }

    #[test]
    fn cpu_is_yielded_after_each_slice() {
        let items = || 0..10;
        assert_eq!(yields_of(|| assert!(in_slices_of(3, items()).eq(items()))), 3);
        assert_eq!(yields_of(|| assert_eq!(in_slices(0..MAX_SLICE - 1).count(), MAX_SLICE - 1)), 0);
    }

    /// Counts how often it is locked, and fails if the map is locked while `keep` runs.
    #[test]
    fn map_is_locked_for_a_slice_at_a_time() {
        const ENTRIES: usize = 10 * MAX_SLICE;
        let map = Mutex::new((0..ENTRIES).map(|key| (key, ())).collect::<BTreeMap<_, _>>());
        let locks = Cell::new(0);
        let lock = || {
            locks.set(locks.get() + 1);
            map.try_lock().expect("not locked")
        };
        let copied = yields_of(|| assert!(copy_in_slices(lock, |key, ()| *key).into_iter().eq(0..ENTRIES)));
        assert_eq!((copied, locks.replace(0)), (10, 11));
        let keep = |key: &usize| {
            assert!(!map.is_locked());
            key.is_multiple_of(4)
        };
        retain_in_slices(lock, keep);
        assert!(map.lock().keys().copied().eq((0..ENTRIES).step_by(4)));
        let removed = ENTRIES * 3 / 4;
        assert_eq!(locks.get(), 11 + removed.div_ceil(MAX_SLICE));
    }

    #[test]
    fn entries_inserted_meanwhile_do_not_end_the_copy() {
        let map = Mutex::new((0..3 * MAX_SLICE).map(|key| (2 * key, ())).collect::<BTreeMap<_, _>>());
        let next = Cell::new(1);
        let lock = || {
            let mut map = map.lock();
            map.insert(next.replace(next.get() + 2), ());
            map.remove(&(next.get() + 3 * MAX_SLICE));
            map
        };
        let copied = copy_in_slices(lock, |key, ()| *key);
        assert!(copied.is_sorted() && copied.last() == Some(&(6 * MAX_SLICE - 2)));
    }
}
