//! Commits transactions, and reads what other processes have written.

use std::{path::PathBuf, sync::Arc};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::{
    super::{
        OpenError, ReadError, Record, WriteError,
        record::SealedRecord,
        worker::{Committed, RecordChanges, StateBackend, WriteJob},
    },
    checkpoint::Checkpointer,
    file,
    rows::{self, Applied, BatchStatements},
    schema::{SCHEMA_VERSION, version_of},
};
use crate::{format_text, secret::seal::Sealer};

/// Records that the listener gets at once while the state is opened.
const LOAD_CHUNK_RECORDS: usize = 1024;

/// The connection for writing.
pub(super) struct SqliteWriter {
    path: PathBuf,
    sealer: Arc<Sealer>,
    /// Dropped before the connection, which removes the log if it is the last one.
    checkpointer: Checkpointer,
    /// `None` while the file cannot be opened for writing: each access tries again.
    connection: Option<Connection>,
}

impl SqliteWriter {
    /// Opens the file. One that is readable is opened even if nothing can be written now, because the disk is full or
    /// read-only.
    pub(super) fn open(path: PathBuf, sealer: Arc<Sealer>) -> Result<Self, OpenError> {
        file::create_or_check(&path, &sealer)?;
        let connection = match file::connect_writer(&path) {
            Ok(connection) => Some(connection),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                return Err(file::failed(&path, &error));
            }
            Err(error) => {
                tracing::error!(%error, "state cannot be written, starting with what can be read");
                None
            }
        };
        Ok(Self { path, sealer, checkpointer: Checkpointer::default(), connection })
    }

    /// Passes all followed records to `deliver`, in chunks. Returns the version up to which it has had all.
    pub(super) fn load(&self, deliver: impl Fn(&[Record])) -> Result<u64, OpenError> {
        let failed = |error: rusqlite::Error| file::failed(&self.path, &error);
        let reader = match &self.connection {
            Some(_) => None,
            None => Some(file::connect_reader(&self.path, true).map_err(failed)?),
        };
        let Some(connection) = self.connection.as_ref().or(reader.as_ref()) else { return Ok(0) };
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        let newest = rows::newest_version(&transaction).map_err(failed)?;
        let mut chunk = Vec::with_capacity(LOAD_CHUNK_RECORDS);
        let mut unreadable = None;
        rows::changes_since(&transaction, 0, |sealed| match self.open_record(sealed) {
            Ok(record) => {
                chunk.extend(Some(record).filter(|record| record.value.is_some()));
                if chunk.len() == LOAD_CHUNK_RECORDS {
                    deliver(&chunk);
                    chunk.clear();
                }
            }
            Err(error) => unreadable = Some(error),
        })
        .map_err(failed)?;
        match unreadable {
            Some(error) => Err(error),
            None => {
                deliver(&chunk);
                Ok(newest)
            }
        }
    }

    fn open_record(&self, sealed: SealedRecord) -> Result<Record, OpenError> {
        let (has_key, place) = (sealed.has_key(&self.sealer), sealed.place());
        sealed.open(&self.sealer).map_err(|_| match has_key {
            true => file::damaged(
                &self.path,
                format_text!("the record {place} cannot be decrypted", "记录 {place} 无法解密"),
            ),
            false => OpenError::Key { path: self.path.clone() },
        })
    }

    fn connection(&mut self) -> rusqlite::Result<&mut Connection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => file::connect_writer(&self.path)?,
        };
        Ok(self.connection.insert(connection))
    }

    fn transact(&mut self, batch: &[WriteJob], since: u64) -> Result<Committed, WriteError> {
        let failed = |error: rusqlite::Error| write_error(&error);
        let sealer = self.sealer.clone();
        let connection = self.connection().map_err(failed)?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        if version_of(&transaction).map_err(failed)? != SCHEMA_VERSION {
            return Err(WriteError::Unavailable("a newer wecom-proxy has taken over the file".to_owned()));
        }
        let before = rows::newest_version(&transaction).map_err(failed)?;
        let mut version = before;
        let mut results = Vec::with_capacity(batch.len());
        let mut statements = BatchStatements::prepare(&transaction).map_err(failed)?;
        for job in batch {
            let applied = statements.apply(&sealer, &job.writes, version + 1).map_err(failed)?;
            results.push(match applied {
                Applied::Written => {
                    version += 1;
                    Ok(version)
                }
                Applied::Conflict { index, current } => Err(WriteError::Conflict { index, current }),
            });
        }
        drop(statements);
        if version != before {
            rows::set_newest_version(&transaction, version).map_err(failed)?;
        }
        // Before the commit, because nothing may fail after it.
        let changes = read_changes(&transaction, &sealer, since, version).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(Committed { results, changes })
    }
}

impl StateBackend for SqliteWriter {
    async fn commit(&mut self, batch: &[WriteJob], since: u64) -> Result<Committed, WriteError> {
        let outcome = self.transact(batch, since);
        match &outcome {
            Ok(_) => self.checkpointer.note_commit(&self.path),
            // A connection that was opened read-only stays so.
            Err(WriteError::ReadOnly(_)) => self.connection = None,
            Err(_) => {}
        }
        outcome
    }

    async fn changes_since(&mut self, since: u64) -> Result<Option<RecordChanges>, ReadError> {
        let sealer = self.sealer.clone();
        let transaction = self.connection().and_then(|connection| connection.transaction());
        let outcome = transaction.and_then(|transaction| {
            let version = rows::newest_version(&transaction)?;
            if version == since {
                return Ok(None);
            }
            read_changes(&transaction, &sealer, since, version).map(Some)
        });
        outcome.map_err(|error| ReadError::Unavailable(error.to_string()))
    }

