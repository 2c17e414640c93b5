//! What the state has of an entry.

use http::StatusCode;

use super::{super::error::ApiError, entry::EntryKind};
use crate::{directory::StoredEntry, state::State};

/// The entry in the state.
pub(super) struct Current {
    pub(super) version: u64,
    pub(super) entry: StoredEntry,
}

/// Reads it, also if another process wrote it.
pub(super) async fn read_current(
    state: &State,
    kind: EntryKind,
    name: &str,
) -> Result<Option<Current>, ApiError> {
    let Some(record) = state.read(kind.collection(), name).await? else { return Ok(None) };
    let Some(value) = record.value else { return Ok(None) };
    let entry = StoredEntry::parse(&value).ok_or_else(|| {
        let message = "the record of this name was written by another version of the program; use that one";
        ApiError::new(StatusCode::CONFLICT, message)
    })?;
    Ok(Some(Current { version: record.version, entry }))
}
