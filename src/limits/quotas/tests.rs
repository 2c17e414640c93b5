//! Quotas as workers see them.

use std::{cell::RefCell, collections::HashMap};

use super::*;
use crate::config::{PathPattern, QuotaScope, RateLimit};

const USER_GET: &str = "/cgi-bin/user/get";
const SEND: &str = "/cgi-bin/message/send";

fn quotas(mode: QuotaMode, limits: &[(&'static str, QuotaScope, u32)]) -> Arc<Quotas> {
    let limits = limits.iter().map(|(path, per, requests)| QuotaLimit {
        path: PathPattern::from_static(path),
        per: *per,
        limit: RateLimit { requests: *requests, per: Duration::from_secs(60) },
    });
    Quotas::new(&QuotasConfig { mode, limits: limits.collect() })
}

/// The text as those that stay for the whole test.
fn shared(text: &str) -> &'static SharedStr {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, &'static SharedStr>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        *known.entry(text.to_owned()).or_insert_with(|| Box::leak(Box::new(text.into())))
    })
}

fn call<'a>(agent: &str, corpid: &str, path: &'a str) -> Call<'a> {
    Call { agent: Some((shared(agent), shared(corpid))), path, credential: None }
}

#[test]
fn calls_of_all_workers_are_merged() {
    let quotas = quotas(QuotaMode::Observe, &[(USER_GET, QuotaScope::Corp, 10)]);
    let workers = [WorkerQuotas::new(&quotas), WorkerQuotas::new(&quotas)];
    for worker in &workers {
        for agent in ["hr", "ops", "far"] {
            let corpid = if agent == "far" { "ww2" } else { "ww1" };
            worker.count(&call(agent, corpid, USER_GET));
            worker.count(&call(agent, corpid, "/cgi-bin/other"));
        }
    }
    assert!(quotas.report().is_empty(), "4 of 10");
    (0..2).for_each(|_| workers[0].count(&call("ops", "ww1", USER_GET)));
    let report = quotas.report();
    assert_eq!(report.len(), 1, "{report:?}");
    assert_eq!((report[0].used, report[0].limit, report[0].per), (6, Some(10), QuotaScope::Corp));
    assert_eq!(report[0].quota, "corp 10/m /cgi-bin/user/get");
    assert!(report[0].held_for.is_none() && report[0].ratio > 0.59);
}

#[test]
fn calls_after_a_merge_are_counted_again() {
    let quotas = quotas(QuotaMode::Observe, &[(USER_GET, QuotaScope::Corp, 10)]);
    let worker = WorkerQuotas::new(&quotas);
    // An entry is kept for the next merge but one, and dropped when it was not used until then.
    for (calls, used) in [(5, 5), (0, 5), (0, 5), (1, 6), (1, 7), (2, 9), (0, 9)] {
        (0..calls).for_each(|_| worker.count(&call("hr", "ww1", USER_GET)));
        assert_eq!(quotas.report()[0].used, used);
    }
}

#[test]
fn calls_whose_entries_are_not_found_again_are_counted() {
    let quotas = quotas(QuotaMode::Observe, &[(USER_GET, QuotaScope::Corp, 60_000)]);
    let worker = WorkerQuotas::new(&quotas);
    // More agents than a worker finds again, each of them called once in each round.
    for _ in 0..3 {
        for nth in 0..20_000 {
            worker.count(&call(&format!("agent-{nth}"), "ww1", USER_GET));
        }
    }
    assert_eq!(quotas.report()[0].used, 60_000);
}

#[test]
fn tracker_is_locked_for_a_slice_at_a_time_and_what_does_not_fit_is_known() {
    let quotas = quotas(QuotaMode::Observe, &[]);
    let worker = WorkerQuotas::new(&quotas);
    for nth in 0..66_000 {
        worker.count(&call(&format!("agent-{nth}"), "ww1", USER_GET));
    }
    let buffer = quotas.workers.lock()[0].clone();
    let mut merged = 0;
    buffer.merge(|slice| {
        assert!(!slice.is_empty() && slice.len() <= 64);
        merged += slice.len();
    });
    assert_eq!((merged, buffer.take_not_counted(), buffer.take_not_counted()), (65_536, 464, 0));
}

