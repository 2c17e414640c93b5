//! The number of gettokens is bounded, whatever happens.

use std::sync::Arc;

use tokio::time::Instant;

use super::fake_gettoken::{
    FakeGettoken, FakeResponse, advance, agent_token, agent_token_with_secret, max_calls_per_hour, path,
    rounded_seconds, serial, throttled_seconds,
};
use crate::tokens::{CachedToken, PathKey, ReplaceOutcome};

const AGENTS: usize = 50;

fn agent_tokens(fake: &FakeGettoken) -> Vec<Arc<CachedToken>> {
    let service = fake.service();
    (0..AGENTS).map(|nth| agent_token(&service, &format!("agent-{nth}"))).collect()
}

/// A request that refuses every token.
async fn send_refused_request(entry: &Arc<CachedToken>, was_accepted: bool) {
    let Ok(token) = entry.current_or_fetch().await else { return };
    if was_accepted {
        token.mark_accepted_on(path());
    }
    if let ReplaceOutcome::Refreshed(next) | ReplaceOutcome::Unchanged(next) =
        entry.replace_refused(&token, path()).await
    {
        entry.mark_refused_again(&next, path());
    }
}

#[tokio::test(start_paused = true)]
async fn constantly_refused_agents_stay_within_hourly_budget() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let entries = agent_tokens(&fake);
    for _ in 0..3 * 3600 {
        for (nth, entry) in entries.iter().enumerate() {
            send_refused_request(entry, nth % 2 == 0).await;
        }
        advance(1.0).await;
    }
    let calls = fake.call_times();
    let busiest = max_calls_per_hour(&calls);
    assert!(busiest <= 300 + AGENTS, "{busiest} calls within an hour");
    assert!(calls.len() >= 3 * 290, "each hour's budget can be used: {}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn never_accepted_paths_leave_half_of_hourly_budget() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let entries = agent_tokens(&fake);
    for _ in 0..60 {
        for entry in &entries[1..] {
            send_refused_request(entry, false).await;
        }
        advance(10.0).await;
    }
    assert_eq!(fake.calls(), AGENTS - 1 + 150);
    let token = entries[0].current_or_fetch().await.expect("the first token");
    let wait = throttled_seconds(entries[0].replace_refused(&token, path()).await);
    assert!((2990.0..=3001.0).contains(&wait), "{wait}");
    token.mark_accepted_on(path());
    let next = entries[0].replace_refused(&token, path()).await;
    assert!(matches!(&next, ReplaceOutcome::Refreshed(next) if serial(next) > serial(&token)), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn agent_has_twelve_refusals_half_for_accepted_paths() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let entry = fake.agent_token();
    for _ in 0..100 {
        send_refused_request(&entry, false).await;
        advance(10.0).await;
    }
    assert_eq!(fake.calls(), 1 + 6 + 3, "three are refilled in 1,000 s");
    for _ in 0..100 {
        send_refused_request(&entry, true).await;
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 10 + 6);
    let token = entry.current_or_fetch().await.expect("a token");
    token.mark_accepted_on(path());
    let wait = throttled_seconds(entry.replace_refused(&token, path()).await);
    assert!((1.0..=300.0).contains(&wait), "{wait}");
    assert_eq!(rounded_seconds(entry.next_try_in()), wait, "the status agrees");
    advance(wait).await;
    send_refused_request(&entry, true).await;
    assert_eq!(fake.calls(), 17);
    assert!(entry.service.throttled.snapshot(Instant::now()).is_empty(), "refreshed");
}

#[tokio::test(start_paused = true)]
async fn proactive_refreshes_without_new_token_are_capped_at_two() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service_with_limit(Some(400));
    let entries: Vec<_> = (0..150).map(|nth| agent_token(&service, &format!("agent-{nth}"))).collect();
    for entry in &entries {
        entry.current_or_fetch().await.expect("the first token");
    }
    for _ in 0..7190 {
        advance(1.0).await;
        entries.iter().for_each(|entry| assert!(entry.cached(Instant::now()).is_some()));
    }
    assert_eq!(fake.calls(), 3 * entries.len(), "one first fetch and two proactive ones");
    let token = entries[3].current_or_fetch().await.expect("a token");
    token.mark_accepted_on(path());
    fake.revoke("agent-3");
    let next = entries[3].replace_refused(&token, path()).await;
    assert!(matches!(next, ReplaceOutcome::Refreshed(_)), "{next:?}");
    advance(20.0).await;
    for entry in &entries {
        entry.current_or_fetch().await.expect("fetched after expiry");
    }
    assert_eq!(fake.calls(), 4 * entries.len());
}

#[tokio::test(start_paused = true)]
async fn thousand_tokens_voided_at_once_are_all_refreshed() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    let entries: Vec<_> = (0..1000).map(|nth| agent_token(&service, &format!("agent-{nth}"))).collect();
    for entry in &entries {
        entry.current_or_fetch().await.expect("the first token").mark_accepted_on(path());
    }
    for (nth, entry) in entries.iter().enumerate() {
        fake.revoke(&format!("agent-{nth}"));
        let token = entry.current_or_fetch().await.expect("a token");
        assert!(matches!(entry.replace_refused(&token, path()).await, ReplaceOutcome::Refreshed(_)), "{nth}");
    }
    assert_eq!((fake.calls(), service.throttled_agents().len()), (2000, 0));
}

