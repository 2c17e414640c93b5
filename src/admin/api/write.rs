//! `PUT`, `PATCH` and `DELETE` of an agent or client.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::super::{
    Admin,
    error::{AdminResult, ApiError},
    response::{AdminBody, json_response, with_content_type},
};
use super::{
    current::{Current, read_current},
    entry::{self, EntryKind, version_tag},
    key_claims::{claim_writes, release_writes},
    merge_patch,
    preconditions::{Evaluation, Preconditions},
    request::WriteOptions,
    verify::VerifiedToken,
};
use crate::{
    config::{JsonTable, Origin},
    directory::{AgentRole, Directory, StoredEntry},
    state::{Precondition, State, Write, WriteError},
};

/// How often a write is tried again because another one came first.
pub(super) const MAX_ATTEMPTS: usize = 16;

const CLOSED_NOTE: &str = "this is the first client: the proxy was open, and from now on callers need a key";

/// What is to become of an entry.
pub(super) enum Change {
    Put(JsonTable),
    Patch(JsonTable),
    Delete,
}

/// A write of one entry.
pub(super) struct EntryWrite<'a> {
    pub(super) kind: EntryKind,
    pub(super) name: &'a str,
    pub(super) change: Change,
    pub(super) preconditions: Preconditions,
    pub(super) options: WriteOptions,
}

/// What is kept from one attempt to the next.
#[derive(Default)]
pub(super) struct Attempts {
    /// The generation of a new entry.
    generation: Option<u64>,
    /// Of the agent that was verified.
    pub(super) verified: Option<VerifiedToken>,
}

impl Admin {
    /// Carries out a write. What it is judged by is the newest version in the state, which another process can have
    /// written.
    pub(super) async fn write_entry(&self, state: &State, write: &EntryWrite<'_>) -> AdminResult {
        let suite = self.suite_of_corp(write)?;
        let mut attempts = Attempts::default();
        for _ in 0..MAX_ATTEMPTS {
            let tried = match &suite {
                Some(suite) => self.try_write_corp(suite, write, &mut attempts).await?,
                None => self.try_write(state, write, &mut attempts).await?,
            };
            if let Some(response) = tried {
                return Ok(response);
            }
        }
        Err(ApiError::busy())
    }

    /// Carries out a write; `None` if another one came first.
    async fn try_write(
        &self,
        state: &State,
        write: &EntryWrite<'_>,
        attempts: &mut Attempts,
    ) -> Result<Option<Response<AdminBody>>, ApiError> {
        let EntryWrite { kind, name, .. } = *write;
        reject_entry_of_file(kind, name, &self.directory.load())?;
        let current = read_current(state, kind, name).await?;
        let before = current.as_ref().map(|current| (current.version, &current.entry));
        match (next_entry(write, before, attempts)?, current) {
            (Some(next), current) => self.try_put(state, write, next, current, attempts).await,
            (None, Some(current)) => self.try_delete(state, write, current).await,
            (None, None) => Err(kind.not_found()),
        }
    }

    async fn try_put(
        &self,
        state: &State,
        write: &EntryWrite<'_>,
        next: StoredEntry,
        current: Option<Current>,
        attempts: &mut Attempts,
    ) -> Result<Option<Response<AdminBody>>, ApiError> {
        let EntryWrite { kind, name, options, .. } = *write;
        let directory = self.directory.load_full();
        let (checked, warnings) = entry::check(kind, name, &next, &directory)?;
        if options.verify {
            self.verify_once(&checked, &mut attempts.verified).await?;
        }
        let is_new = current.is_none();
        let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
        if options.dry_run {
            return Ok(Some(dry_run_response(status, &warnings)));
        }
        let precondition =
            current.as_ref().map_or(Precondition::Absent, |current| Precondition::Version(current.version));
        let put = Write::put_secret(kind.collection(), name, next.to_bytes());
        let keys_before = current.as_ref().map_or(&[][..], |current| &current.entry.keys);
        let mut writes = claim_writes(state, name, keys_before, &next.keys).await?;
        writes.push(put.when(precondition));
        let version = match state.write(writes).await {
            Err(WriteError::Conflict { .. }) => return Ok(None),
            result => result?,
        };
        tracing::info!(name, version, "{} {}", kind.table(), if is_new { "created" } else { "changed" });
        let mut body = checked.to_json();
        if !warnings.is_empty() {
            body.insert("warnings".to_owned(), warnings.into());
        }
        if directory.is_open() && !self.directory.load().is_open() {
            body.insert("note".to_owned(), CLOSED_NOTE.into());
        }
        Ok(Some(written_response(kind, name, status, version, body)))
    }

