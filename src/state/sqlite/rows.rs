//! Reads and writes the rows of records.

use rusqlite::{Connection, OptionalExtension, Row, Statement, params};

use super::super::{
    Collection, DELETION_TTL_SECONDS, Precondition, RecordSummary, Write, record::SealedRecord, record_aad,
};
use crate::{secret::seal::Sealer, time::clock};

/// Expired rows that one transaction deletes at most, so that writes do not wait for long.
const MAX_EXPIRED_ROWS: usize = 500;

/// The columns that [`read_record`] reads.
const COLUMNS: &str = "collection, name, version, value, expires_at";

/// `None` for a collection that only another version of the program knows.
fn read_record(row: &Row<'_>) -> rusqlite::Result<Option<SealedRecord>> {
    let collection = row.get_ref(0)?.as_str()?;
    let Some(collection) = Collection::by_name(collection) else { return Ok(None) };
    let (name, version, value, expires_at) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
    Ok(Some(SealedRecord { collection, name, version, value, expires_at }))
}

/// The version of the newest transaction.
pub(super) fn newest_version(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT value FROM meta WHERE name = 'version'", [], |row| row.get(0))
}

/// Passes the followed records written after `version`, deletions too, to `each`, in the order of versions.
pub(super) fn changes_since(
    connection: &Connection,
    version: u64,
    mut each: impl FnMut(SealedRecord),
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM records WHERE followed AND version > ?1 ORDER BY version"
    ))?;
    let mut rows = statement.query([version])?;
    while let Some(row) = rows.next()? {
        read_record(row)?.into_iter().for_each(&mut each);
    }
    Ok(())
}

/// The record of this name, unless it is deleted or expired.
pub(super) fn read(
    connection: &Connection,
    collection: Collection,
    name: &str,
) -> rusqlite::Result<Option<SealedRecord>> {
    let query = format!(
        "SELECT {COLUMNS} FROM records WHERE collection = ?1 AND name = ?2 AND value IS NOT NULL
         AND (expires_at IS NULL OR expires_at > ?3)"
    );
    let found = connection
        .query_row(&query, params![collection.name(), name, clock::unix_now()], read_record)
        .optional()?;
    Ok(found.flatten())
}

/// See [`State::scan`](crate::state::State::scan). Passes the records to `each` until that returns false.
pub(super) fn scan(
    connection: &Connection,
    collection: Collection,
    [prefix, after]: &[String; 2],
    mut each: impl FnMut(SealedRecord) -> bool,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM records WHERE collection = ?1 AND name >= ?2 AND name > ?3 AND value IS NOT NULL
         AND (expires_at IS NULL OR expires_at > ?4) ORDER BY name"
    ))?;
    let mut rows = statement.query(params![collection.name(), prefix, after, clock::unix_now()])?;
    while let Some(row) = rows.next()? {
        let record = read_record(row)?.filter(|record| record.name.starts_with(prefix.as_str()));
        if !record.is_some_and(&mut each) {
            break;
        }
    }
    Ok(())
}

/// See [`State::scan_since`](crate::state::State::scan_since). Passes the records to `each` until that
/// returns false.
pub(super) fn scan_since(
    connection: &Connection,
    prefix: &str,
    version: u64,
    mut each: impl FnMut(SealedRecord) -> bool,
) -> rusqlite::Result<()> {
    // The collection is written out, so that the index of callbacks applies.
    let mut statement = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM records WHERE collection = 'callback_pull' AND version > ?1 AND name >= ?2 AND name < ?3
         AND value IS NOT NULL AND (expires_at IS NULL OR expires_at > ?4) ORDER BY version"
    ))?;
    let mut rows = statement.query(params![version, prefix, prefix_end(prefix), clock::unix_now()])?;
    while let Some(row) = rows.next()? {
        if !read_record(row)?.is_some_and(&mut each) {
            break;
        }
    }
    Ok(())
}

/// See [`State::summarize`](crate::state::State::summarize). Reads the index only.
pub(super) fn summarize(
    connection: &Connection,
    collection: Collection,
    prefix: &str,
    suffix_chars: usize,
) -> rusqlite::Result<RecordSummary> {
    let mut statement = connection.prepare(
        "SELECT count(*), min(substr(name, -?4)) FROM records WHERE collection = ?1 AND name >= ?2 AND name < ?3",
    )?;
    let suffix_chars = i64::try_from(suffix_chars).unwrap_or(i64::MAX);
    statement.query_row(params![collection.name(), prefix, prefix_end(prefix), suffix_chars], |row| {
        Ok(RecordSummary { count: row.get(0)?, min_suffix: row.get(1)? })
    })
}

/// What sorts behind all names that begin with `prefix`, which ends with a slash.
fn prefix_end(prefix: &str) -> String {
    // The zero follows the slash.
    format!("{}0", prefix.strip_suffix('/').unwrap_or(prefix))
}

