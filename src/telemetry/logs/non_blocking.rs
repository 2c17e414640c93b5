//! Takes lines from any thread and never makes it wait: another thread writes them.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::access_log::{LogBuffer, LogBuffers, LogKind};

/// Most bytes that wait to be written.
const MAX_BUFFERED_BYTES: usize = 1 << 20;

/// A pen for each line.
#[derive(Clone)]
pub(super) struct NonBlocking {
    buffers: Arc<LogBuffers>,
    buffer: Arc<Mutex<LogBuffer>>,
}

impl NonBlocking {
    /// Starts the thread that writes. What does not fit while it waits is dropped and counted.
    pub(super) fn start(out: Box<dyn Write + Send>) -> io::Result<Self> {
        let desk = LogBuffers::start(LogKind::Events, MAX_BUFFERED_BYTES, out)?;
        Ok(Self { buffer: desk.add_buffer(), buffers: Arc::new(desk) })
    }

    /// Waits until every line written before has gone out, but no longer than `most`; returns whether it has.
    pub(super) fn flush(&self, most: Duration) -> bool {
        self.buffers.flush(most)
    }
}

impl<'a> MakeWriter<'a> for NonBlocking {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &NonBlocking {
    /// The log hands over whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.buffers.append(&self.buffer, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
