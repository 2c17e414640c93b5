use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use super::*;
use crate::access::Level;

/// A line about the nth exchange.
fn about(nth: u64, path: &str) -> Line<'_> {
    Line {
        level: Level::Info,
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(nth),
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
        first_try: None,
        request_bytes: None,
        bytes: 1,
        whole: true,
        token: Duration::ZERO,
        upstream: Duration::ZERO,
        total: Duration::ZERO,
        hint: None,
    }
}

fn paths(exchanges: &[Exchange]) -> Vec<&str> {
    exchanges.iter().map(Exchange::path).collect()
}

#[test]
fn the_newest_of_all_workers_come_first() {
    let recent = Recent::new(4, 2);
    let (one, other) = (recent.recorder().expect("a ring"), recent.recorder().expect("a ring"));
    for nth in 0..10_u64 {
        let path = format!("/{nth}");
        if nth < 7 { &one } else { &other }.keep(&about(nth, &path), None);
    }
    assert_eq!(paths(&recent.latest(&Filter::default(), 4)), ["/9", "/8", "/7", "/6"]);
    let seven = Filter { path: Some("7".to_owned()), ..Filter::default() };
    assert_eq!(paths(&recent.latest(&seven, 4)), ["/7"]);
    assert_eq!(recent.latest(&Filter::default(), 1000).len(), 4 + 3, "what was kept");
    assert!(Recent::new(0, 2).recorder().is_none());
}

#[test]
fn a_reader_gets_each_line_once_and_is_told_of_those_it_missed() {
    let recent = Recent::new(100, 1);
    let ring = recent.recorder().expect("a ring");
    ring.keep(&about(0, "/before"), None);
    let mut tail = recent.tail();
    assert_eq!(tail.read(&Filter::default()).0.len(), 0);
    for nth in 0..90 {
        ring.keep(&about(nth, "/now"), None);
    }
    let (read, lost) = tail.read(&Filter::default());
    assert_eq!((read.len(), lost), (90, 0));
    for nth in 0..130 {
        ring.keep(&about(nth, "/later"), None);
    }
    let (read, lost) = tail.read(&Filter::default());
    assert_eq!((read.len(), lost), (100, 30));
    let nobody = Filter { client: Some("billing".to_owned()), ..Filter::default() };
    ring.keep(&about(0, "/last"), None);
    assert_eq!(tail.read(&nobody).0.len(), 0);
    assert_eq!(tail.read(&Filter::default()).0.len(), 0, "what did not pass was looked at");
}

#[test]
fn what_is_long_is_cut_and_the_next_one_is_not() {
    let recent = Recent::new(1, 1);
    let ring = recent.recorder().expect("a ring");
    let long = "/é".repeat(10_000);
    ring.keep(&about(0, &long), None);
    let kept = &recent.latest(&Filter::default(), 1)[0];
    assert!((1000..=1024).contains(&kept.path().len()) && long.starts_with(kept.path()));
    ring.keep(&about(1, "/short"), None);
    let kept = &recent.latest(&Filter::default(), 1)[0];
    assert_eq!((kept.path(), kept.agent(), kept.client()), ("/short", "hr", ""));
}

#[test]
fn only_the_newest_keep_their_details() {
    let recent = Recent::new(1000, 1);
    let ring = recent.recorder().expect("a ring");
    let many = MOST_DETAILS as u64 + 10;
    for nth in 0..many {
        ring.keep(&about(nth, "/"), Some(Capture { bytes: 0, redact: Box::new(|| None) }));
        ring.keep(&about(nth, "/"), None);
    }
    let kept = recent.latest(&Filter::default(), 1000);
    let detailed: Vec<_> = kept.iter().filter(|it| it.detail.is_some()).map(|it| it.at).collect();
    assert_eq!(detailed.len(), MOST_DETAILS);
    assert_eq!(detailed.last(), Some(&(SystemTime::UNIX_EPOCH + Duration::from_secs(10))));
}
