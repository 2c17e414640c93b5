//! Failing gettokens: for the credentials, which risks a ban of the address, and for other reasons.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::fake_gettoken::{
    FakeGettoken, FakeResponse, advance, agent_token, max_calls_per_hour, path, rounded_seconds,
};
use crate::tokens::{AgentToken, Replacement};

const HOUR: Duration = Duration::from_secs(3600);

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
    // The last in the queue sees its wait.
    assert!(entries.iter().any(|entry| entry.next_try_in() > Duration::from_secs(3600)));
    assert!(service.throttled_agents().len() > 50, "{} throttled", service.throttled_agents().len());
    // An agent with a proven secret does not wait for them.
    fake.set_default_response(FakeResponse::NewToken);
    let token = good.current_or_fetch().await.expect("a token");
    let next = good.replace_refused(&token, path()).await;
    assert!(matches!(next, Replacement::Refreshed(_)), "{next:?}");
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
        assert!(!matches!(task.await.expect("no panic"), Replacement::Refreshed(_)));
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
            if !matches!(refused(entry.clone()).await, Replacement::Refreshed(_)) {
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
    assert!(matches!(refused(good).await, Replacement::Refreshed(_)));
}

/// A path refuses a token of this agent that it had accepted.
async fn refused(entry: Arc<AgentToken>) -> Replacement {
    let token = entry.cached_even_expired().expect("a token");
    token.mark_accepted_on(path());
    entry.replace_refused(&token, path()).await
}

#[tokio::test(start_paused = true)]
async fn unverified_secrets_when_throttled_are_tried_in_order() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    fake.set_default_response(FakeResponse::Errcode(40001));
    for nth in 0..60 {
        let _ = agent_token(&service, &format!("agent-{nth}")).current_or_fetch().await;
    }
    let (first, second, third) =
        (agent_token(&service, "first"), agent_token(&service, "second"), agent_token(&service, "third"));
    for entry in [&first, &second, &third] {
        let failure = entry.current_or_fetch().await.expect_err("no permit left");
        assert_eq!(failure.errcode(), -1, "{failure}");
    }
    assert_eq!(
        [&first, &second, &third].map(|entry| rounded_seconds(entry.next_try_in())),
        [60.0, 120.0, 180.0]
    );
    fake.set_default_response(FakeResponse::NewToken);
    advance(61.0).await;
    assert!(third.current_or_fetch().await.is_err() && second.current_or_fetch().await.is_err());
    // The first misses its turn.
    advance(60.0).await;
    second.current_or_fetch().await.expect("its turn");
    first.current_or_fetch().await.expect("valid secrets return their permits");
    advance(60.0).await;
    third.current_or_fetch().await.expect("its turn");
}

#[tokio::test(start_paused = true)]
async fn hanging_gettoken_delays_first_tokens_briefly() {
    let fake = FakeGettoken::new(7200);
    let service = fake.service();
    fake.set_paused(true);
    for nth in 0..300 {
        let entry = agent_token(&service, &format!("agent-{nth}"));
        tokio::spawn(async move { entry.current_or_fetch().await });
    }
    advance(0.4).await;
    assert_eq!(fake.calls(), 60);
    advance(1.7).await;
    assert_eq!(fake.calls(), 300);
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
