//! Writes the workers' buffers to the output on one thread, which is woken as rarely as possible.
//!
//! The first line after a pause wakes the thread, which writes it at once. Then the thread waits for the batch
//! interval, during which only a large buffer wakes it, so that requests of a busy proxy do not wake it. If the
//! interval brought no line, it sleeps until the next one. The event log has a thread of this kind too, with a batch
//! interval of zero.

use std::{
    io::{self, ErrorKind, Write},
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::LogBuffer;
use crate::telemetry::worker_buffers::WorkerBuffers;

/// How long an access log line waits for more, unless [`BATCH_BYTES`] are buffered.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);
/// A buffer of this size is written at once.
const BATCH_BYTES: usize = 32 * 1024;
/// How often dropped lines are reported.
const DROP_REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// The wait before a retry on a non-blocking output that is not writable.
const WOULD_BLOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The wake threshold while the writer is awake: no buffer reaches it.
const WRITER_AWAKE: usize = usize::MAX;

/// The log that the lines belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogKind {
    /// The access log.
    Access,
    /// All other log events.
    Events,
}

impl LogKind {
    fn thread_name(self) -> &'static str {
        match self {
            Self::Access => "access-log",
            Self::Events => "log",
        }
    }

    fn batch_interval(self) -> Duration {
        match self {
            Self::Access => BATCH_INTERVAL,
            Self::Events => Duration::ZERO,
        }
    }

    fn report_dropped(self, lines: u64) {
        match self {
            Self::Access => tracing::warn!(lines, "access log lines dropped: output too slow"),
            Self::Events => {
                tracing::warn!(lines, "log lines dropped: output too slow");
            }
        }
    }
}

/// The program's stderr. Locked for a whole batch, because two threads write to it.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
        let unwritten = write_batch(&mut io::stderr().lock(), batch);
        Ok(batch.len() - unwritten.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The workers' buffers. Dropping it ends the writer thread after the buffered lines are written.
pub(crate) struct LogBuffers(Arc<Shared>);

struct Shared {
    buffers: WorkerBuffers<LogBuffer>,
    /// The size in bytes at which a buffer wakes the writer.
    wake_threshold: AtomicUsize,
    commands: Mutex<Commands>,
    command_sent: Condvar,
    flushed: Condvar,
}

/// Commands to the writer.
#[derive(Default)]
struct Commands {
    wake: bool,
    stop: bool,
    /// Counts of requested and completed flushes.
    flushes_requested: u64,
    flushes_done: u64,
}

impl Commands {
    fn is_empty(&mut self) -> bool {
        !self.wake && !self.stop && self.flushes_requested == self.flushes_done
    }
}

impl LogBuffers {
    /// Starts the writer thread. Each buffer is bounded by `max_buffer_bytes`.
    pub(crate) fn start(
        kind: LogKind,
        max_buffer_bytes: usize,
        out: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            buffers: WorkerBuffers::new(max_buffer_bytes),
            wake_threshold: AtomicUsize::new(WRITER_AWAKE),
            commands: Mutex::default(),
            command_sent: Condvar::new(),
            flushed: Condvar::new(),
        });
        let writer = WriterThread {
            kind,
            shared: shared.clone(),
            out,
            batch: Vec::new(),
            reported: 0,
            reported_at: None,
        };
        thread::Builder::new().name(kind.thread_name().to_owned()).spawn(move || writer.run())?;
        Ok(Self(shared))
    }

    /// Adds a buffer.
    pub(crate) fn add_buffer(&self) -> Arc<Mutex<LogBuffer>> {
        self.0.buffers.add()
    }

    /// Appends a line to a buffer, or drops and counts it if the buffer is full.
    pub(crate) fn append(&self, buffer: &Mutex<LogBuffer>, line: &[u8]) {
        let mut buffer = buffer.lock();
        match self.has_capacity(buffer.lines.len()) {
            true => buffer.lines.extend_from_slice(line),
            false => self.count_dropped(),
        }
        let buffered = buffer.lines.len();
        drop(buffer);
        self.notify_appended(buffered);
    }

    /// Whether a buffer with `buffered` bytes accepts another line.
    pub(super) fn has_capacity(&self, buffered: usize) -> bool {
        buffered < self.0.buffers.max_bytes()
    }

    /// Counts a dropped line.
    pub(super) fn count_dropped(&self) {
        self.0.buffers.count_dropped(1);
    }

    /// Wakes the writer if a buffer with `buffered` bytes needs it. To be called after an append, without the buffer's
    /// lock.
    pub(super) fn notify_appended(&self, buffered: usize) {
        // Relaxed is enough: the append under the buffer's lock happened before or after the writer checked the buffer.
        // If after, the lock makes the threshold visible that the writer set before its check.
        let threshold = &self.0.wake_threshold;
        if buffered >= threshold.load(Ordering::Relaxed)
            && threshold.swap(WRITER_AWAKE, Ordering::Relaxed) != WRITER_AWAKE
        {
            self.send_command(|commands| commands.wake = true);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.0.buffers.dropped()
    }

    /// Waits until the currently buffered lines are written, for at most `timeout`; returns whether they are.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let mut flush = 0;
        self.send_command(|commands| {
            commands.flushes_requested += 1;
            flush = commands.flushes_requested;
        });
        let mut commands = self.0.commands.lock();
        let waited =
            self.0.flushed.wait_while_for(&mut commands, |commands| commands.flushes_done < flush, timeout);
        !waited.timed_out()
    }

    fn send_command(&self, set: impl FnOnce(&mut Commands)) {
        set(&mut self.0.commands.lock());
        self.0.command_sent.notify_one();
    }
}

