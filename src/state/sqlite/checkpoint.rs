//! Moves the write-ahead log into the file beside the commits: SQLite would do it in a commit, which waited for it then.

use std::{
    path::Path,
    sync::mpsc::{self, Receiver, TryRecvError},
    time::Duration,
};

use super::file;
use crate::blocking;

/// A commit adds at least some 5 pages to the log, one of a large batch up to some 50.
const COMMITS_PER_CHECKPOINT: u32 = 64;
/// How long the end waits for a checkpoint: the connection that is closed last removes the log.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Counts commits, and starts a checkpoint now and then.
#[derive(Default)]
pub(super) struct Checkpointer {
    commits: u32,
    /// Where the end of the one that runs is told.
    ended: Option<Receiver<()>>,
}

impl Checkpointer {
    /// To be called after each commit. Starts a checkpoint if one is due and none runs.
    pub(super) fn note_commit(&mut self, path: &Path) {
        self.commits += 1;
        let is_running =
            self.ended.as_ref().is_some_and(|ended| ended.try_recv() == Err(TryRecvError::Empty));
        if self.commits < COMMITS_PER_CHECKPOINT || is_running {
            return;
        }
        self.commits = 0;
        let (sender, ended) = mpsc::channel();
        self.ended = Some(ended);
        let path = path.to_owned();
        drop(blocking::spawn(move || {
            // Where it fails, a commit does it: see `file::MAX_WAL_PAGES`.
            if let Err(error) = file::checkpoint(&path) {
                tracing::debug!(%error, "state checkpoint failed");
            }
            drop(sender);
        }));
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        if let Some(ended) = &self.ended {
            let _ = ended.recv_timeout(END_TIMEOUT);
        }
    }
}
