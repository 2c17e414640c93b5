//! How many calls leave the proxy, whatever happens.

use std::sync::Arc;

use tokio::time::Instant;

use super::fake_gettoken::{
    FakeGettoken, FakeResponse, advance, agent_token, agent_token_with_secret, max_calls_per_hour, path,
    rounded_seconds, serial, throttled_seconds,
};
use crate::tokens::{AgentToken, PathKey, Replacement};

const AGENTS: usize = 50;

fn agent_tokens(fake: &FakeGettoken) -> Vec<Arc<AgentToken>> {
    let issuer = fake.service();
    (0..AGENTS).map(|nth| agent_token(&issuer, &format!("agent-{nth}"))).collect()
}

/// A request whose token is refused whatever it is.
async fn send_refused_request(slot: &Arc<AgentToken>, worked: bool) {
    let Ok(token) = slot.current_or_fetch().await else { return };
    if worked {
        token.mark_accepted_on(path());
    }
    if let Replacement::Refreshed(next) | Replacement::Unchanged(next) =
        slot.replace_refused(&token, path()).await
    {
        slot.mark_refused_again(&next, path());
    }
}

#[tokio::test(start_paused = true)]
async fn constantly_refused_agents_stay_within_hourly_budget() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let slots = agent_tokens(&fake);
    for _ in 0..3 * 3600 {
        for (nth, slot) in slots.iter().enumerate() {
            send_refused_request(slot, nth % 2 == 0).await;
        }
        advance(1.0).await;
    }
    let calls = fake.call_times();
    let busiest = max_calls_per_hour(&calls);
    assert!(busiest <= 300 + AGENTS, "{busiest} calls within an hour");
    assert!(calls.len() >= 3 * 290, "and the share of each hour is there to be used: {}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn never_accepted_paths_leave_half_of_hourly_budget() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let slots = agent_tokens(&fake);
    for _ in 0..60 {
        for slot in &slots[1..] {
            send_refused_request(slot, false).await;
        }
        advance(10.0).await;
    }
    assert_eq!(fake.calls(), AGENTS - 1 + 150);
    let token = slots[0].current_or_fetch().await.expect("its first");
    let wait = throttled_seconds(slots[0].replace_refused(&token, path()).await);
    assert!((2990.0..=3001.0).contains(&wait), "{wait}");
    token.mark_accepted_on(path());
    let next = slots[0].replace_refused(&token, path()).await;
    assert!(matches!(&next, Replacement::Refreshed(next) if serial(next) > serial(&token)), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn agent_has_twelve_refusals_half_for_accepted_paths() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let slot = fake.agent_token();
    for _ in 0..100 {
        send_refused_request(&slot, false).await;
        advance(10.0).await;
    }
    assert_eq!(fake.calls(), 1 + 6 + 3, "1,000 s give three back");
    for _ in 0..100 {
        send_refused_request(&slot, true).await;
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 10 + 6);
    let token = slot.current_or_fetch().await.expect("a token");
    token.mark_accepted_on(path());
    let wait = throttled_seconds(slot.replace_refused(&token, path()).await);
    assert!((1.0..=300.0).contains(&wait), "{wait}");
    assert_eq!(rounded_seconds(slot.next_try_in()), wait, "and reports say the same");
    advance(wait).await;
    send_refused_request(&slot, true).await;
    assert_eq!(fake.calls(), 17);
    assert!(slot.service.throttled_agents().is_empty(), "it was renewed");
}

#[tokio::test(start_paused = true)]
async fn proactive_refreshes_without_new_token_are_capped_at_two() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service_with_limit(Some(400));
    let slots: Vec<_> = (0..150).map(|nth| agent_token(&issuer, &format!("agent-{nth}"))).collect();
    for slot in &slots {
        slot.current_or_fetch().await.expect("its first");
    }
    for _ in 0..7190 {
        advance(1.0).await;
        slots.iter().for_each(|slot| assert!(slot.cached(Instant::now()).is_some()));
    }
    assert_eq!(fake.calls(), 3 * slots.len(), "its first and two ahead");
    let token = slots[3].current_or_fetch().await.expect("a token");
    token.mark_accepted_on(path());
    fake.revoke("agent-3");
    let next = slots[3].replace_refused(&token, path()).await;
    assert!(matches!(next, Replacement::Refreshed(_)), "{next:?}");
    advance(20.0).await;
    for slot in &slots {
        slot.current_or_fetch().await.expect("it has expired");
    }
    assert_eq!(fake.calls(), 4 * slots.len());
}

#[tokio::test(start_paused = true)]
async fn thousand_tokens_voided_at_once_are_all_refreshed() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    let slots: Vec<_> = (0..1000).map(|nth| agent_token(&issuer, &format!("agent-{nth}"))).collect();
    for slot in &slots {
        slot.current_or_fetch().await.expect("its first").mark_accepted_on(path());
    }
    for (nth, slot) in slots.iter().enumerate() {
        fake.revoke(&format!("agent-{nth}"));
        let token = slot.current_or_fetch().await.expect("a token");
        assert!(matches!(slot.replace_refused(&token, path()).await, Replacement::Refreshed(_)), "{nth}");
    }
    assert_eq!((fake.calls(), issuer.throttled_agents().len()), (2000, 0));
}

