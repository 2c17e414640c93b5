//! Replay buffer of one body: in memory as far as the budget allows, then in an unlinked temporary file.
//!
//! Received bytes are copied into buffers of their own: a slice of the read buffer would keep all of it alive, and only
//! its owner knows its size. So the budget counts what is really allocated.

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
use tokio::sync::oneshot;

use super::{
    block_pool::BLOCK_BYTES,
    budget::{Owner, ReplayBudget, Reservation, UnsentMark},
};
use crate::blocking;

/// Size of a body's first block; each further one is as large as all before it, up to [`BLOCK_BYTES`].
const MIN_BLOCK_BYTES: u64 = 1024;
/// Bytes collected for one write to the file, if the memory budget allows: each write is a blocking task.
const WRITE_BYTES: u64 = 64 * 1024;
/// The same when the memory budget is used up: small chunks must not become one write each.
const MIN_WRITE_BYTES: u64 = 4 * 1024;
/// Size of one read from the file.
const READ_BACK_BYTES: u64 = 128 * 1024;

/// The declared length fits neither into the memory nor into the disk budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayBudgetExceeded;

/// Position of a reader in the body, in bytes.
#[derive(Debug, Default)]
pub(super) struct Cursor(u64);

impl Cursor {
    /// Moves to the end of the received bytes: the reader was given the newest chunk directly.
    pub(super) fn seek_to_end(&mut self, buffer: &ReplayBuffer) {
        self.0 = buffer.received_bytes;
    }
}

/// A full block and its offset in the body.
struct MemoryBlock {
    start: u64,
    bytes: Bytes,
}

/// Bytes collected for the next write.
struct PendingWrite {
    bytes: BytesMut,
    _reservation: Reservation,
}

/// The part of a body that is in a file. The file is deleted when the last write has completed, and its reservation is
/// returned then.
struct SpillFile {
    file: File,
    reservation: Reservation,
}

/// Buffered bytes of one body, in order: full blocks, the current block, the file, the pending write.
pub(super) struct ReplayBuffer {
    budget: Arc<ReplayBudget>,
    /// The length that the head declares.
    content_length: Option<u64>,
    /// Bytes received.
    received_bytes: u64,
    blocks: Vec<MemoryBlock>,
    current_block: BytesMut,
    /// At least `allocated_bytes`.
    memory_reservation: Reservation,
    /// Capacity of `blocks` and `current_block`.
    allocated_bytes: u64,
    /// Bytes in `blocks` and `current_block`.
    memory_bytes: u64,
    /// Reserved for the file until it is created.
    disk_reservation: Reservation,
    /// The declared length is reserved, and nothing has arrived.
    unsent_mark: Option<UnsentMark>,
    spill_file: Option<Arc<SpillFile>>,
    /// Bytes in the file, or being written to it.
    file_bytes: u64,
    pending_write: Option<PendingWrite>,
    write_task: Option<oneshot::Receiver<io::Result<()>>>,
    read_task: Option<oneshot::Receiver<io::Result<Bytes>>>,
    discarded: bool,
}

impl ReplayBuffer {
    /// Creates the buffer of a body of this owner. A declared length that does not fit now is rejected; else it is
    /// reserved in full, unless the owner has reserved too much of which nothing has arrived.
    pub(super) fn new(
        budget: &Arc<ReplayBudget>,
        owner: Owner,
        content_length: Option<u64>,
    ) -> Result<Self, ReplayBudgetExceeded> {
        if content_length.is_some_and(|length| !budget.fits(length)) {
            return Err(ReplayBudgetExceeded);
        }
        let (memory, disk) = (Reservation::empty(&budget.memory), Reservation::empty(&budget.disk));
        let unsent_mark = content_length.and_then(|length| {
            let in_memory = match length <= budget.max_memory_per_body() {
                true => memory.try_grow_unsent(owner, length),
                false => None,
            };
            in_memory.or_else(|| disk.try_grow_unsent(owner, length))
        });
        Ok(Self {
            budget: budget.clone(),
            content_length,
            received_bytes: 0,
            blocks: Vec::new(),
            current_block: BytesMut::new(),
            memory_reservation: memory,
            allocated_bytes: 0,
            memory_bytes: 0,
            disk_reservation: disk,
            unsent_mark,
            spill_file: None,
            file_bytes: 0,
            pending_write: None,
            write_task: None,
            read_task: None,
            discarded: false,
        })
    }

    /// Whether the declared length, if there is one, is reserved before anything has arrived.
    pub(super) fn is_reserved(&self) -> bool {
        self.content_length.is_none_or(|length| length == 0) || self.unsent_mark.is_some()
    }

    /// Reserves the declared length in full: the body begins to arrive, so only what is free limits it.
    pub(super) fn reserve_declared(&self) -> Result<(), ReplayBudgetExceeded> {
        let length = self.content_length.unwrap_or_default();
        let in_memory =
            length <= self.budget.max_memory_per_body() && self.memory_reservation.try_grow(length);
        if in_memory || self.disk_reservation.try_grow(length) { Ok(()) } else { Err(ReplayBudgetExceeded) }
    }