/// The outcome of a transaction's writes, which were carried out all or not at all.
pub(super) enum Applied {
    Written,
    /// The precondition of the write at `index` does not hold for the version `current`.
    Conflict {
        index: usize,
        current: Option<u64>,
    },
}

/// The statements of a transaction for several jobs, prepared once for all of them.
pub(super) struct BatchStatements<'c> {
    connection: &'c Connection,
    read_version: Statement<'c>,
    put: Statement<'c>,
    mark: Statement<'c>,
    delete: Statement<'c>,
}

impl<'c> BatchStatements<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let read_version = connection.prepare(
            "SELECT version FROM records WHERE collection = ?1 AND name = ?2 AND value IS NOT NULL
             AND (expires_at IS NULL OR expires_at > ?3)",
        )?;
        let put = connection.prepare(
            "INSERT INTO records (collection, name, version, followed, value, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (collection, name) DO UPDATE
             SET version = ?3, followed = ?4, value = ?5, expires_at = ?6",
        )?;
        let mark = connection.prepare(
            "UPDATE records SET value = NULL, version = ?3, expires_at = ?4
             WHERE collection = ?1 AND name = ?2 AND value IS NOT NULL",
        )?;
        let delete = connection.prepare("DELETE FROM records WHERE collection = ?1 AND name = ?2")?;
        Ok(Self { connection, read_version, put, mark, delete })
    }

    /// Carries out the writes as version `version`, if all preconditions hold.
    pub(super) fn apply(
        &mut self,
        sealer: &Sealer,
        writes: &[Write],
        version: u64,
    ) -> rusqlite::Result<Applied> {
        for (index, write) in writes.iter().enumerate() {
            if write.precondition != Precondition::None {
                let current = self.current_version(write.collection, &write.name)?;
                let is_last = matches!(write.precondition, Precondition::NotLast(_))
                    && !has_other(self.connection, write.collection, &write.name)?;
                if is_last || !write.precondition.holds(current) {
                    return Ok(Applied::Conflict { index, current });
                }
            }
        }
        for write in writes {
            let (collection, name) = (write.collection.name(), &write.name);
            match &write.value {
                Some(value) => {
                    // Without a value the row would mark a deletion.
                    let sealed = sealer.seal(&record_aad(collection, name), value);
                    let sealed = sealed.ok_or(rusqlite::Error::InvalidQuery)?;
                    let followed = write.collection.is_followed();
                    self.put.execute(params![
                        collection,
                        name,
                        version,
                        followed,
                        sealed,
                        write.expires_at
                    ])?;
                }
                None => self.delete(write.collection, name, version)?,
            }
        }
        Ok(Applied::Written)
    }

    fn current_version(&mut self, collection: Collection, name: &str) -> rusqlite::Result<Option<u64>> {
        let parameters = params![collection.name(), name, clock::unix_now()];
        self.read_version.query_row(parameters, |row| row.get(0)).optional()
    }

    fn delete(&mut self, collection: Collection, name: &str, version: u64) -> rusqlite::Result<()> {
        match collection.is_followed() {
            true => {
                let end = clock::unix_now() + DELETION_TTL_SECONDS;
                self.mark.execute(params![collection.name(), name, version, end]).map(drop)
            }
            false => self.delete.execute(params![collection.name(), name]).map(drop),
        }
    }
}

/// Whether the collection has a record beside the one of this name.
fn has_other(connection: &Connection, collection: Collection, name: &str) -> rusqlite::Result<bool> {
    let query =
        "SELECT EXISTS (SELECT 1 FROM records WHERE collection = ?1 AND name <> ?2 AND value IS NOT NULL)";
    connection.query_row(query, params![collection.name(), name], |row| row.get(0))
}

/// Deletes some expired records, and marks of deletions that are old. Followed ones get such a mark first. Returns
/// whether there may be more.
pub(super) fn delete_expired(connection: &Connection) -> rusqlite::Result<bool> {
    let now = clock::unix_now();
    let version = newest_version(connection)? + 1;
    let marked = connection.execute(
        "UPDATE records SET value = NULL, version = ?1, expires_at = ?2 WHERE rowid IN
         (SELECT rowid FROM records WHERE expires_at <= ?3 AND followed AND value IS NOT NULL LIMIT ?4)",
        params![version, now + DELETION_TTL_SECONDS, now, MAX_EXPIRED_ROWS],
    )?;
    if marked > 0 {
        set_newest_version(connection, version)?;
    }
    let deleted = connection.execute(
        "DELETE FROM records WHERE rowid IN
         (SELECT rowid FROM records WHERE expires_at <= ?1 AND (NOT followed OR value IS NULL) LIMIT ?2)",
        params![now, MAX_EXPIRED_ROWS],
    )?;
    Ok(marked.max(deleted) == MAX_EXPIRED_ROWS)
}

/// Sets the version of the newest transaction.
pub(super) fn set_newest_version(connection: &Connection, version: u64) -> rusqlite::Result<()> {
    let update = "UPDATE meta SET value = ?1 WHERE name = 'version'";
    connection.prepare(update)?.execute([version]).map(drop)
}
