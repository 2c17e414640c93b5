//! Gettokens that fail: for the credentials, which endangers the address, and for other reasons.

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
    let issuer = fake.service();
    let slots: Vec<_> = (0..50).map(|nth| agent_token(&issuer, &format!("agent-{nth}"))).collect();
    for _ in 0..2 * 3600 {
        for slot in &slots {
            let _ = slot.current_or_fetch().await;
        }
        advance(1.0).await;
    }
    let busiest = max_calls_per_hour(&fake.call_times());
    assert!(busiest <= 50 * 75, "{busiest} calls within an hour");
    fake.set_default_response(FakeResponse::NewToken);
    advance(60.0).await;
    for slot in &slots {
        slot.current_or_fetch().await.expect("nothing is held against those who failed");
    }
}

#[tokio::test(start_paused = true)]
async fn unverified_secrets_fail_60_times_then_once_a_minute() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    let good = agent_token(&issuer, "good");
    good.current_or_fetch().await.expect("a token").mark_accepted_on(path());
    fake.set_default_response(FakeResponse::Errcode(40001));
    let slots: Vec<_> = (0..200).map(|nth| agent_token(&issuer, &format!("agent-{nth}"))).collect();
    let all: Vec<_> = slots
        .iter()
        .cloned()
        .map(|slot| tokio::spawn(async move { slot.current_or_fetch().await }))
        .collect();
    for one in all {
        assert!(one.await.expect("no panic").is_err());
    }
    assert!((61..=63).contains(&fake.calls()), "{} calls, however many come at once", fake.calls());
    let began = Instant::now();
    while began.elapsed() < HOUR {
        for slot in &slots {
            assert!(slot.current_or_fetch().await.is_err());
        }
        advance(1.0).await;
    }
    assert!((115..=123).contains(&fake.calls()), "{} calls", fake.calls());
    // The last in the row is told so.
    assert!(slots.iter().any(|slot| slot.next_try_in() > Duration::from_secs(3600)));
    assert!(issuer.throttled_agents().len() > 50, "{} are held back", issuer.throttled_agents().len());
    // An agent whose secret had worked does not wait for them.
    fake.set_default_response(FakeResponse::NewToken);
    let token = good.current_or_fetch().await.expect("a token");
    let next = good.replace_refused(&token, path()).await;
    assert!(matches!(next, Replacement::Refreshed(_)), "{next:?}");
    // An operator's order is tried at once.
    slots[199].force_refresh().await.expect("a token");
}

#[tokio::test(start_paused = true)]
async fn proven_secrets_gone_bad_together_fail_a_bounded_number() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    let slots: Vec<_> = (0..300).map(|nth| agent_token(&issuer, &format!("agent-{nth}"))).collect();
    for slot in &slots {
        slot.current_or_fetch().await.expect("a token");
    }
    fake.set_default_response(FakeResponse::Errcode(40001));
    let all: Vec<_> = slots.iter().cloned().map(|slot| tokio::spawn(refused(slot))).collect();
    for one in all {
        assert!(!matches!(one.await.expect("no panic"), Replacement::Refreshed(_)));
    }
    assert!((60..=63).contains(&(fake.calls() - 300)), "{} failed at once", fake.calls() - 300);
    let began = Instant::now();
    while began.elapsed() < HOUR {
        for slot in &slots {
            refused(slot.clone()).await;
        }
        advance(1.0).await;
    }
    let failed = fake.calls() - 300;
    assert!((170..=245).contains(&failed), "{failed} failed in an hour");
    let found: HashSet<_> = fake.calls_by_agent().into_iter().filter(|(_, calls)| calls.len() > 1).collect();
    assert!(found.len() >= 170, "{} bad secrets were found out", found.len());
    // Where they are good again, each that serves lets others follow: all do within minutes.
    fake.set_default_response(FakeResponse::NewToken);
    let mut held: Vec<_> = slots.iter().filter(|slot| slot.status().last_error.is_none()).collect();
    for _ in 0..300 {
        let mut still_held = Vec::new();
        for slot in held {
            if !matches!(refused(slot.clone()).await, Replacement::Refreshed(_)) {
                still_held.push(slot);
            }
        }
        held = still_held;
        advance(1.0).await;
    }
    assert_eq!(held.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn proven_secret_renews_while_others_that_never_worked_fail() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    let good = agent_token(&issuer, "good");
    good.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::Errcode(40001));
    for nth in 0..100 {
        let _ = agent_token(&issuer, &format!("agent-{nth}")).current_or_fetch().await;
    }
    fake.set_default_response(FakeResponse::NewToken);
    assert!(matches!(refused(good).await, Replacement::Refreshed(_)));
}

/// A token of this agent is refused by a path on which it had worked.
async fn refused(slot: Arc<AgentToken>) -> Replacement {
    let token = slot.cached_even_expired().expect("a token");
    token.mark_accepted_on(path());
    slot.replace_refused(&token, path()).await
}

#[tokio::test(start_paused = true)]
async fn unverified_secrets_when_throttled_are_tried_in_order() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    fake.set_default_response(FakeResponse::Errcode(40001));
    for nth in 0..60 {
        let _ = agent_token(&issuer, &format!("agent-{nth}")).current_or_fetch().await;
    }
    let (first, second, third) =
        (agent_token(&issuer, "first"), agent_token(&issuer, "second"), agent_token(&issuer, "third"));
    for slot in [&first, &second, &third] {
        let failure = slot.current_or_fetch().await.expect_err("none left");
        assert_eq!(failure.errcode(), -1, "{failure}");
    }
    assert_eq!(
        [&first, &second, &third].map(|slot| rounded_seconds(slot.next_try_in())),
        [60.0, 120.0, 180.0]
    );
    fake.set_default_response(FakeResponse::NewToken);
    advance(61.0).await;
    assert!(third.current_or_fetch().await.is_err() && second.current_or_fetch().await.is_err());
    // The first lets its turn pass.
    advance(60.0).await;
    second.current_or_fetch().await.expect("its turn");
    first.current_or_fetch().await.expect("good secrets return their permits");
    advance(60.0).await;
    third.current_or_fetch().await.expect("its turn");
}

#[tokio::test(start_paused = true)]
async fn hanging_gettoken_delays_first_tokens_briefly() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    fake.set_paused(true);
    for nth in 0..300 {
        let slot = agent_token(&issuer, &format!("agent-{nth}"));
        tokio::spawn(async move { slot.current_or_fetch().await });
    }
    advance(0.4).await;
    assert_eq!(fake.calls(), 60);
    advance(1.7).await;
    assert_eq!(fake.calls(), 300);
}

#[tokio::test(start_paused = true)]
async fn cold_start_of_10000_agents_is_not_throttled() {
    let fake = FakeGettoken::new(7200);
    let issuer = fake.service();
    let slots = (0..10_000).map(|nth| agent_token(&issuer, &format!("agent-{nth}")));
    let all: Vec<_> = slots.map(|slot| tokio::spawn(async move { slot.current_or_fetch().await })).collect();
    let began = Instant::now();
    for one in all {
        one.await.expect("no panic").expect("a token");
    }
    assert_eq!((fake.calls(), began.elapsed()), (10_000, Duration::ZERO));
}
