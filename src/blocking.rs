//! Bounded thread pools for blocking work. If the system grants no thread, [`spawn`] runs the job in place and
//! [`ThreadPool::submit`] returns it.

mod priority;
mod slices;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::{
    sync::oneshot::{self, error::RecvError},
    time::timeout,
};

#[cfg(test)]
pub(crate) use self::slices::yields;
pub(crate) use self::{
    priority::lower as lower_priority,
    slices::{copy_in_slices, in_slices, in_slices_of, retain_in_slices, visit_in_slices, yield_cpu},
};

/// A thread without work ends after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Threads for work that something waits for, such as files of the replay buffer.
const MAX_BLOCKING_THREADS: usize = 64;
/// Threads for reloads, admin pages and metrics.
const MAX_BACKGROUND_THREADS: usize = 16;
/// Work that has not begun on a background thread after this is done by an ordinary one: other threads take all CPU time.
const START_TIMEOUT: Duration = Duration::from_millis(50);

static BLOCKING_THREADS: ThreadPool = ThreadPool::new("blocking", MAX_BLOCKING_THREADS);
static BACKGROUND_THREADS: ThreadPool = ThreadPool::background("background", MAX_BACKGROUND_THREADS);

/// Work for a thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs work on a thread of the process, or in place if no thread can be had. The receiver fails only if the work
/// panics. The runtime's own `spawn_blocking` panics without a thread, and a runtime waits for its work when dropped.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    spawn_on(&BLOCKING_THREADS, work)
}

/// Does work that may take long and that no request waits for, on a thread that runs only while no other one wants its
/// CPU; on an ordinary one where that thread does not get to run. Once begun, it may take three hundred times as long: it must
/// hold no lock that workers, token refreshes or the state need. A future that is dropped does not end the work. Fails
/// only if the work panics. The work must not start threads that stay: they would inherit the priority.
pub async fn run_in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RecvError> {
    run_on_either(&BACKGROUND_THREADS, &BLOCKING_THREADS, work).await
}

/// Does work on a thread of the first pool, or, if it has not begun in time, on one of the second.
async fn run_on_either<T: Send + 'static>(
    first: &'static ThreadPool,
    second: &'static ThreadPool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RecvError> {
    let (sender, mut result) = oneshot::channel();
    let work = move || {
        // The thread that has woken this one sleeps by now, so a worker may wait.
        yield_cpu();
        work()
    };
    let job: Job = Box::new(move || drop(sender.send(work())));
    let job = Arc::new(Mutex::new(Some(job)));
    let queued = job.clone();
    let run_queued = Box::new(move || {
        let job = queued.lock().take();
        job.into_iter().for_each(|job| job());
    });
    first.submit(run_queued).unwrap_or_else(run_caught);
    if let Ok(done) = timeout(START_TIMEOUT, &mut result).await {
        return done;
    }
    let not_begun = job.lock().take();
    if let Some(job) = not_begun {
        second.submit(job).unwrap_or_else(run_caught);
    }
    result.await
}

/// [`spawn`] on a thread of this pool.
pub fn spawn_on<T: Send + 'static>(
    pool: &'static ThreadPool,
    work: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (sender, result) = oneshot::channel();
    let job = Box::new(move || drop(sender.send(work())));
    if let Err(job) = pool.submit(job) {
        run_caught(job);
    }
    result
}

