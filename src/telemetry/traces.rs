//! OpenTelemetry traces: each worker keeps the requests that ended, and an exporter sends them to the
//! collector.
//!
//! A worker only keeps a copy of the ended request, in a bounded buffer; requests that do not fit are dropped and
//! counted, and none waits for the collector. The exporter makes the spans of it, with the generated types of
//! `opentelemetry-proto`. The `opentelemetry-otlp` exporter has gRPC only with tonic, keeps the collector's
//! `Retry-After` and its count of rejected spans to itself, and adds 24 packages instead of 21.

mod collector;
mod context;
mod exporter;
mod span;
mod trace;

use std::{mem, sync::Arc};

use parking_lot::Mutex;

use http::Version;
use tokio::{sync::Notify, time::Instant};

use self::context::{IdGenerator, TraceContext};
pub use self::{
    collector::{Collector, CollectorError},
    exporter::Exporter,
    span::{CommonAttributes, UpstreamAttributes},
    trace::{Operation, SpanOutcome, Trace},
};
use super::{
    access_log::{AccessLogEntry, OwnedEntry},
    worker_buffers::{WorkerBuffers, share},
};
use crate::http1::headers::Headers;

/// Bounds the buffered requests of all workers together; one takes about 1 KB.
const MAX_BUFFERED_BYTES: usize = 4 << 20;
/// The minimum buffer of a worker, whatever the number of workers.
const MIN_WORKER_BUFFER_BYTES: usize = 256 * 1024;

/// The span buffers of all workers. Clones share them.
#[derive(Clone)]
pub struct Traces(Arc<SpanBuffers>);

struct SpanBuffers {
    attributes: CommonAttributes,
    buffers: WorkerBuffers<SpanBuffer>,
    /// An empty buffer received spans.
    not_empty: Notify,
    /// A buffer became half full.
    half_full: Notify,
}

/// The ended requests of one worker, and their memory.
#[derive(Default)]
struct SpanBuffer {
    requests: Vec<EndedRequest>,
    bytes: usize,
}

/// What the spans of an ended request are made of.
struct EndedRequest {
    trace: Box<Trace>,
    entry: OwnedEntry,
}

impl EndedRequest {
    fn span_count(&self) -> u64 {
        self.trace.span_count()
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of::<Trace>() + self.trace.route.len() + self.entry.text_bytes()
    }
}

/// Keeps the ended requests of one worker.
pub struct Tracer {
    buffers: Arc<SpanBuffers>,
    buffer: Arc<Mutex<SpanBuffer>>,
    ids: IdGenerator,
}

impl Traces {
    /// Buffers for `workers` workers.
    pub fn new(attributes: CommonAttributes, workers: usize) -> Self {
        Self::with_buffer_bytes(attributes, share(MAX_BUFFERED_BYTES, workers, MIN_WORKER_BUFFER_BYTES))
    }

    fn with_buffer_bytes(attributes: CommonAttributes, max_buffer_bytes: usize) -> Self {
        Self(Arc::new(SpanBuffers {
            attributes,
            buffers: WorkerBuffers::new(max_buffer_bytes),
            not_empty: Notify::new(),
            half_full: Notify::new(),
        }))
    }

    /// Adds a buffer for a worker and returns its tracer.
    pub fn tracer(&self) -> Tracer {
        Tracer { buffers: self.0.clone(), buffer: self.0.buffers.add(), ids: IdGenerator::default() }
    }

    /// The number of dropped spans: the buffer was full, or the collector rejected them.
    pub fn dropped(&self) -> u64 {
        self.0.buffers.dropped()
    }

    fn count_dropped(&self, spans: u64) {
        self.0.buffers.count_dropped(spans);
    }

    /// Moves the buffered requests of all workers into `requests`, which is empty.
    fn drain(&self, requests: &mut Vec<EndedRequest>) {
        let mut drained = Vec::new();
        for buffer in self.0.buffers.all() {
            let mut buffer = buffer.lock();
            mem::swap(&mut buffer.requests, &mut drained);
            buffer.bytes = 0;
            drop(buffer);
            requests.append(&mut drained);
        }
    }
}

impl Tracer {
    /// Starts the trace of a request with these headers.
    pub fn start_trace(&self, headers: &Headers, version: Version, started: Instant) -> Box<Trace> {
        Box::new(Trace::new(TraceContext::from_headers(headers, &self.ids), version, started))
    }

    /// Keeps a request that has ended for the exporter, if its trace is sampled. Drops it and counts its spans if the
    /// buffer is full.
    pub fn end_trace(&self, trace: Box<Trace>, entry: &AccessLogEntry<'_>) {
        if !trace.context.sampled {
            return;
        }
        let Self { buffers, buffer, .. } = self;
        let mut buffer = buffer.lock();
        let before = buffer.bytes;
        if before >= buffers.buffers.max_bytes() {
            drop(buffer);
            buffers.buffers.count_dropped(trace.span_count());
            return;
        }
        let mut request = EndedRequest { trace, entry: OwnedEntry::default() };
        request.entry.overwrite(entry);
        buffer.bytes += request.memory_bytes();
        let after = buffer.bytes;
        buffer.requests.push(request);
        drop(buffer);
        if before == 0 {
            buffers.not_empty.notify_one();
        }
        let half = buffers.buffers.max_bytes() / 2;
        if before < half && after >= half {
            buffers.half_full.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