impl Drop for LogBuffers {
    fn drop(&mut self) {
        self.send_command(|commands| commands.stop = true);
    }
}

struct WriterThread {
    kind: LogKind,
    shared: Arc<Shared>,
    out: Box<dyn Write + Send>,
    /// The lines that are being written; swapped with a buffer, so that its allocation is reused.
    batch: Vec<u8>,
    /// The number of dropped lines already reported, and the time of the last report.
    reported: u64,
    reported_at: Option<Instant>,
}

impl WriterThread {
    fn run(mut self) {
        loop {
            let (flush, stop) = self.pending_commands();
            let any = self.write_buffers();
            // The last report of dropped lines does not wait for the interval.
            self.report_dropped(stop || flush.is_some());
            if let Some(flush) = flush {
                self.shared.commands.lock().flushes_done = flush;
                self.shared.flushed.notify_all();
            }
            if stop {
                return;
            }
            self.wait(any);
        }
    }

    /// The number of requested flushes, if not all are done, and whether to stop.
    fn pending_commands(&self) -> (Option<u64>, bool) {
        let commands = self.shared.commands.lock();
        let flush = Some(commands.flushes_requested).filter(|requested| *requested > commands.flushes_done);
        (flush, commands.stop)
    }

    /// Writes all buffers; returns whether there was a line.
    fn write_buffers(&mut self) -> bool {
        let mut any = false;
        for buffer in self.shared.buffers.all() {
            mem::swap(&mut buffer.lock().lines, &mut self.batch);
            any |= !self.batch.is_empty();
            let unwritten = write_batch(&mut self.out, &self.batch);
            let dropped = memchr::memchr_iter(b'\n', unwritten).count() as u64;
            self.shared.buffers.count_dropped(dropped);
            self.batch.clear();
        }
        any
    }

    /// Reports the lines dropped since the last report, at most once in [`DROP_REPORT_INTERVAL`] unless `now`.
    fn report_dropped(&mut self, now: bool) {
        let dropped = self.shared.buffers.dropped();
        if dropped > self.reported && (now || self.since_last_report() >= DROP_REPORT_INTERVAL) {
            let lines = dropped - self.reported;
            (self.reported, self.reported_at) = (dropped, Some(Instant::now()));
            self.kind.report_dropped(lines);
        }
    }

    fn since_last_report(&self) -> Duration {
        self.reported_at.map_or(Duration::MAX, |reported_at| reported_at.elapsed())
    }

    /// Waits for lines, a command or the next report. After lines were written, waits for a batch.
    fn wait(&self, after_lines: bool) {
        let unreported = self.shared.buffers.dropped() > self.reported;
        let (threshold, timeout) = match after_lines {
            true => (BATCH_BYTES, Some(self.kind.batch_interval())),
            false => (1, unreported.then(|| DROP_REPORT_INTERVAL.saturating_sub(self.since_last_report()))),
        };
        self.shared.wake_threshold.store(threshold, Ordering::Relaxed);
        if !self.shared.has_buffered(threshold) {
            let (mut commands, sent) = (self.shared.commands.lock(), &self.shared.command_sent);
            match timeout {
                Some(timeout) => {
                    sent.wait_while_for(&mut commands, |commands| commands.is_empty(), timeout);
                }
                None => sent.wait_while(&mut commands, |commands| commands.is_empty()),
            }
        }
        self.shared.wake_threshold.store(WRITER_AWAKE, Ordering::Relaxed);
        self.shared.commands.lock().wake = false;
    }
}

impl Shared {
    /// Whether any buffer has at least `bytes`.
    fn has_buffered(&self, bytes: usize) -> bool {
        self.buffers.all().iter().any(|buffer| buffer.lock().lines.len() >= bytes)
    }
}

/// Writes a batch; returns the unwritten rest.
fn write_batch<'a>(out: &mut dyn Write, mut batch: &'a [u8]) -> &'a [u8] {
    while !batch.is_empty() {
        match out.write(batch) {
            Ok(written @ 1..) => batch = &batch[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Stderr may be non-blocking: the flag belongs to the open file, which the parent process shares.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WOULD_BLOCK_RETRY_INTERVAL),
            _ => break,
        }
    }
    batch
}
