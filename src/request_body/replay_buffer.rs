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

use super::budget::{DiskReserved, Owner, ReplayBudget, Reservation};

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
pub struct ReplayBudgetExceeded;

/// How far a reader has come in the body, in bytes.
#[derive(Debug, Default)]
pub(super) struct Cursor(u64);

impl Cursor {
    /// Moves to the end of what has come: the reader has seen the newest piece as it came.
    pub(super) fn seek_to_end(&mut self, kept: &ReplayBuffer) {
        self.0 = kept.received_bytes;
    }
}

/// A full buffer, and where in the body it begins.
struct MemoryBlock {
    start: u64,
    bytes: Bytes,
}

/// What goes into the file next.
struct PendingWrite {
    bytes: BytesMut,
    _reservation: Reservation,
}

/// What of a body lies in a file. The file goes when the last write is done, and its reservation with it.
struct SpillFile {
    file: File,
    reservation: DiskReserved,
}

/// One body's kept bytes, in order: full buffers, the one that fills, the file, what is gathered for it.
pub(super) struct ReplayBuffer {
    budget: Arc<ReplayBudget>,
    /// How long the body is, as far as its head says.
    content_length: Option<u64>,
    /// Bytes that have come.
    received_bytes: u64,
    blocks: Vec<MemoryBlock>,
    current_block: BytesMut,
    memory_reservation: Reservation,
    /// Bytes in `blocks` and `filling`.
    memory_bytes: u64,
    owner: Owner,
    spill_file: Option<Arc<SpillFile>>,
    /// Bytes in the file, or on their way there.
    file_bytes: u64,
    pending_write: Option<PendingWrite>,
    write_task: Option<JoinHandle<io::Result<()>>>,
    read_task: Option<JoinHandle<io::Result<Bytes>>>,
    discarded: bool,
}

impl ReplayBuffer {
    /// Keeps a body of this client. One whose announced length fits nowhere now is refused, but what is reserved grows only
    /// with what comes: otherwise a client could reserve the disk by announcing.
    pub(super) fn new(
        shelf: &Arc<ReplayBudget>,
        owner: Owner,
        announced: Option<u64>,
    ) -> Result<Self, ReplayBudgetExceeded> {
        if announced.is_some_and(|length| !shelf.fits_memory(length) && !shelf.disk.fits(owner, length)) {
            return Err(ReplayBudgetExceeded);
        }
        Ok(Self {
            budget: shelf.clone(),
            content_length: announced,
            received_bytes: 0,
            blocks: Vec::new(),
            current_block: BytesMut::new(),
            memory_reservation: Reservation::empty(&shelf.memory),
            memory_bytes: 0,
            owner,
            spill_file: None,
            file_bytes: 0,
            pending_write: None,
            write_task: None,
            read_task: None,
            discarded: false,
        })
    }

    /// Whether all that came is here. A full disk costs the retry, not the request.
    pub(super) fn is_complete(&self) -> bool {
        !self.discarded
    }

    /// Keeps one more piece. One that goes to a file is still being written when this returns; see [`Kept::poll_idle`].
    pub(super) fn push(&mut self, piece: &Bytes) {
        self.received_bytes += piece.len() as u64;
        if self.discarded {
            return;
        }
        let taken = if self.spill_file.is_none() { self.push_to_memory(piece) } else { 0 };
        if taken < piece.len() {
            self.push_to_file(piece.slice(taken..));
        }
    }

    /// Copies as much of a piece as there is memory for; how much that was is returned.
    fn push_to_memory(&mut self, piece: &[u8]) -> usize {
        let mut taken = 0;
        while taken < piece.len() {
            let room = self.current_block.capacity() - self.current_block.len();
            if room == 0 {
                if !self.start_block(piece.len() - taken) {
                    break;
                }
                continue;
            }
            let now = room.min(piece.len() - taken);
            self.current_block.extend_from_slice(&piece[taken..taken + now]);
            self.memory_bytes += now as u64;
            taken += now;
        }
        taken
    }

    /// Begins another buffer, no larger than the budget, this body's share and what is still to come.
    fn start_block(&mut self, piece: usize) -> bool {
        if !self.current_block.is_empty() {
            let start = self.memory_bytes - self.current_block.len() as u64;
            self.blocks.push(MemoryBlock { start, bytes: std::mem::take(&mut self.current_block).freeze() });
        }
        let held = self.memory_reservation.bytes();
        let wanted = held.max(piece as u64).clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
        let to_come = self.content_length.map_or(u64::MAX, |length| length.saturating_sub(self.memory_bytes));
        let capacity = wanted.min(to_come).min(self.budget.max_memory_per_body().saturating_sub(held));
        if capacity == 0 || !self.memory_reservation.try_grow(capacity) {
            return false;
        }
        self.current_block = BytesMut::with_capacity(capacity as usize);
        true
    }