#[tokio::test(start_paused = true)]
async fn configured_hourly_limit_throttles_and_reports_retry() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service_with_limit(Some(10));
    let entries: Vec<_> = (0..20).map(|nth| agent_token(&service, &format!("agent-{nth}"))).collect();
    for (nth, entry) in entries.iter().enumerate() {
        let token = entry.current_or_fetch().await.expect("the first token");
        token.mark_accepted_on(path());
        fake.revoke(&format!("agent-{nth}"));
        match entry.replace_refused(&token, path()).await {
            ReplaceOutcome::Refreshed(_) => assert!(nth < 10),
            replacement => assert_eq!((throttled_seconds(replacement), nth >= 10), (3600.0, true)),
        }
    }
    let names: Vec<_> =
        service.throttled_agents().into_iter().map(|(name, wait)| (name, rounded_seconds(wait))).collect();
    assert_eq!((names.len(), &names[0]), (10, &("agent-10".to_owned(), 3600.0)));
    assert!(entries[10].status().throttled && !entries[9].status().throttled);
    advance(3600.0).await;
    assert!(service.throttled_agents().is_empty(), "no longer throttled");
}

#[tokio::test(start_paused = true)]
async fn expiry_with_stuck_gettoken_costs_two_calls() {
    let fake = FakeGettoken::new(60);
    fake.set_default_response(FakeResponse::SameToken);
    let entries = agent_tokens(&fake);
    for _ in 0..2 * 3600 {
        for entry in &entries {
            let _ = entry.current_or_fetch().await;
        }
        advance(1.0).await;
    }
    let busiest = max_calls_per_hour(&fake.call_times());
    // One first fetch, one proactive refresh, one after the expiry.
    assert!(busiest <= 150 + 3 * AGENTS, "{busiest} calls within an hour");
}

#[tokio::test(start_paused = true)]
async fn manual_refreshes_are_immediate_and_spend_no_budget() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let service = fake.service();
    let (manual, second) = (agent_token(&service, "ordered"), agent_token(&service, "modest"));
    for _ in 0..40 {
        manual.force_refresh().await.expect("not throttled");
    }
    for entry in [&manual, &second] {
        let token = entry.current_or_fetch().await.expect("a token");
        token.mark_accepted_on(path());
        assert!(matches!(entry.replace_refused(&token, path()).await, ReplaceOutcome::Refreshed(_)));
    }
    // A spent budget does not stop a manual refresh.
    let never = PathKey::from_path("/cgi-bin/never");
    loop {
        let token = manual.current_or_fetch().await.expect("a token");
        if matches!(manual.replace_refused(&token, never).await, ReplaceOutcome::Throttled(_)) {
            break;
        }
        advance(11.0).await;
    }
    manual.force_refresh().await.expect("not throttled");
}

#[tokio::test(start_paused = true)]
async fn two_agents_voiding_each_other_are_bounded() {
    // Each gettoken voids the previous token, whichever agent has it.
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let service = fake.service();
    let (first, second) = (agent_token(&service, "one"), agent_token(&service, "other"));
    for _ in 0..10_000 {
        send_refused_request(&first, true).await;
        send_refused_request(&second, true).await;
        advance(0.01).await;
    }
    assert_eq!(fake.calls(), 2 * 13, "nothing is refilled within 100 s");
}

#[tokio::test(start_paused = true)]
async fn shortest_lived_tokens_do_not_spin_the_refresh_loop() {
    for ttl in [1, 2, 3] {
        let fake = FakeGettoken::new(ttl);
        let entry = fake.agent_token();
        for _ in 0..6_000 {
            entry.current_or_fetch().await.expect("a token");
            advance(0.01).await;
        }
        let max_calls = 60.0 / (0.75 * ttl as f64) + 62.0;
        assert!(fake.calls() as f64 <= max_calls, "{} calls in a minute, ttl {ttl}", fake.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_secret_toggled_by_reloads_stays_in_backoff() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::Errcode(40001));
    let service = fake.service();
    for nth in 0..400 {
        let entry = agent_token_with_secret(&service, "a", ["one", "other"][nth % 2]);
        assert_eq!(entry.current_or_fetch().await.expect_err("refused").errcode(), 40001);
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 2, "one for each secret within its 60 s");
    advance(3600.0 - 40.0).await;
    let _ = agent_token_with_secret(&service, "a", "one").current_or_fetch().await;
    assert_eq!(fake.calls(), 3, "the backoff has ended");
    // A manual refresh ignores the backoff.
    fake.set_default_response(FakeResponse::NewToken);
    agent_token_with_secret(&service, "a", "one").force_refresh().await.expect("a token");
    agent_token_with_secret(&service, "a", "one").current_or_fetch().await.expect("no backoff remains");
}

#[tokio::test(start_paused = true)]
async fn changing_wrong_secrets_are_bounded_per_address() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::Errcode(40001));
    let service = fake.service();
    for nth in 0..400 {
        let _ = agent_token_with_secret(&service, "a", &format!("secret-{nth}")).current_or_fetch().await;
    }
    assert_eq!(fake.calls(), 60, "as many as may fail in an hour");
    fake.set_default_response(FakeResponse::NewToken);
    agent_token_with_secret(&service, "a", "right").current_or_fetch().await.expect_err("throttled");
    advance(61.0).await;
    agent_token_with_secret(&service, "a", "right").current_or_fetch().await.expect("a token");
}

#[tokio::test(start_paused = true)]
async fn changed_secret_is_tried_at_once_with_spent_budget() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let service = fake.service();
    let never = PathKey::from_path("/cgi-bin/never");
    for nth in 0..30 {
        let entry = agent_token_with_secret(&service, "a", &format!("secret-{nth}"));
        let mut token = entry.current_or_fetch().await.expect("a token");
        while let ReplaceOutcome::Refreshed(next) = entry.replace_refused(&token, never).await {
            token = next;
            advance(11.0).await;
        }
    }
}
