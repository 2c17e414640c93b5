//! A log writer that never blocks: another thread writes the lines.
//!
//! Ours, in 37 lines upon the access log's writer: `tracing-appender` adds 4 packages, bounds lines instead of bytes,
//! reports no dropped lines, and can be flushed only by dropping it.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::access_log::{LogBuffer, LogBuffers, LogKind};

/// Bounds the buffered lines.
const MAX_BUFFERED_BYTES: usize = 1 << 20;

/// The writer, shared by all lines.
#[derive(Clone)]
pub(super) struct NonBlocking {
    buffers: Arc<LogBuffers>,
    buffer: Arc<Mutex<LogBuffer>>,
}

impl NonBlocking {
    /// Starts the writer thread. Lines that exceed the buffer are dropped and counted.
    pub(super) fn start(out: Box<dyn Write + Send>) -> io::Result<Self> {
        let buffers = LogBuffers::start(LogKind::Events, MAX_BUFFERED_BYTES, out)?;
        Ok(Self { buffer: buffers.add_buffer(), buffers: Arc::new(buffers) })
    }

    /// Waits until every line appended before is written, for at most `timeout`; returns whether it is.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        self.buffers.flush(timeout)
    }
}

impl<'a> MakeWriter<'a> for NonBlocking {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &NonBlocking {
    /// tracing-subscriber calls this once for each complete line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.buffers.append(&self.buffer, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