    fn push_to_file(&mut self, piece: Bytes) {
        let spill = match self.open_spill_file() {
            Ok(spill) => spill,
            Err(error) => return self.discard(&error),
        };
        if !spill.reservation.try_grow_to(self.spilled_bytes() + piece.len() as u64) {
            return self.discard(&"replay.disk has no more for it");
        }
        if self.coalesce(&piece) {
            return;
        }
        let (gathered, at) = (self.pending_write.take(), self.file_bytes);
        let before = gathered.as_ref().map_or(0, |gathered| gathered.bytes.len() as u64);
        self.file_bytes += before + piece.len() as u64;
        self.write_task = Some(spawn_blocking(move || {
            if let Some(gathered) = gathered {
                spill.file.write_all_at(&gathered.bytes, at)?;
            }
            spill.file.write_all_at(&piece, at + before)
        }));
    }

    /// The file, made where there is none.
    fn open_spill_file(&mut self) -> io::Result<Arc<SpillFile>> {
        if let Some(spill) = &self.spill_file {
            return Ok(spill.clone());
        }
        let file = tempfile::tempfile_in(self.budget.dir())?;
        let disk = DiskReserved::none(&self.budget.disk, self.owner);
        Ok(self.spill_file.insert(Arc::new(SpillFile { file, reservation: disk })).clone())
    }

    /// Puts a small piece aside for the next write; false where it must be written now.
    fn coalesce(&mut self, piece: &Bytes) -> bool {
        if self.pending_write.is_none() {
            let memory = Reservation::empty(&self.budget.memory);
            let is_small = (piece.len() as u64) < MIN_WRITE_BYTES;
            let memory = match (piece.len() as u64) < WRITE_BYTES {
                true if self.budget.max_memory_per_body() >= WRITE_BYTES && memory.try_grow(WRITE_BYTES) => {
                    memory
                }
                true if is_small => Reservation::forced(&self.budget.memory, MIN_WRITE_BYTES),
                _ => return false,
            };
            let bytes = BytesMut::with_capacity(memory.bytes() as usize);
            self.pending_write = Some(PendingWrite { bytes, _reservation: memory });
        }
        let Some(PendingWrite { bytes, .. }) = &mut self.pending_write else { return false };
        let fits = bytes.len() + piece.len() <= bytes.capacity();
        if fits {
            bytes.extend_from_slice(piece);
        }
        fits
    }

    /// Bytes that are beyond the memory, written or gathered.
    fn spilled_bytes(&self) -> u64 {
        self.file_bytes + self.pending_write.as_ref().map_or(0, |gathered| gathered.bytes.len() as u64)
    }

