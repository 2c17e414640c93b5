//! Buffering and dropping of spans.

use std::time::{Duration, SystemTime};

use super::*;

fn traces(share: usize) -> Traces {
    let attributes = CommonAttributes {
        scheme: "http",
        upstreams: vec![UpstreamAttributes { url: "http://a".into(), host: "a".into(), port: 80 }],
    };
    Traces::with_buffer_bytes(attributes, TraceSampler::default(), share)
}

fn entry() -> AccessLogEntry<'static> {
    AccessLogEntry {
        ended_at: SystemTime::UNIX_EPOCH + Duration::from_secs(10),
        request_id: "an-id",
        agent: Some("hr"),
        method: "GET",
        path: "/",
        status: 200,
        errcode: Some(0),
        response_bytes: 1,
        complete: true,
        total_time: Duration::from_secs(1),
        ..AccessLogEntry::default()
    }
}

#[tokio::test]
async fn full_buffer_drops_newest_spans_and_counts_them() {
    let traces = traces(1000);
    let (tracer, other) = (traces.tracer(), traces.tracer());
    let headers = Headers::default();
    let mut trace = tracer.start_trace(&headers, Version::HTTP_11, None, Instant::now());
    trace.start_span(Operation::Attempt, trace.started);
    for _ in 0..100 {
        tracer.end_trace(trace.clone(), &entry());
    }
    // A full buffer of one worker takes no space from another's.
    other.end_trace(trace.clone(), &entry());
    let mut requests = Vec::new();
    traces.drain(&mut requests);
    let buffered: u64 = requests.iter().map(EndedRequest::span_count).sum();
    assert!((4..10).contains(&buffered), "{buffered}");
    assert_eq!(buffered + traces.dropped(), 202);
    // After the drain, spans are buffered again.
    tracer.end_trace(trace.clone(), &entry());
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
        None,
        Instant::now(),
    );
    tracer.end_trace(trace.clone(), &entry());
    let mut requests = Vec::new();
    traces.drain(&mut requests);
    assert!(requests.is_empty() && traces.dropped() == 0);
    assert_eq!(&trace.trace_id(), b"4bf92f3577b34da6a3ce929d0e0e4736");
}

#[tokio::test]
async fn child_spans_are_capped_at_maximum() {
    let traces = traces(1000);
    let tracer = traces.tracer();
    let mut trace = tracer.start_trace(&Headers::default(), Version::HTTP_11, None, Instant::now());
    trace.end_span(Duration::ZERO, SpanOutcome::default());
    for _ in 0..10 {
        trace.start_span(Operation::Queue, trace.started);
        trace.end_span(Duration::ZERO, SpanOutcome::default());
    }
    assert_eq!(trace.child_spans().len(), trace::MAX_CHILD_SPANS);
}
