//! The state of an entry, allocated only while there is something in it that is not in each token's: there can be very
//! many agents, of which most have a token and no trouble with it.

use std::{
    mem,
    ops::{Deref, DerefMut},
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};

use super::{LastRefresh, RefreshReason, State};
use crate::time::clock::unix_seconds;

/// A lock around the state of an entry.
#[derive(Default)]
pub(super) struct LazyState(Mutex<StoredState>);

#[derive(Default)]
struct StoredState {
    brief: BriefState,
    /// In place of `brief`, if that does not say all.
    whole: Option<Box<State>>,
}

/// The state of a token that was fetched and that nothing has happened to.
#[derive(Default)]
struct BriefState {
    /// When the last refresh ended, in seconds since 1970; 0 if there was none.
    refreshed_at: u32,
    /// Why it was made: its index in [`RefreshReason::ALL`].
    reason: u8,
    proactive_refreshes: u8,
    repeated_after_expiry: bool,
}

/// The locked state, which is stored when this is dropped.
pub(super) struct LockedState<'a> {
    state: State,
    stored: MutexGuard<'a, StoredState>,
}

impl LazyState {
    pub(super) fn lock(&self) -> LockedState<'_> {
        let mut stored = self.0.lock();
        let state = stored.whole.take().map_or_else(|| stored.brief.to_state(), |whole| *whole);
        LockedState { state, stored }
    }

    /// What `read` finds in the state, which is not allocated for that.
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        let stored = self.0.lock();
        match &stored.whole {
            Some(state) => read(state),
            None => read(&stored.brief.to_state()),
        }
    }
}

impl Deref for LockedState<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for LockedState<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for LockedState<'_> {
    fn drop(&mut self) {
        match BriefState::of(&self.state) {
            Some(brief) => self.stored.brief = brief,
            None => self.stored.whole = Some(Box::new(mem::take(&mut self.state))),
        }
    }
}

impl BriefState {
    /// `None` if the state has more to say.
    fn of(state: &State) -> Option<Self> {
        let State {
            refresh,
            backoff,
            cooldown,
            refused_by,
            refresh_started_in_cooldown,
            repeated_after_expiry,
            proactive_refreshes,
            unproven_queue_turn,
            queued_reason,
            last_refresh,
        } = state;
        let is_brief = refresh.is_none()
            && backoff.last_failure().is_none()
            && cooldown.is_none()
            && refused_by.is_empty()
            && !refresh_started_in_cooldown
            && unproven_queue_turn.is_none()
            && queued_reason.is_none();
        let mut brief = Self {
            repeated_after_expiry: *repeated_after_expiry,
            proactive_refreshes: *proactive_refreshes,
            ..Self::default()
        };
        if let Some(LastRefresh { completed_at, reason, error }) = last_refresh {
            let refreshed_at = u32::try_from(unix_seconds(*completed_at)).ok();
            (brief.refreshed_at, brief.reason) = (refreshed_at?, reason.index() as u8);
            if error.is_some() || brief.refreshed_at == 0 {
                return None;
            }
        }
        is_brief.then_some(brief)
    }

    fn to_state(&self) -> State {
        let last_refresh = (self.refreshed_at > 0).then(|| LastRefresh {
            completed_at: SystemTime::UNIX_EPOCH + Duration::from_secs(self.refreshed_at.into()),
            reason: RefreshReason::ALL.get(usize::from(self.reason)).copied().unwrap_or(RefreshReason::First),
            error: None,
        });
        State {
            repeated_after_expiry: self.repeated_after_expiry,
            proactive_refreshes: self.proactive_refreshes,
            last_refresh,
            ..State::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{FetchError, PathKey, cooldown::CooldownScope};
    use tokio::time::Instant;

    #[test]
    fn state_takes_memory_only_while_it_says_more_than_the_last_refresh() {
        let lazy = LazyState::default();
        let is_stored = || lazy.0.lock().whole.is_some();
        let completed_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
        for reason in RefreshReason::ALL {
            let mut state = lazy.lock();
            (state.repeated_after_expiry, state.proactive_refreshes) = (true, 2);
            state.last_refresh = Some(LastRefresh { completed_at, reason, error: None });
            drop(state);
            assert!(!is_stored());
            let (last, flags) = lazy.read(|state| {
                (state.last_refresh.clone(), (state.repeated_after_expiry, state.proactive_refreshes))
            });
            let last = last.expect("the last refresh");
            assert_eq!((last.completed_at, last.reason.as_str()), (completed_at, reason.as_str()));
            assert!(last.error.is_none() && flags == (true, 2));
        }
        let now = Instant::now();
        let changes: [fn(&mut State, Instant); 6] = [
            |state, now| drop(state.backoff.record_failure(now, FetchError::Cancelled, 0.0)),
            |state, now| state.cooldown.start(now, CooldownScope::All, Default::default()),
            |state, _| state.refused_by.insert(PathKey::from_path("/")),
            |state, now| state.unproven_queue_turn = Some(now),
            |state, _| state.queued_reason = Some(RefreshReason::First),
            |state, _| {
                let error = Some("failed".to_owned());
                state.last_refresh = Some(LastRefresh {
                    completed_at: SystemTime::now(),
                    reason: RefreshReason::First,
                    error,
                });
            },
        ];
        for change in changes {
            change(&mut lazy.lock(), now);
            assert!(is_stored());
            *lazy.lock() = State::default();
            assert!(!is_stored() && lazy.read(|state| state.last_refresh.is_none()));
        }
        let (leader, flight) = lazy.lock().refresh.start();
        assert!(is_stored());
        lazy.lock().refresh.complete(&leader, Err(FetchError::Cancelled.into()));
        assert!(!is_stored());
        drop(flight);
    }
}
