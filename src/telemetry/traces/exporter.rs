//! From the workers' sheets to the receiver: gathered for a moment, sent in batches, and kept while the receiver is away.

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

/// How long spans wait for others.
const BATCH_INTERVAL: Duration = Duration::from_millis(200);
/// About so many bytes are sent at once; receivers take four times as much at least.
const BATCH_BYTES: usize = 1 << 20;
/// First and longest wait before a batch is sent again.
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// However long the receiver asks to be left alone.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Carries spans to their receiver.
pub struct Exporter {
    traces: Traces,
    collector: Collector,
    /// Who sends them, as it stands before all spans.
    resource: Vec<u8>,
    scope: Vec<u8>,
    spans: Vec<u8>,
    /// How many had been lost when deliveries began to fail.
    dropped_before_failure: Option<u64>,
}

impl Exporter {
    /// An exporter that has sent nothing yet.
    pub fn new(traces: Traces, collector: Collector) -> Self {
        let (resource, scope) = (encode_resource(), encode_scope());
        Self { traces, collector, resource, scope, spans: Vec::new(), dropped_before_failure: None }
    }

    /// Sends until `ending` turns true, and then what is left, each batch once.
    pub async fn run(mut self, mut ending: watch::Receiver<bool>) {
        while !*ending.borrow() {
            let desk = self.traces.0.clone();
            tokio::select! {
                () = desk.not_empty.notified() => {}
                _ = ending.wait_for(|ending| *ending) => {}
            }
            let gathered = async {
                tokio::select! {
                    () = desk.half_full.notified() => {}
                    _ = ending.wait_for(|ending| *ending) => {}
                }
            };
            let _ = timeout(BATCH_INTERVAL, gathered).await;
            self.export_all(&mut ending).await;
        }
        self.export_all(&mut ending).await;
    }

    /// Sends what lies on the sheets.
    async fn export_all(&mut self, ending: &mut watch::Receiver<bool>) {
        let mut spans = mem::take(&mut self.spans);
        self.traces.drain(&mut spans);
        let mut rest = &spans[..];
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(batch_len(rest));
            if !self.export_batch(batch, ending).await {
                self.traces.count_dropped(count_spans(rest));
                break;
            }
            rest = next;
        }
        spans.clear();
        self.spans = spans;
    }

    /// Sends a batch until the receiver has said yes or no. False where it has not, and this is the end.
    async fn export_batch(&mut self, batch: &[u8], ending: &mut watch::Receiver<bool>) -> bool {
        let (message, mut wait) = (self.encode_request(batch), MIN_BACKOFF);
        loop {
            let last = *ending.borrow();
            match self.collector.export(message.clone()).await {
                Ok(rejected) => {
                    self.traces.count_dropped(rejected);
                    self.report_recovery();
                    return true;
                }
                Err(ExportError::Permanent(reason)) => {
                    self.traces.count_dropped(count_spans(batch));
                    self.report_failure(&reason, "the receiver of traces refuses them; they are dropped");
                    return true;
                }
                Err(ExportError::Transient { reason, retry_after: after }) => {
                    self.report_failure(
                        &reason,
                        "traces cannot be delivered; they wait, as far as there is room",
                    );
                    if last {
                        return false;
                    }
                    let pause = after
                        .map_or(Duration::ZERO, |after| after.min(MAX_RETRY_AFTER))
                        .max(add_jitter(wait));
                    wait = (2 * wait).min(MAX_BACKOFF);
                    tokio::select! {
                        () = sleep(pause) => {}
                        _ = ending.wait_for(|ending| *ending) => {}
                    }
                }
            }
        }
    }

    /// Says once that something is wrong.
    fn report_failure(&mut self, reason: &str, what: &str) {
        if self.dropped_before_failure.is_none() {
            self.dropped_before_failure = Some(self.traces.dropped());
            tracing::warn!(receiver = %self.collector, reason, "{what}");
        }
    }

    /// Says once that it is no longer.
    fn report_recovery(&mut self) {
        if let Some(before) = self.dropped_before_failure.take() {
            let lost = self.traces.dropped() - before;
            tracing::info!(receiver = %self.collector, lost, "traces are delivered again");
        }
    }

    /// An `ExportTraceServiceRequest`.
    fn encode_request(&self, batch: &[u8]) -> Bytes {
        let Self { resource, scope, .. } = self;
        let scoped = scope.len() + batch.len();
        let whole = resource.len() + bytes_field_len(scoped);
        let mut message = Vec::with_capacity(whole + 16);
        write_length_prefix(&mut message, 1, whole);
        message.extend_from_slice(resource);
        write_length_prefix(&mut message, 2, scoped);
        message.extend_from_slice(scope);
        message.extend_from_slice(batch);
        message.into()
    }
}

/// The resource: this process.
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

/// The instrumentation's scope.
fn encode_scope() -> Vec<u8> {
    let (mut scope, mut field) = (Vec::new(), Vec::new());
    write_bytes_field(&mut scope, 1, b"wecom-proxy");
    write_bytes_field(&mut scope, 2, env!("CARGO_PKG_VERSION").as_bytes());
    write_bytes_field(&mut field, 1, &scope);
    field
}

/// How many of these bytes are sent at once: whole spans, and one at least.
fn batch_len(spans: &[u8]) -> usize {
    let mut walk = FieldReader(spans);
    while spans.len() - walk.0.len() < BATCH_BYTES && walk.next().is_some() {}
    match spans.len() - walk.0.len() {
        // Nothing that was written here looks like this.
        0 => spans.len(),
        taken => taken,
    }
}

/// How many spans these are.
fn count_spans(spans: &[u8]) -> u64 {
    FieldReader(spans).filter(|(field, _)| *field == u64::from(SPANS_FIELD)).count() as u64
}

/// A little more or less, so that proxies whose receiver went away do not come back all at once.
fn add_jitter(wait: Duration) -> Duration {
    wait.mul_f64(0.8 + 0.4 * f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX))
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
