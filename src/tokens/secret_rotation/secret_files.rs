//! Secrets from files, read again after WeCom refused one.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::Instant;

use super::{MAX_FORMER_SECRETS, SecretRotation};
use crate::{
    blocking, config,
    secret::Masked,
    tokens::{Credentials, passes::MAX_AGE},
};

impl SecretRotation {
    /// Reads the files of the secrets again. Returns whether one has another secret now, which then is the preferred one.
    pub(super) async fn read_files_again(self: &Arc<Self>) -> bool {
        let files: Vec<_> = {
            let state = self.state.lock();
            let files = state.secrets.iter().map(|secret| secret.file.clone()).enumerate();
            files.filter_map(|(nth, file)| Some((nth, file?))).collect()
        };
        if files.is_empty() {
            return false;
        }
        let read = move || {
            let read = |(nth, file): (usize, PathBuf)| (nth, config::read_secret_again(&file));
            files.into_iter().map(read).collect::<Vec<_>>()
        };
        let Ok(read) = blocking::spawn(read).await else { return false };
        let mut changed = None;
        for (nth, secret) in read {
            match secret {
                Ok(secret) => changed = changed.or(self.replace_secret(nth, secret).then_some(nth)),
                Err(reason) => {
                    let agent = self.agent_name.as_str();
                    tracing::warn!(
                        agent,
                        reason = reason.english(),
                        "secret file could not be read again, keeping the secret"
                    );
                }
            }
        }
        if let Some(changed) = changed {
            self.state.lock().preferred = changed;
            tracing::info!(agent = self.agent_name.as_str(), secret = changed + 1, "secret file has changed");
        }
        changed.is_some()
    }

    /// Puts the secret that was read from a file in place of the one before; returns whether it is another one.
    fn replace_secret(self: &Arc<Self>, nth: usize, secret: Masked) -> bool {
        let Some(cache) = self.cache.upgrade() else { return false };
        let before = self.state.lock().secrets[nth].entry.credentials().clone();
        if before.secret == secret {
            return false;
        }
        let credentials = Credentials { secret, ..before };
        let entry = cache.entry(self.agent_name.clone(), credentials, true);
        entry.add_rotation(self);
        let (mut state, now) = (self.state.lock(), Instant::now());
        let before = std::mem::replace(&mut state.secrets[nth].entry, entry);
        state.former.retain(|(_, until)| now < *until);
        state.former.insert(0, (before, now + MAX_AGE));
        state.former.truncate(MAX_FORMER_SECRETS);
        self.has_changed_files.store(true, Ordering::Relaxed);
        cache.has_changed_secret_files().store(true, Ordering::Relaxed);
        true
    }
}
