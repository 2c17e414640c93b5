//! Tokens are fetched, used and refreshed.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::fake_gettoken::{
    FakeGettoken, FakeResponse, advance, path, poll_current, replacement_serial, run_ready_tasks, serial,
};

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_one_gettoken() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    fake.set_paused(true);
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let entry = entry.clone();
            tokio::spawn(async move { serial(&entry.current_or_fetch().await.expect("a token")) })
        })
        .collect();
    run_ready_tasks().await;
    assert_eq!(fake.calls(), 1);
    fake.set_paused(false);
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), 1);
    }
    assert_eq!((fake.calls(), fake.max_in_flight()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn cancelled_callers_do_not_cancel_the_refresh() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    fake.set_paused(true);
    let spawn_request = || {
        let entry = entry.clone();
        tokio::spawn(async move { entry.current_or_fetch().await })
    };
    let (first, second) = (spawn_request(), spawn_request());
    run_ready_tasks().await;
    first.abort();
    run_ready_tasks().await;
    fake.set_paused(false);
    assert_eq!(serial(&second.await.expect("no panic").expect("a token")), 1);

    fake.revoke("a");
    fake.set_paused(true);
    let refused = entry.current_or_fetch().await.expect("a token");
    let single_caller = {
        let (entry, refused) = (entry.clone(), refused.clone());
        tokio::spawn(async move { entry.replace_refused(&refused, path()).await })
    };
    run_ready_tasks().await;
    single_caller.abort();
    fake.set_paused(false);
    run_ready_tasks().await;
    assert_eq!(
        serial(&poll_current(&entry).expect("a token")),
        2,
        "the refresh completed without a waiting caller"
    );
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn refusal_of_an_old_token_causes_no_gettoken() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    let old = entry.current_or_fetch().await.expect("a token");
    fake.revoke("a");
    let refuse = |after: u64| {
        let (entry, old) = (entry.clone(), old.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            replacement_serial(&entry.replace_refused(&old, path()).await)
        })
    };
    let refusals: Vec<_> = (0..200).map(|nth| refuse((nth * 7919) % 200)).collect();
    for refusal in refusals {
        assert_eq!(refusal.await.expect("no panic"), (2, false));
    }
    assert_eq!(fake.calls(), 2);

    // Later, when the new token has expired: the refusal of the old one does not count against it.
    advance(7200.0).await;
    run_ready_tasks().await;
    let newest = replacement_serial(&entry.replace_refused(&old, path()).await);
    assert!(newest > (2, false), "{newest:?}");
}

#[tokio::test(start_paused = true)]
async fn token_in_use_is_refreshed_proactively_without_waiting() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    entry.current_or_fetch().await.expect("a token");
    advance(100.0).await;
    assert_eq!(serial(&poll_current(&entry).expect("a token")), 1);
    advance(6795.0).await;
    assert_eq!(fake.calls(), 1, "no refresh before it is due");
    fake.set_default_response(FakeResponse::NewToken);
    fake.set_paused(true);
    advance(235.0).await;
    assert_eq!(fake.calls(), 2);
    assert_eq!(serial(&poll_current(&entry).expect("a token")), 1, "the old token is used meanwhile");
    fake.set_paused(false);
    run_ready_tasks().await;
    assert_eq!(serial(&poll_current(&entry).expect("a token")), 2);
}

#[tokio::test(start_paused = true)]
async fn awaited_token_counts_as_used() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let entry = fake.agent_token();
    entry.current_or_fetch().await.expect("a token");
    advance(7126.0).await;
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn unused_agent_is_not_refreshed() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let entry = fake.agent_token();
    entry.current_or_fetch().await.expect("a token");
    advance(100_000.0).await;
    assert_eq!(fake.calls(), 2, "the first fetch, and one proactive refresh because it was used");
    entry.current_or_fetch().await.expect("a token");
    assert_eq!(fake.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn first_use_past_the_refresh_time_refreshes() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(FakeResponse::NewToken);
    let entry = fake.agent_token();
    entry.force_refresh().await.expect("a token");
    advance(7126.0).await;
    assert_eq!(fake.calls(), 1, "not used yet");
    assert_eq!(serial(&poll_current(&entry).expect("a token")), 1);
    run_ready_tasks().await;
    assert_eq!(serial(&poll_current(&entry).expect("a token")), 2);
}

#[tokio::test(start_paused = true)]
async fn valid_token_is_served_while_refresh_fails() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    entry.current_or_fetch().await.expect("a token");
    fake.set_default_response(FakeResponse::Errcode(-1));
    for second in 1..7200 {
        advance(1.0).await;
        if second < 7199 {
            assert_eq!(serial(&poll_current(&entry).expect("it is valid")), 1, "{second}");
        }
    }
    assert!((5..=20).contains(&fake.calls()), "{} calls", fake.calls());
    advance(2.0).await;
    let failure =
        tokio::time::timeout(Duration::from_secs(1), entry.current_or_fetch()).await.expect("at once");
    assert_eq!(failure.expect_err("it has expired").errcode(), -1);
    fake.set_default_response(FakeResponse::NewToken);
    advance(61.0).await;
    assert_eq!(serial(&entry.current_or_fetch().await.expect("a token")), 2);
}

#[tokio::test(start_paused = true)]
async fn reissued_token_keeps_expiry_and_does_not_spin() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    let started_at = Instant::now();
    let at = |seconds: f64| started_at + Duration::from_secs_f64(seconds);
    entry.current_or_fetch().await.expect("a token");
    for _ in 0..71_999 {
        advance(0.1).await;
        let _ = entry.cached(Instant::now());
    }
    assert!((3..=15).contains(&fake.calls()), "{} calls", fake.calls());
    assert!(entry.cached(at(7199.99)).is_some(), "valid until its expiry");
    assert!(entry.cached(at(7200.01)).is_none(), "not after it, however often it was reissued");
    let before = fake.calls();
    advance(1.0).await;
    assert_eq!(serial(&entry.current_or_fetch().await.expect("a token")), 2);
    assert_eq!(fake.calls(), before + 1, "fetched once after expiry");
}

#[tokio::test(start_paused = true)]
async fn token_reissued_past_expiry_is_used_for_a_minute() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    entry.current_or_fetch().await.expect("a token");
    advance(6000.0).await;
    fake.set_default_response(FakeResponse::SameToken);
    advance(1201.0).await;
    let before = fake.calls();
    for _ in 0..6000 {
        advance(0.1).await;
        assert_eq!(serial(&entry.current_or_fetch().await.expect("the same")), 1);
    }
    let made = fake.calls() - before;
    assert!((5..=15).contains(&made), "{made} calls in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn dropped_agent_token_is_not_refreshed() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    entry.current_or_fetch().await.expect("a token");
    let weak = Arc::downgrade(&entry);
    drop(entry);
    run_ready_tasks().await;
    assert!(weak.upgrade().is_none());
    advance(8000.0).await;
    assert_eq!(fake.calls(), 1);
}
