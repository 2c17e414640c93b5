//! From the workers' buffers to wherever lines go: one thread, woken as seldom as possible.
//!
//! The first line after a silence wakes the thread, which writes it at once. Then it rests for a moment, in which only a
//! buffer that has become large wakes it, so that a busy proxy's requests wake nobody. Where a rest brought nothing it
//! sleeps until the next line. The running log has such a thread too, which does not rest.

use std::{
    io::{self, ErrorKind, Write},
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::LogBuffer;

/// How long a line about a request waits for others, unless they are many.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);
/// So many bytes wait for nothing.
const BATCH_BYTES: usize = 32 * 1024;
/// How often it is said that lines were lost.
const DROP_REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// How long to leave alone an output that takes nothing and does not wait.
const WOULD_BLOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// In place of a number of bytes that wakes the writer: it is awake.
const WRITER_AWAKE: usize = usize::MAX;

/// What is written about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogKind {
    /// Requests.
    Access,
    /// All else.
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
            Self::Access => tracing::warn!(
                lines,
                "lines of the access log were lost: they came faster than they could be written"
            ),
            Self::Events => {
                tracing::warn!(
                    lines,
                    "lines of the log were lost: they came faster than they could be written"
                );
            }
        }
    }
}

/// The program's stderr. Two threads write to it, and what one of them writes stays in one piece.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
        let left = write_batch(&mut io::stderr().lock(), batch);
        Ok(batch.len() - left.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where workers leave their lines. The writer ends with it.
pub(crate) struct LogBuffers(Arc<Shared>);

struct Shared {
    buffers: Mutex<Vec<Arc<Mutex<LogBuffer>>>>,
    /// Most bytes in one sheet, but for the last line's length.
    max_buffer_bytes: usize,
    /// The writer is to be woken by a sheet with so many bytes.
    wake_threshold: AtomicUsize,
    dropped: AtomicU64,
    commands: Mutex<Commands>,
    command_sent: Condvar,
    flushed: Condvar,
}

/// What the writer has been told.
#[derive(Default)]
struct Commands {
    wake: bool,
    stop: bool,
    /// How often a flush was asked for, and how many of them are done.
    flushes_requested: u64,
    flushes_done: u64,
}

impl Commands {
    fn is_empty(&mut self) -> bool {
        !self.wake && !self.stop && self.flushes_requested == self.flushes_done
    }
}

impl LogBuffers {
    /// Starts the writer. `share` is the most that may wait in one sheet, in bytes.
    pub(crate) fn start(subject: LogKind, share: usize, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            buffers: Mutex::default(),
            max_buffer_bytes: share,
            wake_threshold: AtomicUsize::new(WRITER_AWAKE),
            dropped: AtomicU64::new(0),
            commands: Mutex::default(),
            command_sent: Condvar::new(),
            flushed: Condvar::new(),
        });
        let writer = WriterThread {
            kind: subject,
            shared: shared.clone(),
            out,
            batch: Vec::new(),
            reported: 0,
            reported_at: None,
        };
        thread::Builder::new().name(subject.thread_name().to_owned()).spawn(move || writer.run())?;
        Ok(Self(shared))
    }

    /// Another sheet.
    pub(crate) fn add_buffer(&self) -> Arc<Mutex<LogBuffer>> {
        let sheet = Arc::<Mutex<LogBuffer>>::default();
        lock(&self.0.buffers).push(sheet.clone());
        sheet
    }

    /// Leaves a line on a sheet, or drops and counts it where there is no room.
    pub(crate) fn append(&self, sheet: &Mutex<LogBuffer>, line: &[u8]) {
        let mut sheet = lock(sheet);
        match self.has_capacity(sheet.lines.len()) {
            true => sheet.lines.extend_from_slice(line),
            false => self.count_dropped(),
        }
        let waiting = sheet.lines.len();
        drop(sheet);
        self.notify_appended(waiting);
    }

    /// Whether a line may be added to a sheet with so many bytes.
    pub(super) fn has_capacity(&self, waiting: usize) -> bool {
        waiting < self.0.max_buffer_bytes
    }

    /// A line was dropped.
    pub(super) fn count_dropped(&self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A line was left on a sheet, whose lock is free again, and on which so many bytes wait now.
    pub(super) fn notify_appended(&self, waiting: usize) {
        // What this thread did under the sheet's lock came before or after the writer's look at the sheet: if after, the
        // number that the writer set before that look is seen here.
        let wakes = &self.0.wake_threshold;
        if waiting >= wakes.load(Ordering::Relaxed)
            && wakes.swap(WRITER_AWAKE, Ordering::Relaxed) != WRITER_AWAKE
        {
            self.send_command(|orders| orders.wake = true);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what lies on the sheets now has been written, at most so long; returns whether it was.
    pub(crate) fn flush(&self, most: Duration) -> bool {
        let mut mine = 0;
        self.send_command(|orders| {
            orders.flushes_requested += 1;
            mine = orders.flushes_requested;
        });
        let orders = lock(&self.0.commands);
        let waited = self.0.flushed.wait_timeout_while(orders, most, |orders| orders.flushes_done < mine);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn send_command(&self, give: impl FnOnce(&mut Commands)) {
        give(&mut lock(&self.0.commands));
        self.0.command_sent.notify_one();
    }
}

impl Drop for LogBuffers {
    fn drop(&mut self) {
        self.send_command(|orders| orders.stop = true);
    }
}

struct WriterThread {
    kind: LogKind,
    shared: Arc<Shared>,
    out: Box<dyn Write + Send>,
    /// A sheet's lines while they are written; its room goes back to a sheet afterwards.
    batch: Vec<u8>,
    /// How many lost lines were spoken of, and when last.
    reported: u64,
    reported_at: Option<Instant>,
}

impl WriterThread {
    fn run(mut self) {
        loop {
            let (asked, end) = self.pending_commands();
            let any = self.write_buffers();
            // The last word on lost lines does not wait for its time.
            self.report_dropped(end || asked.is_some());
            if let Some(asked) = asked {
                lock(&self.shared.commands).flushes_done = asked;
                self.shared.flushed.notify_all();
            }
            if end {
                return;
            }
            self.wait(any);
        }
    }

    /// The flushes that have been asked for, if some are not done, and whether this is the end.
    fn pending_commands(&self) -> (Option<u64>, bool) {
        let orders = lock(&self.shared.commands);
        (Some(orders.flushes_requested).filter(|asked| *asked > orders.flushes_done), orders.stop)
    }

    /// Writes what lies on the sheets; returns whether there was anything.
    fn write_buffers(&mut self) -> bool {
        let sheets = lock(&self.shared.buffers).clone();
        let mut any = false;
        for sheet in sheets {
            mem::swap(&mut lock(&sheet).lines, &mut self.batch);
            any |= !self.batch.is_empty();
            let left = write_batch(&mut self.out, &self.batch);
            let lost = memchr::memchr_iter(b'\n', left).count() as u64;
            self.shared.dropped.fetch_add(lost, Ordering::Relaxed);
            self.batch.clear();
        }
        any
    }

    /// Says that lines were lost, if any were since it was last said, and if that was long ago.
    fn report_dropped(&mut self, now: bool) {
        let lost = self.shared.dropped.load(Ordering::Relaxed);
        if lost > self.reported && (now || self.since_last_report() >= DROP_REPORT_INTERVAL) {
            let lines = lost - self.reported;
            (self.reported, self.reported_at) = (lost, Some(Instant::now()));
            self.kind.report_dropped(lines);
        }
    }

    fn since_last_report(&self) -> Duration {
        self.reported_at.map_or(Duration::MAX, |said_at| said_at.elapsed())
    }

    /// Waits until there is something to do. After lines that were written, more of them may gather meanwhile.
    fn wait(&self, after_lines: bool) {
        let unsaid = self.shared.dropped.load(Ordering::Relaxed) > self.reported;
        let (enough, most) = match after_lines {
            true => (BATCH_BYTES, Some(self.kind.batch_interval())),
            false => (1, unsaid.then(|| DROP_REPORT_INTERVAL.saturating_sub(self.since_last_report()))),
        };
        self.shared.wake_threshold.store(enough, Ordering::Relaxed);
        if !self.shared.has_buffered(enough) {
            let (orders, ordered) = (lock(&self.shared.commands), &self.shared.command_sent);
            match most {
                Some(most) => drop(ordered.wait_timeout_while(orders, most, |orders| orders.is_empty())),
                None => drop(ordered.wait_while(orders, |orders| orders.is_empty())),
            }
        }
        self.shared.wake_threshold.store(WRITER_AWAKE, Ordering::Relaxed);
        lock(&self.shared.commands).wake = false;
    }
}

impl Shared {
    /// Whether so many bytes wait on any one sheet.
    fn has_buffered(&self, bytes: usize) -> bool {
        lock(&self.buffers).iter().any(|sheet| lock(sheet).lines.len() >= bytes)
    }
}

/// Writes a batch; returns what was not taken of it.
fn write_batch<'a>(out: &mut dyn Write, mut batch: &'a [u8]) -> &'a [u8] {
    while !batch.is_empty() {
        match out.write(batch) {
            Ok(taken @ 1..) => batch = &batch[taken..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever started the program may share its stderr with it, and want it not to wait.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WOULD_BLOCK_RETRY_INTERVAL),
            _ => break,
        }
    }
    batch
}

/// A lock that a panic elsewhere does not spoil.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