/// A queue of jobs and the threads that run them. A thread starts when a job finds none idle, and ends when idle for a
/// while; no exit of the process waits for it.
pub struct ThreadPool {
    name: &'static str,
    max_threads: usize,
    /// Whether its threads have the lowest priority.
    is_background: bool,
    queue: Mutex<Queue>,
    job_added: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl ThreadPool {
    /// A pool without threads; `name` is that of each thread.
    pub const fn new(name: &'static str, max_threads: usize) -> Self {
        Self::of(name, max_threads, false)
    }

    /// The same with threads of the lowest priority.
    const fn background(name: &'static str, max_threads: usize) -> Self {
        Self::of(name, max_threads, true)
    }

    const fn of(name: &'static str, max_threads: usize, is_background: bool) -> Self {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), threads: 0, idle: 0 });
        Self { name, max_threads, is_background, queue, job_added: Condvar::new() }
    }

    /// Queues a job. Returns it if the pool has no thread and the system grants none.
    pub fn submit(&'static self, job: Job) -> Result<(), Job> {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(job);
        if queue.idle < queue.jobs.len() && queue.threads < self.max_threads {
            // The thread waits for the lock, so it is counted before it runs.
            match thread::Builder::new().name(self.name.to_owned()).spawn(|| self.run()) {
                Ok(_) => queue.threads += 1,
                Err(_) if queue.threads > 0 => {}
                Err(_) => return queue.jobs.pop_back().map_or(Ok(()), Err),
            }
        }
        drop(queue);
        self.job_added.notify_one();
        Ok(())
    }

    fn run(&self) {
        match self.is_background {
            true => priority::lower(),
            false => slices::allow_yields(),
        }
        while let Some(job) = self.next_job() {
            run_caught(job);
        }
    }

    /// Waits for the next job; `None` when the thread is to end.
    fn next_job(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        queue.idle += 1;
        self.job_added.wait_while_for(&mut queue, |queue| queue.jobs.is_empty(), IDLE_TIMEOUT);
        queue.idle -= 1;
        let job = queue.jobs.pop_front();
        if job.is_none() {
            queue.threads -= 1;
        }
        job
    }
}

/// A panic is reported by the panic hook; it must not end the thread, which is counted.
fn run_caught(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_beyond_the_threads_wait_for_one() {
        static POOL: ThreadPool = ThreadPool::new("test", 2);
        let (sender, ended) = mpsc::channel();
        let (release, blocked) = mpsc::channel::<()>();
        for _ in 0..2 {
            let sender = sender.clone();
            assert!(POOL.submit(Box::new(move || sender.send(0).expect("a receiver"))).is_ok());
        }
        assert_eq!((ended.recv(), ended.recv()), (Ok(0), Ok(0)));
        assert!(POOL.submit(Box::new(move || blocked.recv().expect("released"))).is_ok());
        for nth in 1..=20 {
            let sender = sender.clone();
            assert!(POOL.submit(Box::new(move || sender.send(nth).expect("a receiver"))).is_ok());
        }
        // One thread is blocked, so the other runs them in order.
        assert_eq!(ended.iter().take(20).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
        assert_eq!(POOL.queue.lock().threads, 2);
        release.send(()).expect("the job waits");
    }

    /// Policy and niceness of the calling thread: SCHED_OTHER is 0, SCHED_IDLE is 5.
    #[cfg(target_os = "linux")]
    fn policy_and_niceness() -> (String, String) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("of this thread");
        let (_, fields) = stat.rsplit_once(") ").expect("after the name");
        let fields: Vec<_> = fields.split(' ').collect();
        (fields[38].to_owned(), fields[16].to_owned())
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn background_work_has_the_lowest_priority_and_what_does_not_begin_is_done_at_the_ordinary_one() {
        static BACKGROUND: ThreadPool = ThreadPool::background("test", 1);
        static ORDINARY: ThreadPool = ThreadPool::new("test", 1);
        let lowest = ("5".to_owned(), "19".to_owned());
        assert_eq!(spawn_on(&BACKGROUND, policy_and_niceness).await, Ok(lowest));
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = spawn_on(&BACKGROUND, move || blocked.recv().is_ok());
        let ordinary = policy_and_niceness();
        assert_eq!(run_on_either(&BACKGROUND, &ORDINARY, policy_and_niceness).await, Ok(ordinary));
        release.send(()).expect("the job waits");
        assert_eq!(blocked.await, Ok(true));
        assert!(run_on_either(&BACKGROUND, &ORDINARY, || panic!("expected")).await.is_err());
    }

    #[tokio::test]
    async fn background_work_begins_when_no_worker_waits() {
        static BACKGROUND: ThreadPool = ThreadPool::background("test", 1);
        static ORDINARY: ThreadPool = ThreadPool::new("test", 1);
        let before = spawn_on(&BACKGROUND, yields).await.expect("a count");
        assert_eq!(run_on_either(&BACKGROUND, &ORDINARY, yields).await, Ok(before + 1));
    }

    #[tokio::test]
    async fn panicking_work_leaves_its_thread_usable() {
        assert!(spawn(|| panic!("expected")).await.is_err());
        assert_eq!(spawn(|| 7).await, Ok(7));
    }
}
