//! `PUT`, `PATCH` and `DELETE` of `/api/agents/SUITE:CORPID`: an authorised corp.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::json;

use super::super::{
    Admin,
    response::{AdminBody, json_response},
};
use super::{
    entry::{EntryKind, corp_json, version_tag},
    error::ApiError,
    preconditions::Evaluation,
    write::{
        Attempts, Change, EntryWrite, MAX_ATTEMPTS, next_entry, no_content, precondition_failed,
        reject_entry_of_file, written_response,
    },
};
use crate::{
    config::{self, Origin},
    directory::{StoredEntry, Suite, corp_credentials},
    state::{Precondition, WriteError},
    suites::StoredCorp,
};

impl Admin {
    /// The suite of the corp that the entry names; `None` for an agent or a client.
    pub(super) fn suite_of_corp(&self, write: &EntryWrite<'_>) -> Result<Option<Arc<Suite>>, ApiError> {
        let Some((suite_name, corpid)) =
            write.name.split_once(':').filter(|_| write.kind == EntryKind::Agent)
        else {
            return Ok(None);
        };
        let refuse = |key: &str, reason: &str| match write.change {
            Change::Put(_) => ApiError::invalid(&write.kind.key(write.name, key), reason),
            _ => write.kind.not_found(),
        };
        let Some(suite) = self.directory.load().suite_by_name(suite_name) else {
            let reason = format!("there is no suite {suite_name:?}; add [suites.NAME] to the file");
            return Err(refuse("suite", &reason));
        };
        match config::is_corpid(corpid) {
            true => Ok(Some(suite)),
            false => Err(refuse(
                "corpid",
                "is no corpid of an authorised corp: letters, digits, - and _, at most 64",
            )),
        }
    }

    /// Carries out a write of an authorised corp.
    pub(super) async fn write_corp(
        &self,
        suite: &Suite,
        write: &EntryWrite<'_>,
    ) -> Result<Response<AdminBody>, ApiError> {
        let mut attempts = Attempts::default();
        for _ in 0..MAX_ATTEMPTS {
            if let Some(response) = self.try_write_corp(suite, write, &mut attempts).await? {
                return Ok(response);
            }
        }
        Err(ApiError::busy())
    }

    /// Carries out a write; `None` if another one came first.
    async fn try_write_corp(
        &self,
        suite: &Suite,
        write: &EntryWrite<'_>,
        attempts: &mut Attempts,
    ) -> Result<Option<Response<AdminBody>>, ApiError> {
        let EntryWrite { kind, name, .. } = *write;
        let corpid = &name[suite.name().len() + 1..];
        reject_entry_of_file(kind, name, &self.directory.load())?;
        if let Some(own) = suite.name_in_state(corpid) {
            let message = format!("this corp is the agent {own} of the state; change it under that name");
            return Err(ApiError::new(StatusCode::CONFLICT, message));
        }
        let current = self.settings.suites.read_corp(suite, corpid).await?;
        let tag = current.as_ref().map(|current| version_tag(current.version));
        if write.preconditions.evaluate(tag.as_deref(), false) != Evaluation::Proceed {
            return Err(precondition_failed(tag.is_some()));
        }
        if current.is_none() && !matches!(write.change, Change::Put(_)) {
            return Err(kind.not_found());
        }
        match (next_entry(write, current.as_ref().map(|current| &current.entry), attempts)?, current) {
            (Some(next), current) => {
                self.try_put_corp((suite, corpid), write, &next, current, attempts).await
            }
            (None, Some(current)) => self.try_delete_corp((suite, corpid), write, current.version).await,
            (None, None) => Err(kind.not_found()),
        }
    }

    async fn try_put_corp(
        &self,
        (suite, corpid): (&Suite, &str),
        write: &EntryWrite<'_>,
        next: &StoredEntry,
        current: Option<StoredCorp>,
        attempts: &mut Attempts,
    ) -> Result<Option<Response<AdminBody>>, ApiError> {
        let EntryWrite { kind, name, options, .. } = *write;
        let origin = Origin::State { version: 0, generation: next.generation };
        let names = (suite.name(), corpid);
        let (corp, warnings) = config::corp_from_json(names, &next.table, origin.clone())?;
        let credentials = corp_credentials(corpid, corp.permanent_code.clone(), &origin);
        if options.verify && !attempts.verified.as_ref().is_some_and(|known| known.is_for(&credentials)) {
            attempts.verified = Some(self.verify_corp(suite, name, credentials).await?);
        }
        let is_new = current.is_none();
        let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
        let warnings: Vec<_> = warnings.iter().map(|warning| warning.message.english().to_owned()).collect();
        if options.dry_run {
            let body = json!({ "dry_run": true, "status": status.as_u16(), "warnings": warnings });
            return Ok(Some(json_response(StatusCode::OK, &body)));
        }
        let version = match self.settings.suites.put_corp(suite, (&corp, next), current).await {
            Err(WriteError::Conflict { .. }) => return Ok(None),
            result => result?,
        };
        tracing::info!(name, version, "corp {}", if is_new { "created" } else { "changed" });
        let mut body = corp_json(names, &corp.settings, &corp.origin);
        if !warnings.is_empty() {
            body.insert("warnings".to_owned(), warnings.into());
        }
        Ok(Some(written_response(kind, name, status, version, body)))
    }

    async fn try_delete_corp(
        &self,
        (suite, corpid): (&Suite, &str),
        write: &EntryWrite<'_>,
        version: u64,
    ) -> Result<Option<Response<AdminBody>>, ApiError> {
        if write.options.dry_run {
            let body = json!({ "dry_run": true, "status": 204, "warnings": [] });
            return Ok(Some(json_response(StatusCode::OK, &body)));
        }
        match self.settings.suites.delete_corp(suite, corpid, Precondition::Version(version)).await {
            Err(WriteError::Conflict { .. }) => return Ok(None),
            result => result?,
        }
        tracing::info!(name = write.name, "corp deleted");
        Ok(Some(no_content()))
    }
}
