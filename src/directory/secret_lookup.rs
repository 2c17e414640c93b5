//! Agents by their secrets.

use std::sync::{Arc, atomic::Ordering};

use super::{Agent, Directory, shared_table::SharedTable};
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
        let known = self.agents_by_secret.find_all(self.hash(hash.as_bytes()));
        // A file that was read again may have a secret that is not in the table, or have one no more that is.
        let has_changes = self.has_changed_secret_files.load(Ordering::Relaxed);
        let changed = has_changes.then(|| self.agents_of_corpid(corpid)).into_iter().flatten();
        let changed = changed.filter(|agent| agent.token.has_changed_files());
        known.chain(changed).filter(move |agent| agent.has_secret(&hash))
    }

    /// An agent whose secret has this hash, as a client's key has one.
    pub fn agent_with_secret_as_key(&self, hash: &KeyHash) -> Option<&Arc<Agent>> {
        let mut known = self.agents_by_secret_alone.find_all(self.hash(hash.as_bytes()));
        known.find(|agent| agent.secret_hashes().iter().any(|known| known.alone == *hash))
    }
}

/// The hashes by which an agent is found by one of its secrets.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SecretHashes {
    /// Of the corpid and the secret.
    pub(super) with_corpid: KeyHash,
    /// Of the secret alone, as of a key.
    pub(super) alone: KeyHash,
}

impl SecretHashes {
    pub(super) fn of(corpid: &str, secret: &str) -> Self {
        Self { with_corpid: secret_hash(corpid, secret), alone: KeyHash::of(secret) }
    }
}

/// Agents by hashes of their secrets: the hash within the directory of such a hash, and the agent, which has the rest of
/// it. There can be very many agents.
#[derive(Clone, Default)]
pub(super) struct AgentsByHash(SharedTable<(u64, Arc<Agent>)>);

impl AgentsByHash {
    /// The agents with this hash, and perhaps others.
    fn find_all(&self, hash: u64) -> impl Iterator<Item = &Arc<Agent>> {
        self.0.candidates(hash).filter(move |(known, _)| *known == hash).map(|(_, agent)| agent)
    }

    pub(super) fn insert(&mut self, hash: u64, agent: &Arc<Agent>) {
        self.0.insert((hash, agent.clone()), |(hash, _)| *hash);
    }

    pub(super) fn remove(&mut self, hash: u64, agent: &Arc<Agent>) {
        self.0.remove(hash, |(known, other)| *known == hash && Arc::ptr_eq(other, agent));
    }
}

/// The hash of a corpid and a secret.
pub(super) fn secret_hash(corpid: &str, secret: &str) -> KeyHash {
    KeyHash::of(Masked::new(format!("{corpid}\0{secret}")).expose())
}
