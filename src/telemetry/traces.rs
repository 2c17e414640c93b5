//! Traces for OpenTelemetry: each worker writes a request's spans where the request ends, and an exporter carries them to
//! their receiver.
//!
//! Spans are written as they go over the wire, into a buffer of the worker's own that is bounded: what does not fit is
//! dropped and counted, and no request waits for a receiver.

mod collector;
mod context;
mod exporter;
mod protobuf;
mod span;
mod trace;

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::Version;
use tokio::{sync::Notify, time::Instant};

pub use self::{
    collector::{Collector, CollectorError},
    exporter::Exporter,
    span::CommonAttributes,
    trace::{Operation, SpanOutcome, Trace},
};
use self::{
    context::{IdGenerator, TraceContext},
    span::{RequestSpans, SpanWriter},
};
use super::access_log::AccessLogEntry;
use crate::http1::headers::Headers;

/// Most bytes of spans that wait, all workers together; a request takes about one thousand.
const MAX_BUFFERED_BYTES: usize = 4 << 20;
/// So much of it a worker has at least, however many there are.
const MIN_WORKER_BUFFER_BYTES: usize = 256 * 1024;

/// The spans of all workers. Clones are the same.
#[derive(Clone)]
pub struct Traces(Arc<SpanBuffers>);

struct SpanBuffers {
    attributes: CommonAttributes,
    buffers: Mutex<Vec<Arc<Mutex<SpanBuffer>>>>,
    /// Most bytes on one sheet, but for the last request's.
    max_buffer_bytes: usize,
    dropped: AtomicU64,
    /// Something lies on a sheet that was empty.
    not_empty: Notify,
    /// A sheet is half full.
    half_full: Notify,
}

/// What one worker has written.
#[derive(Default)]
struct SpanBuffer {
    spans: Vec<u8>,
    scratch: Vec<u8>,
}

/// Where one worker writes.
pub struct Tracer {
    buffers: Arc<SpanBuffers>,
    buffer: Arc<Mutex<SpanBuffer>>,
    ids: IdGenerator,
}

impl Traces {
    /// Room for the spans of so many workers.
    pub fn new(facts: CommonAttributes, workers: usize) -> Self {
        Self::with_buffer_bytes(facts, (MAX_BUFFERED_BYTES / workers.max(1)).max(MIN_WORKER_BUFFER_BYTES))
    }

    fn with_buffer_bytes(facts: CommonAttributes, share: usize) -> Self {
        let sheets = Mutex::default();
        let (some, many) = (Notify::new(), Notify::new());
        Self(Arc::new(SpanBuffers {
            attributes: facts,
            buffers: sheets,
            max_buffer_bytes: share,
            dropped: AtomicU64::new(0),
            not_empty: some,
            half_full: many,
        }))
    }

    /// Another worker's.
    pub fn tracer(&self) -> Tracer {
        let sheet = Arc::<Mutex<SpanBuffer>>::default();
        lock(&self.0.buffers).push(sheet.clone());
        Tracer { buffers: self.0.clone(), buffer: sheet, ids: IdGenerator::default() }
    }

    /// How many spans were lost so far: there was no room for them, or the receiver would not have them.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    fn count_dropped(&self, spans: u64) {
        self.0.dropped.fetch_add(spans, Relaxed);
    }

    /// Takes what lies on the sheets.
    fn drain(&self, spans: &mut Vec<u8>) {
        let sheets = lock(&self.0.buffers).clone();
        let mut taken = Vec::new();
        for sheet in sheets {
            mem::swap(&mut lock(&sheet).spans, &mut taken);
            spans.extend_from_slice(&taken);
            taken.clear();
        }
    }
}

impl Tracer {
    /// The trace of a request with these header lines, which began now.
    pub fn start_trace(&self, fields: &Headers, version: Version, began: Instant) -> Box<Trace> {
        Box::new(Trace::new(TraceContext::from_headers(fields, &self.ids), version, began))
    }

    /// Writes the spans of a request that has ended, if anybody wants them. Never waits.
    pub fn write_spans(&self, trace: &Trace, line: &AccessLogEntry<'_>) {
        if !trace.context.sampled {
            return;
        }
        let Self { buffers: desk, buffer: sheet, ids } = self;
        let tree = RequestSpans { attributes: &desk.attributes, ids, trace, entry: line };
        let mut sheet = lock(sheet);
        let SpanBuffer { spans, scratch: draft } = &mut *sheet;
        let before = spans.len();
        if before >= desk.max_buffer_bytes {
            drop(sheet);
            desk.dropped.fetch_add(tree.span_count() as u64, Relaxed);
            return;
        }
        tree.write(&mut SpanWriter { spans, scratch: draft });
        let after = spans.len();
        drop(sheet);
        if before == 0 {
            desk.not_empty.notify_one();
        }
        let half = desk.max_buffer_bytes / 2;
        if before < half && after >= half {
            desk.half_full.notify_one();
        }
    }
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
