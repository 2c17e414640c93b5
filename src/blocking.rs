//! Bounded thread pools for blocking work. If the system grants no thread, [`spawn`] runs the job in place and
//! [`ThreadPool::submit`] returns it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// A thread without work ends after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Threads for files, reloads and admin pages.
const MAX_BLOCKING_THREADS: usize = 64;

static BLOCKING_THREADS: ThreadPool = ThreadPool::new("blocking", MAX_BLOCKING_THREADS);

/// Work for a thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs work on a thread of the process, or in place if no thread can be had. The receiver fails only if the work
/// panics. The runtime's own `spawn_blocking` panics without a thread, and a runtime waits for its work when dropped.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    spawn_on(&BLOCKING_THREADS, work)
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
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), threads: 0, idle: 0 });
        Self { name, max_threads, queue, job_added: Condvar::new() }
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

    #[tokio::test]
    async fn panicking_work_leaves_its_thread_usable() {
        assert!(spawn(|| panic!("expected")).await.is_err());
        assert_eq!(spawn(|| 7).await, Ok(7));
    }
}
