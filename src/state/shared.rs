//! The state in the store that replicas share.

use std::{sync::Arc, sync::mpsc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{
    ChangeListener, Collection, DELETION_TTL_SECONDS, OpenError, PageLimit, Precondition, ReadError, Record,
    RecordPage, RecordSummary, WriteError,
    record::{SealedRecord, skip_unreadable},
    record_aad, sealer,
    worker::{Committed, RecordChanges, SharedHealth, StateBackend, StateWorker, Worker, WriteJob},
};
use crate::{
    config::RedisConfig,
    secret::seal::Sealer,
    store::{
        DialerChange, PreparedStore, StateChanges, StateIndex, StateRow, StateWrite, Store, StoreError,
        Unavailable,
    },
    time::clock,
};

pub(super) mod maintenance;

/// How long the start waits for the store; then it goes on without records, which follow when there is a connection.
const LOAD_TIMEOUT: Duration = Duration::from_secs(3);
/// Records that are read at once at most.
const SCAN_RECORDS: usize = 256;
/// How often a connection is looked for.
const CONNECT_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A connection of its own, so that a busy state delays no token.
#[derive(Clone)]
pub(super) struct SharedRecords {
    store: Arc<Store>,
    sealer: Arc<Sealer>,
}

/// What the thread of the state uses.
struct SharedBackend(SharedRecords);

/// Connects to the store, and delivers the followed records if that succeeds soon. Blocks.
pub(super) fn open(
    redis: &RedisConfig,
    listener: ChangeListener,
    health: SharedHealth,
) -> Result<(StateWorker, SharedRecords), OpenError> {
    let prepared = PreparedStore::new(redis)?;
    let sealer = sealer(&redis.key, redis.old_key.as_ref())?;
    let (sender, opened) = mpsc::sync_channel(1);
    let start = async move || {
        let records = SharedRecords { store: connect(prepared).await, sealer };
        let mut worker = Worker::new(SharedBackend(records.clone()), listener, health);
        let _ = timeout(LOAD_TIMEOUT, worker.follow()).await;
        let is_readable = !worker.has_unreadable();
        let _ = sender.send(if is_readable { Ok(records) } else { Err(OpenError::SharedKey) });
        is_readable.then_some(worker)
    };
    let handle = StateWorker::spawn(start).map_err(OpenError::Thread)?;
    let no_runtime = || OpenError::Thread(std::io::Error::other("no runtime could be made"));
    let records = opened.recv().unwrap_or_else(|_| Err(no_runtime()))?;
    Ok((handle, records))
}

/// Opens the store on the current runtime, and waits a while for its connection.
async fn connect(prepared: PreparedStore) -> Arc<Store> {
    let (store, mut events) = Store::open(prepared, &Handle::current());
    // Notifications are of tokens.
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let is_connected = async {
        while store.last_error().is_some() {
            sleep(CONNECT_CHECK_INTERVAL).await;
        }
    };
    let _ = timeout(LOAD_TIMEOUT, is_connected).await;
    store
}

impl SharedRecords {
    pub(super) async fn read(&self, collection: Collection, name: &str) -> Result<Option<Record>, ReadError> {
        let row = self.store.read_state(&record_aad(collection.name(), name)).await;
        let row = row.map_err(|_| ReadError::Unavailable(self.reason()))?;
        let record = row.and_then(|row| self.open_row(row)).transpose()?;
        Ok(record.filter(|record| record.value.is_some()))
    }

    pub(super) async fn scan(
        &self,
        collection: Collection,
        [prefix, after]: [&str; 2],
        limit: PageLimit,
    ) -> Result<RecordPage, ReadError> {
        let field = |name: &str| record_aad(collection.name(), name);
        let (prefix, mut after) =
            (field(prefix), if after.is_empty() { String::new() } else { field(after) });
        let (mut found, mut bytes) = (Vec::new(), 0);
        loop {
            let rest =
                PageLimit { records: limit.records - found.len(), bytes: limit.bytes.saturating_sub(bytes) };
            let rest = PageLimit { records: rest.records.min(SCAN_RECORDS), ..rest };
            let rows = self.store.scan_state(&prefix, &after, [rest.records, rest.bytes], clock::unix_now());
            let (rows, next) = rows.await.map_err(|_| ReadError::Unavailable(self.reason()))?;
            bytes += rows.iter().map(|row| row.sealed.len()).sum::<usize>();
            found.extend(self.open_readable(rows));
            match next {
                Some(field) if found.len() < limit.records && bytes < limit.bytes => after = field,
                next => {
                    let after = next.and_then(|field| Some(field.split_once(':')?.1.to_owned()));
                    return Ok(RecordPage { records: found, after });
                }
            }
        }
    }

    pub(super) async fn scan_since(
        &self,
        prefix: &str,
        version: u64,
        limit: PageLimit,
    ) -> Result<Vec<Record>, ReadError> {
        let prefix = record_aad(Collection::CallbackPull.name(), prefix);
        let limits = [limit.records.min(SCAN_RECORDS), limit.bytes];
        let rows = self.store.scan_state_since(&prefix, version, limits, clock::unix_now()).await;
        let rows = rows.map_err(|_| ReadError::Unavailable(self.reason()))?;
        Ok(self.open_readable(rows).collect())
    }

    /// A record that cannot be decrypted must not keep the others from being read.
    fn open_readable(&self, rows: Vec<StateRow>) -> impl Iterator<Item = Record> {
        rows.into_iter().filter_map(|row| self.open_row(row).and_then(skip_unreadable))
    }

    pub(super) async fn summarize(
        &self,
        collection: Collection,
        prefix: &str,
        suffix_chars: usize,
    ) -> Result<RecordSummary, ReadError> {
        let prefix = record_aad(collection.name(), prefix);
        let summary = self.store.summarize_state(&prefix, suffix_chars).await;
        let (count, min_suffix) = summary.map_err(|_| ReadError::Unavailable(self.reason()))?;
        Ok(RecordSummary { count, min_suffix })
    }

    /// See [`Store::prepare_ca`].
    pub(super) fn prepare_ca(&self, redis: &RedisConfig) -> Result<DialerChange<'_>, StoreError> {
        self.store.prepare_ca(redis)
    }

    /// Decrypts a row; `None` for a collection that only another version of the program knows.
    fn open_row(&self, row: StateRow) -> Option<Result<Record, ReadError>> {
        let (collection, name) = row.field.split_once(':')?;
        let (collection, name) = (Collection::by_name(collection)?, name.to_owned());
        let StateRow { version, expires_at, .. } = row;
        let value = Some(row.sealed).filter(|sealed| !sealed.is_empty());
        Some(SealedRecord { collection, name, version, value, expires_at }.open(&self.sealer))
    }

    fn reason(&self) -> String {
        self.store.last_error().unwrap_or_else(|| "the store did not respond in time".to_owned())
    }

    /// A store without memory for more says so in its error.
    fn write_error(&self) -> WriteError {
        let reason = self.reason();
        if reason.contains("OOM") { WriteError::Full(reason) } else { WriteError::Unavailable(reason) }
    }

    async fn write(&self, batch: &[WriteJob]) -> Result<Vec<Result<u64, WriteError>>, WriteError> {
        let sealed: Option<Vec<Vec<Vec<u8>>>> = batch.iter().map(|job| self.seal_all(job)).collect();
        let sealed =
            sealed.ok_or_else(|| WriteError::Unavailable("a value cannot be encrypted".to_owned()))?;
        let transactions: Vec<Vec<_>> =
            batch.iter().zip(&sealed).map(|(job, sealed)| state_writes(job, sealed)).collect();
        // Without a connection nothing is sent.
        if self.store.last_error().is_some() {
            return Err(self.write_error());
        }
        let outcomes = self.store.write_state(&transactions, times()).await;
        let outcomes = outcomes.map_err(|_| match self.write_error() {
            WriteError::Unavailable(reason) => WriteError::Unknown(reason),
            error => error,
        })?;
        let conflict = |(index, current)| WriteError::Conflict { index, current };
        Ok(outcomes.into_iter().map(|outcome| outcome.map_err(conflict)).collect())
    }

    /// The sealed value of each write; empty for a deletion.
    fn seal_all(&self, job: &WriteJob) -> Option<Vec<Vec<u8>>> {
        let sealed = job.writes.iter().map(|write| match &write.value {
            Some(value) => self.sealer.seal(&record_aad(write.collection.name(), &write.name), value),
            None => Some(Vec::new()),
        });
        sealed.collect()
    }
}