#[tokio::test(start_paused = true)]
async fn full_buffer_is_merged_before_its_time() {
    let quotas = quotas(QuotaMode::Observe, &[(USER_GET, QuotaScope::Address, 20_000)]);
    let worker = WorkerQuotas::new(&quotas);
    quotas.spawn_merging(None, &Handle::current());
    let started = tokio::time::Instant::now();
    for nth in 0..100_000 {
        worker.count(&call(&format!("agent-{nth}"), "ww1", USER_GET));
    }
    while quotas.tracker.lock().report(0.5, 1, unix_now_millis()).is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(started.elapsed() < MERGE_INTERVAL, "{:?}", started.elapsed());
    assert_eq!(quotas.report()[0].used, 65_536, "what does not fit is not counted");
}

#[test]
fn credentials_have_names_of_their_own_among_replicas() {
    let send = "/cgi-bin/webhook/send";
    let quotas = quotas(QuotaMode::Observe, &[(send, QuotaScope::Credential, 20)]);
    let mut tracker = quotas.tracker.lock();
    for credential in [1, 0xfedc_ba98_7654_3210] {
        tracker.count(&Call { agent: None, path: send, credential: Some(credential) }, 1, unix_now_millis());
    }
    let slots = tracker.take_changed();
    let names: Vec<_> = slots.iter().filter_map(|slot| Some(tracker.counter(*slot)?.name())).collect();
    // WeCom also counts all calls of an address.
    let expected = ["address:", "credential:0000000000000001", "credential:fedcba9876543210"]
        .map(|whose| format!("{whose}:{send}"));
    assert_eq!(names, expected);
}

#[test]
fn each_scope_counts_for_itself() {
    let limits = [(USER_GET, QuotaScope::Agent, 10), (USER_GET, QuotaScope::Address, 100)];
    let quotas = quotas(QuotaMode::Shape, &limits);
    let worker = WorkerQuotas::new(&quotas);
    for agent in ["a", "b", "c", "d", "e"] {
        for _ in 0..9 {
            worker.try_take(&call(agent, agent, USER_GET), &[]).expect("below 90 %");
        }
        let denied = worker.try_take(&call(agent, agent, USER_GET), &[]).expect_err("nearly spent");
        assert_eq!((denied.is_held, denied.quota.as_str()), (false, "agent 10/m /cgi-bin/user/get"));
        assert!(denied.wait > Duration::from_secs(55) && denied.wait <= Duration::from_secs(61));
    }
    // A denied call counts nowhere.
    for nth in 0..45 {
        worker.try_take(&call(&format!("more-{nth}"), "x", USER_GET), &[]).expect("45 of 100 before");
    }
    let denied = worker.try_take(&call("last", "x", USER_GET), &[]).expect_err("90 of 100");
    assert_eq!(denied.quota, "address 100/m /cgi-bin/user/get");
}

#[test]
fn blocked_call_holds_its_fullest_quota() {
    let limits = [(USER_GET, QuotaScope::Corp, 100), (USER_GET, QuotaScope::Agent, 1000)];
    let quotas = quotas(QuotaMode::Shape, &limits);
    let worker = WorkerQuotas::new(&quotas);
    (0..10).for_each(|_| worker.try_take(&call("hr", "ww1", USER_GET), &[]).expect("a call"));
    worker.hold(&call("hr", "ww1", USER_GET));
    let denied = worker.try_take(&call("ops", "ww1", USER_GET), &[]).expect_err("the company's");
    assert!(denied.is_held && denied.quota.starts_with("corp 100/m"), "{denied:?}");
    assert!(denied.wait > Duration::from_secs(59) && denied.wait <= Duration::from_secs(60));
    worker.try_take(&call("far", "ww2", USER_GET), &[]).expect("another company");
    worker.try_take(&call("hr", "ww1", "/cgi-bin/other"), &[]).expect("another call");
    assert!(quotas.report()[0].held_for.is_some());
}

#[test]
fn members_beyond_thirty_a_minute_are_named() {
    let quotas = quotas(QuotaMode::Observe, &[]);
    let worker = WorkerQuotas::new(&quotas);
    for nth in 0..30 {
        // Each once, whatever the case of its id.
        let members = if nth % 2 == 0 { ["li", "LI", "wang"] } else { ["Wang", "wang", "Li"] };
        assert_eq!(worker.count_members(&call("hr", "ww1", SEND), &members), None);
    }
    let beyond = worker.count_members(&call("hr", "ww1", SEND), &["zhang", "li"]);
    assert_eq!(beyond, Some(MembersBeyond { count: 1, first: "li", limit: 30, per: "minute" }));
    assert_eq!(worker.count_members(&call("ops", "ww1", SEND), &["li"]), None);
}