    async fn try_delete(
        &self,
        state: &State,
        write: &EntryWrite<'_>,
        Current { version, entry }: Current,
    ) -> Result<Option<Response<AdminBody>>, ApiError> {
        let EntryWrite { kind, name, options, .. } = *write;
        let collection = kind.collection();
        let needs_others = kind == EntryKind::Client && needs_client_of_state(&self.directory.load());
        if options.dry_run {
            let others = state.scan(collection, "", "", 2).await?;
            if needs_others && others.iter().all(|other| other.name == name) {
                return Err(last_client());
            }
            return Ok(Some(dry_run_response(StatusCode::NO_CONTENT, &[])));
        }
        // Judged with the write, because another process may delete the other one.
        let precondition =
            if needs_others { Precondition::NotLast(version) } else { Precondition::Version(version) };
        let mut writes = vec![Write::delete(collection, name).when(precondition)];
        if let Ok((corp, _)) = entry.corp(name, version, None)
            && let Some(suite) = self.directory.load().suite_by_name(&corp.suite)
            // What the state has of a corp belongs to the name that is in force.
            && suite.other_name(&corp.corpid, name).is_none()
        {
            writes.extend(self.settings.suites.named_corp_deletions(&suite, &corp.corpid).await);
        }
        if kind == EntryKind::Client {
            writes.extend(self.settings.suites.stand_in_deletions(name));
            writes.extend(release_writes(entry.keys.iter()));
        }
        match state.write(writes).await {
            Err(WriteError::Conflict { current, .. }) if current == Some(version) => {
                return Err(last_client());
            }
            Err(WriteError::Conflict { .. }) => return Ok(None),
            result => result?,
        };
        tracing::info!(name, "{} deleted", kind.table());
        Ok(Some(no_content()))
    }
}

/// Refuses to change what stands in a file.
pub(super) fn reject_entry_of_file(
    kind: EntryKind,
    name: &str,
    directory: &Directory,
) -> Result<(), ApiError> {
    match kind.origin(name, directory) {
        Some(origin @ Origin::File { .. }) => {
            let table = match (kind, directory.find_agent(name).map(|agent| agent.role.clone())) {
                (EntryKind::Agent, Some(AgentRole::Suite(_))) => "suites",
                (EntryKind::Agent, Some(AgentRole::Provider)) => "providers",
                _ => kind.table(),
            };
            let message = format!(
                "{table}.{name} is defined in {origin} and can be changed only there; reload after that, or take it out of the file"
            );
            Err(ApiError::new(StatusCode::CONFLICT, message))
        }
        _ => Ok(()),
    }
}

/// The entry that the write makes in place of the one before, of which `current` has the version; `None` deletes it.
pub(super) fn next_entry(
    write: &EntryWrite<'_>,
    current: Option<(u64, &StoredEntry)>,
    attempts: &mut Attempts,
) -> Result<Option<StoredEntry>, ApiError> {
    let tag = current.map(|(version, _)| version_tag(version));
    // Before the name that is missing: who names a version is told that it is gone.
    if write.preconditions.evaluate(tag.as_deref(), false) != Evaluation::Proceed {
        return Err(precondition_failed(tag.is_some()));
    }
    let before = current.map(|(_, entry)| entry);
    if before.is_none() && !matches!(write.change, Change::Put(_)) {
        return Err(write.kind.not_found());
    }
    let mut table = match &write.change {
        Change::Put(table) => table.clone(),
        Change::Patch(patch) => {
            let mut table = before.map(entry::patchable).unwrap_or_default();
            merge_patch::merge(table.as_map_mut(), patch.as_map().clone());
            table
        }
        Change::Delete => return Ok(None),
    };
    entry::resolve(write.kind, write.name, &mut table, before)?;
    let keys = entry::take_keys(write.kind, &mut table, before);
    let generation = before.map(|before| before.generation).or(attempts.generation);
    let created = StoredEntry::create(table, keys);
    // The same in each attempt, because a token may have been fetched for it.
    let generation = generation.unwrap_or(created.generation);
    attempts.generation = Some(generation);
    Ok(Some(StoredEntry { generation, ..created }))
}

pub(super) fn precondition_failed(exists: bool) -> ApiError {
    let message = match exists {
        true => "If-Match or If-None-Match does not hold: it was changed; read it and decide anew",
        false => "If-Match does not hold: there is none of this name",
    };
    ApiError::new(StatusCode::PRECONDITION_FAILED, message)
}

/// Whether the state must keep a client: without any the proxy would serve callers without a key, or none at all.
fn needs_client_of_state(directory: &Directory) -> bool {
    !directory.allow_open() && !directory.clients().any(|client| client.config.origin.is_file())
}

fn last_client() -> ApiError {
    let message = "this is the last client; without any, callers need no key: create another one first, or set server.open = true to allow that";
    ApiError::new(StatusCode::CONFLICT, message)
}

/// What a write would have returned.
pub(super) fn dry_run_response(status: StatusCode, warnings: &[String]) -> Response<AdminBody> {
    let body = json!({ "dry_run": true, "status": status.as_u16(), "warnings": warnings });
    json_response(StatusCode::OK, &body)
}

pub(super) fn written_response(
    kind: EntryKind,
    name: &str,
    status: StatusCode,
    version: u64,
    body: Map<String, Value>,
) -> Response<AdminBody> {
    let mut response = json_response(status, &Value::Object(body));
    let headers = response.headers_mut();
    let location = HeaderValue::try_from(format!("/api/{}/{name}", kind.table()));
    // With it, the body and the entity tag are those of the entry, not of the result (RFC 9110 §8.7).
    if let Ok(location) = location {
        if status == StatusCode::CREATED {
            headers.insert(header::LOCATION, location.clone());
        }
        headers.insert(header::CONTENT_LOCATION, location);
    }
    insert_tag(headers, &version_tag(version));
    response
}

/// Sets `ETag`.
pub(super) fn insert_tag(headers: &mut HeaderMap, tag: &str) {
    if let Ok(value) = HeaderValue::try_from(format!("\"{tag}\"")) {
        headers.insert(header::ETAG, value);
    }
}

pub(super) fn no_content() -> Response<AdminBody> {
    let mut response = with_content_type("application/json", AdminBody::Full(Bytes::new()));
    response.headers_mut().remove(header::CONTENT_TYPE);
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
