//! Takes lines from any thread and never makes it wait: another thread writes them.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use crate::access::{Desk, Sheet, Subject};

/// Most bytes that wait to be written.
const WAITING: usize = 1 << 20;

/// A pen for each line.
#[derive(Clone)]
pub(super) struct Quill {
    desk: Arc<Desk>,
    sheet: Arc<Mutex<Sheet>>,
}

impl Quill {
    /// Starts the thread that writes. What does not fit while it waits is dropped and counted.
    pub(super) fn on(out: Box<dyn Write + Send>) -> io::Result<Self> {
        let desk = Desk::open(Subject::Events, WAITING, out)?;
        Ok(Self { sheet: desk.sheet(), desk: Arc::new(desk) })
    }

    /// Waits until every line written before has gone out, but no longer than `most`; returns whether it has.
    pub(super) fn flush(&self, most: Duration) -> bool {
        self.desk.flush(most)
    }
}

impl<'a> MakeWriter<'a> for Quill {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Quill {
    /// The log hands over whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.desk.leave(&self.sheet, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
