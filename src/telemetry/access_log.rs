//! The access log: one line per request, formatted by the worker when the request ends, and written by another thread to
//! stderr or a file.
//!
//! A line goes only into its worker's buffer, so that neither a slow reader of stderr nor another worker delays a
//! request. The buffers are bounded; lines that do not fit are dropped and counted.
//!
//! Ours: a line through tracing-subscriber took 1.8 µs and a write, which can block the worker; this takes 1,932 of the
//! 24,500 instructions of a small request.

mod file;
mod invisible;
mod layout;
mod level_gate;
mod owned_entry;
#[cfg(test)]
mod tests;
mod timestamp;
mod writer;

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use self::file::LogFile;
pub use self::owned_entry::OwnedEntry;
pub(super) use self::owned_entry::truncate;
pub(crate) use self::{
    invisible::{escape_json, is_invisible},
    writer::{LogBuffers, LogKind, Stderr},
};
use self::{layout::Layout, timestamp::TimestampCache};
use super::{journal, worker_buffers::share};
use crate::{
    config::{LogConfig, LogFormat, LoggedRequests},
    wecom::errcode,
};

/// How long the exit of the program waits for the last lines to be written.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Bounds the buffered lines of all workers together.
const MAX_BUFFERED_BYTES: usize = 1 << 20;
/// The minimum buffer of a worker, whatever the number of workers.
const MIN_WORKER_BUFFER_BYTES: usize = 64 * 1024;
/// A request that takes this long or longer is slow.
const SLOW: Duration = Duration::from_secs(1);

/// The level of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The request succeeded, or the caller is at fault.
    Info,
    /// The proxy could not serve the request.
    Warn,
}

impl Level {
    fn as_tracing(self) -> tracing::Level {
        match self {
            Self::Info => tracing::Level::INFO,
            Self::Warn => tracing::Level::WARN,
        }
    }
}

/// What surrounds the fields of a line.
#[derive(Clone, Copy)]
struct LineStyle {
    /// For terminals.
    colour: bool,
    /// For the journal.
    has_priorities: bool,
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
    /// The upstream's name, if it is not the default one.
    pub upstream: Option<&'a str>,
    /// The HTTP method.
    pub method: &'a str,
    /// The path, without secrets.
    pub path: &'a str,
    /// The whole query. Not in the line, and only the names in it are kept.
    pub query: QueryText<'a>,
    /// The HTTP status of the response; 0 if there was none.
    pub status: u16,
    /// The errcode of the response.
    pub errcode: Option<i64>,
    /// Whether WeCom sent that errcode, and it is not 0. Not in the line.
    pub is_wecom_errcode: bool,
    /// The address that WeCom does not trust, by its errcode 60020. Not in the line.
    pub untrusted_address: Option<IpAddr>,
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

impl Default for AccessLogEntry<'_> {
    fn default() -> Self {
        Self {
            level: Level::Info,
            ended_at: SystemTime::UNIX_EPOCH,
            request_id: "",
            trace_id: None,
            peer: None,
            client: None,
            agent: None,
            upstream: None,
            method: "",
            path: "",
            query: QueryText::default(),
            status: 0,
            errcode: None,
            is_wecom_errcode: false,
            untrusted_address: None,
            retried: None,
            error: None,
            reason: None,
            first_attempt: None,
            request_bytes: None,
            response_bytes: 0,
            complete: false,
            token_time: Duration::ZERO,
            upstream_time: Duration::ZERO,
            total_time: Duration::ZERO,
            hint: None,
        }
    }
}

/// A query, whose values may be secret: `Debug` does not show it.
#[derive(Clone, Copy, Default)]
pub struct QueryText<'a>(pub &'a str);

impl fmt::Debug for QueryText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[query]")
    }
}

