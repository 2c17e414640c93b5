//! From the workers' sheets to the receiver: gathered for a moment, sent in batches, and kept while the receiver is away.

use std::{mem, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Traces,
    protobuf::{Walk, bytes, head, text, width_of},
    receiver::{Failure, Receiver},
    span::SPAN,
};

/// How long spans wait for others.
const GATHER: Duration = Duration::from_millis(200);
/// About so many bytes are sent at once; receivers take four times as much at least.
const BATCH: usize = 1 << 20;
/// First and longest wait before a batch is sent again.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// However long the receiver asks to be left alone.
const MOST_AFTER: Duration = Duration::from_secs(300);

/// Carries spans to their receiver.
pub struct Exporter {
    traces: Traces,
    receiver: Receiver,
    /// Who sends them, as it stands before all spans.
    resource: Vec<u8>,
    scope: Vec<u8>,
    spans: Vec<u8>,
    /// How many had been lost when deliveries began to fail.
    trouble: Option<u64>,
}

impl Exporter {
    /// An exporter that has sent nothing yet.
    pub fn new(traces: Traces, receiver: Receiver) -> Self {
        let (resource, scope) = (resource(), scope());
        Self { traces, receiver, resource, scope, spans: Vec::new(), trouble: None }
    }

    /// Sends until `ending` turns true, and then what is left, each batch once.
    pub async fn run(mut self, mut ending: watch::Receiver<bool>) {
        while !*ending.borrow() {
            let desk = self.traces.0.clone();
            tokio::select! {
                () = desk.some.notified() => {}
                _ = ending.wait_for(|ending| *ending) => {}
            }
            let gathered = async {
                tokio::select! {
                    () = desk.many.notified() => {}
                    _ = ending.wait_for(|ending| *ending) => {}
                }
            };
            let _ = timeout(GATHER, gathered).await;
            self.send_all(&mut ending).await;
        }
        self.send_all(&mut ending).await;
    }

    /// Sends what lies on the sheets.
    async fn send_all(&mut self, ending: &mut watch::Receiver<bool>) {
        let mut spans = mem::take(&mut self.spans);
        self.traces.take(&mut spans);
        let mut rest = &spans[..];
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(batch_of(rest));
            if !self.deliver(batch, ending).await {
                self.traces.lose(count(rest));
                break;
            }
            rest = next;
        }
        spans.clear();
        self.spans = spans;
    }

    /// Sends a batch until the receiver has said yes or no. False where it has not, and this is the end.
    async fn deliver(&mut self, batch: &[u8], ending: &mut watch::Receiver<bool>) -> bool {
        let (message, mut wait) = (self.message(batch), FIRST);
        loop {
            let last = *ending.borrow();
            match self.receiver.post(message.clone()).await {
                Ok(rejected) => {
                    self.traces.lose(rejected);
                    self.be_glad();
                    return true;
                }
                Err(Failure::Final(reason)) => {
                    self.traces.lose(count(batch));
                    self.complain(&reason, "the receiver of traces refuses them; they are dropped");
                    return true;
                }
                Err(Failure::Passing { reason, after }) => {
                    self.complain(&reason, "traces cannot be delivered; they wait, as far as there is room");
                    if last {
                        return false;
                    }
                    let pause = after.map_or(Duration::ZERO, |after| after.min(MOST_AFTER)).max(spread(wait));
                    wait = (2 * wait).min(LONGEST);
                    tokio::select! {
                        () = sleep(pause) => {}
                        _ = ending.wait_for(|ending| *ending) => {}
                    }
                }
            }
        }
    }

    /// Says once that something is wrong.
    fn complain(&mut self, reason: &str, what: &str) {
        if self.trouble.is_none() {
            self.trouble = Some(self.traces.dropped());
            tracing::warn!(receiver = %self.receiver, reason, "{what}");
        }
    }

    /// Says once that it is no longer.
    fn be_glad(&mut self) {
        if let Some(before) = self.trouble.take() {
            let lost = self.traces.dropped() - before;
            tracing::info!(receiver = %self.receiver, lost, "traces are delivered again");
        }
    }

    /// An `ExportTraceServiceRequest`.
    fn message(&self, batch: &[u8]) -> Bytes {
        let Self { resource, scope, .. } = self;
        let scoped = scope.len() + batch.len();
        let whole = resource.len() + width_of(scoped);
        let mut message = Vec::with_capacity(whole + 16);
        head(&mut message, 1, whole);
        message.extend_from_slice(resource);
        head(&mut message, 2, scoped);
        message.extend_from_slice(scope);
        message.extend_from_slice(batch);
        message.into()
    }
}

/// The resource: this process.
fn resource() -> Vec<u8> {
    let (mut attributes, mut field) = (Vec::new(), Vec::new());
    let instance = getrandom::u64().unwrap_or_default();
    for (key, value) in [
        ("service.name", "wecom-proxy"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &format!("{instance:016x}")),
    ] {
        text(&mut attributes, 1, key, value);
    }
    bytes(&mut field, 1, &attributes);
    field
}

/// The instrumentation's scope.
fn scope() -> Vec<u8> {
    let (mut scope, mut field) = (Vec::new(), Vec::new());
    bytes(&mut scope, 1, b"wecom-proxy");
    bytes(&mut scope, 2, env!("CARGO_PKG_VERSION").as_bytes());
    bytes(&mut field, 1, &scope);
    field
}

/// How many of these bytes are sent at once: whole spans, and one at least.
fn batch_of(spans: &[u8]) -> usize {
    let mut walk = Walk(spans);
    while spans.len() - walk.0.len() < BATCH && walk.next().is_some() {}
    match spans.len() - walk.0.len() {
        // Nothing that was written here looks like this.
        0 => spans.len(),
        taken => taken,
    }
}

/// How many spans these are.
fn count(spans: &[u8]) -> u64 {
    Walk(spans).filter(|(field, _)| *field == u64::from(SPAN)).count() as u64
}

/// A little more or less, so that proxies whose receiver went away do not come back all at once.
fn spread(wait: Duration) -> Duration {
    wait.mul_f64(0.8 + 0.4 * f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_of_whole_spans() {
        let mut spans = Vec::new();
        for _ in 0..5 {
            bytes(&mut spans, SPAN, &[0; BATCH / 2]);
        }
        let (mut rest, mut counts) = (&spans[..], Vec::new());
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(batch_of(rest));
            counts.push(count(batch));
            rest = next;
        }
        assert_eq!(counts, [2, 2, 1]);
    }
}