    /// Whether all received bytes are buffered. A full disk costs the retry, not the request.
    pub(super) fn is_complete(&self) -> bool {
        !self.discarded
    }

    /// Reserves memory for a chunk of this size, which [`Self::push`] then cannot lack; false if it does not fit now.
    pub(super) fn reserve_memory(&self, chunk_bytes: usize) -> bool {
        let spare = self.current_block.capacity() - self.current_block.len();
        let block_size = self.next_block_size(chunk_bytes.saturating_sub(spare));
        let wanted = self.allocated_bytes + if chunk_bytes > spare { block_size } else { 0 };
        self.spill_file.is_none()
            && wanted <= self.budget.max_memory_per_body()
            && self.memory_reservation.try_grow_to(wanted)
    }

    /// Buffers a chunk. A write to the file is still in progress when this returns; see
    /// [`ReplayBuffer::poll_write_done`].
    pub(super) fn push(&mut self, chunk: &Bytes) {
        self.received_bytes += chunk.len() as u64;
        self.unsent_mark = None;
        if self.discarded {
            return;
        }
        let taken = if self.spill_file.is_none() { self.push_to_memory(chunk) } else { 0 };
        if taken < chunk.len() {
            self.push_to_file(chunk.slice(taken..));
        }
    }

    /// Copies as much of a chunk as the memory budget allows, and returns how much that was.
    fn push_to_memory(&mut self, chunk: &[u8]) -> usize {
        let mut taken = 0;
        while taken < chunk.len() {
            let spare = self.current_block.capacity() - self.current_block.len();
            if spare == 0 {
                if !self.start_block(chunk.len() - taken) {
                    break;
                }
                continue;
            }
            let copied = spare.min(chunk.len() - taken);
            self.current_block.extend_from_slice(&chunk[taken..taken + copied]);
            self.memory_bytes += copied as u64;
            taken += copied;
        }
        taken
    }

    /// Starts another block, no larger than the budget, this body's share and the bytes that are still to come.
    fn start_block(&mut self, wanted: usize) -> bool {
        if !self.current_block.is_empty() {
            let start = self.memory_bytes - self.current_block.len() as u64;
            self.blocks.push(MemoryBlock { start, bytes: std::mem::take(&mut self.current_block).freeze() });
        }
        let allocated = self.allocated_bytes;
        let block_size = self.next_block_size(wanted);
        let remaining =
            self.content_length.map_or(u64::MAX, |length| length.saturating_sub(self.memory_bytes));
        let capacity =
            block_size.min(remaining).min(self.budget.max_memory_per_body().saturating_sub(allocated));
        if capacity == 0 || !self.memory_reservation.try_grow_to(allocated + capacity) {
            return false;
        }
        self.allocated_bytes += capacity;
        self.current_block = self.budget.memory.pool.acquire(capacity);
        true
    }

    fn next_block_size(&self, wanted: usize) -> u64 {
        self.allocated_bytes.max(wanted as u64).clamp(MIN_BLOCK_BYTES, BLOCK_BYTES)
    }

    fn push_to_file(&mut self, chunk: Bytes) {
        let spill_file = match self.open_spill_file() {
            Ok(spill_file) => spill_file,
            Err(error) => return self.discard(&error),
        };
        if !spill_file.reservation.try_grow_to(self.spilled_bytes() + chunk.len() as u64) {
            return self.discard(&"replay.disk exhausted");
        }
        if self.coalesce(&chunk) {
            return;
        }
        let (pending, at) = (self.pending_write.take(), self.file_bytes);
        let before = pending.as_ref().map_or(0, |pending| pending.bytes.len() as u64);
        self.file_bytes += before + chunk.len() as u64;
        // Until it is written, a small chunk must not keep a whole read buffer alive.
        let chunk = if (chunk.len() as u64) < WRITE_BYTES { Bytes::copy_from_slice(&chunk) } else { chunk };
        self.write_task = Some(blocking::spawn(move || {
            if let Some(pending) = pending {
                spill_file.file.write_all_at(&pending.bytes, at)?;
            }
            spill_file.file.write_all_at(&chunk, at + before)
        }));
    }

    /// The file, created on first use.
    fn open_spill_file(&mut self) -> io::Result<Arc<SpillFile>> {
        if let Some(spill_file) = &self.spill_file {
            return Ok(spill_file.clone());
        }
        let file = tempfile::tempfile_in(self.budget.dir())?;
        let reservation =
            std::mem::replace(&mut self.disk_reservation, Reservation::empty(&self.budget.disk));
        // The bytes in memory need no disk.
        reservation.shrink_to(self.content_length.unwrap_or_default().saturating_sub(self.memory_bytes));
        Ok(self.spill_file.insert(Arc::new(SpillFile { file, reservation })).clone())
    }

