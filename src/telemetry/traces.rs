//! OpenTelemetry traces: each worker writes the spans of a request when it ends, and an exporter sends them to the
//! collector.
//!
//! Spans are encoded into a bounded buffer of the worker. Spans that do not fit are dropped and counted; no request
//! waits for the collector.

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

/// Bounds the buffered spans of all workers together; a request takes about 1 KB.
const MAX_BUFFERED_BYTES: usize = 4 << 20;
/// The minimum buffer of a worker, whatever the number of workers.
const MIN_WORKER_BUFFER_BYTES: usize = 256 * 1024;

/// The span buffers of all workers. Clones share them.
#[derive(Clone)]
pub struct Traces(Arc<SpanBuffers>);

struct SpanBuffers {
    attributes: CommonAttributes,
    buffers: Mutex<Vec<Arc<Mutex<SpanBuffer>>>>,
    /// A worker's buffer accepts no more requests above this size.
    max_buffer_bytes: usize,
    dropped: AtomicU64,
    /// An empty buffer received spans.
    not_empty: Notify,
    /// A buffer became half full.
    half_full: Notify,
}

/// The encoded spans of one worker.
#[derive(Default)]
struct SpanBuffer {
    spans: Vec<u8>,
    scratch: Vec<u8>,
}

/// Writes the spans of one worker.
pub struct Tracer {
    buffers: Arc<SpanBuffers>,
    buffer: Arc<Mutex<SpanBuffer>>,
    ids: IdGenerator,
}

impl Traces {
    /// Buffers for `workers` workers.
    pub fn new(attributes: CommonAttributes, workers: usize) -> Self {
        Self::with_buffer_bytes(
            attributes,
            (MAX_BUFFERED_BYTES / workers.max(1)).max(MIN_WORKER_BUFFER_BYTES),
        )
    }

    fn with_buffer_bytes(attributes: CommonAttributes, max_buffer_bytes: usize) -> Self {
        Self(Arc::new(SpanBuffers {
            attributes,
            buffers: Mutex::default(),
            max_buffer_bytes,
            dropped: AtomicU64::new(0),
            not_empty: Notify::new(),
            half_full: Notify::new(),
        }))
    }

    /// Adds a buffer for a worker and returns its tracer.
    pub fn tracer(&self) -> Tracer {
        let buffer = Arc::<Mutex<SpanBuffer>>::default();
        lock(&self.0.buffers).push(buffer.clone());
        Tracer { buffers: self.0.clone(), buffer, ids: IdGenerator::default() }
    }

    /// The number of dropped spans: the buffer was full, or the collector rejected them.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    fn count_dropped(&self, spans: u64) {
        self.0.dropped.fetch_add(spans, Relaxed);
    }

    /// Moves the buffered spans of all workers into `spans`.
    fn drain(&self, spans: &mut Vec<u8>) {
        let buffers = lock(&self.0.buffers).clone();
        let mut drained = Vec::new();
        for buffer in buffers {
            mem::swap(&mut lock(&buffer).spans, &mut drained);
            spans.extend_from_slice(&drained);
            drained.clear();
        }
    }
}

impl Tracer {
    /// Starts the trace of a request with these headers.
    pub fn start_trace(&self, headers: &Headers, version: Version, started: Instant) -> Box<Trace> {
        Box::new(Trace::new(TraceContext::from_headers(headers, &self.ids), version, started))
    }

    /// Writes the spans of a request that has ended, if its trace is sampled. Drops and counts them if the buffer is
    /// full.
    pub fn write_spans(&self, trace: &Trace, entry: &AccessLogEntry<'_>) {
        if !trace.context.sampled {
            return;
        }
        let Self { buffers, buffer, ids } = self;
        let request_spans = RequestSpans { attributes: &buffers.attributes, ids, trace, entry };
        let mut buffer = lock(buffer);
        let SpanBuffer { spans, scratch } = &mut *buffer;
        let before = spans.len();
        if before >= buffers.max_buffer_bytes {
            drop(buffer);
            buffers.dropped.fetch_add(request_spans.span_count() as u64, Relaxed);
            return;
        }
        request_spans.write(&mut SpanWriter { spans, scratch });
        let after = spans.len();
        drop(buffer);
        if before == 0 {
            buffers.not_empty.notify_one();
        }
        let half = buffers.max_buffer_bytes / 2;
        if before < half && after >= half {
            buffers.half_full.notify_one();
        }
    }
}

/// Locks, ignoring poisoning.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
