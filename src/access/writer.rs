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

use super::Sheet;

/// How long a line about a request waits for others, unless they are many.
const REST: Duration = Duration::from_millis(50);
/// So many bytes wait for nothing.
const MANY: usize = 32 * 1024;
/// How often it is said that lines were lost.
const SAY: Duration = Duration::from_secs(10);
/// How long to leave alone an output that takes nothing and does not wait.
const FULL: Duration = Duration::from_millis(10);

/// In place of a number of bytes that wakes the writer: it is awake.
const AWAKE: usize = usize::MAX;

/// What is written about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Requests.
    Access,
    /// All else.
    Events,
}

impl Subject {
    fn thread(self) -> &'static str {
        match self {
            Self::Access => "access-log",
            Self::Events => "log",
        }
    }

    fn rest(self) -> Duration {
        match self {
            Self::Access => REST,
            Self::Events => Duration::ZERO,
        }
    }

    fn tell_of_lost(self, lines: u64) {
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
        let left = deliver(&mut io::stderr().lock(), batch);
        Ok(batch.len() - left.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where workers leave their lines. The writer ends with it.
pub(crate) struct Desk(Arc<Shared>);

struct Shared {
    sheets: Mutex<Vec<Arc<Mutex<Sheet>>>>,
    /// Most bytes in one sheet, but for the last line's length.
    share: usize,
    /// The writer is to be woken by a sheet with so many bytes.
    wakes: AtomicUsize,
    dropped: AtomicU64,
    orders: Mutex<Orders>,
    ordered: Condvar,
    flushed: Condvar,
}

/// What the writer has been told.
#[derive(Default)]
struct Orders {
    wake: bool,
    end: bool,
    /// How often a flush was asked for, and how many of them are done.
    asked: u64,
    done: u64,
}

impl Orders {
    fn are_none(&mut self) -> bool {
        !self.wake && !self.end && self.asked == self.done
    }
}

impl Desk {
    /// Starts the writer. `share` is the most that may wait in one sheet, in bytes.
    pub(crate) fn open(subject: Subject, share: usize, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            sheets: Mutex::default(),
            share,
            wakes: AtomicUsize::new(AWAKE),
            dropped: AtomicU64::new(0),
            orders: Mutex::default(),
            ordered: Condvar::new(),
            flushed: Condvar::new(),
        });
        let writer =
            Writer { subject, shared: shared.clone(), out, batch: Vec::new(), said: 0, said_at: None };
        thread::Builder::new().name(subject.thread().to_owned()).spawn(move || writer.work())?;
        Ok(Self(shared))
    }

    /// Another sheet.
    pub(crate) fn sheet(&self) -> Arc<Mutex<Sheet>> {
        let sheet = Arc::<Mutex<Sheet>>::default();
        lock(&self.0.sheets).push(sheet.clone());
        sheet
    }

    /// Leaves a line on a sheet, or drops and counts it where there is no room.
    pub(crate) fn leave(&self, sheet: &Mutex<Sheet>, line: &[u8]) {
        let mut sheet = lock(sheet);
        match self.has_room(sheet.lines.len()) {
            true => sheet.lines.extend_from_slice(line),
            false => self.lost_one(),
        }
        let waiting = sheet.lines.len();
        drop(sheet);
        self.left(waiting);
    }

    /// Whether a line may be added to a sheet with so many bytes.
    pub(super) fn has_room(&self, waiting: usize) -> bool {
        waiting < self.0.share
    }

    /// A line was dropped.
    pub(super) fn lost_one(&self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A line was left on a sheet, whose lock is free again, and on which so many bytes wait now.
    pub(super) fn left(&self, waiting: usize) {
        // What this thread did under the sheet's lock came before or after the writer's look at the sheet: if after, the
        // number that the writer set before that look is seen here.
        let wakes = &self.0.wakes;
        if waiting >= wakes.load(Ordering::Relaxed) && wakes.swap(AWAKE, Ordering::Relaxed) != AWAKE {
            self.order(|orders| orders.wake = true);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what lies on the sheets now has been written, at most so long; returns whether it was.
    pub(crate) fn flush(&self, most: Duration) -> bool {
        let mut mine = 0;
        self.order(|orders| {
            orders.asked += 1;
            mine = orders.asked;
        });
        let orders = lock(&self.0.orders);
        let waited = self.0.flushed.wait_timeout_while(orders, most, |orders| orders.done < mine);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        give(&mut lock(&self.0.orders));
        self.0.ordered.notify_one();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.order(|orders| orders.end = true);
    }
}

struct Writer {
    subject: Subject,
    shared: Arc<Shared>,
    out: Box<dyn Write + Send>,
    /// A sheet's lines while they are written; its room goes back to a sheet afterwards.
    batch: Vec<u8>,
    /// How many lost lines were spoken of, and when last.
    said: u64,
    said_at: Option<Instant>,
}

impl Writer {
    fn work(mut self) {
        loop {
            let (asked, end) = self.orders();
            let any = self.write_all();
            // The last word on lost lines does not wait for its time.
            self.speak(end || asked.is_some());
            if let Some(asked) = asked {
                lock(&self.shared.orders).done = asked;
                self.shared.flushed.notify_all();
            }
            if end {
                return;
            }
            self.rest(any);
        }
    }

    /// The flushes that have been asked for, if some are not done, and whether this is the end.
    fn orders(&self) -> (Option<u64>, bool) {
        let orders = lock(&self.shared.orders);
        (Some(orders.asked).filter(|asked| *asked > orders.done), orders.end)
    }

    /// Writes what lies on the sheets; returns whether there was anything.
    fn write_all(&mut self) -> bool {
        let sheets = lock(&self.shared.sheets).clone();
        let mut any = false;
        for sheet in sheets {
            mem::swap(&mut lock(&sheet).lines, &mut self.batch);
            any |= !self.batch.is_empty();
            let left = deliver(&mut self.out, &self.batch);
            let lost = memchr::memchr_iter(b'\n', left).count() as u64;
            self.shared.dropped.fetch_add(lost, Ordering::Relaxed);
            self.batch.clear();
        }
        any
    }

    /// Says that lines were lost, if any were since it was last said, and if that was long ago.
    fn speak(&mut self, now: bool) {
        let lost = self.shared.dropped.load(Ordering::Relaxed);
        if lost > self.said && (now || self.silence() >= SAY) {
            let lines = lost - self.said;
            (self.said, self.said_at) = (lost, Some(Instant::now()));
            self.subject.tell_of_lost(lines);
        }
    }

    fn silence(&self) -> Duration {
        self.said_at.map_or(Duration::MAX, |said_at| said_at.elapsed())
    }

    /// Waits until there is something to do. After lines that were written, more of them may gather meanwhile.
    fn rest(&self, after_lines: bool) {
        let unsaid = self.shared.dropped.load(Ordering::Relaxed) > self.said;
        let (enough, most) = match after_lines {
            true => (MANY, Some(self.subject.rest())),
            false => (1, unsaid.then(|| SAY.saturating_sub(self.silence()))),
        };
        self.shared.wakes.store(enough, Ordering::Relaxed);
        if !self.shared.has(enough) {
            let (orders, ordered) = (lock(&self.shared.orders), &self.shared.ordered);
            match most {
                Some(most) => drop(ordered.wait_timeout_while(orders, most, |orders| orders.are_none())),
                None => drop(ordered.wait_while(orders, |orders| orders.are_none())),
            }
        }
        self.shared.wakes.store(AWAKE, Ordering::Relaxed);
        lock(&self.shared.orders).wake = false;
    }
}

impl Shared {
    /// Whether so many bytes wait on any one sheet.
    fn has(&self, bytes: usize) -> bool {
        lock(&self.sheets).iter().any(|sheet| lock(sheet).lines.len() >= bytes)
    }
}

/// Writes a batch; returns what was not taken of it.
fn deliver<'a>(out: &mut dyn Write, mut batch: &'a [u8]) -> &'a [u8] {
    while !batch.is_empty() {
        match out.write(batch) {
            Ok(taken @ 1..) => batch = &batch[taken..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever started the program may share its stderr with it, and want it not to wait.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL),
            _ => break,
        }
    }
    batch
}

/// A lock that a panic elsewhere does not spoil.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
