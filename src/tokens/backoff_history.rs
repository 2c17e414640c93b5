//! Backoff state per credential. Survives reloads, so that toggling a secret does not reset it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{Backoff, Credentials};

/// The backoff states of all credentials, also of removed entries.
#[derive(Default)]
pub(super) struct BackoffHistory(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By a keyed hash of the credentials.
    backoffs: HashMap<String, Backoff>,
}

impl BackoffHistory {
    /// The backoff of these credentials, as an earlier entry left it.
    pub(super) fn lookup(&self, credentials: &Credentials, now: Instant) -> Backoff {
        let history = self.lock();
        if history.backoffs.is_empty() {
            return Backoff::default();
        }
        let backoff = history.backoffs.get(&history_key(credentials));
        backoff.filter(|backoff| !backoff.is_stale(now)).cloned().unwrap_or_default()
    }

    /// Records the current backoff of these credentials.
    pub(super) fn record(&self, credentials: &Credentials, backoff: &Backoff, now: Instant) {
        let mut history = self.lock();
        if history.backoffs.is_empty() && backoff.is_stale(now) {
            return;
        }
        history.backoffs.insert(history_key(credentials), backoff.clone());
        history.backoffs.retain(|_, backoff| !backoff.is_stale(now));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn history_key(credentials: &Credentials) -> String {
    credentials.store_name("failures")
}