    /// Adds a small chunk to the pending write; false if it must be written now.
    fn coalesce(&mut self, chunk: &Bytes) -> bool {
        if self.pending_write.is_none() {
            let memory = Reservation::empty(&self.budget.memory);
            let is_small = (chunk.len() as u64) < MIN_WRITE_BYTES;
            let memory = match (chunk.len() as u64) < WRITE_BYTES {
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
        let fits = bytes.len() + chunk.len() <= bytes.capacity();
        if fits {
            bytes.extend_from_slice(chunk);
        }
        fits
    }

    /// Bytes that are not in memory blocks: in the file or in the pending write.
    fn spilled_bytes(&self) -> u64 {
        self.file_bytes + self.pending_write.as_ref().map_or(0, |pending| pending.bytes.len() as u64)
    }

    /// Ready when no write is in progress, so that a slow disk applies backpressure to the client instead of filling
    /// the memory.
    pub(super) fn poll_write_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(task) = &mut self.write_task {
            let written = ready!(Pin::new(task).poll(cx));
            self.write_task = None;
            if let Err(error) = written.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
                self.discard(&error);
            }
        }
        Poll::Ready(())
    }

    /// The next buffered bytes after the cursor; `None` at the end of the buffer.
    pub(super) fn poll_read(
        &mut self,
        cursor: &mut Cursor,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Bytes>>> {
        if cursor.0 == self.received_bytes {
            return Poll::Ready(Ok(None));
        }
        // A chunk that could not be written leaves a gap, so nothing may be replayed.
        if self.discarded {
            return Poll::Ready(Err(io::Error::other("a part of the body was not buffered")));
        }
        let chunk = match cursor.0.checked_sub(self.memory_bytes) {
            None => self.read_from_memory(cursor.0),
            Some(at) if at < self.file_bytes => ready!(self.poll_read_file(at, cx))?,
            Some(at) => {
                let from = (at - self.file_bytes) as usize;
                let pending = self.pending_write.as_ref().and_then(|pending| pending.bytes.get(from..));
                Bytes::copy_from_slice(pending.unwrap_or_default())
            }
        };
        cursor.0 += chunk.len() as u64;
        Poll::Ready(Ok(Some(chunk)))
    }

    fn read_from_memory(&self, at: u64) -> Bytes {
        let current_start = self.memory_bytes - self.current_block.len() as u64;
        if at >= current_start {
            return Bytes::copy_from_slice(&self.current_block[(at - current_start) as usize..]);
        }
        let nth = self.blocks.partition_point(|block| block.start <= at) - 1;
        let MemoryBlock { start, bytes } = &self.blocks[nth];
        bytes.slice((at - start) as usize..)
    }

    fn poll_read_file(&mut self, at: u64, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let Some(spill_file) = &self.spill_file else {
            return Poll::Ready(Err(io::Error::other("the file was dropped")));
        };
        let task = self.read_task.get_or_insert_with(|| {
            let (spill_file, bytes) =
                (spill_file.clone(), READ_BACK_BYTES.min(self.file_bytes - at) as usize);
            blocking::spawn(move || {
                let mut chunk = vec![0; bytes];
                spill_file.file.read_exact_at(&mut chunk, at).map(|()| Bytes::from(chunk))
            })
        });
        let read = ready!(Pin::new(task).poll(cx));
        self.read_task = None;
        Poll::Ready(read.unwrap_or_else(|panicked| Err(io::Error::other(panicked))))
    }

    /// Drops a read that an earlier reader has started.
    pub(super) fn cancel_read(&mut self) {
        self.read_task = None;
    }

    /// Drops everything that is buffered: the request continues, without a retry.
    fn discard(&mut self, error: &dyn fmt::Display) {
        if let Some(suppressed) = self.budget.write_failure_log.allow() {
            tracing::warn!(%error, suppressed, "replay buffer write failed, request cannot be retried");
        }
        self.discarded = true;
        self.release_blocks();
        self.disk_reservation.shrink_to(0);
        self.allocated_bytes = 0;
        (self.pending_write, self.spill_file, self.read_task) = (None, None, None);
    }

    /// Returns the memory of all blocks.
    fn release_blocks(&mut self) {
        self.memory_reservation.shrink_to(0);
        let last = std::mem::take(&mut self.current_block).freeze();
        let blocks = std::mem::take(&mut self.blocks).into_iter().map(|block| block.bytes);
        self.budget.memory.pool.release(blocks.chain([last]), || self.budget.memory.free());
    }

    /// Bytes of memory that are allocated or reserved, and bytes reserved on disk.
    pub(super) fn usage(&self) -> (u64, u64) {
        let blocks: usize = self.blocks.iter().map(|block| block.bytes.len()).sum();
        let allocated = (blocks + self.current_block.capacity()) as u64;
        let pending = self.pending_write.as_ref().map_or(0, |pending| pending.bytes.capacity());
        let spill_file = self.spill_file.as_ref().map_or(0, |spill_file| spill_file.reservation.bytes());
        (
            allocated.max(self.memory_reservation.bytes()) + pending as u64,
            self.disk_reservation.bytes() + spill_file,
        )
    }
}

impl Drop for ReplayBuffer {
    fn drop(&mut self) {
        self.release_blocks();
    }
}

#[cfg(test)]
mod tests;