#[test]
fn fullest_member_of_an_application_is_reported_and_warned_of() {
    let quotas = quotas(QuotaMode::Observe, &[(SEND, QuotaScope::Member, 10)]);
    let worker = WorkerQuotas::new(&quotas);
    for (agent, member, messages) in [("hr", "li", 6), ("hr", "wang", 9), ("ops", "li", 7), ("far", "li", 4)]
    {
        for _ in 0..messages {
            worker.count_members(&call(agent, "ww1", SEND), &[member]);
        }
    }
    let report = quotas.report();
    let rows: Vec<_> = report.iter().map(|usage| (&*usage.agent, usage.used, usage.per)).collect();
    assert_eq!(rows, [("hr", 9, QuotaScope::Member), ("ops", 7, QuotaScope::Member)]);
    assert!(report.iter().all(|usage| usage.quota == "member 10/m /cgi-bin/message/send"), "{report:?}");
    let mut tracker = quotas.tracker.lock();
    let mut warned = Vec::new();
    for minute in 0..125 {
        // Another member each time: one warning an hour for the application, however many members are written to.
        let (members, now) = ([format!("member-{minute}")], unix_now_millis() + minute * 60_000);
        for _ in 0..8 {
            let members = members::distinct(&quotas.member_hasher, &call("hr", "ww1", SEND), &[&*members[0]]);
            tracker.count_members(&call("hr", "ww1", SEND), &members, now);
        }
        if tracker.has_changed() && !tracker.take_warnings(&[], now).is_empty() {
            warned.push(minute);
        }
    }
    // The first one is of the nine messages above.
    assert_eq!(warned, [0, 60, 120]);
}

#[test]
fn message_waits_for_the_member_whose_limit_is_nearly_spent() {
    let quotas = quotas(QuotaMode::Shape, &[(SEND, QuotaScope::Member, 10)]);
    let worker = WorkerQuotas::new(&quotas);
    let send = |members: &[&str]| worker.try_take(&call("hr", "ww1", SEND), members);
    (0..9).for_each(|_| send(&["li", "wang"]).expect("below 90 %"));
    let denied = send(&["zhang", "LI"]).expect_err("nearly spent");
    assert_eq!((denied.is_held, &*denied.quota), (false, "member 10/m /cgi-bin/message/send"));
    assert!(denied.wait > Duration::from_secs(55) && denied.wait <= Duration::from_secs(61));
    // A denied message counts for none of its members.
    (0..9).for_each(|_| send(&["zhang"]).expect("below 90 %"));
    send(&["zhang"]).expect_err("nearly spent");
    send(&[]).expect("to no known member");
    worker.try_take(&call("ops", "ww1", SEND), &["li"]).expect("another application");
}

#[test]
fn members_of_one_message_are_bounded_before_the_lock() {
    let quotas = quotas(QuotaMode::Shape, &[(SEND, QuotaScope::Member, 10)]);
    let worker = WorkerQuotas::new(&quotas);
    let names: Vec<_> = (0..12_500).map(|nth| format!("{nth}")).collect();
    // The same one very often does not push the others out.
    let many: Vec<_> = std::iter::repeat_n("0", 2_000).chain(names.iter().map(String::as_str)).collect();
    let kept = members::distinct(&quotas.member_hasher, &call("hr", "ww1", SEND), &many);
    assert!(kept.iter().map(|(_, name)| *name).eq(names[..1_000].iter().map(String::as_str)));
    (0..9).for_each(|_| worker.try_take(&call("hr", "ww1", SEND), &many).expect("below 90 %"));
    assert!((1_000..1_010).contains(&quotas.tracker.lock().counter_count()));
    worker.try_take(&call("hr", "ww1", SEND), &["999"]).expect_err("the last that was counted");
    worker.try_take(&call("hr", "ww1", SEND), &["1000"]).expect("beyond what one message has");
}

