//! Redacts captures on one background thread, from a queue bounded in bytes and count. A capture that does not fit or
//! waits too long is dropped and counted.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::detail::ExchangeDetail;

/// Maximum bytes of raw text in the queue.
const MAX_QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// Maximum jobs in the queue.
const MAX_QUEUED_JOBS: usize = 256;
/// A job that has waited longer is dropped.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Niceness of the thread: workers come first, but it still runs on a busy machine.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// A capture to redact. No `Debug`: it contains credentials.
pub struct RedactionJob {
    /// Size of the capture in bytes.
    pub bytes: usize,
    /// Redacts the capture; `None` if it presents too many credentials.
    pub redact: Box<dyn FnOnce() -> Option<ExchangeDetail> + Send>,
}

/// Why a captured exchange has no details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The queue was full.
    QueueFull,
    /// The job waited longer than the timeout.
    Late,
    /// It presents more credentials than a client does, or its redaction panicked.
    TooCostly,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::QueueFull, Self::Late, Self::TooCostly];

    /// Name in metrics and in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Late => "late",
            Self::TooCostly => "too_costly",
        }
    }
}

/// Details of one exchange: pending, available or dropped.
#[derive(Debug, Default)]
pub struct DetailCell(OnceLock<Result<ExchangeDetail, DropReason>>);

impl DetailCell {
    /// Why the details were dropped, if they were.
    pub fn drop_reason(&self) -> Option<DropReason> {
        self.0.get().and_then(|result| result.as_ref().err().copied())
    }

    /// Returns the details; `None` if they were dropped. Blocks until that is decided, some seconds at most.
    pub fn wait(&self) -> Option<&ExchangeDetail> {
        self.0.wait().as_ref().ok()
    }
}

/// Queue of redaction jobs; clones share it. The thread is started by the first job, and ends with the last clone.
#[derive(Clone, Default)]
pub(super) struct RedactionQueue {
    sender: Arc<Mutex<Option<SyncSender<QueuedJob>>>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Of the queued jobs and the running one.
    total_bytes: AtomicUsize,
    dropped: [AtomicU64; DropReason::ALL.len()],
}

struct QueuedJob {
    job: RedactionJob,
    detail: Arc<DetailCell>,
    queued_at: Instant,
}

impl RedactionQueue {
    /// Queues a capture without waiting for its redaction.
    pub(super) fn submit(&self, job: RedactionJob) -> Arc<DetailCell> {
        let (detail, bytes) = (Arc::new(DetailCell::default()), job.bytes);
        let queued = QueuedJob { job, detail: detail.clone(), queued_at: Instant::now() };
        let mut sender = self.sender.lock();
        if sender.is_none() {
            *sender = self.start_thread().ok();
        }
        let has_room =
            self.counts.total_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_QUEUED_BYTES;
        let is_queued = has_room && sender.as_ref().is_some_and(|sender| sender.try_send(queued).is_ok());
        drop(sender);
        if !is_queued {
            self.counts.total_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.set(&detail, Err(DropReason::QueueFull));
        }
        detail
    }

    /// Number of captures dropped for this reason.
    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.counts.dropped[reason as usize].load(Ordering::Relaxed)
    }

    fn start_thread(&self) -> io::Result<SyncSender<QueuedJob>> {
        let (sender, receiver) = sync_channel(MAX_QUEUED_JOBS);
        let counts = self.counts.clone();
        thread::Builder::new().name("redact".to_owned()).spawn(move || counts.run(&receiver))?;
        Ok(sender)
    }
}

impl Counts {
    fn run(&self, jobs: &Receiver<QueuedJob>) {
        // If the system refuses, the thread runs at the workers' priority.
        #[cfg(target_os = "linux")]
        let _ = rustix::process::setpriority_process(None, NICENESS);
        for job in jobs {
            let bytes = job.job.bytes;
            self.redact(job);
            self.total_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn redact(&self, QueuedJob { job, detail, queued_at }: QueuedJob) {
        let result = if queued_at.elapsed() > QUEUE_TIMEOUT {
            Err(DropReason::Late)
        } else {
            catch_unwind(AssertUnwindSafe(job.redact)).ok().flatten().ok_or(DropReason::TooCostly)
        };
        self.set(&detail, result);
    }

    fn set(&self, detail: &DetailCell, result: Result<ExchangeDetail, DropReason>) {
        if let Err(reason) = result {
            self.dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
        // Each cell is set once.
        let _ = detail.0.set(result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn new_job(
        bytes: usize,
        redact: impl FnOnce() -> Option<ExchangeDetail> + Send + 'static,
    ) -> RedactionJob {
        RedactionJob { bytes, redact: Box::new(redact) }
    }

    /// A queue whose thread blocks until the sender sends.
    fn blocked_queue() -> (RedactionQueue, mpsc::Sender<()>, Arc<DetailCell>) {
        let (queue, (release, blocked), (started_sender, started)) =
            (RedactionQueue::default(), mpsc::channel(), mpsc::channel());
        let first = queue.submit(new_job(1, move || {
            started_sender.send(()).expect("the test waits");
            blocked.recv().ok().map(|()| ExchangeDetail::default())
        }));
        started.recv().expect("the thread runs");
        (queue, release, first)
    }

    #[test]
    fn full_queue_drops_counts_and_recovers() {
        let (queue, release, first) = blocked_queue();
        assert!(first.drop_reason().is_none());
        let huge = queue.submit(new_job(MAX_QUEUED_BYTES, || Some(ExchangeDetail::default())));
        assert_eq!((huge.drop_reason(), huge.wait().is_none()), (Some(DropReason::QueueFull), true));
        let queued: Vec<_> = (0..MAX_QUEUED_JOBS)
            .map(|_| queue.submit(new_job(1, || Some(ExchangeDetail::default()))))
            .collect();
        let one_more = queue.submit(new_job(1, || Some(ExchangeDetail::default())));
        assert_eq!(one_more.drop_reason(), Some(DropReason::QueueFull));
        assert_eq!(queue.dropped(DropReason::QueueFull), 2);
        release.send(()).expect("it waits");
        assert!(first.wait().is_some() && queued.iter().all(|detail| detail.wait().is_some()));
        assert!(
            queue.submit(new_job(MAX_QUEUED_BYTES - 1, || Some(ExchangeDetail::default()))).wait().is_some()
        );
    }

    #[test]
    fn panic_or_cost_drops_detail_and_thread_survives() {
        let queue = RedactionQueue::default();
        // Ordered first, because printing the panic takes long.
        let costly = queue.submit(new_job(1, || None));
        let panics = queue.submit(new_job(1, || panic!("a test's own")));
        assert!(panics.wait().is_none() && costly.wait().is_none());
        assert_eq!(queue.dropped(DropReason::TooCostly), 2);
        assert!(queue.submit(new_job(1, || Some(ExchangeDetail::default()))).wait().is_some());
    }

    #[test]
    fn late_job_is_dropped_without_redaction() {
        let shared = Counts::default();
        let (detail, queued_at) =
            (Arc::new(DetailCell::default()), Instant::now().checked_sub(QUEUE_TIMEOUT * 2));
        let Some(queued_at) = queued_at else { return };
        let late =
            QueuedJob { job: new_job(1, || panic!("it is not redacted")), detail: detail.clone(), queued_at };
        shared.redact(late);
        assert_eq!(detail.drop_reason(), Some(DropReason::Late));
    }
}
