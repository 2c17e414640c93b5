//! Exports spans from the workers' buffers to the collector in batches. Keeps a batch while the collector is
//! unavailable.

use std::{mem, time::Duration};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    EndedRequest, Traces,
    collector::{Collector, ExportError},
    context::IdGenerator,
    span::{RequestSpans, text},
};
use crate::{secret::random_fraction, time::backoff::BackoffRange};

/// How long spans wait for more, unless a buffer is half full.
const BATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Approximate size of a batch in bytes; collectors accept at least four times as much.
const BATCH_BYTES: usize = 1 << 20;
/// The delays before a batch is sent again.
const BACKOFF_RANGE: BackoffRange =
    BackoffRange { min: Duration::from_millis(500), max: Duration::from_secs(30) };
/// Bounds the collector's `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Exports spans to the collector.
pub struct Exporter {
    traces: Traces,
    collector: Collector,
    ids: IdGenerator,
    /// Describes this process.
    resource: Resource,
    /// The requests that are being exported; swapped with a buffer, so that its allocation is reused.
    requests: Vec<EndedRequest>,
    /// The dropped spans when exports began to fail; `None` while they succeed.
    dropped_before_failure: Option<u64>,
}

impl Exporter {
    /// An exporter without a connection.
    pub fn new(traces: Traces, collector: Collector, resource: &[(String, String)]) -> Self {
        let resource = resource_message(resource);
        let ids = IdGenerator::default();
        Self { traces, collector, ids, resource, requests: Vec::new(), dropped_before_failure: None }
    }

    /// Exports until `stop` turns true, then exports the buffered spans, each batch at most once.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let buffers = self.traces.0.clone();
            tokio::select! {
                () = buffers.not_empty.notified() => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            let wait_for_more = async {
                tokio::select! {
                    () = buffers.half_full.notified() => {}
                    _ = stop.wait_for(|stop| *stop) => {}
                }
            };
            let _ = timeout(BATCH_INTERVAL, wait_for_more).await;
            self.export_all(&mut stop).await;
        }
        self.export_all(&mut stop).await;
    }

    /// Exports the buffered spans.
    async fn export_all(&mut self, stop: &mut watch::Receiver<bool>) {
        let mut requests = mem::take(&mut self.requests);
        self.traces.drain(&mut requests);
        let mut rest = requests.drain(..);
        let (attributes, fetches) =
            (&self.traces.0.attributes, mem::take(&mut *self.traces.0.fetches.lock()));
        let mut first: Vec<_> = fetches.into_iter().map(|fetch| fetch.span(attributes, &self.ids)).collect();
        loop {
            let batch = self.next_batch(mem::take(&mut first), &mut rest);
            let spans = batch.len() as u64;
            if spans == 0 {
                break;
            }
            if !self.export_batch(batch, stop).await {
                self.traces
                    .count_dropped(spans + rest.by_ref().map(|request| request.span_count()).sum::<u64>());
                break;
            }
        }
        drop(rest);
        self.requests = requests;
    }

    /// These spans, and those of the next requests.
    fn next_batch(
        &self,
        mut spans: Vec<Span>,
        requests: &mut impl Iterator<Item = EndedRequest>,
    ) -> Vec<Span> {
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(EndedRequest { trace, entry }) = requests.next()
        {
            let (ids, attributes, from) = (&self.ids, &self.traces.0.attributes, spans.len());
            RequestSpans { attributes, ids, trace: &trace, entry: entry.entry() }.push_to(&mut spans);
            bytes += spans[from..].iter().map(Message::encoded_len).sum::<usize>();
        }
        spans
    }

    /// Sends a batch until the collector accepts or rejects it. Returns false if it did neither before `stop`.
    async fn export_batch(&mut self, batch: Vec<Span>, stop: &mut watch::Receiver<bool>) -> bool {
        let spans = batch.len() as u64;
        let (message, mut failures) = (self.encode_request(batch), 0_u32);
        loop {
            let last = *stop.borrow();
            match self.collector.export(message.clone()).await {
                Ok(rejected) => {
                    self.traces.count_dropped(rejected);
                    self.report_recovery();
                    return true;
                }
                Err(ExportError::Permanent(reason)) => {
                    self.traces.count_dropped(spans);
                    self.report_failure(&reason, "OTLP collector rejected spans, dropped");
                    return true;
                }
                Err(ExportError::Transient { reason, retry_after }) => {
                    self.report_failure(&reason, "span export failed, buffering and retrying");
                    if last {
                        return false;
                    }
                    let delay = retry_after
                        .map_or(Duration::ZERO, |after| after.min(MAX_RETRY_AFTER))
                        .max(BACKOFF_RANGE.jittered(failures, random_fraction()));
                    failures = failures.saturating_add(1);
                    tokio::select! {
                        () = sleep(delay) => {}
                        _ = stop.wait_for(|stop| *stop) => {}
                    }
                }
            }
        }
    }

    /// Logs the first of consecutive failures.
    fn report_failure(&mut self, reason: &str, message: &str) {
        if self.dropped_before_failure.is_none() {
            self.dropped_before_failure = Some(self.traces.dropped());
            tracing::warn!(receiver = %self.collector, reason, "{message}");
        }
    }

    /// Logs the first success after failures.
    fn report_recovery(&mut self) {
        if let Some(before) = self.dropped_before_failure.take() {
            let lost = self.traces.dropped() - before;
            tracing::info!(receiver = %self.collector, lost, "span export recovered");
        }
    }

    fn encode_request(&self, spans: Vec<Span>) -> Bytes {
        let scope = InstrumentationScope {
            name: "wecom-proxy".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
    }
}

/// The resource, which describes this process.
fn resource_message(attributes: &[(String, String)]) -> Resource {
    let attributes = attributes.iter().map(|(name, value)| text(name, value)).collect();
    Resource { attributes, ..Resource::default() }
}
