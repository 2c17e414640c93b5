//! Failing gettokens: for the credentials, which risks a ban of the address, and for other reasons.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::Instant};

use super::fake_gettoken::{FakeGettoken, FakeResponse, advance, agent_token, max_calls_per_hour, path};
use crate::{
    config,
    secret::Masked,
    tokens::{CachedToken, Credentials, Outcome, ReplaceOutcome, TokenCache},
};

const HOUR: Duration = Duration::from_secs(3600);
const MAX_WAIT: Duration = Duration::from_secs(15 * 60);

#[tokio::test(start_paused = true)]
async fn non_credential_failures_are_bounded_by_backoff() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::Errcode(-1));
    let service = fake.service();
    let entries: Vec<_> = (0..50).map(|nth| agent_token(&service, &format!("agent-{nth}"))).collect();
    for _ in 0..2 * 3600 {
        for entry in &entries {
            let _ = entry.current_or_fetch().await;
        }
        advance(1.0).await;
    }
    let busiest = max_calls_per_hour(&fake.call_times());
    assert!(busiest <= 50 * 75, "{busiest} calls within an hour");
    fake.set_default_response(FakeResponse::NewToken);
    advance(60.0).await;
    for entry in &entries {
        entry.current_or_fetch().await.expect("no backoff remains");
    }
}

#[tokio::test(start_paused = true)]
async fn unverified_secrets_fail_60_times_then_once_a_minute() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let good = agent_token(&service, "good");
    good.current_or_fetch().await.expect("a token").mark_accepted_on(path());
    fake.set_default_response(FakeResponse::Errcode(40001));
    let entries: Vec<_> = (0..200).map(|nth| agent_token(&service, &format!("agent-{nth}"))).collect();
    let tasks: Vec<_> = entries
        .iter()
        .cloned()
        .map(|entry| tokio::spawn(async move { entry.current_or_fetch().await }))
        .collect();
    for task in tasks {
        assert!(task.await.expect("no panic").is_err());
    }
    assert!((61..=63).contains(&fake.calls()), "{} calls", fake.calls());
    let started_at = Instant::now();
    while started_at.elapsed() < HOUR {
        for entry in &entries {
            assert!(entry.current_or_fetch().await.is_err());
        }
        advance(1.0).await;
    }
    assert!((115..=123).contains(&fake.calls()), "{} calls", fake.calls());
    // No reported wait adds up what all others might fail.
    assert!(entries.iter().all(|entry| entry.next_try_in() <= MAX_WAIT));
    assert!(service.throttled_agents().len() > 50, "{} throttled", service.throttled_agents().len());
    // An agent with a proven secret does not wait for them.
    fake.set_default_response(FakeResponse::NewToken);
    let token = good.current_or_fetch().await.expect("a token");
    let next = good.replace_refused(&token, path()).await;
    assert!(matches!(next, ReplaceOutcome::Refreshed(_)), "{next:?}");
    // A manual refresh is made at once.
    entries[199].force_refresh().await.expect("a token");
}

#[tokio::test(start_paused = true)]
async fn proven_secrets_gone_bad_together_fail_a_bounded_number() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let entries: Vec<_> = (0..300).map(|nth| agent_token(&service, &format!("agent-{nth}"))).collect();
    for entry in &entries {
        entry.current_or_fetch().await.expect("a token");
    }
    fake.set_default_response(FakeResponse::Errcode(40001));
    let tasks: Vec<_> = entries.iter().cloned().map(|entry| tokio::spawn(refused(entry))).collect();
    for task in tasks {
        assert!(!matches!(task.await.expect("no panic"), ReplaceOutcome::Refreshed(_)));
    }
    assert!((60..=63).contains(&(fake.calls() - 300)), "{} failed at once", fake.calls() - 300);
    let started_at = Instant::now();
    while started_at.elapsed() < HOUR {
        for entry in &entries {
            refused(entry.clone()).await;
        }
        advance(1.0).await;
    }
    let failed = fake.calls() - 300;
    assert!((170..=245).contains(&failed), "{failed} failed in an hour");
    let retried_agents: HashSet<_> =
        fake.calls_by_agent().into_iter().filter(|(_, calls)| calls.len() > 1).collect();
    assert!(retried_agents.len() >= 170, "{} bad secrets were detected", retried_agents.len());
    // Once the secrets are valid again, each success lets others follow: all succeed within minutes.
    fake.set_default_response(FakeResponse::NewToken);
    let mut throttled: Vec<_> = entries.iter().filter(|entry| entry.status().last_error.is_none()).collect();
    for _ in 0..300 {
        let mut still_throttled = Vec::new();
        for entry in throttled {
            if !matches!(refused(entry.clone()).await, ReplaceOutcome::Refreshed(_)) {
                still_throttled.push(entry);
            }
        }
        throttled = still_throttled;
        advance(1.0).await;
    }
    assert_eq!(throttled.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn proven_secret_refreshes_while_unproven_ones_fail() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let good = agent_token(&service, "good");
    good.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::Errcode(40001));
    for nth in 0..100 {
        let _ = agent_token(&service, &format!("agent-{nth}")).current_or_fetch().await;
    }
    fake.set_default_response(FakeResponse::NewToken);
    assert!(matches!(refused(good).await, ReplaceOutcome::Refreshed(_)));
}

