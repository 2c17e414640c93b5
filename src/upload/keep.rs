//! Where kept bodies lie: in memory up to the budget, then in temporary files that have no name.

use std::{
    fs::File,
    future::Future,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::task::{JoinHandle, spawn_blocking};

/// Pieces below this size are copied together: a byte that comes alone would otherwise hold the whole buffer that it was
/// read into.
const SMALL: usize = 4 * 1024;
/// How much is written to a file at once; a write is a task of its own, and must not be one for each byte.
const WRITE: usize = 64 * 1024;
/// How much is read back from a file at once.
const READ_BACK: u64 = 128 * 1024;

/// The room that all kept bodies share.
#[derive(Debug)]
pub struct Shelf {
    memory: u64,
    in_memory: AtomicU64,
    in_files: AtomicU64,
    dir: PathBuf,
}

impl Shelf {
    /// At most `memory` bytes in memory for all bodies together, the rest in files under `dir`.
    pub fn new(memory: u64, dir: PathBuf) -> Self {
        Self { memory, in_memory: AtomicU64::new(0), in_files: AtomicU64::new(0), dir }
    }

    /// Bytes that are kept in memory now.
    pub fn in_memory(&self) -> u64 {
        self.in_memory.load(Ordering::Relaxed)
    }

    /// Bytes that are kept in files now, or on their way there.
    pub fn in_files(&self) -> u64 {
        self.in_files.load(Ordering::Relaxed)
    }

    /// Takes room in memory for `bytes` more of a body that has `held` already. One body gets no more than an eighth of
    /// the budget, so that one large upload neither fills the memory nor takes it from all the others.
    fn reserve(&self, held: u64, bytes: u64) -> bool {
        if held + bytes > self.memory / 8 {
            return false;
        }
        let fits = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= self.memory);
        self.in_memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// How far a reader has come in what is kept.
#[derive(Debug, Default)]
pub(super) struct Place {
    piece: usize,
    within: usize,
    spilled: u64,
}

impl Place {
    /// Moves to the end of what is kept: the reader has seen the newest piece as it came.
    pub(super) fn skip(&mut self, kept: &Kept) {
        self.piece = kept.pieces.len();
        self.within = kept.tail.len();
        self.spilled = kept.spilled();
    }

    fn is_end_of(&self, kept: &Kept) -> bool {
        self.piece == kept.pieces.len() && self.within == kept.tail.len() && self.spilled == kept.spilled()
    }
}

/// One body's kept bytes: whole pieces, a tail of small ones, then a file.
pub(super) struct Kept {
    shelf: Arc<Shelf>,
    pieces: Vec<Bytes>,
    tail: BytesMut,
    memory_bytes: u64,
    file: Option<Arc<File>>,
    file_bytes: u64,
    /// What goes into the file next.
    gathered: BytesMut,
    writing: Option<JoinHandle<io::Result<()>>>,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    lost: bool,
}

impl Kept {
    pub(super) fn new(shelf: Arc<Shelf>) -> Self {
        Self {
            shelf,
            pieces: Vec::new(),
            tail: BytesMut::new(),
            memory_bytes: 0,
            file: None,
            file_bytes: 0,
            gathered: BytesMut::new(),
            writing: None,
            reading: None,
            lost: false,
        }
    }

    /// Whether all that came is here. A full disk costs the retry, not the request.
    pub(super) fn is_whole(&self) -> bool {
        !self.lost
    }

    /// Keeps one more piece. One that goes to a file is still being written when this returns; see [`Kept::poll_idle`].
    pub(super) fn push(&mut self, piece: &Bytes) {
        if self.lost {
            return;
        }
        let length = piece.len() as u64;
        if self.file.is_none() && self.shelf.reserve(self.memory_bytes, length) {
            self.memory_bytes += length;
            return self.push_memory(piece);
        }
        let file = match &self.file {
            Some(file) => file.clone(),
            None => match tempfile::tempfile_in(&self.shelf.dir) {
                Ok(file) => self.file.insert(Arc::new(file)).clone(),
                Err(error) => return self.lose(&error),
            },
        };
        self.shelf.in_files.fetch_add(length, Ordering::Relaxed);
        let piece = if self.gathered.is_empty() && piece.len() >= WRITE {
            piece.clone()
        } else {
            self.gathered.extend_from_slice(piece);
            if self.gathered.len() < WRITE {
                return;
            }
            self.gathered.split().freeze()
        };
        let at = self.file_bytes;
        self.file_bytes += piece.len() as u64;
        self.writing = Some(spawn_blocking(move || file.write_all_at(&piece, at)));
    }

    /// Bytes that are beyond the memory, written or gathered.
    fn spilled(&self) -> u64 {
        self.file_bytes + self.gathered.len() as u64
    }

    fn push_memory(&mut self, piece: &Bytes) {
        if piece.len() < SMALL {
            self.tail.extend_from_slice(piece);
            if self.tail.len() < SMALL {
                return;
            }
        }
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
        if piece.len() >= SMALL {
            self.pieces.push(piece.clone());
        }
    }

    /// Ready when no write is under way, so that a slow disk holds the client back instead of filling the memory.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(writing) = &mut self.writing {
            let written = ready!(Pin::new(writing).poll(cx));
            self.writing = None;
            if let Err(error) = written.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                self.lose(&error);
            }
        }
        Poll::Ready(())
    }

    /// The next kept bytes from `place` on, `None` at the end of what is kept.
    pub(super) fn poll_read(
        &mut self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Bytes>>> {
        // A piece that could not be written leaves a gap that nobody may send over.
        if self.lost && !place.is_end_of(self) {
            return Poll::Ready(Err(io::Error::other("a piece of it was not kept")));
        }
        while let Some(piece) = self.pieces.get(place.piece) {
            let rest = piece.slice(place.within..);
            (place.piece, place.within) = (place.piece + 1, 0);
            if !rest.is_empty() {
                return Poll::Ready(Ok(Some(rest)));
            }
        }
        if place.within < self.tail.len() {
            let rest = Bytes::copy_from_slice(&self.tail[place.within..]);
            place.within = self.tail.len();
            return Poll::Ready(Ok(Some(rest)));
        }
        let Some(file) = self.file.as_ref().filter(|_| place.spilled < self.file_bytes) else {
            let rest = self.gathered.get(place.spilled.saturating_sub(self.file_bytes) as usize..);
            let rest = rest.filter(|rest| !rest.is_empty()).map(Bytes::copy_from_slice);
            place.spilled = self.spilled();
            return Poll::Ready(Ok(rest));
        };
        let reading = self.reading.get_or_insert_with(|| {
            let (file, at) = (file.clone(), place.spilled);
            let bytes = READ_BACK.min(self.file_bytes - at) as usize;
            spawn_blocking(move || {
                let mut piece = vec![0; bytes];
                file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
            })
        });
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let piece = read.unwrap_or_else(|panic| Err(io::Error::other(panic)))?;
        place.spilled += piece.len() as u64;
        Poll::Ready(Ok(Some(piece)))
    }

    /// Forgets a read that an earlier reader had begun.
    pub(super) fn rewind(&mut self) {
        self.reading = None;
    }

    fn lose(&mut self, error: &io::Error) {
        tracing::warn!(%error, "a request's body could not be kept in a temporary file; it cannot be sent again");
        self.lost = true;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.shelf.in_memory.fetch_sub(self.memory_bytes, Ordering::Relaxed);
        self.shelf.in_files.fetch_sub(self.spilled(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn read_all(kept: &mut Kept) -> io::Result<Vec<u8>> {
        let (mut place, mut all) = (Place::default(), Vec::new());
        poll_fn(|cx| kept.poll_idle(cx)).await;
        while let Some(piece) = poll_fn(|cx| kept.poll_read(&mut place, cx)).await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn what_was_kept_comes_back_whole_from_memory_and_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Arc::new(Shelf::new(8 * 10_000, dir.path().to_owned()));
        let mut kept = Kept::new(shelf.clone());
        let mut expected = Vec::new();
        for size in [1, 100, 5000, 3, 4000, 20_000, 7, 300_000, 1, 70_000, 5] {
            poll_fn(|cx| kept.poll_idle(cx)).await;
            let piece = Bytes::from(vec![size as u8; size]);
            expected.extend_from_slice(&piece);
            kept.push(&piece);
        }
        assert_eq!(read_all(&mut kept).await.expect("all of it"), expected);
        assert!(shelf.in_memory() <= 10_000 && shelf.in_files() > 0);
        assert_eq!(dir.path().read_dir().expect("a directory").count(), 0);
        drop(kept);
        assert_eq!((shelf.in_memory(), shelf.in_files()), (0, 0));
    }

    #[tokio::test]
    async fn a_piece_that_could_not_be_written_is_never_sent_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = Kept::new(Arc::new(Shelf::new(0, dir.path().to_owned())));
        kept.push(&Bytes::from(vec![1; WRITE]));
        poll_fn(|cx| kept.poll_idle(cx)).await;
        // Opened for reading only, as a full disk would do to the next write.
        kept.file = Some(Arc::new(File::open("/dev/null").expect("a file")));
        kept.push(&Bytes::from(vec![2; WRITE]));
        assert!(read_all(&mut kept).await.is_err());
        assert!(!kept.is_whole());
    }
}
