//! The thread of the state: commits what waits together, and delivers changes of followed records in order.

use std::{collections::BTreeSet, io, sync::Arc, thread, time::Duration};

use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    ChangeListener, StateDelivery,
    record::{ReadError, Record, Write, WriteError},
    record_aad,
};
use crate::blocking;

/// How often the state is looked at for writes of other processes while this one writes nothing.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);
/// How often expired records are deleted.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
/// Transactions of callers that are committed together at most.
const MAX_BATCH_JOBS: usize = 256;
/// Transactions that wait at most; more are refused.
const MAX_WAITING_JOBS: usize = 16 * 1024;
/// Bytes of names and values that wait at most.
pub(super) const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// How often what was just written is tried to be read again before its writers are told that it was not delivered.
const DELIVERY_ATTEMPTS: usize = 4;

/// A transaction of a caller.
pub(super) struct WriteJob {
    pub(super) writes: Vec<Write>,
    reply: oneshot::Sender<Result<u64, WriteError>>,
    /// Its share of [`MAX_WAITING_BYTES`].
    room: Option<OwnedSemaphorePermit>,
}

impl WriteJob {
    /// A transaction, and where its result will come.
    pub(super) fn new(writes: Vec<Write>) -> (Self, oneshot::Receiver<Result<u64, WriteError>>) {
        let (reply, result) = oneshot::channel();
        (Self { writes, reply, room: None }, result)
    }

    /// The bytes of names and values, as far as they count.
    fn counted_bytes(&self) -> u32 {
        let bytes = |write: &Write| write.name.len() + write.value.as_ref().map_or(0, |value| value.len());
        let total = self.writes.iter().map(bytes).sum::<usize>();
        // One that is larger than all room can be written alone.
        total.min(MAX_WAITING_BYTES) as u32
    }

    fn is_followed(&self) -> bool {
        self.writes.iter().any(|write| write.collection.is_followed())
    }
}

/// What health reports say.
#[derive(Default)]
pub(super) struct StateHealth {
    /// The error of the last access.
    pub(super) last_error: Option<String>,
    /// Followed records whose newest version cannot be decrypted, as `collection:name`; the listener has the one before.
    pub(super) unreadable: BTreeSet<String>,
}

/// Shared with the handle.
pub(super) type SharedHealth = Arc<Mutex<StateHealth>>;

/// Changes of followed records, in the order of versions.
#[derive(Default)]
pub(super) struct RecordChanges {
    pub(super) records: Vec<Record>,
    /// Changed records that cannot be decrypted, as `collection:name`.
    pub(super) unreadable: Vec<String>,
    /// All changes up to this version are among them.
    pub(super) version: u64,
    /// Whether there are newer ones.
    pub(super) has_more: bool,
}

impl RecordChanges {
    /// Adds a record. One that cannot be decrypted must not keep the others from being delivered.
    pub(super) fn add(&mut self, record: Result<Record, ReadError>) {
        match record {
            Ok(record) => self.records.push(record),
            Err(error) => {
                tracing::error!(%error, "changed record of the state skipped, the one before stays in force");
                if let ReadError::Unreadable(place) = error {
                    self.unreadable.push(place);
                }
            }
        }
    }
}

/// What a batch of transactions did.
pub(super) struct Committed {
    /// One for each job.
    pub(super) results: Vec<Result<u64, WriteError>>,
    /// Also those that other processes have written.
    pub(super) changes: RecordChanges,
}

/// Where the records are.
pub(super) trait StateBackend {
    /// Carries out the jobs, each all or not at all. Fails if none of them was carried out, or with
    /// [`WriteError::Unknown`]. Changes that cannot be read after the commit are left for later with `has_more`.
    async fn commit(&mut self, batch: &[WriteJob], since: u64) -> Result<Committed, WriteError>;

    /// The changes behind the version `since`; `None` if there are none.
    async fn changes_since(&mut self, since: u64) -> Result<Option<RecordChanges>, ReadError>;

