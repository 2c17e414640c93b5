use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use super::*;
use crate::telemetry::access_log::Level;

/// An access log entry for the nth exchange.
fn log_entry(nth: u64, path: &str) -> AccessLogEntry<'_> {
    AccessLogEntry {
        level: Level::Info,
        ended_at: SystemTime::UNIX_EPOCH + Duration::from_secs(nth),
        request_id: "an-id",
        trace_id: None,
        peer: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        client: None,
        agent: Some("hr"),
        method: "GET",
        path,
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
        total_time: Duration::ZERO,
        hint: None,
    }
}

fn paths(exchanges: &[Exchange]) -> Vec<&str> {
    exchanges.iter().map(Exchange::path).collect()
}

#[test]
fn latest_merges_workers_newest_first() {
    let recent = RecentExchanges::new(4, 2);
    let (one, other) = (recent.add_recorder().expect("a ring"), recent.add_recorder().expect("a ring"));
    for nth in 0..10_u64 {
        let path = format!("/{nth}");
        if nth < 7 { &one } else { &other }.record(&log_entry(nth, &path), None);
    }
    assert_eq!(paths(&recent.latest(&ExchangeFilter::default(), 4)), ["/9", "/8", "/7", "/6"]);
    let seven = ExchangeFilter { path: Some("7".to_owned()), ..ExchangeFilter::default() };
    assert_eq!(paths(&recent.latest(&seven, 4)), ["/7"]);
    assert_eq!(recent.latest(&ExchangeFilter::default(), 1000).len(), 4 + 3, "exchanges kept");
    assert!(RecentExchanges::new(0, 2).add_recorder().is_none());
}

#[test]
fn tail_reads_each_exchange_once_and_counts_lost() {
    let recent = RecentExchanges::new(100, 1);
    let ring = recent.add_recorder().expect("a ring");
    ring.record(&log_entry(0, "/before"), None);
    let mut tail = recent.tail();
    assert_eq!(tail.read(&ExchangeFilter::default()).0.len(), 0);
    for nth in 0..90 {
        ring.record(&log_entry(nth, "/now"), None);
    }
    let (read, lost) = tail.read(&ExchangeFilter::default());
    assert_eq!((read.len(), lost), (90, 0));
    for nth in 0..130 {
        ring.record(&log_entry(nth, "/later"), None);
    }
    let (read, lost) = tail.read(&ExchangeFilter::default());
    assert_eq!((read.len(), lost), (100, 30));
    let other_client = ExchangeFilter { client: Some("billing".to_owned()), ..ExchangeFilter::default() };
    ring.record(&log_entry(0, "/last"), None);
    assert_eq!(tail.read(&other_client).0.len(), 0);
    assert_eq!(tail.read(&ExchangeFilter::default()).0.len(), 0, "unmatched exchanges are consumed");
}

#[test]
fn long_path_is_truncated_and_slot_is_reused() {
    let recent = RecentExchanges::new(1, 1);
    let ring = recent.add_recorder().expect("a ring");
    let long = "/é".repeat(10_000);
    ring.record(&log_entry(0, &long), None);
    let kept = &recent.latest(&ExchangeFilter::default(), 1)[0];
    assert!((1000..=1024).contains(&kept.path().len()) && long.starts_with(kept.path()));
    ring.record(&log_entry(1, "/short"), None);
    let kept = &recent.latest(&ExchangeFilter::default(), 1)[0];
    assert_eq!((kept.path(), kept.agent(), kept.client()), ("/short", "hr", ""));
}

#[test]
fn oldest_details_are_evicted_beyond_the_limit() {
    let recent = RecentExchanges::new(1000, 1);
    let ring = recent.add_recorder().expect("a ring");
    let many = MAX_DETAILS_PER_RING as u64 + 10;
    for nth in 0..many {
        ring.record(&log_entry(nth, "/"), Some(RedactionJob { bytes: 0, redact: Box::new(|| None) }));
        ring.record(&log_entry(nth, "/"), None);
    }
    let kept = recent.latest(&ExchangeFilter::default(), 1000);
    let detailed: Vec<_> = kept.iter().filter(|it| it.detail.is_some()).map(|it| it.ended_at).collect();
    assert_eq!(detailed.len(), MAX_DETAILS_PER_RING);
    assert_eq!(detailed.last(), Some(&(SystemTime::UNIX_EPOCH + Duration::from_secs(10))));
}
