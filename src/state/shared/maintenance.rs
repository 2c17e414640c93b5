//! Check and change of the key of a shared state; each also while the replicas run.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::{SharedRecords, connect, sealer};
use crate::{
    config::RedisConfig,
    state::{CheckReport, Collection, MaintenanceError, OpenError, PageLimit, RekeyReport},
    store::{PreparedStore, StateRow},
    time::clock,
};

/// Records that are read at once.
const CHUNK_RECORDS: usize = 512;
/// Bytes that are read at once, about.
const MAX_CHUNK_BYTES: usize = 8 << 20;

/// Reads and decrypts everything; changes nothing.
pub(crate) async fn check(redis: &RedisConfig) -> Result<CheckReport, MaintenanceError> {
    let records = open(redis).await?;
    let mut report =
        CheckReport { schema: None, counts: BTreeMap::new(), unreadable: Vec::new(), under_old_key: 0 };
    let mut after = String::new();
    loop {
        let (rows, next) = next_rows(&records, &after).await?;
        for row in rows {
            let collection = row.field.split(':').next().unwrap_or_default();
            *report.counts.entry(collection.to_owned()).or_default() += 1;
            report.under_old_key += usize::from(!records.sealer.is_current(&row.sealed));
            if records.sealer.open(&row.field, &row.sealed).is_none() {
                report.unreadable.push(row.field);
            }
        }
        let Some(next) = next else { return Ok(report) };
        after = next;
    }
}

/// The names of all records of a collection.
pub(crate) async fn names(
    redis: &RedisConfig,
    collection: Collection,
) -> Result<Vec<String>, MaintenanceError> {
    let records = open(redis).await?;
    let limit = PageLimit { records: usize::MAX, bytes: usize::MAX };
    let page = records.scan(collection, ["", ""], limit).await;
    let page = page.map_err(|error| MaintenanceError::Store(error.to_string()))?;
    Ok(page.records.into_iter().map(|record| record.name).collect())
}

/// The value of one record; changes nothing.
pub(crate) async fn read(
    redis: &RedisConfig,
    collection: Collection,
    name: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, MaintenanceError> {
    let record = open(redis).await?.read(collection, name).await;
    let record = record.map_err(|error| MaintenanceError::Store(error.to_string()))?;
    Ok(record.and_then(|record| record.value))
}

/// Seals every value under `key` that is still sealed under `old_key`. Versions stay.
pub(crate) async fn rekey(redis: &RedisConfig) -> Result<RekeyReport, MaintenanceError> {
    let records = open(redis).await?;
    let mut report = RekeyReport::default();
    let mut after = String::new();
    loop {
        let (rows, next) = next_rows(&records, &after).await?;
        for row in rows {
            rekey_row(&records, row, &mut report).await?;
        }
        let Some(next) = next else { return Ok(report) };
        after = next;
    }
}

async fn rekey_row(
    records: &SharedRecords,
    row: StateRow,
    report: &mut RekeyReport,
) -> Result<(), MaintenanceError> {
    let mut current = Some(row);
    // A record that a replica writes meanwhile is looked at again.
    while let Some(row) = current {
        if row.sealed.is_empty() || records.sealer.is_current(&row.sealed) {
            report.current += 1;
            return Ok(());
        }
        let opened = records.sealer.open(&row.field, &row.sealed);
        let Some(sealed) = opened.and_then(|value| records.sealer.seal(&row.field, &value)) else {
            report.unreadable.push(row.field);
            return Ok(());
        };
        if records.store.reseal_state(&row, sealed).await.map_err(|_| unavailable(records))? {
            report.resealed += 1;
            return Ok(());
        }
        current = records.store.read_state(&row.field).await.map_err(|_| unavailable(records))?;
    }
    Ok(())
}

async fn open(redis: &RedisConfig) -> Result<SharedRecords, MaintenanceError> {
    let prepared = PreparedStore::new(redis).map_err(OpenError::from)?;
    let sealer = sealer(&redis.key, redis.old_key.as_ref())?;
    let records = SharedRecords { store: connect(prepared).await, sealer };
    match records.store.last_error() {
        None => Ok(records),
        Some(_) => Err(unavailable(&records)),
    }
}

/// The next rows, and the field behind which there may be more.
async fn next_rows(
    records: &SharedRecords,
    after: &str,
) -> Result<(Vec<StateRow>, Option<String>), MaintenanceError> {
    let limits = [CHUNK_RECORDS, MAX_CHUNK_BYTES];
    let rows = records.store.scan_state("", after, limits, clock::unix_now()).await;
    rows.map_err(|_| unavailable(records))
}

fn unavailable(records: &SharedRecords) -> MaintenanceError {
    MaintenanceError::Store(records.reason())
}
