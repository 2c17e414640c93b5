//! What outlives a slot: a configuration that changes to and fro must not make of each change a first try.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{Backoff, Credentials};

/// What the slots before did.
#[derive(Default)]
pub(super) struct Past(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The failures of credentials, by a name that says nothing of them.
    failures: HashMap<String, Backoff>,
}

impl Past {
    /// The failures of these credentials in another slot.
    pub(super) fn failures(&self, credentials: &Credentials, now: Instant) -> Backoff {
        let known = self.known();
        if known.failures.is_empty() {
            return Backoff::default();
        }
        let failures = known.failures.get(&name(credentials));
        failures.filter(|failures| !failures.is_over(now)).cloned().unwrap_or_default()
    }

    /// Takes note of how these credentials stand now.
    pub(super) fn note(&self, credentials: &Credentials, backoff: &Backoff, now: Instant) {
        let mut known = self.known();
        if known.failures.is_empty() && backoff.is_over(now) {
            return;
        }
        known.failures.insert(name(credentials), backoff.clone());
        known.failures.retain(|_, failures| !failures.is_over(now));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(credentials: &Credentials) -> String {
    credentials.name_in_store("failures")
}
