//! `PUT`, `PATCH` and `DELETE` of `/api/agents/SUITE:CORPID`: an authorised corp.

use std::sync::Arc;

use http::{Response, StatusCode};

use super::super::{Admin, error::ApiError, response::AdminBody};
use super::{
    entry::{EntryKind, corp_json},
    write::{
        Attempts, Change, EntryWrite, dry_run_response, next_entry, no_content, reject_entry_of_file,
        written_response,
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

    /// Carries out a write of an authorised corp; `None` if another one came first.
    pub(super) async fn try_write_corp(
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
        let before = current.as_ref().map(|current| (current.version, &current.entry));
        match (next_entry(write, before, attempts)?, current) {
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
            return Ok(Some(dry_run_response(status, &warnings)));
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
            return Ok(Some(dry_run_response(StatusCode::NO_CONTENT, &[])));
        }
        match self.settings.suites.delete_corp(suite, corpid, Precondition::Version(version)).await {
            Err(WriteError::Conflict { .. }) => return Ok(None),
            result => result?,
        }
        tracing::info!(name = write.name, "corp deleted");
        Ok(Some(no_content()))
    }
}
