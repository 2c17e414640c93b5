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
mod fetch;
mod span;
mod trace;

use std::{mem, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use http::Version;
use tokio::{sync::Notify, time::Instant};

pub use self::{
    collector::{Collector, CollectorError},
    exporter::Exporter,
    fetch::FetchTracer,
    span::{CommonAttributes, UpstreamAttributes},
    trace::{Operation, SpanOutcome, Trace},
};
use self::{
    context::{IdGenerator, TraceContext},
    fetch::TracedFetch,
};
use super::{
    access_log::{AccessLogEntry, OwnedEntry},
    metrics::FailureClass,
    worker_buffers::{WorkerBuffers, share},
};
use crate::{
    config::TraceSampler,
    http1::headers::Headers,
    tokens::{CausingRequest, FetchCause},
};

/// Bounds the buffered requests of all workers together; one takes about 1 KB.
const MAX_BUFFERED_BYTES: usize = 4 << 20;
/// Bounds the buffered calls that fetch tokens.
const MAX_BUFFERED_FETCHES: usize = 1024;
/// The minimum buffer of a worker, whatever the number of workers.
const MIN_WORKER_BUFFER_BYTES: usize = 256 * 1024;

/// The span buffers of all workers. Clones share them.
#[derive(Clone)]
pub struct Traces(Arc<SpanBuffers>);

struct SpanBuffers {
    attributes: CommonAttributes,
    sampler: TraceSampler,
    fetches: Mutex<Vec<TracedFetch>>,
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
        size_of::<Self>() + size_of::<Trace>() + self.trace.text_bytes() + self.entry.text_bytes()
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
    pub fn new(attributes: CommonAttributes, sampler: TraceSampler, workers: usize) -> Self {
        Self::with_buffer_bytes(
            attributes,
            sampler,
            share(MAX_BUFFERED_BYTES, workers, MIN_WORKER_BUFFER_BYTES),
        )
    }

    fn with_buffer_bytes(
        attributes: CommonAttributes,
        sampler: TraceSampler,
        max_buffer_bytes: usize,
    ) -> Self {
        Self(Arc::new(SpanBuffers {
            attributes,
            sampler,
            fetches: Mutex::default(),
            buffers: WorkerBuffers::new(max_buffer_bytes),
            not_empty: Notify::new(),
            half_full: Notify::new(),
        }))
    }

    /// Adds a buffer for a worker and returns its tracer.
    pub fn tracer(&self) -> Tracer {
        Tracer { buffers: self.0.clone(), buffer: self.0.buffers.add(), ids: IdGenerator::default() }
    }

    /// A tracer of the calls that fetch tokens.
    pub fn fetch_tracer(&self) -> FetchTracer {
        FetchTracer::new(self.clone())
    }

    fn sampler(&self) -> TraceSampler {
        self.0.sampler
    }

    /// Keeps a call for the exporter; drops and counts it if there are too many.
    fn keep_fetch(&self, fetch: TracedFetch) {
        let mut fetches = self.0.fetches.lock();
        if fetches.len() >= MAX_BUFFERED_FETCHES {
            return self.count_dropped(1);
        }
        fetches.push(fetch);
        drop(fetches);
        self.0.not_empty.notify_one();
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
    pub fn start_trace(
        &self,
        headers: &Headers,
        version: Version,
        peer: Option<IpAddr>,
        started: Instant,
    ) -> Box<Trace> {
        let context = TraceContext::from_headers(headers, &self.ids, self.buffers.sampler);
        Box::new(Trace::new(context, version, peer, started))
    }

    /// The request as the cause of a call that fetches a token.
    pub fn fetch_cause(&self, trace: &mut Trace) -> FetchCause {
        let span_id = *trace.span_id.get_or_insert_with(|| self.ids.next_span_id());
        let TraceContext { trace_id, sampled, .. } = trace.context;
        FetchCause::of(CausingRequest { trace_id, span_id, sampled })
    }

    /// Keeps a request that has ended for the exporter, if its trace is sampled, or it failed or was retried. Drops it and
    /// counts its spans if the buffer is full.
    pub fn end_trace(&self, trace: Box<Trace>, entry: &AccessLogEntry<'_>) {
        if !trace.context.sampled && !is_always_kept(entry) {
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

/// Whether a request is exported in any case: it was retried, or the proxy or WeCom failed it. What the proxy refuses, and
/// mistakes of callers, can come in any number.
fn is_always_kept(entry: &AccessLogEntry<'_>) -> bool {
    let class = FailureClass::of(entry);
    entry.retried.is_some() || matches!(class, Some(FailureClass::Outage | FailureClass::Wecom))
}

#[cfg(test)]
mod tests;
