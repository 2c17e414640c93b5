//! Refusals and failures.

use std::time::Duration;

use tokio::time::Instant;

use super::fake_gettoken::{
    FakeGettoken, FakeResponse, advance, agent_token, path, poll_current, replacement_serial,
    run_ready_tasks, serial,
};
use crate::tokens::{CachedToken, ReplaceOutcome};

#[tokio::test(start_paused = true)]
async fn reissued_refused_token_gets_one_try_then_cooldown() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    let token = entry.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::SameToken);
    assert_eq!(replacement_serial(&entry.replace_refused(&token, path()).await), (1, true));
    entry.mark_refused_again(&token, path());
    let refused_at = Instant::now();
    while refused_at.elapsed() < Duration::from_millis(9_900) {
        assert!(matches!(entry.replace_refused(&token, path()).await, ReplaceOutcome::Throttled(_)));
        entry.mark_refused_again(&token, path());
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 2);
    advance(0.2).await;
    assert_eq!(replacement_serial(&entry.replace_refused(&token, path()).await), (1, true));
    assert!(matches!(entry.replace_refused(&token, path()).await, ReplaceOutcome::Throttled(_)));
    assert_eq!(fake.calls(), 3);
    assert_eq!(serial(&poll_current(&entry).expect("a token")), 1, "other calls still use it");
}

#[tokio::test(start_paused = true)]
async fn cooldown_stays_ten_seconds_until_budget_is_spent() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    let token = entry.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::SameToken);
    for _ in 0..6_000 {
        let _ = entry.replace_refused(&token, path()).await;
        entry.mark_refused_again(&token, path());
        advance(0.1).await;
    }
    let gaps: Vec<_> = fake.call_intervals().iter().skip(1).map(|gap| gap.round()).collect();
    assert_eq!(gaps, [10.0, 10.0, 10.0, 10.0, 10.0, 250.0], "six, then one every five minutes");
}

#[tokio::test(start_paused = true)]
async fn repeated_refusals_of_a_new_token_count_once() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let entry = fake.agent_token();
    let old = entry.current_or_fetch().await.expect("a token");
    let ReplaceOutcome::Refreshed(new) = entry.replace_refused(&old, path()).await else {
        panic!("not refreshed")
    };
    for _ in 0..200 {
        entry.mark_refused_again(&new, path());
        entry.mark_refused_again(&old, path());
    }
    assert!(matches!(entry.replace_refused(&new, path()).await, ReplaceOutcome::Throttled(_)));
    advance(10.1).await;
    assert_eq!(replacement_serial(&entry.replace_refused(&new, path()).await), (3, false));
}

#[tokio::test(start_paused = true)]
async fn refusal_while_gettoken_fails_returns_at_once() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    let token = entry.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::Errcode(40001));
    for _ in 0..200 {
        let ReplaceOutcome::Unavailable(failure) = entry.replace_refused(&token, path()).await else {
            panic!("a token")
        };
        assert_eq!(failure.errcode(), 40001);
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 2);
}

/// Requests a token every 100 ms; each request fails at once with the last failure.
async fn expect_failures_for(entry: &std::sync::Arc<CachedToken>, errcode: i64, seconds: u64) {
    let started_at = Instant::now();
    while started_at.elapsed() < Duration::from_secs(seconds) {
        let requested_at = Instant::now();
        assert_eq!(entry.current_or_fetch().await.expect_err("it fails").errcode(), errcode);
        assert_eq!(requested_at.elapsed(), Duration::ZERO);
        advance(0.1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn failing_gettoken_backs_off_from_1_to_60_seconds() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::Errcode(-1));
    let entry = fake.agent_token();
    expect_failures_for(&entry, -1, 1200).await;
    let gaps = fake.call_intervals();
    assert!(gaps.iter().all(|gap| (1.0..60.2).contains(gap)), "{gaps:?}");
    assert!(gaps[0] < 1.5 && gaps[gaps.len() - 1] > 50.0, "{gaps:?}");
    assert!(gaps.windows(2).all(|pair| pair[1] >= pair[0] - 6.2), "{gaps:?}");
    fake.set_default_response(FakeResponse::NewToken);
    advance(60.0).await;
    entry.current_or_fetch().await.expect("a token");
    assert!(entry.status().last_error.is_none(), "a success clears the failure");
}

#[tokio::test(start_paused = true)]
async fn ban_risk_errcode_backs_off_from_1_to_15_minutes() {
    for errcode in [40001, 40013, 40091, 41002, 41004, 45009, 45031, 45033, 50003] {
        let fake = FakeGettoken::new(7200);
        fake.set_default_response(FakeResponse::Errcode(errcode));
        let entry = fake.agent_token();
        expect_failures_for(&entry, errcode, 3600).await;
        let gaps = fake.call_intervals();
        assert!(gaps.iter().all(|gap| (60.0..900.2).contains(gap)), "{errcode}: {gaps:?}");
        assert!(gaps[0] < 75.0 && gaps[gaps.len() - 1] > 700.0, "{errcode}: {gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn manual_refresh_ignores_backoff_and_cooldown() {
    let fake = FakeGettoken::new(7200);
    fake.queue_responses(&[FakeResponse::Errcode(40001), FakeResponse::Errcode(40001)]);
    let entry = fake.agent_token();
    assert!(entry.current_or_fetch().await.is_err());
    assert!(entry.force_refresh().await.is_err());
    assert_eq!(fake.calls(), 2);
    assert!(entry.current_or_fetch().await.is_err());
    assert_eq!(fake.calls(), 2, "backoff applies again");
    let token = entry.force_refresh().await.expect("a token");
    assert_eq!(fake.calls(), 3);

    fake.set_default_response(FakeResponse::SameToken);
    assert_eq!(replacement_serial(&entry.replace_refused(&token, path()).await), (1, true));
    assert!(matches!(entry.replace_refused(&token, path()).await, ReplaceOutcome::Throttled(_)));
    fake.set_default_response(FakeResponse::NewToken);
    assert_eq!(serial(&entry.force_refresh().await.expect("a token")), 2, "the cooldown is ignored too");
}

#[tokio::test(start_paused = true)]
async fn panicking_fetch_fails_callers_and_is_retried_later() {
    let fake = FakeGettoken::new(7200);
    fake.queue_responses(&[FakeResponse::Panic]);
    let entry = fake.agent_token();
    let waited = tokio::time::timeout(Duration::from_secs(1), entry.current_or_fetch()).await;
    assert!(waited.expect("no caller hangs").is_err());
    assert!(entry.current_or_fetch().await.is_err(), "backoff, as after any failure");
    assert_eq!(fake.calls(), 1);
    advance(2.0).await;
    entry.current_or_fetch().await.expect("a token");
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn failing_agent_does_not_affect_another() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let (bad, good) = (agent_token(&service, "bad"), agent_token(&service, "good"));
    fake.queue_responses(&[FakeResponse::Errcode(40001)]);
    assert!(bad.current_or_fetch().await.is_err());
    assert_eq!(serial(&good.current_or_fetch().await.expect("a token")), 1);
    run_ready_tasks().await;
    assert!(bad.current_or_fetch().await.is_err());
}
