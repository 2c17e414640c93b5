//! The access log: one line per request, formatted by the worker when the request ends, and written by another thread.
//!
//! A line goes only into its worker's buffer, so that neither a slow reader of stderr nor another worker delays a
//! request. The buffers are bounded; lines that do not fit are dropped and counted.

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

/// How long the exit of the program waits for the last lines to be written.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Bounds the buffered lines of all workers together.
const MAX_BUFFERED_BYTES: usize = 1 << 20;
/// The minimum buffer of a worker, whatever the number of workers.
const MIN_WORKER_BUFFER_BYTES: usize = 64 * 1024;

/// The level of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The request succeeded, or the caller is at fault.
    Info,
    /// The proxy could not serve the request.
    Warn,
}

/// The access log entry of a request. Absent fields are omitted from the line.
#[derive(Debug, Clone, Copy)]
pub struct AccessLogEntry<'a> {
    /// The level.
    pub level: Level,
    /// When the response ended.
    pub ended_at: SystemTime,
    /// The request's id.
    pub request_id: &'a str,
    /// The id of the trace that it belongs to.
    pub trace_id: Option<&'a str>,
    /// The caller's address.
    pub peer: Option<IpAddr>,
    /// The client's name.
    pub client: Option<&'a str>,
    /// The agent's name.
    pub agent: Option<&'a str>,
    /// The HTTP method.
    pub method: &'a str,
    /// The path, without secrets.
    pub path: &'a str,
    /// The HTTP status of the response; 0 if there was none.
    pub status: u16,
    /// The errcode of the response.
    pub errcode: Option<i64>,
    /// The errcode that caused a retry.
    pub retried: Option<i64>,
    /// The kind of the proxy's own error.
    pub error: Option<&'a str>,
    /// The message of that error.
    pub reason: Option<&'a str>,
    /// The first attempt of a retried request. Not in the line, whose times cover both attempts.
    pub first_attempt: Option<FirstAttempt>,
    /// Bytes of the request's body received when the response began; `None` if the request had no body.
    pub request_bytes: Option<u64>,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// Whether the whole response was sent.
    pub complete: bool,
    /// Time spent waiting for a token; written in milliseconds, as all times.
    pub token_time: Duration,
    /// Time spent waiting for the upstream.
    pub upstream_time: Duration,
    /// Time from the request's header block to the end of the response.
    pub total_time: Duration,
    /// The meaning of the errcode and what to do, if that is done in WeCom's admin console.
    pub hint: Option<&'a str>,
}

/// The attempt whose token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstAttempt {
    /// Time spent waiting for the token.
    pub token_time: Duration,
    /// Time spent waiting for the upstream's refusal.
    pub upstream_time: Duration,
}

/// A handle of the running access log. Clones write into the same buffer. The log ends when the last handle is dropped,
/// after all buffered lines are written.
#[derive(Clone)]
pub struct AccessLog(Arc<WorkerHandle>);

/// The handle of one worker.
struct WorkerHandle {
    log_every_request: bool,
    layout: Layout,
    buffer: Arc<Mutex<LogBuffer>>,
    buffers: Arc<LogBuffers>,
}

/// Buffered lines, and the cached timestamp of the last one.
#[derive(Default)]
pub(crate) struct LogBuffer {
    lines: Vec<u8>,
    timestamps: TimestampCache,
}

impl AccessLog {
    /// Starts a log to stderr, with buffers for `workers` workers. Fails if the thread cannot be started.
    pub fn start_on_stderr(config: LogConfig, workers: usize) -> io::Result<Self> {
        Self::start(config, workers, io::stderr().is_terminal(), Box::new(Stderr))
    }

    /// Starts a log to any output; `colour` is for terminals.
    pub fn start(
        config: LogConfig,
        workers: usize,
        colour: bool,
        out: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let layout = match config.format {
            LogFormat::Json => Layout::Json,
            LogFormat::Text if colour => Layout::Coloured,
            LogFormat::Text => Layout::Plain,
        };
        let buffer_bytes = (MAX_BUFFERED_BYTES / workers.max(1)).max(MIN_WORKER_BUFFER_BYTES);
        let buffers = Arc::new(LogBuffers::start(LogKind::Access, buffer_bytes, out)?);
        Ok(Self(Arc::new(WorkerHandle {
            log_every_request: config.access,
            layout,
            buffer: buffers.add_buffer(),
            buffers,
        })))
    }

    /// A handle of the same log with its own buffer, for another worker.
    pub fn for_worker(&self) -> Self {
        let WorkerHandle { log_every_request, layout, buffers, .. } = &*self.0;
        let (log_every_request, layout) = (*log_every_request, *layout);
        Self(Arc::new(WorkerHandle {
            log_every_request,
            layout,
            buffer: buffers.add_buffer(),
            buffers: buffers.clone(),
        }))
    }

    /// Whether a line of this level is logged, by `log.access` and the current level of the log.
    pub fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Info => self.0.log_every_request && level_gate::INFO.is_enabled(),
            Level::Warn => level_gate::WARN.is_enabled(),
        }
    }

    /// Writes a line, whatever [`is_enabled`](Self::is_enabled) returns. Never waits: if the buffer is full, the line
    /// is dropped and counted.
    pub fn write(&self, entry: &AccessLogEntry<'_>) {
        let WorkerHandle { layout, buffer, buffers, .. } = &*self.0;
        let mut buffer = lock(buffer);
        let LogBuffer { lines, timestamps } = &mut *buffer;
        if buffers.has_capacity(lines.len()) {
            layout.format(lines, timestamps.format(entry.ended_at), entry);
        } else {
            buffers.count_dropped();
        }
        let buffered = lines.len();
        drop(buffer);
        buffers.notify_appended(buffered);
    }

    /// The number of dropped lines: the buffer was full, or the output failed.
    pub fn dropped(&self) -> u64 {
        self.0.buffers.dropped()
    }

    /// Waits until every line written before is output, for at most `timeout`; returns whether it is. Blocks the
    /// thread.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.0.buffers.flush(timeout)
    }
}
