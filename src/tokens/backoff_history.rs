//! What outlives a slot: a configuration that changes to and fro must not make of each change a first try.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{Backoff, Credentials};

/// What the slots before did.
#[derive(Default)]
pub(super) struct BackoffHistory(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// The failures of credentials, by a name that says nothing of them.
    backoffs: HashMap<String, Backoff>,
}

impl BackoffHistory {
    /// The failures of these credentials in another slot.
    pub(super) fn lookup(&self, credentials: &Credentials, now: Instant) -> Backoff {
        let known = self.lock();
        if known.backoffs.is_empty() {
            return Backoff::default();
        }
        let failures = known.backoffs.get(&history_key(credentials));
        failures.filter(|failures| !failures.is_expired(now)).cloned().unwrap_or_default()
    }

    /// Takes note of how these credentials stand now.
    pub(super) fn record(&self, credentials: &Credentials, backoff: &Backoff, now: Instant) {
        let mut known = self.lock();
        if known.backoffs.is_empty() && backoff.is_expired(now) {
            return;
        }
        known.backoffs.insert(history_key(credentials), backoff.clone());
        known.backoffs.retain(|_, failures| !failures.is_expired(now));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn history_key(credentials: &Credentials) -> String {
    credentials.store_name("failures")
}
