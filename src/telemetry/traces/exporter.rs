//! Exports spans from the workers' buffers to the collector in batches. Keeps a batch while the collector is
//! unavailable.

use std::{mem, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Traces,
    collector::{Collector, ExportError},
    protobuf::{
        FieldReader, bytes_field_len, write_bytes_field, write_length_prefix, write_string_attribute,
    },
    span::SPANS_FIELD,
};

/// How long spans wait for more, unless a buffer is half full.
const BATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Approximate size of a batch in bytes; collectors accept at least four times as much.
const BATCH_BYTES: usize = 1 << 20;
/// The first and the longest backoff before a batch is sent again.
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Bounds the collector's `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Exports spans to the collector.
pub struct Exporter {
    traces: Traces,
    collector: Collector,
    /// The encoded resource, which precedes all spans.
    resource: Vec<u8>,
    scope: Vec<u8>,
    spans: Vec<u8>,
    /// The dropped spans when exports began to fail; `None` while they succeed.
    dropped_before_failure: Option<u64>,
}

impl Exporter {
    /// An exporter without a connection.
    pub fn new(traces: Traces, collector: Collector) -> Self {
        let (resource, scope) = (encode_resource(), encode_scope());
        Self { traces, collector, resource, scope, spans: Vec::new(), dropped_before_failure: None }
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
        let mut spans = mem::take(&mut self.spans);
        self.traces.drain(&mut spans);
        let mut rest = &spans[..];
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(batch_len(rest));
            if !self.export_batch(batch, stop).await {
                self.traces.count_dropped(count_spans(rest));
                break;
            }
            rest = next;
        }
        spans.clear();
        self.spans = spans;
    }

    /// Sends a batch until the collector accepts or rejects it. Returns false if it did neither before `stop`.
    async fn export_batch(&mut self, batch: &[u8], stop: &mut watch::Receiver<bool>) -> bool {
        let (message, mut backoff) = (self.encode_request(batch), MIN_BACKOFF);
        loop {
            let last = *stop.borrow();
            match self.collector.export(message.clone()).await {
                Ok(rejected) => {
                    self.traces.count_dropped(rejected);
                    self.report_recovery();
                    return true;
                }
                Err(ExportError::Permanent(reason)) => {
                    self.traces.count_dropped(count_spans(batch));
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
                        .max(add_jitter(backoff));
                    backoff = (2 * backoff).min(MAX_BACKOFF);
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

    /// An `ExportTraceServiceRequest`.
    fn encode_request(&self, batch: &[u8]) -> Bytes {
        let Self { resource, scope, .. } = self;
        let scoped = scope.len() + batch.len();
        let length = resource.len() + bytes_field_len(scoped);
        let mut message = Vec::with_capacity(length + 16);
        write_length_prefix(&mut message, 1, length);
        message.extend_from_slice(resource);
        write_length_prefix(&mut message, 2, scoped);
        message.extend_from_slice(scope);
        message.extend_from_slice(batch);
        message.into()
    }
}

/// The resource, which describes this process.
fn encode_resource() -> Vec<u8> {
    let (mut attributes, mut field) = (Vec::new(), Vec::new());
    let instance = getrandom::u64().unwrap_or_default();
    for (key, value) in [
        ("service.name", "wecom-proxy"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &format!("{instance:016x}")),
    ] {
        write_string_attribute(&mut attributes, 1, key, value);
    }
    write_bytes_field(&mut field, 1, &attributes);
    field
}

/// The instrumentation scope.
fn encode_scope() -> Vec<u8> {
    let (mut scope, mut field) = (Vec::new(), Vec::new());
    write_bytes_field(&mut scope, 1, b"wecom-proxy");
    write_bytes_field(&mut scope, 2, env!("CARGO_PKG_VERSION").as_bytes());
    write_bytes_field(&mut field, 1, &scope);
    field
}

/// The length of the next batch in bytes: complete spans, and at least one.
fn batch_len(spans: &[u8]) -> usize {
    let mut reader = FieldReader(spans);
    while spans.len() - reader.0.len() < BATCH_BYTES && reader.next().is_some() {}
    match spans.len() - reader.0.len() {
        // Invalid fields, which are never written.
        0 => spans.len(),
        taken => taken,
    }
}

/// The number of spans.
fn count_spans(spans: &[u8]) -> u64 {
    FieldReader(spans).filter(|(field, _)| *field == u64::from(SPANS_FIELD)).count() as u64
}

/// Varies the backoff by 20%, so that proxies do not retry at the same time.
fn add_jitter(backoff: Duration) -> Duration {
    backoff.mul_f64(0.8 + 0.4 * f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_len_never_splits_a_span() {
        let mut spans = Vec::new();
        for _ in 0..5 {
            write_bytes_field(&mut spans, SPANS_FIELD, &[0; BATCH_BYTES / 2]);
        }
        let (mut rest, mut counts) = (&spans[..], Vec::new());
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(batch_len(rest));
            counts.push(count_spans(batch));
            rest = next;
        }
        assert_eq!(counts, [2, 2, 1]);
    }
}
