//! Makes details of exchanges off the workers: one thread takes them from a queue that is bounded in bytes and in count. What
//! does not fit, or comes too late, is dropped and counted.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{ExchangeDetail, lock};

/// Most bytes of raw text that wait.
const MAX_QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// Most exchanges that wait.
const MAX_QUEUED_JOBS: usize = 256;
/// An exchange that has waited for longer is dropped.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// The thread ends when nothing has come for so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The priority of the thread: requests come first, and yet it gets a share of a machine that is busy.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// What was captured of an exchange, to be redacted. It has no `Debug`: it holds credentials.
pub struct RedactionJob {
    /// How many bytes it holds.
    pub bytes: usize,
    /// Redacts it; `None` where that would take too long.
    pub redact: Box<dyn FnOnce() -> Option<ExchangeDetail> + Send>,
}

/// Why there are no details of an exchange that was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Too many waited to be redacted.
    QueueFull,
    /// It waited too long to be redacted.
    Late,
    /// To redact it would have taken too long.
    TooCostly,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::QueueFull, Self::Late, Self::TooCostly];

    /// Its name in metrics and in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Late => "late",
            Self::TooCostly => "too_costly",
        }
    }
}

/// The details of one exchange: to come, there, or missing.
#[derive(Debug, Default)]
pub struct DetailCell(OnceLock<Result<ExchangeDetail, DropReason>>);

impl DetailCell {
    /// Why there are none, where that is decided.
    pub fn drop_reason(&self) -> Option<DropReason> {
        self.0.get().and_then(|made| made.as_ref().err().copied())
    }

    /// The details. Blocks until they are made or dropped: for some seconds at most.
    pub fn wait(&self) -> Option<&ExchangeDetail> {
        self.0.wait().as_ref().ok()
    }
}

/// Captures that wait to be redacted. Clones share them.
#[derive(Clone, Default)]
pub(super) struct RedactionQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<QueueState>,
    job_added: Condvar,
    dropped: [AtomicU64; DropReason::ALL.len()],
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<QueuedJob>,
    /// Of all jobs, and of the one that is being done.
    total_bytes: usize,
    /// Whether there is a thread.
    thread_running: bool,
}

struct QueuedJob {
    job: RedactionJob,
    detail: Arc<DetailCell>,
    queued_at: Instant,
}

impl RedactionQueue {
    /// Has a capture redacted, in as much time as it takes to put it down.
    pub(super) fn submit(&self, capture: RedactionJob) -> Arc<DetailCell> {
        let captured = Arc::new(DetailCell::default());
        let mut waiting = lock(&self.0.state);
        let fits =
            waiting.jobs.len() < MAX_QUEUED_JOBS && waiting.total_bytes + capture.bytes <= MAX_QUEUED_BYTES;
        if !fits || (!waiting.thread_running && self.start_thread().is_err()) {
            drop(waiting);
            self.0.set(&captured, Err(DropReason::QueueFull));
            return captured;
        }
        waiting.thread_running = true;
        waiting.total_bytes += capture.bytes;
        waiting.jobs.push_back(QueuedJob {
            job: capture,
            detail: captured.clone(),
            queued_at: Instant::now(),
        });
        drop(waiting);
        self.0.job_added.notify_one();
        captured
    }

    /// How many captures were dropped for this reason.
    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.0.dropped[reason as usize].load(Ordering::Relaxed)
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.0.clone();
        thread::Builder::new().name("redact".to_owned()).spawn(move || shared.run()).map(drop)
    }
}

impl Shared {
    fn run(&self) {
        // Where the system refuses, it competes with the workers as an equal.
        #[cfg(target_os = "linux")]
        let _ = rustix::process::setpriority_process(None, NICENESS);
        while let Some(job) = self.next_job() {
            let bytes = job.job.bytes;
            self.redact(job);
            lock(&self.state).total_bytes -= bytes;
        }
    }

    fn redact(&self, QueuedJob { job: capture, detail: captured, queued_at: since }: QueuedJob) {
        let made = if since.elapsed() > QUEUE_TIMEOUT {
            Err(DropReason::Late)
        } else {
            catch_unwind(AssertUnwindSafe(capture.redact)).ok().flatten().ok_or(DropReason::TooCostly)
        };
        self.set(&captured, made);
    }

    /// The next one; `None` when the thread is to end.
    fn next_job(&self) -> Option<QueuedJob> {
        let waiting = lock(&self.state);
        let came =
            self.job_added.wait_timeout_while(waiting, IDLE_TIMEOUT, |waiting| waiting.jobs.is_empty());
        let (mut waiting, _) = came.unwrap_or_else(PoisonError::into_inner);
        let job = waiting.jobs.pop_front();
        waiting.thread_running = job.is_some();
        job
    }

    fn set(&self, captured: &DetailCell, made: Result<ExchangeDetail, DropReason>) {
        if let Err(reason) = made {
            self.dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
        // Each is set once.
        let _ = captured.0.set(made);
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

    /// A queue whose thread is held until the sender says something.
    fn blocked_queue() -> (RedactionQueue, mpsc::Sender<()>, Arc<DetailCell>) {
        let (queue, (release, held), (tell, begun)) =
            (RedactionQueue::default(), mpsc::channel(), mpsc::channel());
        let first = queue.submit(new_job(1, move || {
            tell.send(()).expect("the test waits");
            held.recv().ok().map(|()| ExchangeDetail::default())
        }));
        begun.recv().expect("the thread runs");
        (queue, release, first)
    }

    #[test]
    fn full_queue_drops_counts_and_recovers() {
        let (queue, release, first) = blocked_queue();
        assert!(first.drop_reason().is_none());
        let huge = queue.submit(new_job(MAX_QUEUED_BYTES, || Some(ExchangeDetail::default())));
        assert_eq!((huge.drop_reason(), huge.wait().is_none()), (Some(DropReason::QueueFull), true));
        let waiting: Vec<_> = (0..MAX_QUEUED_JOBS)
            .map(|_| queue.submit(new_job(1, || Some(ExchangeDetail::default()))))
            .collect();
        let one_more = queue.submit(new_job(1, || Some(ExchangeDetail::default())));
        assert_eq!(one_more.drop_reason(), Some(DropReason::QueueFull));
        assert_eq!(queue.dropped(DropReason::QueueFull), 2);
        release.send(()).expect("it waits");
        assert!(first.wait().is_some() && waiting.iter().all(|one| one.wait().is_some()));
        assert!(
            queue.submit(new_job(MAX_QUEUED_BYTES - 1, || Some(ExchangeDetail::default()))).wait().is_some()
        );
    }

    #[test]
    fn panic_or_cost_drops_detail_and_thread_survives() {
        let queue = RedactionQueue::default();
        // To print a panic takes long.
        let costly = queue.submit(new_job(1, || None));
        let panics = queue.submit(new_job(1, || panic!("a test's own")));
        assert!(panics.wait().is_none() && costly.wait().is_none());
        assert_eq!(queue.dropped(DropReason::TooCostly), 2);
        assert!(queue.submit(new_job(1, || Some(ExchangeDetail::default()))).wait().is_some());
    }

    #[test]
    fn late_job_is_dropped_without_redaction() {
        let shared = Shared::default();
        let (captured, since) =
            (Arc::new(DetailCell::default()), Instant::now().checked_sub(QUEUE_TIMEOUT * 2));
        let Some(since) = since else { return };
        let late = QueuedJob {
            job: new_job(1, || panic!("it is not redacted")),
            detail: captured.clone(),
            queued_at: since,
        };
        shared.redact(late);
        assert_eq!(captured.drop_reason(), Some(DropReason::Late));
    }
}