impl AccessLogEntry<'_> {
    /// Whether the request failed, or its response was not sent to its end.
    pub fn is_failed(&self) -> bool {
        self.status >= 400 || self.errcode.is_some_and(|errcode| errcode != 0) || !self.complete
    }

    /// The address that WeCom does not trust: where gettoken was refused, its text names it.
    pub fn known_untrusted_address(&self) -> Option<IpAddr> {
        let is_untrusted = self.is_wecom_errcode && self.errcode == Some(errcode::UNTRUSTED_IP);
        let in_reason = || errcode::untrusted_address(self.reason?.as_bytes()).filter(|_| is_untrusted);
        self.untrusted_address.or_else(in_reason)
    }

    /// Whether the request took long.
    pub fn is_slow(&self) -> bool {
        self.total_time >= SLOW
    }
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
#[derive(Clone)]
struct WorkerHandle {
    logged: LoggedRequests,
    /// Whether lines begin with their priority, for the journal.
    has_priorities: bool,
    layout: Layout,
    reopen: Arc<AtomicBool>,
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
    /// Starts a log to `log.access_file` or stderr, with buffers for `workers` workers. Fails if the file cannot be
    /// opened or the thread cannot be started.
    pub fn start_configured(config: &LogConfig, workers: usize) -> io::Result<Self> {
        let reopen = Arc::<AtomicBool>::default();
        let (colour, out): (_, Box<dyn Write + Send>) = match &config.access_file {
            Some(path) => (false, Box::new(LogFile::open(path, reopen.clone())?)),
            None => (io::stderr().is_terminal(), Box::new(Stderr)),
        };
        let has_priorities = config.access_file.is_none() && journal::is_stderr_journal();
        Self::start_with(config, workers, LineStyle { colour, has_priorities }, out, reopen)
    }

    /// Starts a log to any output; `colour` is for terminals.
    pub fn start(
        config: &LogConfig,
        workers: usize,
        colour: bool,
        out: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let style = LineStyle { colour, has_priorities: false };
        Self::start_with(config, workers, style, out, Arc::default())
    }

    fn start_with(
        config: &LogConfig,
        workers: usize,
        LineStyle { colour, has_priorities }: LineStyle,
        out: Box<dyn Write + Send>,
        reopen: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let layout = match config.format {
            LogFormat::Json => Layout::Json,
            LogFormat::Text if colour => Layout::Coloured,
            LogFormat::Text => Layout::Plain,
        };
        let buffer_bytes = share(MAX_BUFFERED_BYTES, workers, MIN_WORKER_BUFFER_BYTES);
        let buffers = Arc::new(LogBuffers::start(LogKind::Access, buffer_bytes, out)?);
        Ok(Self(Arc::new(WorkerHandle {
            logged: config.access,
            has_priorities,
            layout,
            reopen,
            buffer: buffers.add_buffer(),
            buffers,
        })))
    }

    /// A handle of the same log with its own buffer, for another worker.
    pub fn for_worker(&self) -> Self {
        let handle = (*self.0).clone();
        Self(Arc::new(WorkerHandle { buffer: handle.buffers.add_buffer(), ..handle }))
    }

    /// Whether a line of this level may be logged, by `log.access` and the current level of the log.
    pub fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Info => self.0.logged != LoggedRequests::None && level_gate::INFO.is_enabled(),
            Level::Warn => level_gate::WARN.is_enabled(),
        }
    }

    /// Whether `log.access` and the current level of the log ask for this request.
    pub fn is_logged(&self, entry: &AccessLogEntry<'_>) -> bool {
        let is_selected = || match self.0.logged {
            LoggedRequests::All | LoggedRequests::None => true,
            LoggedRequests::Failed => entry.is_failed(),
            LoggedRequests::Slow => entry.is_slow(),
        };
        self.is_enabled(entry.level) && (entry.level == Level::Warn || is_selected())
    }

    /// Opens the file again before the next line, so that the log can be rotated.
    pub fn reopen_file(&self) {
        self.0.reopen.store(true, Ordering::Relaxed);
    }

    /// Writes a line, whatever [`is_logged`](Self::is_logged) returns. Never waits: if the buffer is full, the line
    /// is dropped and counted.
    pub fn write(&self, entry: &AccessLogEntry<'_>) {
        let WorkerHandle { layout, has_priorities, buffer, buffers, .. } = &*self.0;
        let mut buffer = buffer.lock();
        let LogBuffer { lines, timestamps } = &mut *buffer;
        if buffers.has_capacity(lines.len()) {
            if *has_priorities {
                lines.extend_from_slice(journal::prefix(entry.level.as_tracing()));
            }
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