/// A path refuses a token of this agent that it had accepted.
async fn refused(entry: Arc<CachedToken>) -> ReplaceOutcome {
    let token = entry.current.load_full().expect("a token");
    token.mark_accepted_on(path());
    entry.replace_refused(&token, path()).await
}

/// Agents whose secret is wrong, of which each has asked once at the same time.
async fn bad_agents(fake: &FakeGettoken, service: &Arc<TokenCache>, count: usize) -> Vec<Arc<CachedToken>> {
    let names = (0..count).map(|nth| format!("bad-{nth}"));
    let entries: Vec<_> = names
        .map(|name| {
            fake.set_response_of(&name, FakeResponse::Errcode(40001));
            agent_token(service, &name)
        })
        .collect();
    ask_all(&entries).await;
    entries
}

/// Asks for all tokens at the same time; returns how many there are.
async fn ask_all(entries: &[Arc<CachedToken>]) -> usize {
    let asking = |entry: &Arc<CachedToken>| {
        let entry = entry.clone();
        tokio::spawn(async move { entry.current_or_fetch().await.is_ok() })
    };
    let tasks: Vec<_> = entries.iter().map(asking).collect();
    let mut fetched = 0;
    for task in tasks {
        fetched += usize::from(task.await.expect("no panic"));
    }
    fetched
}

/// Valid secrets that were never tried, behind or ahead of 240 wrong ones, whatever turn the queue has.
#[tokio::test(start_paused = true)]
async fn valid_secrets_beside_300_wrong_ones_take_minutes() {
    for (queued_after, asks_again) in [(0.0, true), (0.0, false), (90.0, true), (150.0, true)] {
        let fake = FakeGettoken::new(24 * 3600);
        let service = fake.service();
        let bad = bad_agents(&fake, &service, 300).await;
        assert!((60..=63).contains(&fake.calls()), "{} failed at once", fake.calls());
        let started_at = Instant::now();
        advance(queued_after).await;
        let good: Vec<_> = (0..50).map(|nth| agent_token(&service, &format!("good-{nth}"))).collect();
        assert_eq!(ask_all(&good).await, 0);
        let waits = good.iter().map(|entry| entry.next_try_in());
        assert!(waits.max().expect("a wait") <= Duration::from_secs(120));
        let asked_at = Instant::now();
        while !good.iter().all(|entry| entry.cached(Instant::now()).is_some()) {
            assert!(asked_at.elapsed() <= Duration::from_secs(120), "after {queued_after} s");
            if asks_again {
                ask_all(&good).await;
                ask_all(&bad).await;
            }
            advance(2.0).await;
        }
        // The wrong ones go on at their pace, and none hears of a wait that only the others explain.
        while started_at.elapsed() < HOUR {
            ask_all(&bad).await;
            let failed = fake.calls() - 50;
            assert!(failed <= 63 + started_at.elapsed().as_secs() as usize / 60, "{failed} failed");
            assert!(bad.iter().all(|entry| entry.next_try_in() <= MAX_WAIT));
            advance(20.0).await;
        }
        assert!(fake.calls() - 50 >= 115, "{} failed", fake.calls() - 50);
    }
}

#[tokio::test(start_paused = true)]
async fn valid_secrets_queued_first_follow_one_another() {
    let fake = FakeGettoken::new(24 * 3600);
    let service = fake.service();
    bad_agents(&fake, &service, 60).await;
    let good: Vec<_> = (0..250).map(|nth| agent_token(&service, &format!("good-{nth}"))).collect();
    assert_eq!(ask_all(&good).await, 0);
    for nth in 60..300 {
        fake.set_response_of(&format!("bad-{nth}"), FakeResponse::Errcode(40001));
        assert!(agent_token(&service, &format!("bad-{nth}")).current_or_fetch().await.is_err());
    }
    advance(121.0).await;
    assert_eq!(ask_all(&good).await, 250);
}

#[tokio::test(start_paused = true)]
async fn untried_secrets_go_before_those_that_failed() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let failed = bad_agents(&fake, &service, 60).await;
    advance(61.0).await;
    fake.set_response_of("spends-it", FakeResponse::Errcode(40001));
    assert!(agent_token(&service, "spends-it").current_or_fetch().await.is_err());
    assert_eq!(fake.calls(), 61);
    // The backoff of the first has ended, and it asks before the others.
    advance(15.0).await;
    let (first, second) = (agent_token(&service, "first"), agent_token(&service, "second"));
    for entry in [&failed[0], &first, &second] {
        assert!(entry.current_or_fetch().await.is_err());
    }
    for name in ["first", "second", "bad-0"] {
        fake.set_response_of(name, FakeResponse::Errcode(40001));
    }
    let calls = fake.calls();
    advance(240.0).await;
    let by_agent = fake.calls_by_agent();
    let last = |name: &str| *by_agent[name].last().expect("a call");
    assert_eq!(fake.calls() - calls, 3, "one a minute");
    assert!(last("second") < last("first") && last("first") < last("bad-0"));
}