#[test]
fn blocked_messages_are_held_until_midnight_in_beijing() {
    let quotas = quotas(QuotaMode::Shape, &[]);
    let worker = WorkerQuotas::new(&quotas);
    let first = quotas.tracker.lock().hold(&call("hr", "ww1", SEND), unix_now_millis());
    assert!(first.is_some_and(|held| held.held_for.is_some()), "the operator is told");
    assert!(quotas.tracker.lock().hold(&call("hr", "ww1", SEND), unix_now_millis()).is_none(), "once");
    let denied = worker.try_take(&call("hr", "ww1", SEND), &["li"]).expect_err("held");
    assert!(denied.is_held && denied.quota == "agent unknown/day /cgi-bin/message/send", "{denied:?}");
    let midnight = (unix_now_millis() / 1000 + 8 * 3600).next_multiple_of(86_400) - 8 * 3600;
    let until = unix_now_millis() / 1000 + denied.wait.as_secs();
    assert!(until.abs_diff(midnight) <= 2, "{until} {midnight}");
    worker.try_take(&call("ops", "ww1", SEND), &["li"]).expect("another application");
    let report = quotas.report();
    assert_eq!((report[0].limit, report[0].ratio), (None, 1.0), "{report:?}");
    // A row with a number is more than nothing: the block is its own then.
    let limit = RateLimit { requests: 100, per: Duration::from_secs(60) };
    let row = QuotaLimit { path: PathPattern::from_static(SEND), per: QuotaScope::Agent, limit };
    quotas.reload(&QuotasConfig { mode: QuotaMode::Shape, limits: vec![row] });
    worker.try_take(&call("ops", "ww1", SEND), &[]).expect("1 of 100");
    worker.hold(&call("ops", "ww1", SEND));
    let denied = worker.try_take(&call("ops", "ww1", SEND), &[]).expect_err("held");
    assert!(denied.is_held && denied.wait <= Duration::from_secs(60), "{denied:?}");
}

#[test]
fn reload_applies_limits_and_keeps_counts() {
    let quotas = quotas(QuotaMode::Observe, &[(USER_GET, QuotaScope::Corp, 100)]);
    let worker = WorkerQuotas::new(&quotas);
    (0..9).for_each(|_| worker.count(&call("hr", "ww1", USER_GET)));
    assert!(quotas.report().is_empty());
    let limit = |requests, mode| {
        let limit = RateLimit { requests, per: Duration::from_secs(60) };
        let path = PathPattern::from_static(USER_GET);
        QuotasConfig { mode, limits: vec![QuotaLimit { path, per: QuotaScope::Corp, limit }] }
    };
    quotas.reload(&limit(10, QuotaMode::Shape));
    assert_eq!((quotas.report()[0].used, quotas.report()[0].limit), (9, Some(10)));
    worker.try_take(&call("hr", "ww1", USER_GET), &[]).expect_err("nearly spent");
    quotas.reload(&limit(10, QuotaMode::Off));
    assert!(quotas.report().is_empty() && worker.mode() == QuotaMode::Off);
    quotas.reload(&limit(10, QuotaMode::Observe));
    assert!(quotas.report().is_empty(), "off forgets");
}

#[test]
fn warning_comes_once_an_hour() {
    let quotas = quotas(QuotaMode::Observe, &[(USER_GET, QuotaScope::Corp, 10)]);
    let mut tracker = quotas.tracker.lock();
    let hour = 3_600_000;
    let mut warned = Vec::new();
    for minute in 0..125 {
        let now = 10 * hour + minute * 60_000;
        tracker.count(&call("hr", "ww1", USER_GET), if minute == 1 { 7 } else { 8 }, now);
        let changed = tracker.take_changed();
        if !tracker.take_warnings(&changed, now).is_empty() {
            warned.push(minute);
        }
    }
    assert_eq!(warned, [0, 60, 120]);
}

#[test]
fn memory_is_bounded_with_very_many_calls() {
    let quotas = quotas(QuotaMode::Observe, &[("/cgi-bin/path/199", QuotaScope::Corp, 100)]);
    let paths: Vec<_> = (0..200).map(|nth| format!("/cgi-bin/path/{nth}")).collect();
    let mut tracker = quotas.tracker.lock();
    // One that is nearly spent stays among 400,000 that are not.
    tracker.count(&call("busy", "busy", &paths[199]), 85, 1_000_000_000);
    for agent in 0..2_000 {
        let name = format!("agent-{agent}");
        for path in &paths {
            tracker.count(&call(&name, &name, path), 1, 1_000_000_000 + agent);
        }
    }
    assert!(tracker.counter_count() <= 65_536, "{}", tracker.counter_count());
    let report = tracker.report(0.5, 10, 1_000_020_000);
    assert!(report.iter().any(|usage| usage.agent == "busy"), "{report:?}");
}
