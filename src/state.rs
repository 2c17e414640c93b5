//! What outlives the process: named records in an SQLite file, or in the store
//! that replicas share.
//!
//! Each record belongs to a [`Collection`]. Followed ones are delivered to the listener of the process, all at the start
//! and then each change, also those of other processes; the others are read on demand. A write is one transaction with
//! preconditions; it succeeds when it is durable and, as far as it concerns followed records, delivered. All records
//! written by one transaction have one version; versions grow, also over deletions. Values are encrypted and bound to
//! collection and name.

mod collection;
pub mod maintenance;
mod record;
mod shared;
mod sqlite;
#[cfg(test)]
mod tests;
mod worker;

use std::{fmt, sync::Arc};

pub use self::{
    collection::Collection,
    maintenance::{CheckReport, MaintenanceError, RekeyReport},
    record::{
        OpenError, PageLimit, Precondition, ReadError, Record, RecordPage, RecordSummary, Write, WriteError,
    },
};
use self::{
    shared::SharedRecords,
    sqlite::SqliteReader,
    worker::{SharedHealth, StateWorker},
};
use crate::{
    config::{RedisConfig, StateConfig},
    secret::{Masked, seal::Sealer},
    store::{DialerChange, StoreError},
};

/// Separates the state's keys from others that are derived from the same secret.
const SEALING_DOMAIN: &str = "state";

/// How long the mark of a deletion is kept, in seconds: a process that was suspended or cut off for longer misses
/// deletions until it is restarted.
const DELETION_TTL_SECONDS: u64 = 7 * 24 * 3600;

/// What the listener is told: all followed records at the start, then every change of one, in the order of versions.
#[derive(Debug, Clone, Copy)]
pub struct StateDelivery<'a> {
    /// The records, perhaps none.
    pub records: &'a [Record],
    /// Whether the listener knows all followed records now: not before the first reply of a store, and not while the
    /// newest version of one cannot be decrypted.
    pub is_complete: bool,
}

/// Called on the thread of the state: a slow listener delays all writes.
pub type ChangeListener = Box<dyn Fn(StateDelivery<'_>) + Send>;

/// The open state. Nothing of the request path waits for it but what reads or writes records itself.
pub struct State {
    worker: StateWorker,
    reader: Reader,
    health: SharedHealth,
}

/// What reads records.
enum Reader {
    Sqlite(SqliteReader),
    Shared(SharedRecords),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({})", self.kind())
    }
}

impl State {
    /// Opens the configured state. When it returns, `listener` has had all followed records; those of a shared state
    /// that does not respond follow later. Blocks, for seconds at most.
    pub fn open(config: &StateConfig, listener: ChangeListener) -> Result<Arc<Self>, OpenError> {
        let health = SharedHealth::default();
        let (worker, reader) = match config {
            StateConfig::File(file) => {
                let (worker, reader) = sqlite::open(file, listener, health.clone())?;
                (worker, Reader::Sqlite(reader))
            }
            StateConfig::Shared(redis) => {
                let (worker, records) = shared::open(redis, listener, health.clone())?;
                (worker, Reader::Shared(records))
            }
        };
        Ok(Arc::new(Self { worker, reader, health }))
    }

    /// Carries out all writes, or none, in one transaction, and returns the version that all written records have now.
    /// On success they are durable and delivered to the listener of this process. Where the future is dropped, or it
    /// fails with [`WriteError::Unknown`], the writes may be carried out nevertheless.
    pub async fn write(&self, writes: Vec<Write>) -> Result<u64, WriteError> {
        self.worker.write(writes).await
    }

    /// The newest record of this name, also if another process wrote it; `None` if there is none, or if it has expired.
    pub async fn read(&self, collection: Collection, name: &str) -> Result<Option<Record>, ReadError> {
        match &self.reader {
            Reader::Sqlite(reader) => reader.read(collection, name).await,
            Reader::Shared(records) => records.read(collection, name).await,
        }
    }

    /// At most `limit` records of a collection whose names begin with `prefix`, in the order of their names' bytes,
    /// beginning behind `after`; an empty `after` begins with the first.
    pub async fn scan(
        &self,
        collection: Collection,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let limit = PageLimit { records: limit, bytes: usize::MAX };
        self.scan_page(collection, [prefix, after], limit).await.map(|page| page.records)
    }

    /// As [`Self::scan`], bounded by bytes too.
    pub async fn scan_page(
        &self,
        collection: Collection,
        [prefix, after]: [&str; 2],
        limit: PageLimit,
    ) -> Result<RecordPage, ReadError> {
        match &self.reader {
            Reader::Sqlite(reader) => reader.scan(collection, [prefix, after], limit).await,
            Reader::Shared(records) => records.scan(collection, [prefix, after], limit).await,
        }
    }

    /// Reads the trusted certificates of a configuration that was read again; later connections to a shared state use
    /// them once the change is carried out. `None` for a file.
    pub fn prepare_ca(&self, redis: &RedisConfig) -> Result<Option<DialerChange<'_>>, StoreError> {
        match &self.reader {
            Reader::Sqlite(_) => Ok(None),
            Reader::Shared(records) => records.prepare_ca(redis).map(Some),
        }
    }

    /// Records of [`Collection::CallbackPull`] whose names begin with `prefix`, which ends with a slash, written after
    /// `version`, in the order of versions. A transaction must write no two of one prefix.
    pub async fn scan_since(
        &self,
        prefix: &str,
        version: u64,
        limit: PageLimit,
    ) -> Result<Vec<Record>, ReadError> {
        match &self.reader {
            Reader::Sqlite(reader) => reader.scan_since(prefix, version, limit).await,
            Reader::Shared(records) => records.scan_since(prefix, version, limit).await,
        }
    }

    /// How many records of a collection have names that begin with `prefix`, which ends with a slash, and the smallest
    /// of the last `suffix_chars` characters of these names; in a shared state, of the first 1,000 of them. Those that
    /// have expired may count.
    pub async fn summarize(
        &self,
        collection: Collection,
        prefix: &str,
        suffix_chars: usize,
    ) -> Result<RecordSummary, ReadError> {
        match &self.reader {
            Reader::Sqlite(reader) => reader.summarize(collection, prefix, suffix_chars).await,
            Reader::Shared(records) => records.summarize(collection, prefix, suffix_chars).await,
        }
    }

    /// Why the last access failed; `None` after one that succeeded. Contains no secret.
    pub fn last_error(&self) -> Option<String> {
        self.health.lock().last_error.clone()
    }

    /// How many followed records have a newest version that cannot be decrypted; what was before stays in force.
    pub fn unreadable_records(&self) -> usize {
        self.health.lock().unreadable.len()
    }

    /// `sqlite` or `redis`.
    pub fn kind(&self) -> &'static str {
        match self.reader {
            Reader::Sqlite(_) => "sqlite",
            Reader::Shared(_) => "redis",
        }
    }

    /// Carries out the writes that wait, then closes the state; later writes fail.
    pub async fn close(&self) {
        // The last connection to a file that is closed moves the log into it.
        if let Reader::Sqlite(reader) = &self.reader {
            reader.close();
        }
        self.worker.close().await;
    }
}

/// Seals and opens values.
fn sealer(key: &Masked, old_key: Option<&Masked>) -> Result<Arc<Sealer>, OpenError> {
    Sealer::new(SEALING_DOMAIN, key, old_key).map(Arc::new).ok_or(OpenError::InvalidKey)
}

/// The field of a record in the store, and the place that its value is bound to.
fn record_aad(collection: &str, name: &str) -> String {
    format!("{collection}:{name}")
}
