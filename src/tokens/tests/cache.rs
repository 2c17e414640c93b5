//! Entries of the cache: which agents share one, and what is left of a removed one.

use std::sync::{Arc, atomic::Ordering};

use super::fake_gettoken::{FakeGettoken, FakeResponse, advance, agent_token_with_secret, path};
use crate::{
    config,
    secret::Masked,
    tokens::{Credentials, ReplaceOutcome},
};

#[tokio::test(start_paused = true)]
async fn agents_with_the_same_credentials_share_one_token() {
    let fake = FakeGettoken::new(7200);
    let cache = fake.service();
    let entry = |agent: &str, secret: &str| {
        let credentials = Credentials {
            corpid: "ww1".into(),
            secret: Masked::new(secret),
            upstream: config::UpstreamId::default(),
            generation: 0,
        };
        cache.entry(agent, credentials, false)
    };
    let (one, other, third) = (entry("one", "same"), entry("other", "same"), entry("one", "changed"));
    let token = one.current_or_fetch().await.expect("a token");
    assert!(Arc::ptr_eq(&other.current_or_fetch().await.expect("a token"), &token));
    assert_eq!(fake.calls(), 1);
    assert!(third.current.load_full().is_none(), "a changed secret is another entry");
    // A refusal for one of them renews the token of both.
    fake.set_default_response(FakeResponse::NewToken);
    token.mark_accepted_on(path());
    let ReplaceOutcome::Refreshed(next) = other.replace_refused(&token, path()).await else {
        panic!("refreshed")
    };
    assert!(Arc::ptr_eq(&one.current_or_fetch().await.expect("a token"), &next));
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn removed_entry_leaves_nothing_but_its_backoff() {
    let fake = FakeGettoken::new(7200);
    let cache = fake.service();
    fake.set_response_of("a", FakeResponse::Errcode(40001));
    let wrong = agent_token_with_secret(&cache, "a", "wrong");
    wrong.current_or_fetch().await.expect_err("refused");
    let good = agent_token_with_secret(&cache, "b", "good");
    good.current_or_fetch().await.expect("a token");
    let kept = agent_token_with_secret(&cache, "c", "kept");
    kept.current_or_fetch().await.expect("a token");
    for removed in [&wrong, &good] {
        cache.remove(removed);
    }
    assert_eq!(fake.calls(), 3);
    // The secret that failed is still in backoff, the other one is fetched anew.
    let again = agent_token_with_secret(&cache, "a", "wrong");
    assert!(!Arc::ptr_eq(&again, &wrong));
    assert_eq!(again.current_or_fetch().await.expect_err("in backoff").errcode(), 40001);
    assert_eq!(fake.calls(), 3);
    let again = agent_token_with_secret(&cache, "b", "good");
    assert!(!Arc::ptr_eq(&again, &good) && again.current.load_full().is_none());
    assert!(Arc::ptr_eq(&agent_token_with_secret(&cache, "c", "kept"), &kept));
    // A backoff that ended long ago is forgotten.
    for removed in [agent_token_with_secret(&cache, "a", "wrong"), again] {
        cache.remove(&removed);
    }
    assert_eq!((cache.len(), cache.former_len()), (1, 1));
    advance(3600.0).await;
    cache.retain_agents(|_| true);
    assert_eq!((cache.len(), cache.former_len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn changed_secret_waits_for_no_budget_unless_it_is_known() {
    let fake = FakeGettoken::new(7200);
    let cache = fake.service();
    let entry = |is_changed| {
        let credentials = Credentials {
            corpid: "a".into(),
            secret: Masked::new("secret"),
            upstream: config::UpstreamId::default(),
            generation: 0,
        };
        cache.entry("a", credentials, is_changed)
    };
    assert!(entry(true).secret_changed.load(Ordering::Relaxed));
    cache.remove(&entry(true));
    assert!(!entry(false).secret_changed.load(Ordering::Relaxed));
    assert!(!entry(true).secret_changed.load(Ordering::Relaxed), "the entry was there");
}

#[tokio::test(start_paused = true)]
async fn removed_agents_are_looked_up_without_a_lock() {
    let fake = FakeGettoken::new(7200);
    let cache = fake.service();
    for agent in ["a", "b"] {
        agent_token_with_secret(&cache, agent, "secret").current_or_fetch().await.expect("a token");
    }
    cache.remove(&agent_token_with_secret(&cache, "a", "secret"));
    // A lookup that needs what is locked meanwhile would never end.
    cache.retain_agents(|agent| {
        assert_eq!(cache.throttled_agents(), []);
        let counted = cache.refresh_counts().iter().any(|count| *count.agent_name == *agent);
        agent != "a" && counted && cache.gettoken_calls().iter().any(|(name, _)| *name == *agent)
    });
    let names: Vec<_> = cache.gettoken_calls().iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!((names, cache.refresh_counts().len()), (vec!["b".to_owned()], 1));
}