    /// Deletes some expired records. Returns whether there may be more.
    async fn delete_expired(&mut self) -> Result<bool, WriteError>;
}

/// What the thread owns.
pub(super) struct Worker<B> {
    pub(super) backend: B,
    pub(super) listener: ChangeListener,
    /// The version up to which the listener has had all changes.
    pub(super) delivered: u64,
    /// Whether the listener has had all that there was at the start.
    pub(super) is_loaded: bool,
    pub(super) health: SharedHealth,
}

impl<B: StateBackend> Worker<B> {
    /// A worker whose listener has had nothing yet.
    pub(super) fn new(backend: B, listener: ChangeListener, health: SharedHealth) -> Self {
        Self { backend, listener, delivered: 0, is_loaded: false, health }
    }

    /// Whether a followed record cannot be decrypted.
    pub(super) fn has_unreadable(&self) -> bool {
        !self.health.lock().unreadable.is_empty()
    }

    /// Serves the jobs until the handle is gone.
    async fn run(mut self, mut jobs: mpsc::Receiver<WriteJob>) {
        let mut expiry_at = Instant::now() + EXPIRY_INTERVAL;
        loop {
            match timeout(FOLLOW_INTERVAL, jobs.recv()).await {
                Ok(Some(first)) => {
                    let mut batch = vec![first];
                    while batch.len() < MAX_BATCH_JOBS
                        && let Ok(job) = jobs.try_recv()
                    {
                        batch.push(job);
                    }
                    self.serve(batch).await;
                }
                Ok(None) => return,
                Err(_) => {
                    let _ = self.follow().await;
                }
            }
            if Instant::now() >= expiry_at {
                let has_more = self.backend.delete_expired().await.is_ok_and(|has_more| has_more);
                expiry_at = Instant::now() + if has_more { FOLLOW_INTERVAL } else { EXPIRY_INTERVAL };
            }
        }
    }

    /// Commits the batch together. A full disk may be due to one large job, so each is then tried alone. No other
    /// failure is repeated: the next would wait as long for a lock, and what may have been carried out must not be twice.
    pub(super) async fn serve(&mut self, mut batch: Vec<WriteJob>) {
        batch.retain(|job| !job.reply.is_closed());
        if batch.is_empty() {
            return;
        }
        match self.commit(&batch).await {
            Ok(results) => reply_all(batch, results),
            Err(WriteError::Full(_)) if batch.len() > 1 => self.serve_singly(batch).await,
            Err(error) => fail_all(batch, &error),
        }
    }

    async fn serve_singly(&mut self, batch: Vec<WriteJob>) {
        let mut jobs = batch.into_iter();
        while let Some(job) = jobs.next() {
            if job.reply.is_closed() {
                continue;
            }
            match self.commit(std::slice::from_ref(&job)).await {
                Ok(results) => reply_all(vec![job], results),
                Err(error @ WriteError::Full(_)) => fail_all([job], &error),
                Err(error) => return fail_all(std::iter::once(job).chain(jobs), &error),
            }
        }
    }

    async fn commit(&mut self, batch: &[WriteJob]) -> Result<Vec<Result<u64, WriteError>>, WriteError> {
        let outcome = self.backend.commit(batch, self.delivered).await;
        self.note(outcome.as_ref().err());
        let Committed { mut results, changes } = outcome?;
        let has_more = changes.has_more;
        self.deliver(changes);
        // What was written is delivered only with the rest.
        if has_more && let Err(error) = self.follow_repeatedly().await {
            let undelivered = batch.iter().zip(&mut results).filter(|(job, _)| job.is_followed());
            for (_, result) in undelivered.filter(|(_, result)| result.is_ok()) {
                *result = Err(WriteError::Unknown(error.to_string()));
            }
        }
        Ok(results)
    }

    async fn follow_repeatedly(&mut self) -> Result<(), ReadError> {
        let mut followed = self.follow().await;
        for _ in 1..DELIVERY_ATTEMPTS {
            if followed.is_ok() {
                break;
            }
            sleep(FOLLOW_INTERVAL).await;
            followed = self.follow().await;
        }
        followed
    }

