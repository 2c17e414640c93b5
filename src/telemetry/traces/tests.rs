//! Buffering and dropping of spans.

use std::time::{Duration, SystemTime};

use super::{protobuf::FieldReader, *};
use crate::telemetry::access_log::Level;

fn traces(share: usize) -> Traces {
    let attributes = CommonAttributes {
        scheme: "http",
        upstream_url: "http://a".into(),
        upstream_host: "a".into(),
        upstream_port: 80,
    };
    Traces::with_buffer_bytes(attributes, share)
}

fn entry() -> AccessLogEntry<'static> {
    AccessLogEntry {
        level: Level::Info,
        ended_at: SystemTime::UNIX_EPOCH + Duration::from_secs(10),
        request_id: "an-id",
        trace_id: None,
        peer: None,
        client: None,
        agent: Some("hr"),
        method: "GET",
        path: "/",
        status: 200,
        errcode: Some(0),
        retried: None,
        error: None,
        reason: None,
        first_attempt: None,
        request_bytes: None,
        response_bytes: 1,
        complete: true,
        token_time: Duration::ZERO,
        upstream_time: Duration::ZERO,
        total_time: Duration::from_secs(1),
        hint: None,
    }
}

#[tokio::test]
async fn full_buffer_drops_newest_spans_and_counts_them() {
    let traces = traces(1000);
    let (tracer, other) = (traces.tracer(), traces.tracer());
    let headers = Headers::default();
    let mut trace = tracer.start_trace(&headers, Version::HTTP_11, Instant::now());
    trace.start_span(Operation::Attempt, trace.started);
    for _ in 0..100 {
        tracer.write_spans(&trace, &entry());
    }
    // A full buffer of one worker takes no space from another's.
    other.write_spans(&trace, &entry());
    let mut spans = Vec::new();
    traces.drain(&mut spans);
    let buffered = FieldReader(&spans).count() as u64;
    assert!((4..10).contains(&buffered), "{buffered}");
    assert_eq!(buffered + traces.dropped(), 202);
    // After the drain, spans are buffered again.
    tracer.write_spans(&trace, &entry());
    assert_eq!(buffered + traces.dropped(), 202);
}

#[tokio::test]
async fn unsampled_trace_is_not_written() {
    let traces = traces(1000);
    let tracer = traces.tracer();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let trace = tracer.start_trace(
        &Headers::from_pairs(&[("traceparent", traceparent)]),
        Version::HTTP_11,
        Instant::now(),
    );
    tracer.write_spans(&trace, &entry());
    let mut spans = Vec::new();
    traces.drain(&mut spans);
    assert!(spans.is_empty() && traces.dropped() == 0);
    assert_eq!(&trace.trace_id(), b"4bf92f3577b34da6a3ce929d0e0e4736");
}

#[tokio::test]
async fn child_spans_are_capped_at_maximum() {
    let traces = traces(1000);
    let tracer = traces.tracer();
    let mut trace = tracer.start_trace(&Headers::default(), Version::HTTP_11, Instant::now());
    trace.end_span(Duration::ZERO, SpanOutcome::default());
    for _ in 0..10 {
        trace.start_span(Operation::Queue, trace.started);
        trace.end_span_now(SpanOutcome::default());
    }
    assert_eq!(trace.child_spans().len(), trace::MAX_CHILD_SPANS);
}
