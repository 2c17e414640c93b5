//! The state in an SQLite file: the thread of the state writes, reads run beside it.

mod checkpoint;
mod file;
pub(super) mod maintenance;
mod rows;
mod schema;
mod wal;
mod writer;

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use rusqlite::Connection;

use self::writer::SqliteWriter;
use super::{
    ChangeListener, Collection, OpenError, PageLimit, ReadError, Record, RecordPage, RecordSummary,
    StateDelivery,
    record::{SealedRecord, skip_unreadable},
    sealer,
    worker::{SharedHealth, StateWorker, Worker},
};
use crate::{
    blocking::{self, ThreadPool},
    config::StateFileConfig,
    secret::seal::Sealer,
};

/// Connections for reading that are kept open, and threads that read.
const MAX_READERS: usize = 4;

/// Threads of their own, so that a slow disk holds up nothing but what reads the state.
static READ_THREADS: ThreadPool = ThreadPool::new("state-read", MAX_READERS);

/// Connections for reading.
#[derive(Clone)]
pub(super) struct SqliteReader(Arc<Readers>);

struct Readers {
    path: PathBuf,
    sealer: Arc<Sealer>,
    idle: Mutex<Vec<Connection>>,
}

/// Opens the file and delivers its followed records. Blocks.
pub(super) fn open(
    config: &StateFileConfig,
    listener: ChangeListener,
    health: SharedHealth,
) -> Result<(StateWorker, SqliteReader), OpenError> {
    let sealer = sealer(&config.key, config.old_key.as_ref())?;
    let path = config.path.clone();
    let backend = SqliteWriter::open(path.clone(), sealer.clone())?;
    let delivered = backend.load(|records| listener(StateDelivery { records, is_complete: false }))?;
    listener(StateDelivery { records: &[], is_complete: true });
    let worker = Worker { backend, listener, delivered, is_loaded: true, health };
    let handle = StateWorker::spawn(async move || Some(worker)).map_err(OpenError::Thread)?;
    Ok((handle, SqliteReader(Arc::new(Readers { path, sealer, idle: Mutex::default() }))))
}

impl SqliteReader {
    pub(super) async fn read(&self, collection: Collection, name: &str) -> Result<Option<Record>, ReadError> {
        let name = name.to_owned();
        let found = self.run(move |connection| rows::read(connection, collection, &name)).await?;
        found.map(|record| record.open(&self.0.sealer)).transpose()
    }

    pub(super) async fn scan(
        &self,
        collection: Collection,
        range: [&str; 2],
        limit: PageLimit,
    ) -> Result<RecordPage, ReadError> {
        let (range, sealer) = (range.map(str::to_owned), self.0.sealer.clone());
        let scan = move |connection: &Connection| {
            open_readable(&sealer, limit, |each| rows::scan(connection, collection, &range, each))
        };
        self.run(scan).await
    }

    /// Closes the idle connections, so that the writer's is the last: it moves the log into the file.
    pub(super) fn close(&self) {
        self.0.idle.lock().clear();
    }

    pub(super) async fn scan_since(
        &self,
        prefix: &str,
        version: u64,
        limit: PageLimit,
    ) -> Result<Vec<Record>, ReadError> {
        let (prefix, sealer) = (prefix.to_owned(), self.0.sealer.clone());
        let scan = move |connection: &Connection| {
            open_readable(&sealer, limit, |each| rows::scan_since(connection, &prefix, version, each))
        };
        self.run(scan).await.map(|page| page.records)
    }

    pub(super) async fn summarize(
        &self,
        collection: Collection,
        prefix: &str,
        suffix_chars: usize,
    ) -> Result<RecordSummary, ReadError> {
        let prefix = prefix.to_owned();
        self.run(move |connection| rows::summarize(connection, collection, &prefix, suffix_chars)).await
    }

    /// Runs a read on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        read: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let readers = self.0.clone();
        let outcome = blocking::spawn_on(&READ_THREADS, move || readers.run(&read)).await;
        let failure = |error: &dyn std::fmt::Display| ReadError::Unavailable(error.to_string());
        outcome.map_err(|error| failure(&error))?.map_err(|error| failure(&error))
    }
}

impl Readers {
    fn run<T>(&self, read: &dyn Fn(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => file::connect_reader(&self.path, false)?,
        };
        match read(&connection) {
            Ok(result) => {
                let mut idle = self.idle.lock();
                if idle.len() < MAX_READERS {
                    idle.push(connection);
                }
                Ok(result)
            }
            // The files beside it cannot be made where the disk is full or read-only.
            Err(error) => {
                drop(connection);
                read(&file::connect_reader(&self.path, true)?).map_err(|_| error)
            }
        }
    }
}

/// The records that `scan` passes on, as far as the limit allows. One that cannot be decrypted must not keep the others
/// from being read.
fn open_readable(
    sealer: &Sealer,
    limit: PageLimit,
    scan: impl FnOnce(&mut dyn FnMut(SealedRecord) -> bool) -> rusqlite::Result<()>,
) -> rusqlite::Result<RecordPage> {
    let (mut page, mut bytes) = (RecordPage::default(), 0_usize);
    scan(&mut |sealed| {
        bytes += sealed.value.as_ref().map_or(0, Vec::len);
        let name = sealed.name.clone();
        page.records.extend(skip_unreadable(sealed.open(sealer)));
        let goes_on = page.records.len() < limit.records && bytes < limit.bytes;
        page.after = Some(name).filter(|_| !goes_on);
        goes_on
    })?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn reads_that_wait_for_the_disk_hold_up_no_other_work() {
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let stuck: Vec<_> = (0..100)
            .map(|_| {
                let released = released.clone();
                blocking::spawn_on(&READ_THREADS, move || released.lock().recv().is_ok())
            })
            .collect();
        assert_eq!(blocking::spawn(|| 7).await, Ok(7));
        drop(release);
        for read in stuck {
            read.await.expect("it ends");
        }
    }
}
