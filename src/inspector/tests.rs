use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use super::*;
use crate::telemetry::{access_log::QueryText, metrics::FailureClass};

/// An access log entry for the nth exchange.
fn log_entry(nth: u64, path: &str) -> AccessLogEntry<'_> {
    AccessLogEntry {
        ended_at: SystemTime::UNIX_EPOCH + Duration::from_secs(nth),
        request_id: "an-id",
        peer: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        agent: Some("hr"),
        method: "GET",
        path,
        status: 200,
        errcode: Some(0),
        response_bytes: 1,
        complete: true,
        ..AccessLogEntry::default()
    }
}

fn paths(exchanges: &[Exchange]) -> Vec<&str> {
    exchanges.iter().map(|exchange| exchange.entry().path).collect()
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
fn failed_exchanges_outlive_ordinary_ones() {
    let recent = RecentExchanges::new(4, 1);
    let ring = recent.add_recorder().expect("a ring");
    let failed =
        |nth: u64, agent| AccessLogEntry { agent: Some(agent), errcode: Some(60020), ..log_entry(nth, "/") };
    for nth in 0..3 {
        ring.record(&failed(nth, "quiet"), None);
    }
    for nth in 3..3 + 2 * notable::RING_CAPACITY as u64 {
        ring.record(&failed(nth, "noisy"), None);
        ring.record(&log_entry(nth, "/ordinary"), None);
    }
    let of = |agent: &str| ExchangeFilter { agent: Some(agent.to_owned()), ..ExchangeFilter::default() };
    assert_eq!(recent.latest(&of("quiet"), 1000).len(), 3, "an agent keeps its own");
    assert_eq!(recent.latest(&of("noisy"), 1000).len(), notable::RING_CAPACITY, "each is listed once");
    assert_eq!(recent.latest(&of("hr"), 1000).len(), 2, "of the ordinary ones, the first ring's");
    // Pages join without a gap.
    let (mut before, mut pages) = (None, Vec::new());
    loop {
        let page = recent.latest(&ExchangeFilter { before, ..of("noisy") }, 70);
        before = page.last().map(|last| last.entry().ended_at);
        if page.is_empty() {
            break;
        }
        pages.extend(page.iter().map(|exchange| exchange.entry().ended_at));
    }
    assert!(pages.is_sorted_by(|one, other| one > other) && pages.len() == notable::RING_CAPACITY);
}

#[test]
fn filter_selects_by_failure_time_and_ids() {
    let second = Duration::from_secs(1);
    let entry = AccessLogEntry {
        errcode: Some(60111),
        trace_id: Some("0af7651916cd43dd8448eb211c80319c"),
        total_time: second,
        query: QueryText("userid=x&token&debug=1"),
        ..log_entry(7, "/x")
    };
    let mut exchange = Exchange::default();
    exchange.overwrite(&entry, None);
    assert_eq!(exchange.entry().query.0, "userid&?&debug", "no value is kept");
    assert!(!format!("{entry:?}").contains("userid"));
    let none = ExchangeFilter::default;
    let (caller, outage) = (FailureClass::Caller, FailureClass::Outage);
    for (filter, expected) in [
        (none(), true),
        (ExchangeFilter { errcode: Some(ErrcodeFilter::IsNot(0)), ..none() }, true),
        (ExchangeFilter { errcode: Some(ErrcodeFilter::IsNot(60111)), ..none() }, false),
        (ExchangeFilter { failed: Some(FailureFilter::Any), ..none() }, true),
        (ExchangeFilter { failed: Some(FailureFilter::Class(caller)), ..none() }, true),
        (ExchangeFilter { failed: Some(FailureFilter::Class(outage)), ..none() }, false),
        (ExchangeFilter { retried: true, ..none() }, false),
        (ExchangeFilter { method: Some("POST".to_owned()), ..none() }, false),
        (ExchangeFilter { ended_in_ms: Some(7000), ..none() }, true),
        (ExchangeFilter { ended_in_ms: Some(7001), ..none() }, false),
        (ExchangeFilter { kind: Some("rate-limited".to_owned()), ..none() }, false),
        (ExchangeFilter { trace_id: entry.trace_id.map(str::to_owned), ..none() }, true),
        (ExchangeFilter { trace_id: Some("0af7".to_owned()), ..none() }, false),
        (ExchangeFilter { slower_than: Some(second / 2), ..none() }, true),
        (ExchangeFilter { slower_than: Some(second), ..none() }, false),
        (ExchangeFilter { before: Some(entry.ended_at), ..none() }, false),
        (ExchangeFilter { before: Some(entry.ended_at + second), ..none() }, true),
    ] {
        assert_eq!(filter.matches(&exchange), expected, "{filter:?}");
    }
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
    assert!((1000..=1024).contains(&kept.entry().path.len()) && long.starts_with(kept.entry().path));
    ring.record(&log_entry(1, "/short"), None);
    let kept = &recent.latest(&ExchangeFilter::default(), 1)[0];
    assert_eq!((kept.entry().path, kept.entry().agent, kept.entry().client), ("/short", Some("hr"), None));
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
    let detailed: Vec<_> =
        kept.iter().filter(|it| it.detail.is_some()).map(|it| it.entry().ended_at).collect();
    assert_eq!(detailed.len(), MAX_DETAILS_PER_RING);
    assert_eq!(detailed.last(), Some(&(SystemTime::UNIX_EPOCH + Duration::from_secs(10))));
}