    /// Ready when no write is under way, so that a slow disk holds the client back instead of filling the memory.
    pub(super) fn poll_write_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(writing) = &mut self.write_task {
            let written = ready!(Pin::new(writing).poll(cx));
            self.write_task = None;
            if let Err(error) = written.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                self.discard(&error);
            }
        }
        Poll::Ready(())
    }

    /// The next kept bytes from `place` on, `None` at the end of what is kept.
    pub(super) fn poll_read(
        &mut self,
        place: &mut Cursor,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Bytes>>> {
        if place.0 == self.received_bytes {
            return Poll::Ready(Ok(None));
        }
        // A piece that could not be written leaves a gap that must not be sent over.
        if self.discarded {
            return Poll::Ready(Err(io::Error::other("a piece of it was not kept")));
        }
        let piece = match place.0.checked_sub(self.memory_bytes) {
            None => self.read_from_memory(place.0),
            Some(at) if at < self.file_bytes => ready!(self.poll_read_file(at, cx))?,
            Some(at) => {
                let from = (at - self.file_bytes) as usize;
                let gathered = self.pending_write.as_ref().and_then(|gathered| gathered.bytes.get(from..));
                Bytes::copy_from_slice(gathered.unwrap_or_default())
            }
        };
        place.0 += piece.len() as u64;
        Poll::Ready(Ok(Some(piece)))
    }

    fn read_from_memory(&self, at: u64) -> Bytes {
        let filling = self.memory_bytes - self.current_block.len() as u64;
        if at >= filling {
            return Bytes::copy_from_slice(&self.current_block[(at - filling) as usize..]);
        }
        let nth = self.blocks.partition_point(|block| block.start <= at) - 1;
        let MemoryBlock { start, bytes } = &self.blocks[nth];
        bytes.slice((at - start) as usize..)
    }

    fn poll_read_file(&mut self, at: u64, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let Some(spill) = &self.spill_file else {
            return Poll::Ready(Err(io::Error::other("its file is gone")));
        };
        let reading = self.read_task.get_or_insert_with(|| {
            let (spill, bytes) = (spill.clone(), READ_BACK_BYTES.min(self.file_bytes - at) as usize);
            spawn_blocking(move || {
                let mut piece = vec![0; bytes];
                spill.file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
            })
        });
        let read = ready!(Pin::new(reading).poll(cx));
        self.read_task = None;
        Poll::Ready(read.unwrap_or_else(|panic| Err(io::Error::other(panic))))
    }

    /// Forgets a read that an earlier reader had begun.
    pub(super) fn cancel_read(&mut self) {
        self.read_task = None;
    }

    /// Lets go of all that is kept: the request goes on, without another attempt.
    fn discard(&mut self, error: &dyn fmt::Display) {
        tracing::warn!(%error, "a request's body could not be kept; it cannot be sent again");
        self.discarded = true;
        self.blocks = Vec::new();
        self.current_block = BytesMut::new();
        self.memory_reservation.shrink_to(0);
        (self.pending_write, self.spill_file, self.read_task) = (None, None, None);
    }

    /// Capacity of the buffers that it has now, and bytes that it may have in a file.
    pub(super) fn usage(&self) -> (u64, u64) {
        let blocks: usize = self.blocks.iter().map(|block| block.bytes.len()).sum();
        let gathered = self.pending_write.as_ref().map_or(0, |gathered| gathered.bytes.capacity());
        let disk = self.spill_file.as_ref().map_or(0, |spill| spill.reservation.bytes());
        ((blocks + self.current_block.capacity() + gathered) as u64, disk)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const UNLIMITED: u64 = u64::MAX;

    async fn read_all(kept: &mut ReplayBuffer) -> io::Result<Vec<u8>> {
        let (mut place, mut all) = (Cursor::default(), Vec::new());
        poll_fn(|cx| kept.poll_write_done(cx)).await;
        while let Some(piece) = poll_fn(|cx| kept.poll_read(&mut place, cx)).await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    async fn push(kept: &mut ReplayBuffer, size: usize) -> Vec<u8> {
        poll_fn(|cx| kept.poll_write_done(cx)).await;
        let piece = vec![size as u8; size];
        kept.push(&piece.clone().into());
        poll_fn(|cx| kept.poll_write_done(cx)).await;
        piece
    }

    #[tokio::test]
    async fn buffer_replays_memory_and_file_and_frees_both() {
        let dir = tempfile::tempdir().expect("a directory");
        for memory in [0, 1, 8 * 10_000, 8 << 20] {
            let shelf = Arc::new(ReplayBudget::new(memory, UNLIMITED, dir.path().to_owned()));
            let mut kept = ReplayBuffer::new(&shelf, Owner::default(), None).expect("room");
            let mut expected = Vec::new();
            for size in [1, 100, 5000, 3, 4000, 20_000, 7, 300_000, 1, 70_000, 5] {
                expected.extend(push(&mut kept, size).await);
                assert_eq!(kept.usage(), (shelf.memory_used(), shelf.disk_used()));
                assert!(shelf.memory_used() <= memory + MIN_WRITE_BYTES);
            }
            assert_eq!(read_all(&mut kept).await.expect("all of it"), expected);
            assert_eq!(dir.path().read_dir().expect("a directory").count(), 0);
            drop(kept);
            assert_eq!((shelf.memory_used(), shelf.disk_used()), (0, 0));
        }
    }

    #[tokio::test]
    async fn failed_write_makes_the_buffer_unreadable() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Arc::new(ReplayBudget::new(0, UNLIMITED, dir.path().to_owned()));
        let mut kept = ReplayBuffer::new(&shelf, Owner::default(), None).expect("room");
        push(&mut kept, WRITE_BYTES as usize).await;
        // Opened for reading only, as a full disk would do to the next write.
        let file = File::open("/dev/null").expect("a file");
        kept.spill_file = Some(Arc::new(SpillFile {
            file,
            reservation: DiskReserved::none(&shelf.disk, Owner::default()),
        }));
        push(&mut kept, WRITE_BYTES as usize).await;
        assert!(read_all(&mut kept).await.is_err());
        assert!(!kept.is_complete());
        assert_eq!((shelf.memory_used(), shelf.disk_used()), (0, 0), "what is of no use is let go");
    }

    #[tokio::test]
    async fn declared_length_beyond_both_budgets_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Arc::new(ReplayBudget::new(80_000, 20_000, dir.path().to_owned()));
        assert!(matches!(
            ReplayBuffer::new(&shelf, Owner::default(), Some(20_001)),
            Err(ReplayBudgetExceeded)
        ));
        let mut first = ReplayBuffer::new(&shelf, Owner::default(), Some(15_000)).expect("room");
        assert_eq!(shelf.disk_used(), 0, "an announcement reserves nothing");
        push(&mut first, 15_000).await;
        assert_eq!((shelf.memory_used(), shelf.disk_used()), (10_000, 5_000));
        assert!(matches!(
            ReplayBuffer::new(&shelf, Owner::default(), Some(15_001)),
            Err(ReplayBudgetExceeded)
        ));
        ReplayBuffer::new(&shelf, Owner::default(), Some(15_000)).expect("room on disk");
        ReplayBuffer::new(&shelf, Owner::default(), Some(10_000)).expect("room in memory");
    }

    #[tokio::test]
    async fn body_beyond_the_disk_budget_is_discarded() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Arc::new(ReplayBudget::new(0, 100_000, dir.path().to_owned()));
        let mut kept = ReplayBuffer::new(&shelf, Owner::default(), None).expect("room");
        push(&mut kept, 60_000).await;
        assert!(kept.is_complete() && shelf.disk_used() == 60_000);
        push(&mut kept, 60_000).await;
        assert!(!kept.is_complete());
        assert_eq!((shelf.memory_used(), shelf.disk_used()), (0, 0));
    }
}