#[tokio::test(start_paused = true)]
async fn configured_hourly_limit_throttles_and_reports_retry() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service_with_limit(Some(10));
    let slots: Vec<_> = (0..20).map(|nth| agent_token(&issuer, &format!("agent-{nth}"))).collect();
    for (nth, slot) in slots.iter().enumerate() {
        let token = slot.current_or_fetch().await.expect("its first");
        token.mark_accepted_on(path());
        fake.revoke(&format!("agent-{nth}"));
        match slot.replace_refused(&token, path()).await {
            Replacement::Refreshed(_) => assert!(nth < 10),
            replacement => assert_eq!((throttled_seconds(replacement), nth >= 10), (3600.0, true)),
        }
    }
    let names: Vec<_> =
        issuer.throttled_agents().into_iter().map(|(name, wait)| (name, rounded_seconds(wait))).collect();
    assert_eq!((names.len(), &names[0]), (10, &("agent-10".to_owned(), 3600.0)));
    assert!(slots[10].status().throttled && !slots[9].status().throttled);
    advance(3600.0).await;
    assert!(issuer.throttled_agents().is_empty(), "it may be tried");
}

#[tokio::test(start_paused = true)]
async fn expiry_with_stuck_gettoken_costs_two_calls() {
    let fake = FakeGettoken::new(60);
    fake.set_default_response(FakeResponse::SameToken);
    let slots = agent_tokens(&fake);
    for _ in 0..2 * 3600 {
        for slot in &slots {
            let _ = slot.current_or_fetch().await;
        }
        advance(1.0).await;
    }
    let busiest = max_calls_per_hour(&fake.call_times());
    // Its first, one ahead of its expiry, one after that.
    assert!(busiest <= 150 + 3 * AGENTS, "{busiest} calls within an hour");
}

#[tokio::test(start_paused = true)]
async fn manual_refreshes_are_immediate_and_spend_no_budget() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let issuer = fake.service();
    let (ordered, modest) = (agent_token(&issuer, "ordered"), agent_token(&issuer, "modest"));
    for _ in 0..40 {
        ordered.force_refresh().await.expect("it is tried");
    }
    for slot in [&ordered, &modest] {
        let token = slot.current_or_fetch().await.expect("a token");
        token.mark_accepted_on(path());
        assert!(matches!(slot.replace_refused(&token, path()).await, Replacement::Refreshed(_)));
    }
    // One whose share is spent can still be ordered.
    let never = PathKey::from_path("/cgi-bin/never");
    loop {
        let token = ordered.current_or_fetch().await.expect("a token");
        if matches!(ordered.replace_refused(&token, never).await, Replacement::Throttled(_)) {
            break;
        }
        advance(11.0).await;
    }
    ordered.force_refresh().await.expect("it is tried");
}

#[tokio::test(start_paused = true)]
async fn two_agents_voiding_each_other_are_bounded() {
    // Each gettoken voids the token before it, whichever agent has that.
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let issuer = fake.service();
    let (one, other) = (agent_token(&issuer, "one"), agent_token(&issuer, "other"));
    for _ in 0..10_000 {
        send_refused_request(&one, true).await;
        send_refused_request(&other, true).await;
        advance(0.01).await;
    }
    assert_eq!(fake.calls(), 2 * 13, "100 s give none back");
}

#[tokio::test(start_paused = true)]
async fn shortest_lived_tokens_do_not_spin_the_refresh_loop() {
    for life in [1, 2, 3] {
        let fake = FakeGettoken::new(life);
        let slot = fake.agent_token();
        for _ in 0..6_000 {
            slot.current_or_fetch().await.expect("a token");
            advance(0.01).await;
        }
        let most = 60.0 / (0.75 * life as f64) + 62.0;
        assert!(fake.calls() as f64 <= most, "{} calls in a minute, life {life}", fake.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_secret_toggled_by_reloads_stays_in_backoff() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::Errcode(40001));
    let issuer = fake.service();
    for nth in 0..400 {
        let slot = agent_token_with_secret(&issuer, "a", ["one", "other"][nth % 2]);
        assert_eq!(slot.current_or_fetch().await.expect_err("refused").errcode(), 40001);
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 2, "one for each secret within its 60 s");
    advance(3600.0 - 40.0).await;
    let _ = agent_token_with_secret(&issuer, "a", "one").current_or_fetch().await;
    assert_eq!(fake.calls(), 3, "its time has come");
    // An operator's word counts more.
    fake.set_default_response(FakeResponse::NewToken);
    agent_token_with_secret(&issuer, "a", "one").force_refresh().await.expect("a token");
    agent_token_with_secret(&issuer, "a", "one")
        .current_or_fetch()
        .await
        .expect("nothing is held against it");
}

#[tokio::test(start_paused = true)]
async fn changing_wrong_secrets_are_bounded_per_address() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::Errcode(40001));
    let issuer = fake.service();
    for nth in 0..400 {
        let _ = agent_token_with_secret(&issuer, "a", &format!("secret-{nth}")).current_or_fetch().await;
    }
    assert_eq!(fake.calls(), 60, "as many as may fail in an hour");
    fake.set_default_response(FakeResponse::NewToken);
    agent_token_with_secret(&issuer, "a", "right")
        .current_or_fetch()
        .await
        .expect_err("it waits for its turn");
    advance(61.0).await;
    agent_token_with_secret(&issuer, "a", "right").current_or_fetch().await.expect("a token");
}

#[tokio::test(start_paused = true)]
async fn changed_secret_is_tried_at_once_with_spent_budget() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let issuer = fake.service();
    let never = PathKey::from_path("/cgi-bin/never");
    for nth in 0..30 {
        let slot = agent_token_with_secret(&issuer, "a", &format!("secret-{nth}"));
        let mut token = slot.current_or_fetch().await.expect("a token");
        while let Replacement::Refreshed(next) = slot.replace_refused(&token, never).await {
            token = next;
            advance(11.0).await;
        }
    }
}
