//! Agents by their secrets.

use std::sync::{Arc, atomic::Ordering};

use super::{Agent, Directory};
use crate::{config::KeyHash, secret::Masked};

impl Directory {
    /// The agents with this corpid and real secret, where secrets are accepted; looked up by hash and compared
    /// in constant time.
    pub fn agents_by_secret<'a>(
        &'a self,
        corpid: &'a str,
        secret: &str,
    ) -> impl Iterator<Item = &'a Arc<Agent>> + use<'a> {
        let agents = self.agents_with_credentials(corpid, secret);
        agents.filter(|agent| self.is_open || agent.settings.accept_secret)
    }

    /// The agents with this corpid and real secret; compared in constant time.
    pub fn agents_with_credentials<'a>(
        &'a self,
        corpid: &'a str,
        secret: &str,
    ) -> impl Iterator<Item = &'a Arc<Agent>> + use<'a> {
        let hash = secret_hash(corpid, secret);
        let known = self.agents_by_secret.candidates(self.hash(hash.as_bytes()));
        let known = known.filter(move |(known, _)| *known == hash).map(|(_, agent)| agent);
        // A file that was read again may have a secret that is not in the table, or have one no more that is.
        let has_changes = self.has_changed_secret_files.load(Ordering::Relaxed);
        let changed = has_changes.then(|| self.agents_of_corpid(corpid)).into_iter().flatten();
        let changed = changed.filter(|agent| agent.token.has_changed_files());
        known.chain(changed).filter(move |agent| agent.has_secret(&hash))
    }

    /// An agent whose secret has this hash, as a client's key has one.
    pub fn agent_with_secret_as_key(&self, hash: &KeyHash) -> Option<&Arc<Agent>> {
        let found = self.agents_by_secret_alone.find(self.hash(hash.as_bytes()), |(known, _)| known == hash);
        found.map(|(_, agent)| agent)
    }
}

/// The hash of a corpid and a secret.
pub(super) fn secret_hash(corpid: &str, secret: &str) -> KeyHash {
    KeyHash::of(Masked::new(format!("{corpid}\0{secret}")).expose())
}
