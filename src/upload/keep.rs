//! One body's kept bytes: in memory as far as the budget goes, then in a temporary file that has no name.
//!
//! What comes is copied into buffers of its own: a slice of the read buffer would keep all of that alive, and only that
//! buffer's owner knows how large it is. So what is counted is what is held.

use std::{
    fmt,
    fs::File,
    future::Future,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::task::{JoinHandle, spawn_blocking};

use super::budget::{DiskReserved, Owner, Reserved, Shelf};

/// A body's first buffer; each next one is as large as all before it, up to [`MAX_BLOCK_BYTES`].
const MIN_BLOCK_BYTES: u64 = 1024;
const MAX_BLOCK_BYTES: u64 = 64 * 1024;
/// How much is gathered for one write to a file, where the memory is there: a write is a task of its own.
const WRITE_BYTES: u64 = 64 * 1024;
/// How much is gathered where the memory is used up: even then a write must not be one for each byte.
const MIN_WRITE_BYTES: u64 = 4 * 1024;
/// How much is read back from a file at once.
const READ_BACK_BYTES: u64 = 128 * 1024;

/// There is room for a body of this length neither in memory nor on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// How far a reader has come in the body, in bytes.
#[derive(Debug, Default)]
pub(super) struct Place(u64);

impl Place {
    /// Moves to the end of what has come: the reader has seen the newest piece as it came.
    pub(super) fn skip(&mut self, kept: &Kept) {
        self.0 = kept.length;
    }
}

/// A full buffer, and where in the body it begins.
struct Block {
    start: u64,
    bytes: Bytes,
}

/// What goes into the file next.
struct Gathered {
    bytes: BytesMut,
    _memory: Reserved,
}

/// What of a body lies in a file. The file goes when the last write is done, and its reservation with it.
struct Spill {
    file: File,
    disk: DiskReserved,
}

/// One body's kept bytes, in order: full buffers, the one that fills, the file, what is gathered for it.
pub(super) struct Kept {
    shelf: Arc<Shelf>,
    /// How long the body is, as far as its head says.
    announced: Option<u64>,
    /// Bytes that have come.
    length: u64,
    blocks: Vec<Block>,
    filling: BytesMut,
    memory: Reserved,
    /// Bytes in `blocks` and `filling`.
    in_memory: u64,
    owner: Owner,
    spill: Option<Arc<Spill>>,
    /// Bytes in the file, or on their way there.
    written: u64,
    gathered: Option<Gathered>,
    writing: Option<JoinHandle<io::Result<()>>>,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    lost: bool,
}

impl Kept {
    /// Keeps a body of this client. One whose announced length fits nowhere now is refused, but what is reserved grows only
    /// with what comes: otherwise a client could reserve the disk by announcing.
    pub(super) fn new(shelf: &Arc<Shelf>, owner: Owner, announced: Option<u64>) -> Result<Self, Full> {
        if announced.is_some_and(|length| !shelf.fits_memory(length) && !shelf.disk.fits(owner, length)) {
            return Err(Full);
        }
        Ok(Self {
            shelf: shelf.clone(),
            announced,
            length: 0,
            blocks: Vec::new(),
            filling: BytesMut::new(),
            memory: Reserved::none(&shelf.memory),
            in_memory: 0,
            owner,
            spill: None,
            written: 0,
            gathered: None,
            writing: None,
            reading: None,
            lost: false,
        })
    }

    /// Whether all that came is here. A full disk costs the retry, not the request.
    pub(super) fn is_whole(&self) -> bool {
        !self.lost
    }

    /// Keeps one more piece. One that goes to a file is still being written when this returns; see [`Kept::poll_idle`].
    pub(super) fn push(&mut self, piece: &Bytes) {
        self.length += piece.len() as u64;
        if self.lost {
            return;
        }
        let taken = if self.spill.is_none() { self.push_memory(piece) } else { 0 };
        if taken < piece.len() {
            self.push_file(piece.slice(taken..));
        }
    }

    /// Copies as much of a piece as there is memory for; how much that was is returned.
    fn push_memory(&mut self, piece: &[u8]) -> usize {
        let mut taken = 0;
        while taken < piece.len() {
            let room = self.filling.capacity() - self.filling.len();
            if room == 0 {
                if !self.next_block(piece.len() - taken) {
                    break;
                }
                continue;
            }
            let now = room.min(piece.len() - taken);
            self.filling.extend_from_slice(&piece[taken..taken + now]);
            self.in_memory += now as u64;
            taken += now;
        }
        taken
    }

    /// Begins another buffer, no larger than the budget, this body's share and what is still to come.
    fn next_block(&mut self, piece: usize) -> bool {
        if !self.filling.is_empty() {
            let start = self.in_memory - self.filling.len() as u64;
            self.blocks.push(Block { start, bytes: std::mem::take(&mut self.filling).freeze() });
        }
        let held = self.memory.bytes();
        let wanted = held.max(piece as u64).clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
        let to_come = self.announced.map_or(u64::MAX, |length| length.saturating_sub(self.in_memory));
        let capacity = wanted.min(to_come).min(self.shelf.share().saturating_sub(held));
        if capacity == 0 || !self.memory.grow(capacity) {
            return false;
        }
        self.filling = BytesMut::with_capacity(capacity as usize);
        true
    }

    fn push_file(&mut self, piece: Bytes) {
        let spill = match self.spilling() {
            Ok(spill) => spill,
            Err(error) => return self.lose(&error),
        };
        if !spill.disk.grow_to(self.spilled() + piece.len() as u64) {
            return self.lose(&"replay.disk has no more for it");
        }
        if self.gather(&piece) {
            return;
        }
        let (gathered, at) = (self.gathered.take(), self.written);
        let before = gathered.as_ref().map_or(0, |gathered| gathered.bytes.len() as u64);
        self.written += before + piece.len() as u64;
        self.writing = Some(spawn_blocking(move || {
            if let Some(gathered) = gathered {
                spill.file.write_all_at(&gathered.bytes, at)?;
            }
            spill.file.write_all_at(&piece, at + before)
        }));
    }

    /// The file, made where there is none.
    fn spilling(&mut self) -> io::Result<Arc<Spill>> {
        if let Some(spill) = &self.spill {
            return Ok(spill.clone());
        }
        let file = tempfile::tempfile_in(self.shelf.dir())?;
        let disk = DiskReserved::none(&self.shelf.disk, self.owner);
        Ok(self.spill.insert(Arc::new(Spill { file, disk })).clone())
    }

    /// Puts a small piece aside for the next write; false where it must be written now.
    fn gather(&mut self, piece: &Bytes) -> bool {
        if self.gathered.is_none() {
            let memory = Reserved::none(&self.shelf.memory);
            let is_small = (piece.len() as u64) < MIN_WRITE_BYTES;
            let memory = match (piece.len() as u64) < WRITE_BYTES {
                true if self.shelf.share() >= WRITE_BYTES && memory.grow(WRITE_BYTES) => memory,
                true if is_small => Reserved::forced(&self.shelf.memory, MIN_WRITE_BYTES),
                _ => return false,
            };
            let bytes = BytesMut::with_capacity(memory.bytes() as usize);
            self.gathered = Some(Gathered { bytes, _memory: memory });
        }
        let Some(Gathered { bytes, .. }) = &mut self.gathered else { return false };
        let fits = bytes.len() + piece.len() <= bytes.capacity();
        if fits {
            bytes.extend_from_slice(piece);
        }
        fits
    }

    /// Bytes that are beyond the memory, written or gathered.
    fn spilled(&self) -> u64 {
        self.written + self.gathered.as_ref().map_or(0, |gathered| gathered.bytes.len() as u64)
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
        if place.0 == self.length {
            return Poll::Ready(Ok(None));
        }
        // A piece that could not be written leaves a gap that must not be sent over.
        if self.lost {
            return Poll::Ready(Err(io::Error::other("a piece of it was not kept")));
        }
        let piece = match place.0.checked_sub(self.in_memory) {
            None => self.read_memory(place.0),
            Some(at) if at < self.written => ready!(self.poll_read_back(at, cx))?,
            Some(at) => {
                let from = (at - self.written) as usize;
                let gathered = self.gathered.as_ref().and_then(|gathered| gathered.bytes.get(from..));
                Bytes::copy_from_slice(gathered.unwrap_or_default())
            }
        };
        place.0 += piece.len() as u64;
        Poll::Ready(Ok(Some(piece)))
    }

    fn read_memory(&self, at: u64) -> Bytes {
        let filling = self.in_memory - self.filling.len() as u64;
        if at >= filling {
            return Bytes::copy_from_slice(&self.filling[(at - filling) as usize..]);
        }
        let nth = self.blocks.partition_point(|block| block.start <= at) - 1;
        let Block { start, bytes } = &self.blocks[nth];
        bytes.slice((at - start) as usize..)
    }

    fn poll_read_back(&mut self, at: u64, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let Some(spill) = &self.spill else {
            return Poll::Ready(Err(io::Error::other("its file is gone")));
        };
        let reading = self.reading.get_or_insert_with(|| {
            let (spill, bytes) = (spill.clone(), READ_BACK_BYTES.min(self.written - at) as usize);
            spawn_blocking(move || {
                let mut piece = vec![0; bytes];
                spill.file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
            })
        });
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        Poll::Ready(read.unwrap_or_else(|panic| Err(io::Error::other(panic))))
    }

    /// Forgets a read that an earlier reader had begun.
    pub(super) fn rewind(&mut self) {
        self.reading = None;
    }

    /// Lets go of all that is kept: the request goes on, without another attempt.
    fn lose(&mut self, error: &dyn fmt::Display) {
        tracing::warn!(%error, "a request's body could not be kept; it cannot be sent again");
        self.lost = true;
        self.blocks = Vec::new();
        self.filling = BytesMut::new();
        self.memory.shrink_to(0);
        (self.gathered, self.spill, self.reading) = (None, None, None);
    }

    /// Capacity of the buffers that it has now, and bytes that it may have in a file.
    pub(super) fn held(&self) -> (u64, u64) {
        let blocks: usize = self.blocks.iter().map(|block| block.bytes.len()).sum();
        let gathered = self.gathered.as_ref().map_or(0, |gathered| gathered.bytes.capacity());
        let disk = self.spill.as_ref().map_or(0, |spill| spill.disk.bytes());
        ((blocks + self.filling.capacity() + gathered) as u64, disk)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const NO_BOUND: u64 = u64::MAX;

    async fn read_all(kept: &mut Kept) -> io::Result<Vec<u8>> {
        let (mut place, mut all) = (Place::default(), Vec::new());
        poll_fn(|cx| kept.poll_idle(cx)).await;
        while let Some(piece) = poll_fn(|cx| kept.poll_read(&mut place, cx)).await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    async fn push(kept: &mut Kept, size: usize) -> Vec<u8> {
        poll_fn(|cx| kept.poll_idle(cx)).await;
        let piece = vec![size as u8; size];
        kept.push(&piece.clone().into());
        poll_fn(|cx| kept.poll_idle(cx)).await;
        piece
    }

    #[tokio::test]
    async fn what_was_kept_comes_back_whole_read_memory_and_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        for memory in [0, 1, 8 * 10_000, 8 << 20] {
            let shelf = Arc::new(Shelf::new(memory, NO_BOUND, dir.path().to_owned()));
            let mut kept = Kept::new(&shelf, Owner::default(), None).expect("room");
            let mut expected = Vec::new();
            for size in [1, 100, 5000, 3, 4000, 20_000, 7, 300_000, 1, 70_000, 5] {
                expected.extend(push(&mut kept, size).await);
                assert_eq!(kept.held(), (shelf.in_memory(), shelf.in_files()));
                assert!(shelf.in_memory() <= memory + MIN_WRITE_BYTES);
            }
            assert_eq!(read_all(&mut kept).await.expect("all of it"), expected);
            assert_eq!(dir.path().read_dir().expect("a directory").count(), 0);
            drop(kept);
            assert_eq!((shelf.in_memory(), shelf.in_files()), (0, 0));
        }
    }

    #[tokio::test]
    async fn a_piece_that_could_not_be_written_is_never_sent_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Arc::new(Shelf::new(0, NO_BOUND, dir.path().to_owned()));
        let mut kept = Kept::new(&shelf, Owner::default(), None).expect("room");
        push(&mut kept, WRITE_BYTES as usize).await;
        // Opened for reading only, as a full disk would do to the next write.
        let file = File::open("/dev/null").expect("a file");
        kept.spill = Some(Arc::new(Spill { file, disk: DiskReserved::none(&shelf.disk, Owner::default()) }));
        push(&mut kept, WRITE_BYTES as usize).await;
        assert!(read_all(&mut kept).await.is_err());
        assert!(!kept.is_whole());
        assert_eq!((shelf.in_memory(), shelf.in_files()), (0, 0), "what is of no use is let go");
    }

    #[tokio::test]
    async fn announced_length_beyond_both_budgets_is_full() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Arc::new(Shelf::new(80_000, 20_000, dir.path().to_owned()));
        assert!(matches!(Kept::new(&shelf, Owner::default(), Some(20_001)), Err(Full)));
        let mut first = Kept::new(&shelf, Owner::default(), Some(15_000)).expect("room");
        assert_eq!(shelf.in_files(), 0, "an announcement reserves nothing");
        push(&mut first, 15_000).await;
        assert_eq!((shelf.in_memory(), shelf.in_files()), (10_000, 5_000));
        assert!(matches!(Kept::new(&shelf, Owner::default(), Some(15_001)), Err(Full)));
        Kept::new(&shelf, Owner::default(), Some(15_000)).expect("room on disk");
        Kept::new(&shelf, Owner::default(), Some(10_000)).expect("room in memory");
    }

    #[tokio::test]
    async fn body_that_outgrows_the_disk_budget_is_let_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Arc::new(Shelf::new(0, 100_000, dir.path().to_owned()));
        let mut kept = Kept::new(&shelf, Owner::default(), None).expect("room");
        push(&mut kept, 60_000).await;
        assert!(kept.is_whole() && shelf.in_files() == 60_000);
        push(&mut kept, 60_000).await;
        assert!(!kept.is_whole());
        assert_eq!((shelf.in_memory(), shelf.in_files()), (0, 0));
    }
}
