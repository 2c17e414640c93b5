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

use super::{Detail, lock};

/// Most bytes of raw text that wait.
const MAX_QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// Most exchanges that wait.
const MAX_QUEUED: usize = 256;
/// An exchange that has waited for longer is dropped.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// The thread ends when nothing has come for so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The priority of the thread: requests come first, and yet it gets a share of a machine that is busy.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// What was captured of an exchange, to be redacted. It has no `Debug`: it holds credentials.
pub struct Capture {
    /// How many bytes it holds.
    pub bytes: usize,
    /// Redacts it; `None` where that would take too long.
    pub redact: Box<dyn FnOnce() -> Option<Detail> + Send>,
}

/// Why there are no details of an exchange that was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Too many waited to be redacted.
    QueueFull,
    /// It waited too long to be redacted.
    Late,
    /// To redact it would have taken too long.
    TooCostly,
}

impl Missing {
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
pub struct Captured(OnceLock<Result<Detail, Missing>>);

impl Captured {
    /// Why there are none, where that is decided.
    pub fn missing(&self) -> Option<Missing> {
        self.0.get().and_then(|made| made.as_ref().err().copied())
    }

    /// The details. Blocks until they are made or dropped: for some seconds at most.
    pub fn wait(&self) -> Option<&Detail> {
        self.0.wait().as_ref().ok()
    }
}

/// Captures that wait to be redacted. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Condvar,
    dropped: [AtomicU64; Missing::ALL.len()],
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Of all jobs, and of the one that is being done.
    bytes: usize,
    /// Whether there is a thread.
    runs: bool,
}

struct Job {
    capture: Capture,
    captured: Arc<Captured>,
    since: Instant,
}

impl Queue {
    /// Has a capture redacted, in as much time as it takes to put it down.
    pub(super) fn submit(&self, capture: Capture) -> Arc<Captured> {
        let captured = Arc::new(Captured::default());
        let mut waiting = lock(&self.0.waiting);
        let fits = waiting.jobs.len() < MAX_QUEUED && waiting.bytes + capture.bytes <= MAX_QUEUED_BYTES;
        if !fits || (!waiting.runs && self.start_thread().is_err()) {
            drop(waiting);
            self.0.set(&captured, Err(Missing::QueueFull));
            return captured;
        }
        waiting.runs = true;
        waiting.bytes += capture.bytes;
        waiting.jobs.push_back(Job { capture, captured: captured.clone(), since: Instant::now() });
        drop(waiting);
        self.0.came.notify_one();
        captured
    }

    /// How many captures were dropped for this reason.
    pub(super) fn dropped(&self, reason: Missing) -> u64 {
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
        while let Some(job) = self.next() {
            let bytes = job.capture.bytes;
            self.redact(job);
            lock(&self.waiting).bytes -= bytes;
        }
    }

    fn redact(&self, Job { capture, captured, since }: Job) {
        let made = if since.elapsed() > MAX_WAIT {
            Err(Missing::Late)
        } else {
            catch_unwind(AssertUnwindSafe(capture.redact)).ok().flatten().ok_or(Missing::TooCostly)
        };
        self.set(&captured, made);
    }

    /// The next one; `None` when the thread is to end.
    fn next(&self) -> Option<Job> {
        let waiting = lock(&self.waiting);
        let came = self.came.wait_timeout_while(waiting, IDLE_TIMEOUT, |waiting| waiting.jobs.is_empty());
        let (mut waiting, _) = came.unwrap_or_else(PoisonError::into_inner);
        let job = waiting.jobs.pop_front();
        waiting.runs = job.is_some();
        job
    }

    fn set(&self, captured: &Captured, made: Result<Detail, Missing>) {
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

    fn capture(bytes: usize, redact: impl FnOnce() -> Option<Detail> + Send + 'static) -> Capture {
        Capture { bytes, redact: Box::new(redact) }
    }

    /// A queue whose thread is held until the sender says something.
    fn held() -> (Queue, mpsc::Sender<()>, Arc<Captured>) {
        let (queue, (release, held), (tell, begun)) = (Queue::default(), mpsc::channel(), mpsc::channel());
        let first = queue.submit(capture(1, move || {
            tell.send(()).expect("the test waits");
            held.recv().ok().map(|()| Detail::default())
        }));
        begun.recv().expect("the thread runs");
        (queue, release, first)
    }

    #[test]
    fn full_queue_drops_counts_and_recovers() {
        let (queue, release, first) = held();
        assert!(first.missing().is_none());
        let huge = queue.submit(capture(MAX_QUEUED_BYTES, || Some(Detail::default())));
        assert_eq!((huge.missing(), huge.wait().is_none()), (Some(Missing::QueueFull), true));
        let waiting: Vec<_> =
            (0..MAX_QUEUED).map(|_| queue.submit(capture(1, || Some(Detail::default())))).collect();
        let one_more = queue.submit(capture(1, || Some(Detail::default())));
        assert_eq!(one_more.missing(), Some(Missing::QueueFull));
        assert_eq!(queue.dropped(Missing::QueueFull), 2);
        release.send(()).expect("it waits");
        assert!(first.wait().is_some() && waiting.iter().all(|one| one.wait().is_some()));
        assert!(queue.submit(capture(MAX_QUEUED_BYTES - 1, || Some(Detail::default()))).wait().is_some());
    }

    #[test]
    fn panic_and_cost_leave_no_detail_and_the_thread() {
        let queue = Queue::default();
        // To print a panic takes long.
        let costly = queue.submit(capture(1, || None));
        let panics = queue.submit(capture(1, || panic!("a test's own")));
        assert!(panics.wait().is_none() && costly.wait().is_none());
        assert_eq!(queue.dropped(Missing::TooCostly), 2);
        assert!(queue.submit(capture(1, || Some(Detail::default()))).wait().is_some());
    }

    #[test]
    fn late_capture_is_dropped_without_being_redacted() {
        let shared = Shared::default();
        let (captured, since) = (Arc::new(Captured::default()), Instant::now().checked_sub(MAX_WAIT * 2));
        let Some(since) = since else { return };
        let late =
            Job { capture: capture(1, || panic!("it is not redacted")), captured: captured.clone(), since };
        shared.redact(late);
        assert_eq!(captured.missing(), Some(Missing::Late));
    }
}
