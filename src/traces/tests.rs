//! What is kept for the receiver, and what is lost.

use std::time::{Duration, SystemTime};

use super::{protobuf::Walk, *};
use crate::access::Level;

fn traces(share: usize) -> Traces {
    let facts = Facts { scheme: "http", upstream: "http://a".into(), host: "a".into(), port: 80 };
    Traces::with_share(facts, share)
}

fn line() -> Line<'static> {
    Line {
        level: Level::Info,
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(10),
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
        first_try: None,
        request_bytes: None,
        bytes: 1,
        whole: true,
        token: Duration::ZERO,
        upstream: Duration::ZERO,
        total: Duration::from_secs(1),
        hint: None,
    }
}

#[tokio::test]
async fn a_full_sheet_loses_the_newest_spans_and_counts_each() {
    let traces = traces(1000);
    let (tracer, other) = (traces.tracer(), traces.tracer());
    let fields = Fields::default();
    let mut trace = tracer.begin(&fields, Version::HTTP_11, Instant::now());
    trace.begin(Doing::Try, trace.began);
    for _ in 0..100 {
        tracer.write(&trace, &line());
    }
    // What one worker has too much of takes nobody else's room.
    other.write(&trace, &line());
    let mut spans = Vec::new();
    traces.take(&mut spans);
    let kept = Walk(&spans).count() as u64;
    assert!((4..10).contains(&kept), "{kept}");
    assert_eq!(kept + traces.dropped(), 202);
    // There is room again.
    tracer.write(&trace, &line());
    assert_eq!(kept + traces.dropped(), 202);
}

#[tokio::test]
async fn what_nobody_will_look_at_is_not_written() {
    let traces = traces(1000);
    let tracer = traces.tracer();
    let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let trace = tracer.begin(&Fields::of(&[("traceparent", told)]), Version::HTTP_11, Instant::now());
    tracer.write(&trace, &line());
    let mut spans = Vec::new();
    traces.take(&mut spans);
    assert!(spans.is_empty() && traces.dropped() == 0);
    assert_eq!(&trace.id(), b"4bf92f3577b34da6a3ce929d0e0e4736");
}

#[tokio::test]
async fn a_request_takes_no_more_steps_than_there_is_room_for() {
    let traces = traces(1000);
    let tracer = traces.tracer();
    let mut trace = tracer.begin(&Fields::default(), Version::HTTP_11, Instant::now());
    trace.end(Duration::ZERO, Outcome::default());
    for _ in 0..10 {
        trace.begin(Doing::Queue, trace.began);
        trace.end_now(Outcome::default());
    }
    assert_eq!(trace.steps().len(), trace::MOST_STEPS);
}
