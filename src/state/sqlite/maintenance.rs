//! Backup, check and change of the key; each also while the program runs.

use std::{collections::BTreeMap, fs, fs::File, io, path::Path};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use zeroize::Zeroizing;

use super::{
    super::{CheckReport, Collection, MaintenanceError, OpenError, RekeyReport, record_aad, sealer},
    file::{self, KEY_CHECK, KEY_CHECK_AAD},
    schema::version_of,
};
use crate::{config::StateFileConfig, format_text, secret::seal::Sealer, text::Text, time::clock};

/// Rows that `rekey` changes in one transaction: between two, the program can write.
const REKEY_ROWS: usize = 256;

/// Copies the file as it is at this moment into a new one, of mode 0600. Needs no key.
pub(crate) fn backup(path: &Path, target: &Path) -> Result<(), MaintenanceError> {
    drop(file::connect_for_check(path)?);
    let failed = |reason: Text| MaintenanceError::Target { path: target.to_owned(), reason };
    let created = file::create_private(target).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => MaintenanceError::TargetExists(target.to_owned()),
        _ => failed(Text::of(&error)),
    })?;
    let copied = copy(path, target, &created);
    copied.map_err(|error| {
        // Half a backup must not be taken for a whole one.
        let _ = fs::remove_file(target);
        failed(format_text!("{error}", "{error}"))
    })
}

fn copy(path: &Path, target: &Path, created: &File) -> Result<(), Box<dyn std::error::Error>> {
    // A relative name could look like a URI.
    let absolute = std::path::absolute(target)?;
    let text = absolute.to_str().ok_or("its name is not UTF-8")?;
    file::connect_reader(path, false)?.execute("VACUUM INTO ?1", [text])?;
    created.sync_all()?;
    File::open(file::directory_of(target))?.sync_all()?;
    Ok(())
}

/// Reads and decrypts everything; changes nothing.
pub(crate) fn check(config: &StateFileConfig) -> Result<CheckReport, OpenError> {
    let (path, sealer) = (&config.path, sealer(&config.key, config.old_key.as_ref())?);
    let connection = file::connect_with_key(path, &sealer)?;
    let failed = |error: rusqlite::Error| file::failed(path, &error);
    let schema = version_of(&connection).map_err(failed)?;
    let (mut counts, mut unreadable, mut under_old_key) = (BTreeMap::new(), Vec::new(), 0);
    each_value(&connection, |collection, name, sealed| {
        *counts.entry(collection.to_owned()).or_default() += 1;
        under_old_key += usize::from(!sealer.is_current(sealed));
        if sealer.open(&record_aad(collection, name), sealed).is_none() {
            unreadable.push(format!("{collection}:{name}"));
        }
    })
    .map_err(failed)?;
    Ok(CheckReport { schema: Some(schema), counts, unreadable, under_old_key })
}

/// How many records the collection has; none where there is no file yet.
pub(crate) fn count(path: &Path, collection: Collection) -> Result<usize, OpenError> {
    if matches!(path.try_exists(), Ok(false)) {
        return Ok(0);
    }
    let query = "SELECT count(*) FROM records WHERE collection = ?1 AND value IS NOT NULL";
    let count = file::connect_for_check(path)?.query_row(query, [collection.name()], |row| row.get(0));
    count.map_err(|error| file::failed(path, &error))
}

/// The value of one record; changes nothing.
pub(crate) fn read(
    config: &StateFileConfig,
    collection: Collection,
    name: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, OpenError> {
    let (path, sealer) = (&config.path, sealer(&config.key, config.old_key.as_ref())?);
    let connection = file::connect_with_key(path, &sealer)?;
    let query = "SELECT value FROM records WHERE collection = ?1 AND name = ?2 AND value IS NOT NULL";
    let found = connection.query_row(query, params![collection.name(), name], |row| row.get(0)).optional();
    let sealed: Option<Vec<u8>> = found.map_err(|error| file::failed(path, &error))?;
    Ok(sealed.and_then(|sealed| sealer.open(&record_aad(collection.name(), name), &sealed)))
}

fn each_value(connection: &Connection, mut each: impl FnMut(&str, &str, &[u8])) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare("SELECT collection, name, value FROM records WHERE value IS NOT NULL")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        each(row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_blob()?);
    }
    Ok(())
}

/// The names of all records of a collection that have not expired; none without a file.
pub(crate) fn names(config: &StateFileConfig, collection: Collection) -> Result<Vec<String>, OpenError> {
    let path = &config.path;
    if !path.exists() {
        return Ok(Vec::new());
    }
    let connection = file::connect_for_check(path)?;
    let select = || -> rusqlite::Result<Vec<String>> {
        let mut statement = connection.prepare(
            "SELECT name FROM records WHERE collection = ?1 AND value IS NOT NULL
             AND (expires_at IS NULL OR expires_at > ?2) ORDER BY name",
        )?;
        statement.query_map(params![collection.name(), clock::unix_now()], |row| row.get(0))?.collect()
    };
    select().map_err(|error| file::failed(path, &error))
}

/// Seals every value under `key` that is still sealed under `old_key`. Versions stay.
pub(crate) fn rekey(config: &StateFileConfig) -> Result<RekeyReport, MaintenanceError> {
    let (path, sealer) = (&config.path, sealer(&config.key, config.old_key.as_ref())?);
    drop(file::connect_with_key(path, &sealer)?);
    let failed = |error: rusqlite::Error| MaintenanceError::Open(file::failed(path, &error));
    let mut connection = file::connect_writer(path).map_err(failed)?;
    let mut report = RekeyReport::default();
    let mut after = Some(0);
    while let Some(rowid) = after {
        after = rekey_rows(&mut connection, &sealer, rowid, &mut report).map_err(failed)?;
    }
    if report.unreadable.is_empty() {
        // Last: until then the old key is needed to open the file.
        let check = sealer.seal(KEY_CHECK_AAD, KEY_CHECK);
        connection.execute("UPDATE meta SET value = ?1 WHERE name = 'key'", [check]).map_err(failed)?;
    }
    Ok(report)
}

/// Seals the next rows behind `after`; returns the last one of them.
fn rekey_rows(
    connection: &mut Connection,
    sealer: &Sealer,
    after: i64,
    report: &mut RekeyReport,
) -> rusqlite::Result<Option<i64>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut last = None;
    {
        let mut select = transaction.prepare(
            "SELECT rowid, collection, name, value FROM records WHERE rowid > ?1 AND value IS NOT NULL
             ORDER BY rowid LIMIT ?2",
        )?;
        let mut rows = select.query(params![after, REKEY_ROWS as i64])?;
        while let Some(row) = rows.next()? {
            let rowid: i64 = row.get(0)?;
            last = Some(rowid);
            let sealed = row.get_ref(3)?.as_blob()?;
            if sealer.is_current(sealed) {
                report.current += 1;
                continue;
            }
            let (collection, name) = (row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_str()?);
            let aad = record_aad(collection, name);
            match sealer.open(&aad, sealed).and_then(|value| sealer.seal(&aad, &value)) {
                Some(resealed) => {
                    let update = "UPDATE records SET value = ?2 WHERE rowid = ?1";
                    transaction.execute(update, params![rowid, resealed])?;
                    report.resealed += 1;
                }
                None => report.unreadable.push(format!("{collection}:{name}")),
            }
        }
    }
    transaction.commit()?;
    Ok(last)
}
