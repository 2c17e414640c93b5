//! Which client has which key: of two clients that are written with one key at the same time, in whichever processes that
//! share the state, one gets it.

use serde::{Deserialize, Serialize};

use super::{
    super::error::ApiError,
    current::read_current,
    entry::{EntryKind, same_key},
};
use crate::{
    config::KeyHash,
    directory::StoredKey,
    secret::hex,
    state::{Collection, Precondition, State, Write},
};

/// The record of a key that a client has; its name tells nothing of the key's hash.
#[derive(Serialize, Deserialize)]
struct KeyClaim {
    /// The client's name.
    client: String,
}

/// The writes that go with a change of a client's keys. Fails if another client has one of the new ones.
pub(super) async fn claim_writes(
    state: &State,
    client: &str,
    before: &[StoredKey],
    after: &[StoredKey],
) -> Result<Vec<Write>, ApiError> {
    let mut writes = Vec::new();
    for key in after {
        let name = claim_name(&key.hash);
        let record = state.read(Collection::ClientKeys, &name).await?;
        let owner = record.as_ref().and_then(|record| parse(record.value.as_ref()?));
        if owner.as_deref() == Some(client) {
            continue;
        }
        if let Some(owner) = owner
            && has_key(state, &owner, &key.hash).await?
        {
            return Err(same_key(client, &owner));
        }
        let precondition =
            record.map_or(Precondition::Absent, |record| Precondition::Version(record.version));
        let claim = serde_json::to_vec(&KeyClaim { client: client.to_owned() }).unwrap_or_default();
        writes.push(Write::put(Collection::ClientKeys, name, claim).when(precondition));
    }
    let is_gone = |key: &&StoredKey| !after.iter().any(|kept| kept.hash == key.hash);
    writes.extend(release_writes(before.iter().filter(is_gone)));
    Ok(writes)
}

/// The writes that go with the end of a client's keys.
pub(super) fn release_writes<'a>(keys: impl Iterator<Item = &'a StoredKey>) -> impl Iterator<Item = Write> {
    keys.map(|key| Write::delete(Collection::ClientKeys, claim_name(&key.hash)))
}

fn parse(value: &[u8]) -> Option<String> {
    serde_json::from_slice::<KeyClaim>(value).ok().map(|claim| claim.client)
}

/// Whether the client has the key: a version of the program that knows no claims leaves its own behind.
async fn has_key(state: &State, client: &str, hash: &KeyHash) -> Result<bool, ApiError> {
    let current = read_current(state, EntryKind::Client, client).await?;
    Ok(current.is_some_and(|current| current.entry.keys.iter().any(|key| key.hash == *hash)))
}

fn claim_name(hash: &KeyHash) -> String {
    let text = format!("client key {}", hex::encode(hash.as_bytes()));
    hex::encode(KeyHash::of(&text).as_bytes())
}
