//! The access log: a line about each request, laid out where the request ends and written by a thread of its own.
//!
//! A line goes into its worker's buffer and nowhere else, so that neither a slow reader of stderr nor another worker
//! can hold up a request. The buffers are bounded; what does not fit is dropped and counted.

mod invisible;
mod layout;
mod stamp;
mod tap;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io::{self, IsTerminal, Write},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

pub(crate) use self::{
    invisible::{escape_json, is_invisible},
    writer::{Desk, Stderr, Subject},
};
use self::{layout::Layout, stamp::Stamp, writer::lock};
use crate::config::{Log, LogFormat};

/// How long the end of the program waits for the last lines to be written.
pub const LAST_LINES: Duration = Duration::from_secs(2);

/// Most bytes that wait to be written, all workers together.
const WAITING: usize = 1 << 20;
/// So much of it a worker has at least, however many there are.
const LEAST_SHARE: usize = 64 * 1024;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All went well, or the caller is at fault.
    Info,
    /// The proxy could not do what it was asked to.
    Warn,
}

/// What is told of one request. What is absent is left out of the line.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// How much it matters.
    pub level: Level,
    /// When the answer ended.
    pub at: SystemTime,
    /// The request's id.
    pub request_id: &'a str,
    /// The id of the trace that it belongs to.
    pub trace_id: Option<&'a str>,
    /// Where the caller is.
    pub peer: Option<IpAddr>,
    /// The client's name.
    pub client: Option<&'a str>,
    /// The agent's name.
    pub agent: Option<&'a str>,
    /// The HTTP method.
    pub method: &'a str,
    /// The path, without anything secret.
    pub path: &'a str,
    /// The answer's HTTP status; 0 where there was no answer.
    pub status: u16,
    /// The answer's errcode.
    pub errcode: Option<i64>,
    /// The errcode for which the request was sent once more.
    pub retried: Option<i64>,
    /// The kind of the proxy's own error.
    pub error: Option<&'a str>,
    /// Its words.
    pub reason: Option<&'a str>,
    /// How the first try went, where the request was sent once more. It is not in the line, which tells of both together.
    pub first_try: Option<FirstTry>,
    /// Bytes of the request's body that had come when its answer began; `None` where it had none.
    pub request_bytes: Option<u64>,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Whether the whole answer was handed over.
    pub whole: bool,
    /// Time spent waiting for a token; shown in milliseconds, as are the others.
    pub token: Duration,
    /// Time spent waiting for the upstream.
    pub upstream: Duration,
    /// Time from the request's head to its answer's end.
    pub total: Duration,
    /// What the errcode means and what to do, where that is done in WeCom's admin console.
    pub hint: Option<&'a str>,
}

/// The try whose token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstTry {
    /// Time spent waiting for its token.
    pub token: Duration,
    /// Time spent waiting for the upstream's refusal.
    pub upstream: Duration,
}

/// The running log. Clones write into the same buffer; it goes on until the last of all handles is gone, and what was
/// written by then still goes out.
#[derive(Clone)]
pub struct AccessLog(Arc<Handle>);

/// What one worker has of the log.
struct Handle {
    every_request: bool,
    layout: Layout,
    sheet: Arc<Mutex<Sheet>>,
    desk: Arc<Desk>,
}

/// Lines that wait, and the time on the last of them.
#[derive(Default)]
pub(crate) struct Sheet {
    lines: Vec<u8>,
    stamp: Stamp,
}

impl AccessLog {
    /// A log on stderr, whose room for waiting lines is shared among so many workers. Fails where no thread can be
    /// started.
    pub fn stderr(log: Log, workers: usize) -> io::Result<Self> {
        Self::start(log, workers, io::stderr().is_terminal(), Box::new(Stderr))
    }

    /// A log on anything that can be written to; `colour` for people at a terminal.
    pub fn start(log: Log, workers: usize, colour: bool, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let layout = match log.format {
            LogFormat::Json => Layout::Json,
            LogFormat::Text if colour => Layout::Coloured,
            LogFormat::Text => Layout::Plain,
        };
        let share = (WAITING / workers.max(1)).max(LEAST_SHARE);
        let desk = Arc::new(Desk::open(Subject::Access, share, out)?);
        Ok(Self(Arc::new(Handle { every_request: log.access, layout, sheet: desk.sheet(), desk })))
    }

    /// The same log with a buffer of its own, for another worker.
    pub fn for_worker(&self) -> Self {
        let Handle { every_request, layout, desk, .. } = &*self.0;
        let (every_request, layout) = (*every_request, *layout);
        Self(Arc::new(Handle { every_request, layout, sheet: desk.sheet(), desk: desk.clone() }))
    }

    /// Whether a line of this level is wanted, by `log.access` and by the level that the running log has now.
    pub fn wants(&self, level: Level) -> bool {
        match level {
            Level::Info => self.0.every_request && tap::INFO.is_open(),
            Level::Warn => tap::WARN.is_open(),
        }
    }

    /// Writes a line, wanted or not. Never waits: where there is no room the line is dropped and counted.
    pub fn write(&self, line: &Line<'_>) {
        let Handle { layout, sheet, desk, .. } = &*self.0;
        let mut sheet = lock(sheet);
        let Sheet { lines, stamp } = &mut *sheet;
        if desk.has_room(lines.len()) {
            layout.write(lines, stamp.at(line.at), line);
        } else {
            desk.lost_one();
        }
        let waiting = lines.len();
        drop(sheet);
        desk.left(waiting);
    }

    /// How many lines were lost so far: dropped because too many waited, or refused by whatever they are written to.
    pub fn dropped(&self) -> u64 {
        self.0.desk.dropped()
    }

    /// Waits until every line written before has gone out, but no longer than `most`; returns whether it has. Blocks
    /// its thread.
    pub fn flush(&self, most: Duration) -> bool {
        self.0.desk.flush(most)
    }
}
