//! The state of an entry, allocated on first use: there can be very many agents, to many of which no request ever goes.

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use super::State;

/// A lock around the state of an entry.
#[derive(Default)]
pub(super) struct LazyState(Mutex<Option<Box<State>>>);

impl LazyState {
    pub(super) fn lock(&self) -> MappedMutexGuard<'_, State> {
        MutexGuard::map(self.0.lock(), |state| &mut **state.get_or_insert_default())
    }

    /// What `read` finds in the state, which is not allocated for that.
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        match self.0.lock().as_deref() {
            Some(state) => read(state),
            None => read(&State::default()),
        }
    }
}
