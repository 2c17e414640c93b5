//! The access log: a line about each request, laid out where the request ends and written by a thread of its own.
//!
//! A line goes into its worker's buffer and nowhere else, so that neither a slow reader of stderr nor another worker
//! can hold up a request. The buffers are bounded; what does not fit is dropped and counted.

mod invisible;
mod layout;
mod level_gate;
#[cfg(test)]
mod tests;
mod timestamp;
mod writer;

use std::{
    io::{self, IsTerminal, Write},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

pub(crate) use self::{
    invisible::{escape_json, is_invisible},
    writer::{LogBuffers, LogKind, Stderr},
};
use self::{layout::Layout, timestamp::TimestampCache, writer::lock};
use crate::config::{LogConfig, LogFormat};

/// How long the end of the program waits for the last lines to be written.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes that wait to be written, all workers together.
const MAX_BUFFERED_BYTES: usize = 1 << 20;
/// So much of it a worker has at least, however many there are.
const MIN_WORKER_BUFFER_BYTES: usize = 64 * 1024;

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
pub struct AccessLogEntry<'a> {
    /// How much it matters.
    pub level: Level,
    /// When the answer ended.
    pub ended_at: SystemTime,
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
    pub first_attempt: Option<FirstAttempt>,
    /// Bytes of the request's body that had come when its answer began; `None` where it had none.
    pub request_bytes: Option<u64>,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// Whether the whole answer was handed over.
    pub complete: bool,
    /// Time spent waiting for a token; shown in milliseconds, as are the others.
    pub token_time: Duration,
    /// Time spent waiting for the upstream.
    pub upstream_time: Duration,
    /// Time from the request's head to its answer's end.
    pub total_time: Duration,
    /// What the errcode means and what to do, where that is done in WeCom's admin console.
    pub hint: Option<&'a str>,
}

/// The try whose token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstAttempt {
    /// Time spent waiting for its token.
    pub token_time: Duration,
    /// Time spent waiting for the upstream's refusal.
    pub upstream_time: Duration,
}

/// The running log. Clones write into the same buffer; it goes on until the last of all handles is gone, and what was
/// written by then still goes out.
#[derive(Clone)]
pub struct AccessLog(Arc<WorkerHandle>);

/// What one worker has of the log.
struct WorkerHandle {
    log_every_request: bool,
    layout: Layout,
    buffer: Arc<Mutex<LogBuffer>>,
    buffers: Arc<LogBuffers>,
}

/// Lines that wait, and the time on the last of them.
#[derive(Default)]
pub(crate) struct LogBuffer {
    lines: Vec<u8>,
    timestamps: TimestampCache,
}

impl AccessLog {
    /// A log on stderr, whose room for waiting lines is shared among so many workers. Fails where no thread can be
    /// started.
    pub fn start_on_stderr(log: LogConfig, workers: usize) -> io::Result<Self> {
        Self::start(log, workers, io::stderr().is_terminal(), Box::new(Stderr))
    }

    /// A log on anything that can be written to; `colour` for people at a terminal.
    pub fn start(
        log: LogConfig,
        workers: usize,
        colour: bool,
        out: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let layout = match log.format {
            LogFormat::Json => Layout::Json,
            LogFormat::Text if colour => Layout::Coloured,
            LogFormat::Text => Layout::Plain,
        };
        let share = (MAX_BUFFERED_BYTES / workers.max(1)).max(MIN_WORKER_BUFFER_BYTES);
        let desk = Arc::new(LogBuffers::start(LogKind::Access, share, out)?);
        Ok(Self(Arc::new(WorkerHandle {
            log_every_request: log.access,
            layout,
            buffer: desk.add_buffer(),
            buffers: desk,
        })))
    }

    /// The same log with a buffer of its own, for another worker.
    pub fn for_worker(&self) -> Self {
        let WorkerHandle { log_every_request: every_request, layout, buffers: desk, .. } = &*self.0;
        let (every_request, layout) = (*every_request, *layout);
        Self(Arc::new(WorkerHandle {
            log_every_request: every_request,
            layout,
            buffer: desk.add_buffer(),
            buffers: desk.clone(),
        }))
    }

    /// Whether a line of this level is wanted, by `log.access` and by the level that the running log has now.
    pub fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Info => self.0.log_every_request && level_gate::INFO.is_enabled(),
            Level::Warn => level_gate::WARN.is_enabled(),
        }
    }

    /// Writes a line, wanted or not. Never waits: where there is no room the line is dropped and counted.
    pub fn write(&self, line: &AccessLogEntry<'_>) {
        let WorkerHandle { layout, buffer: sheet, buffers: desk, .. } = &*self.0;
        let mut sheet = lock(sheet);
        let LogBuffer { lines, timestamps: stamp } = &mut *sheet;
        if desk.has_capacity(lines.len()) {
            layout.format(lines, stamp.format(line.ended_at), line);
        } else {
            desk.count_dropped();
        }
        let waiting = lines.len();
        drop(sheet);
        desk.notify_appended(waiting);
    }

    /// How many lines were lost so far: dropped because too many waited, or refused by whatever they are written to.
    pub fn dropped(&self) -> u64 {
        self.0.buffers.dropped()
    }

    /// Waits until every line written before has gone out, but no longer than `most`; returns whether it has. Blocks
    /// its thread.
    pub fn flush(&self, most: Duration) -> bool {
        self.0.buffers.flush(most)
    }
}