    /// Delivers what other processes have written.
    pub(super) async fn follow(&mut self) -> Result<(), ReadError> {
        loop {
            let outcome = self.backend.changes_since(self.delivered).await;
            self.note(outcome.as_ref().err());
            match outcome? {
                Some(changes) => {
                    let has_more = changes.has_more;
                    self.deliver(changes);
                    if !has_more {
                        return Ok(());
                    }
                }
                None => {
                    if !self.is_loaded {
                        self.deliver(RecordChanges { version: self.delivered, ..RecordChanges::default() });
                    }
                    return Ok(());
                }
            }
        }
    }

    fn deliver(&mut self, changes: RecordChanges) {
        let RecordChanges { records, unreadable, version, has_more } = changes;
        let was_complete = self.is_loaded && !self.has_unreadable();
        self.is_loaded |= !has_more;
        {
            let mut health = self.health.lock();
            let known = &mut health.unreadable;
            known.extend(unreadable);
            if !known.is_empty() {
                records.iter().for_each(|record| {
                    known.remove(&record_aad(record.collection.name(), &record.name));
                });
            }
        }
        let is_complete = self.is_loaded && !self.has_unreadable();
        if !records.is_empty() || is_complete != was_complete {
            (self.listener)(StateDelivery { records: &records, is_complete });
        }
        self.delivered = version;
    }

    /// Keeps the error for health reports; logs when one begins and when it is over.
    fn note(&self, error: Option<&impl ToString>) {
        let error = error.map(ToString::to_string);
        let before = std::mem::replace(&mut self.health.lock().last_error, error.clone());
        match (before, error) {
            (None, Some(error)) => tracing::error!(error, "state failed, forwarding goes on"),
            (Some(_), None) => tracing::info!("state works again"),
            _ => {}
        }
    }
}

fn reply_all(batch: Vec<WriteJob>, results: Vec<Result<u64, WriteError>>) {
    for (job, result) in batch.into_iter().zip(results) {
        // A caller that went away needs no reply.
        let _ = job.reply.send(result);
    }
}

fn fail_all(batch: impl IntoIterator<Item = WriteJob>, error: &WriteError) {
    for job in batch {
        let _ = job.reply.send(Err(error.clone()));
    }
}

/// The handle of a worker's thread.
pub(super) struct StateWorker {
    /// `None` after [`StateWorker::close`].
    jobs: Mutex<Option<mpsc::Sender<WriteJob>>>,
    /// What is left of [`MAX_WAITING_BYTES`].
    room: Arc<Semaphore>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl StateWorker {
    /// Runs the worker that `start` returns on a thread of its own. With `None` the thread ends.
    pub(super) fn spawn<B: StateBackend>(
        start: impl AsyncFnOnce() -> Option<Worker<B>> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel(MAX_WAITING_JOBS);
        let serve = move || {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                if let Some(worker) = start().await {
                    worker.run(jobs).await;
                }
            });
        };
        let thread = thread::Builder::new().name("state".to_owned()).spawn(serve)?;
        let room = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
        Ok(Self { jobs: Mutex::new(Some(sender)), room, thread: Mutex::new(Some(thread)) })
    }

    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<u64, WriteError> {
        let busy = || WriteError::Unavailable("too many writes wait for it".to_owned());
        let closed = || WriteError::Unavailable("it is closed".to_owned());
        let (mut job, result) = WriteJob::new(writes);
        let room = self.room.clone().try_acquire_many_owned(job.counted_bytes());
        job.room = Some(room.map_err(|_| busy())?);
        let sent = match &*self.jobs.lock() {
            Some(jobs) => jobs.try_send(job),
            None => return Err(closed()),
        };
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        result.await.unwrap_or_else(|_| Err(WriteError::Unknown("its thread has ended".to_owned())))
    }

    /// Ends the thread when it has served what waits.
    pub(super) async fn close(&self) {
        *self.jobs.lock() = None;
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = blocking::spawn(move || thread.join()).await;
        }
    }
}