fn state_writes<'a>(job: &WriteJob, sealed: &'a [Vec<u8>]) -> Vec<StateWrite<'a>> {
    let writes = job.writes.iter().zip(sealed).map(|(write, sealed)| StateWrite {
        field: record_aad(write.collection.name(), &write.name),
        index: match write.collection {
            Collection::CallbackPull => StateIndex::PrefixAndVersion,
            collection if collection.is_followed() => StateIndex::Followed,
            _ => StateIndex::Name,
        },
        precondition: match write.precondition {
            Precondition::None => "none".to_owned(),
            Precondition::Absent => "absent".to_owned(),
            Precondition::Present => "present".to_owned(),
            Precondition::Version(version) => version.to_string(),
            Precondition::NotLast(version) => format!("not-last:{version}"),
        },
        sealed,
        expires_at: write.expires_at,
    });
    writes.collect()
}

/// Now, and the end of a deletion's mark, in seconds since 1970.
fn times() -> [u64; 2] {
    let now = clock::unix_now();
    [now, now + DELETION_TTL_SECONDS]
}

impl StateBackend for SharedBackend {
    async fn commit(&mut self, batch: &[WriteJob], since: u64) -> Result<Committed, WriteError> {
        let results = self.0.write(batch).await?;
        let changes = self.changes_since(since).await;
        let has_more = changes.is_err();
        let unchanged = RecordChanges { version: since, has_more, ..RecordChanges::default() };
        let changes = changes.ok().flatten().unwrap_or(unchanged);
        Ok(Committed { results, changes })
    }

    async fn changes_since(&mut self, since: u64) -> Result<Option<RecordChanges>, ReadError> {
        let changes = self.0.store.state_changes(since).await;
        let (rows, version, newest) = match changes
            .map_err(|Unavailable| ReadError::Unavailable(self.0.reason()))?
        {
            StateChanges::Found { version, .. } if version == since => return Ok(None),
            StateChanges::Found { rows, version, newest } => (rows, version, newest),
            StateChanges::Lost => {
                tracing::error!(
                    "the shared state has lost its latest writes; restart the replicas to forget what it lacks"
                );
                // What it still has is delivered again.
                return Ok(Some(RecordChanges { has_more: true, ..RecordChanges::default() }));
            }
        };
        let mut changes = RecordChanges { version, has_more: newest > version, ..RecordChanges::default() };
        for record in rows.into_iter().filter_map(|row| self.0.open_row(row)) {
            changes.add(record);
        }
        Ok(Some(changes))
    }

    async fn delete_expired(&mut self) -> Result<bool, WriteError> {
        self.0.store.delete_expired_state(times()).await.map_err(|_| self.0.write_error())
    }
}
