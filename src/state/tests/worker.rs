//! What the thread of the state repeats and refuses, with a backend that fails as told.

use std::{collections::VecDeque, future::pending};

use super::super::{
    ReadError,
    worker::{Committed, MAX_WAITING_BYTES, RecordChanges, StateBackend, StateWorker, Worker, WriteJob},
};
use super::*;

/// Fails as long as there are failures.
#[derive(Default)]
struct FailingBackend {
    commit_failures: VecDeque<WriteError>,
    /// Failures to read changes.
    read_failures: usize,
    /// How many jobs each commit had.
    commits: Vec<usize>,
}

impl StateBackend for FailingBackend {
    async fn commit(&mut self, batch: &[WriteJob], since: u64) -> Result<Committed, WriteError> {
        self.commits.push(batch.len());
        match self.commit_failures.pop_front() {
            Some(error) => Err(error),
            None => {
                let results = batch.iter().map(|_| Ok(since + 1)).collect();
                let has_more = self.read_failures > 0;
                let changes = RecordChanges { version: since, has_more, ..RecordChanges::default() };
                Ok(Committed { results, changes })
            }
        }
    }

    async fn changes_since(&mut self, _: u64) -> Result<Option<RecordChanges>, ReadError> {
        match self.read_failures.checked_sub(1) {
            Some(left) => {
                self.read_failures = left;
                Err(ReadError::Unavailable("away".to_owned()))
            }
            None => Ok(None),
        }
    }

    async fn delete_expired(&mut self) -> Result<bool, WriteError> {
        Ok(false)
    }
}

fn worker(commit_failures: &[WriteError], read_failures: usize) -> Worker<FailingBackend> {
    let commit_failures = commit_failures.iter().cloned().collect();
    let backend = FailingBackend { commit_failures, read_failures, ..FailingBackend::default() };
    Worker::new(backend, Box::new(|_| {}), Arc::default())
}

/// Serves one job for each collection, and returns their results.
async fn serve(
    worker: &mut Worker<FailingBackend>,
    collections: &[Collection],
) -> Vec<Result<u64, WriteError>> {
    let job = |collection: &Collection| WriteJob::new(vec![Write::put(*collection, "name", "value")]);
    let (batch, results): (Vec<_>, Vec<_>) = collections.iter().map(job).unzip();
    worker.serve(batch).await;
    let mut replies = Vec::new();
    for result in results {
        replies.push(result.await.expect("a reply"));
    }
    replies
}

#[tokio::test]
async fn failed_batch_is_repeated_only_where_one_job_may_be_the_cause() {
    for error in [
        WriteError::Unavailable("locked".to_owned()),
        WriteError::Unknown("no reply".to_owned()),
        WriteError::ReadOnly("read-only".to_owned()),
    ] {
        let mut failing = worker(std::slice::from_ref(&error), 0);
        assert_eq!(serve(&mut failing, &[Collection::Agents; 3]).await, vec![Err(error); 3]);
        assert_eq!(failing.backend.commits, [3]);
    }
    let (full, locked) = (WriteError::Full("full".to_owned()), WriteError::Unavailable("locked".to_owned()));
    let mut failing = worker(&[full.clone(), full.clone()], 0);
    assert_eq!(serve(&mut failing, &[Collection::Agents; 3]).await, [Err(full.clone()), Ok(1), Ok(1)]);
    assert_eq!(failing.backend.commits, [3, 1, 1, 1]);
    let mut failing = worker(&[full, locked.clone()], 0);
    assert_eq!(serve(&mut failing, &[Collection::Agents; 3]).await, vec![Err(locked); 3]);
    assert_eq!(failing.backend.commits, [3, 1], "a lock is waited for once");
}

#[tokio::test]
async fn job_whose_caller_is_gone_is_not_carried_out() {
    let mut worker = worker(&[], 0);
    let (job, result) = WriteJob::new(vec![agent("hr", "value")]);
    drop(result);
    worker.serve(vec![job]).await;
    assert_eq!(worker.backend.commits, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_not_written_again_where_following_fails() {
    let collections = [Collection::Agents, Collection::Idempotency];
    let mut once = worker(&[], 1);
    assert_eq!(serve(&mut once, &collections).await, [Ok(1), Ok(1)]);
    assert_eq!(once.backend.commits, [2]);
    let mut always = worker(&[], 100);
    let results = serve(&mut always, &collections).await;
    assert!(matches!(results[..], [Err(WriteError::Unknown(_)), Ok(1)]), "{results:?}");
    assert_eq!(always.backend.commits, [2]);
}

#[tokio::test]
async fn waiting_writes_are_bounded() {
    let stuck = async || pending::<Option<Worker<FailingBackend>>>().await;
    let worker = Arc::new(StateWorker::spawn(stuck).expect("a thread"));
    let write = |bytes: usize| {
        let worker = worker.clone();
        async move { worker.write(vec![agent("hr", &"x".repeat(bytes))]).await }
    };
    let first = tokio::spawn(write(MAX_WAITING_BYTES - 100));
    tokio::task::yield_now().await;
    let small = tokio::spawn(write(10));
    tokio::task::yield_now().await;
    let refused = write(100).await;
    assert!(
        matches!(&refused, Err(WriteError::Unavailable(reason)) if reason.contains("too many")),
        "{refused:?}"
    );
    assert!(!first.is_finished() && !small.is_finished());
}
