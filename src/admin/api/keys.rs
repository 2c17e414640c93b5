//! `POST /api/clients/NAME/keys` and `DELETE /api/clients/NAME/keys/ID`.

use http::{Response, StatusCode};
use serde_json::json;

use super::super::{
    Admin,
    error::{AdminResult, ApiError},
    response::{AdminBody, json_response},
};
use super::{
    current::read_current,
    entry::{EntryKind, version_tag},
    key_claims::claim_writes,
    preconditions::{Evaluation, Preconditions},
    write::{MAX_ATTEMPTS, insert_tag, no_content, precondition_failed, reject_entry_of_file},
};
use crate::{
    config::{KeyHash, MAX_CLIENT_KEYS},
    directory::{StoredEntry, StoredKey},
    secret::{Masked, hex},
    state::{Precondition, State, Write, WriteError},
};

/// A change of a client's keys.
pub(super) enum KeyChange<'a> {
    /// One more key.
    Create,
    /// The key of this id goes.
    Delete(&'a str),
}

impl Admin {
    /// Changes the keys of a client; the others stay as they are.
    pub(super) async fn change_keys(
        &self,
        state: &State,
        name: &str,
        change: &KeyChange<'_>,
        preconditions: &Preconditions,
    ) -> AdminResult {
        for _ in 0..MAX_ATTEMPTS {
            reject_entry_of_file(EntryKind::Client, name, &self.directory.load())?;
            let current = read_current(state, EntryKind::Client, name).await?;
            let tag = current.as_ref().map(|current| version_tag(current.version));
            if preconditions.evaluate(tag.as_deref(), false) != Evaluation::Proceed {
                return Err(precondition_failed(tag.is_some()));
            }
            let current = current.ok_or_else(|| EntryKind::Client.not_found())?;
            let mut entry = current.entry;
            let before = entry.keys.clone();
            let created = change_list(&mut entry, change)?;
            let put = Write::put_secret(EntryKind::Client.collection(), name, entry.to_bytes());
            let mut writes = claim_writes(state, name, &before, &entry.keys).await?;
            writes.push(put.when(Precondition::Version(current.version)));
            match state.write(writes).await {
                Err(WriteError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(version) => {
                    tracing::info!(name, version, "keys of a client changed");
                    return Ok(changed_response(created, version));
                }
            }
        }
        Err(ApiError::busy())
    }
}

/// Changes the list; returns the id and the text of a new key.
fn change_list(
    entry: &mut StoredEntry,
    change: &KeyChange<'_>,
) -> Result<Option<(String, Masked)>, ApiError> {
    let conflict = |message: &str| ApiError::new(StatusCode::CONFLICT, message);
    match change {
        KeyChange::Create if entry.keys.len() >= MAX_CLIENT_KEYS => {
            Err(conflict("the client has 4 keys, and more are not possible; delete one first"))
        }
        KeyChange::Create => {
            let key = random_key()?;
            let stored = StoredKey::create(KeyHash::of(key.expose()));
            let id = stored.id.clone();
            entry.keys.push(stored);
            Ok(Some((id, key)))
        }
        KeyChange::Delete(id) => {
            let at = entry.keys.iter().position(|key| key.id == *id);
            let at = at.ok_or_else(|| ApiError::not_found("the client has no key of this id"))?;
            if entry.keys.len() == 1 {
                return Err(conflict(
                    "this is the client's only key; make another one first, or delete the client",
                ));
            }
            entry.keys.remove(at);
            Ok(None)
        }
    }
}

/// The same kind of key as `wecom-proxy key` makes.
fn random_key() -> Result<Masked, ApiError> {
    let mut random = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *random).map_err(|error| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("no random number: {error}"))
    })?;
    Ok(Masked::new(hex::encode(&*random)))
}

fn changed_response(created: Option<(String, Masked)>, version: u64) -> Response<AdminBody> {
    let mut response = match created {
        Some((id, key)) => json_response(StatusCode::CREATED, &json!({ "id": id, "key": key.expose() })),
        None => no_content(),
    };
    insert_tag(response.headers_mut(), &version_tag(version));
    response
}