#[tokio::test(start_paused = true)]
async fn changed_secret_is_tried_at_once_and_only_once() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let bad = bad_agents(&fake, &service, 300).await;
    let change = |name: &str, secret: &str| {
        let credentials = Credentials {
            corpid: name.into(),
            secret: Masked::new(secret),
            upstream: config::UpstreamId::default(),
            generation: 0,
        };
        service.entry(name, credentials, true)
    };
    fake.set_response_of("bad-299", FakeResponse::NewToken);
    let corrected = change("bad-299", "corrected");
    corrected.current_or_fetch().await.expect("a token");
    assert_eq!(corrected.next_try_in(), Duration::ZERO);
    // A wrong one again: a single attempt, then backoff, and then the queue.
    let calls = fake.calls();
    let still_bad = change("bad-298", "wrong again");
    let started_at = Instant::now();
    while started_at.elapsed() < Duration::from_secs(59) {
        assert_eq!(still_bad.current_or_fetch().await.expect_err("wrong").errcode(), 40001);
        advance(1.0).await;
    }
    assert_eq!(fake.calls() - calls, 1);
    assert!(still_bad.next_try_in() < Duration::from_secs(15));
    // Back to a secret that is known to fail: it is not tried.
    let known = bad.iter().find(|entry| entry.status().last_error.is_some()).expect("one that failed");
    let name = known.credentials().corpid.clone();
    let calls = fake.calls();
    assert!(change(&name, "not-a-secret").current_or_fetch().await.is_err());
    assert_eq!(fake.calls(), calls);
}

/// Attempts to fetch a token, each in a task.
fn spawn_attempts(service: &Arc<TokenCache>, name: &str, count: usize) -> Vec<JoinHandle<Outcome>> {
    let attempt = |nth| {
        let entry = agent_token(service, &format!("{name}-{nth}"));
        tokio::spawn(async move { entry.current_or_fetch().await })
    };
    (0..count).map(attempt).collect()
}

#[tokio::test(start_paused = true)]
async fn slow_refusals_do_not_exceed_the_failure_budget() {
    for seconds in [0.4, 0.7, 1.2, 4.9] {
        let fake = FakeGettoken::new(7200);
        fake.set_default_response(FakeResponse::Errcode(40001));
        fake.set_delay(seconds);
        let attempts = spawn_attempts(&fake.service(), "agent", 600);
        for attempt in attempts {
            assert!(attempt.await.expect("no panic").is_err());
        }
        assert_eq!(fake.calls(), 60, "each takes {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_after_many_successes_do_not_exceed_the_failure_budget() {
    let fake = FakeGettoken::new(7200);
    fake.set_delay(0.1);
    let service = fake.service();
    let good = spawn_attempts(&service, "good", 600);
    for attempt in good {
        attempt.await.expect("no panic").expect("a token");
    }
    fake.set_default_response(FakeResponse::Errcode(40001));
    let bad = spawn_attempts(&service, "bad", 600);
    for attempt in bad {
        assert!(attempt.await.expect("no panic").is_err());
    }
    assert_eq!(fake.calls(), 600 + 60);
}

#[tokio::test(start_paused = true)]
async fn six_hundred_good_secrets_take_a_second_at_a_cold_start() {
    let fake = FakeGettoken::new(7200);
    fake.set_delay(0.1);
    let started_at = Instant::now();
    let attempts = spawn_attempts(&fake.service(), "agent", 600);
    for attempt in attempts {
        attempt.await.expect("no panic").expect("a token");
    }
    assert!(started_at.elapsed() <= Duration::from_millis(1100), "{:?}", started_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn hanging_gettokens_delay_other_agents_by_seconds() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    for (hanging, max_seconds) in [(59, 1), (120, 11), (300, 26)] {
        let name = format!("hanging-{hanging}");
        (0..hanging).for_each(|nth| fake.set_response_of(&format!("{name}-{nth}"), FakeResponse::None));
        let waiting = spawn_attempts(&service, &name, hanging);
        advance(0.01).await;
        let started_at = Instant::now();
        for attempt in spawn_attempts(&service, &format!("good-{hanging}"), 300) {
            attempt.await.expect("no panic").expect("a token");
        }
        assert!(
            started_at.elapsed() <= Duration::from_secs(max_seconds),
            "{hanging}: {:?}",
            started_at.elapsed()
        );
        waiting.iter().for_each(JoinHandle::abort);
        advance(6.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn cold_start_of_10000_agents_is_not_throttled() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let entries = (0..10_000).map(|nth| agent_token(&service, &format!("agent-{nth}")));
    let tasks: Vec<_> =
        entries.map(|entry| tokio::spawn(async move { entry.current_or_fetch().await })).collect();
    let started_at = Instant::now();
    for task in tasks {
        task.await.expect("no panic").expect("a token");
    }
    assert_eq!((fake.calls(), started_at.elapsed()), (10_000, Duration::ZERO));
}