    async fn delete_expired(&mut self) -> Result<bool, WriteError> {
        let transaction = self
            .connection()
            .and_then(|connection| connection.transaction_with_behavior(TransactionBehavior::Immediate));
        let outcome = transaction.and_then(|transaction| {
            let has_more = rows::delete_expired(&transaction)?;
            transaction.commit()?;
            Ok(has_more)
        });
        outcome.map_err(|error| write_error(&error))
    }
}

/// The changes behind `since`, up to `version`, the newest.
fn read_changes(
    connection: &Connection,
    sealer: &Sealer,
    since: u64,
    version: u64,
) -> rusqlite::Result<RecordChanges> {
    let mut changes = RecordChanges { version, ..RecordChanges::default() };
    rows::changes_since(connection, since, |sealed| changes.add(sealed.open(sealer)))?;
    Ok(changes)
}

/// The kind of a failed write.
fn write_error(error: &rusqlite::Error) -> WriteError {
    let reason = error.to_string();
    match error.sqlite_error_code() {
        _ if file::is_full(error) => WriteError::Full(reason),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => WriteError::ReadOnly(reason),
        _ => WriteError::Unavailable(reason),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{
        secret::Masked,
        state::{Collection, Write},
    };

    fn writer(directory: &TempDir) -> SqliteWriter {
        let key = Masked::new("a state key of the tests, long enough");
        let sealer = Sealer::new("state", &key, None).expect("a key");
        SqliteWriter::open(directory.path().join("state.db"), Arc::new(sealer)).expect("a state")
    }

    fn put(writer: &mut SqliteWriter, names: &[&str], bytes: usize) -> Result<u64, WriteError> {
        let put = |name: &&str| Write::put(Collection::Agents, *name, vec![b'x'; bytes]);
        let (job, _) = WriteJob::new(names.iter().map(put).collect());
        writer.transact(&[job], 0).and_then(|mut committed| committed.results.remove(0))
    }

    fn names(writer: &SqliteWriter) -> Vec<String> {
        let names = std::cell::RefCell::new(Vec::new());
        writer
            .load(|records| names.borrow_mut().extend(records.iter().map(|record| record.name.clone())))
            .expect("loaded");
        names.into_inner()
    }

    #[test]
    fn write_into_a_full_file_leaves_nothing_and_recovers() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = writer(&directory);
        assert_eq!(put(&mut writer, &["before"], 100), Ok(1));
        let limit = |writer: &SqliteWriter, pages: i64| {
            let connection = writer.connection.as_ref().expect("a connection");
            connection.pragma_update(None, "max_page_count", pages).expect("set");
        };
        limit(&writer, 1);
        assert!(matches!(put(&mut writer, &["small", "large"], 100_000), Err(WriteError::Full(_))));
        assert_eq!(names(&writer), ["before"], "nothing of the transaction is there");
        limit(&writer, 1 << 20);
        assert_eq!(put(&mut writer, &["small", "large"], 100_000), Ok(2));
        assert_eq!(names(&writer).len(), 3);
    }

    #[test]
    fn version_of_a_newer_program_stops_writes() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = writer(&directory);
        let other = file::connect_reader(&directory.path().join("state.db"), false).expect("a connection");
        other.pragma_update(None, "user_version", SCHEMA_VERSION + 1).expect("set");
        let Err(WriteError::Unavailable(reason)) = put(&mut writer, &["a"], 1) else { panic!("written") };
        assert!(reason.contains("newer"), "{reason}");
    }

    #[tokio::test]
    async fn every_expired_followed_record_gets_a_mark() {
        const RECORDS: usize = 1100;
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = writer(&directory);
        let expired = (0..RECORDS)
            .map(|nth| Write::put(Collection::Agents, format!("agent-{nth}"), "value").expires_at(1));
        let (job, _) = WriteJob::new(expired.collect());
        writer.transact(&[job], 0).expect("written");
        assert_eq!(writer.delete_expired().await, Ok(true));
        while writer.delete_expired().await.expect("deleted") {}
        let changes = writer.changes_since(1).await.expect("readable").expect("changes");
        assert_eq!(changes.records.iter().filter(|record| record.value.is_none()).count(), RECORDS);
    }

    #[tokio::test]
    async fn expired_records_are_deleted_and_followed_ones_marked() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = writer(&directory);
        let write = |collection, end| Write::put(collection, "a", "value").expires_at(end);
        let expired = [Collection::Agents, Collection::Idempotency].map(|collection| write(collection, 1));
        let (job, _) =
            WriteJob::new(expired.into_iter().chain([write(Collection::Clients, u64::MAX >> 1)]).collect());
        writer.transact(&[job], 0).expect("written");
        assert_eq!(writer.delete_expired().await, Ok(false));
        let changes = writer.changes_since(1).await.expect("readable").expect("changes");
        let found: Vec<_> =
            changes.records.iter().map(|record| (record.collection, record.value.is_some())).collect();
        assert_eq!((found, changes.version), (vec![(Collection::Agents, false)], 2));
        let rows = "SELECT count(*) FROM records";
        let connection = writer.connection.as_ref().expect("a connection");
        assert_eq!(connection.query_row(rows, [], |row| row.get(0)), Ok(2));
    }
}
