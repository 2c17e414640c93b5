//! Refused, failing.

use std::time::Duration;

use tokio::time::Instant;

use super::fake_gettoken::{
    FakeGettoken, FakeResponse, advance, agent_token, path, poll_current, replacement_serial,
    run_ready_tasks, serial,
};
use crate::tokens::{AgentToken, Replacement};

#[tokio::test(start_paused = true)]
async fn reissued_refused_token_gets_one_try_then_cooldown() {
    let fake = FakeGettoken::new(7200);
    let slot = fake.agent_token();
    let token = slot.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::SameToken);
    assert_eq!(replacement_serial(&slot.replace_refused(&token, path()).await), (1, true));
    slot.mark_refused_again(&token, path());
    let held = Instant::now();
    while held.elapsed() < Duration::from_millis(9_900) {
        assert!(matches!(slot.replace_refused(&token, path()).await, Replacement::Throttled(_)));
        slot.mark_refused_again(&token, path());
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 2);
    advance(0.2).await;
    assert_eq!(replacement_serial(&slot.replace_refused(&token, path()).await), (1, true));
    assert!(matches!(slot.replace_refused(&token, path()).await, Replacement::Throttled(_)));
    assert_eq!(fake.calls(), 3);
    assert_eq!(serial(&poll_current(&slot).expect("a token")), 1, "other calls go on with it");
}

#[tokio::test(start_paused = true)]
async fn cooldown_stays_ten_seconds_until_budget_is_spent() {
    let fake = FakeGettoken::new(7200);
    let slot = fake.agent_token();
    let token = slot.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::SameToken);
    for _ in 0..6_000 {
        let _ = slot.replace_refused(&token, path()).await;
        slot.mark_refused_again(&token, path());
        advance(0.1).await;
    }
    let gaps: Vec<_> = fake.call_intervals().iter().skip(1).map(|gap| gap.round()).collect();
    assert_eq!(gaps, [10.0, 10.0, 10.0, 10.0, 10.0, 250.0], "six, and then one every five minutes");
}

#[tokio::test(start_paused = true)]
async fn repeated_refusals_of_a_new_token_count_once() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let slot = fake.agent_token();
    let old = slot.current_or_fetch().await.expect("a token");
    let Replacement::Refreshed(new) = slot.replace_refused(&old, path()).await else { panic!("not renewed") };
    for _ in 0..200 {
        slot.mark_refused_again(&new, path());
        slot.mark_refused_again(&old, path());
    }
    assert!(matches!(slot.replace_refused(&new, path()).await, Replacement::Throttled(_)));
    advance(10.1).await;
    assert_eq!(replacement_serial(&slot.replace_refused(&new, path()).await), (3, false));
}

#[tokio::test(start_paused = true)]
async fn refusal_while_gettoken_fails_returns_at_once() {
    let fake = FakeGettoken::new(7200);
    let slot = fake.agent_token();
    let token = slot.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::Errcode(40001));
    for _ in 0..200 {
        let Replacement::Unavailable(failure) = slot.replace_refused(&token, path()).await else {
            panic!("a token")
        };
        assert_eq!(failure.errcode(), 40001);
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 2);
}

/// Asks every tenth of a second; each ask is answered at once with the last failure.
async fn expect_failures_for(slot: &std::sync::Arc<AgentToken>, errcode: i64, seconds: u64) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        let asked = Instant::now();
        assert_eq!(slot.current_or_fetch().await.expect_err("it fails").errcode(), errcode);
        assert_eq!(asked.elapsed(), Duration::ZERO);
        advance(0.1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn failing_gettoken_backs_off_from_1_to_60_seconds() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::Errcode(-1));
    let slot = fake.agent_token();
    expect_failures_for(&slot, -1, 1200).await;
    let gaps = fake.call_intervals();
    assert!(gaps.iter().all(|gap| (1.0..60.2).contains(gap)), "{gaps:?}");
    assert!(gaps[0] < 1.5 && gaps[gaps.len() - 1] > 50.0, "{gaps:?}");
    assert!(gaps.windows(2).all(|pair| pair[1] >= pair[0] - 6.2), "{gaps:?}");
    fake.set_default_response(FakeResponse::NewToken);
    advance(60.0).await;
    slot.current_or_fetch().await.expect("a token");
    assert!(slot.status().last_error.is_none(), "a success forgets the failures");
}

#[tokio::test(start_paused = true)]
async fn ban_risk_errcode_backs_off_from_1_to_15_minutes() {
    for errcode in [40001, 40013, 40091, 41002, 41004, 45009, 45031, 45033, 50003] {
        let fake = FakeGettoken::new(7200);
        fake.set_default_response(FakeResponse::Errcode(errcode));
        let slot = fake.agent_token();
        expect_failures_for(&slot, errcode, 3600).await;
        let gaps = fake.call_intervals();
        assert!(gaps.iter().all(|gap| (60.0..900.2).contains(gap)), "{errcode}: {gaps:?}");
        assert!(gaps[0] < 75.0 && gaps[gaps.len() - 1] > 700.0, "{errcode}: {gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn manual_refresh_ignores_backoff_and_cooldown() {
    let fake = FakeGettoken::new(7200);
    fake.queue_responses(&[FakeResponse::Errcode(40001), FakeResponse::Errcode(40001)]);
    let slot = fake.agent_token();
    assert!(slot.current_or_fetch().await.is_err());
    assert!(slot.force_refresh().await.is_err());
    assert_eq!(fake.calls(), 2);
    assert!(slot.current_or_fetch().await.is_err());
    assert_eq!(fake.calls(), 2, "only the operator's try is free");
    let token = slot.force_refresh().await.expect("a token");
    assert_eq!(fake.calls(), 3);

    fake.set_default_response(FakeResponse::SameToken);
    assert_eq!(replacement_serial(&slot.replace_refused(&token, path()).await), (1, true));
    assert!(matches!(slot.replace_refused(&token, path()).await, Replacement::Throttled(_)));
    fake.set_default_response(FakeResponse::NewToken);
    assert_eq!(serial(&slot.force_refresh().await.expect("a token")), 2, "a hold does not bind him either");
}

#[tokio::test(start_paused = true)]
async fn panicking_fetch_fails_callers_and_is_retried_later() {
    let fake = FakeGettoken::new(7200);
    fake.queue_responses(&[FakeResponse::Panic]);
    let slot = fake.agent_token();
    let waited = tokio::time::timeout(Duration::from_secs(1), slot.current_or_fetch()).await;
    assert!(waited.expect("nobody hangs").is_err());
    assert!(slot.current_or_fetch().await.is_err(), "it is left alone for a while, as after any failure");
    assert_eq!(fake.calls(), 1);
    advance(2.0).await;
    slot.current_or_fetch().await.expect("a token");
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn failing_agent_does_not_affect_another() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    let (bad, good) = (agent_token(&issuer, "bad"), agent_token(&issuer, "good"));
    fake.queue_responses(&[FakeResponse::Errcode(40001)]);
    assert!(bad.current_or_fetch().await.is_err());
    assert_eq!(serial(&good.current_or_fetch().await.expect("a token")), 1);
    run_ready_tasks().await;
    assert!(bad.current_or_fetch().await.is_err());
}
