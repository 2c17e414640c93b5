//! The cooldown after a refresh that refusals caused.

use super::fake_gettoken::{FakeGettoken, FakeResponse, advance, path, throttled_seconds};
use crate::tokens::{PathKey, ReplaceOutcome};

/// A cooldown of ten seconds is not ended by a path that never accepted the token, and only once by paths that
/// did.
#[tokio::test(start_paused = true)]
async fn accepted_path_ends_cooldown_early_but_not_twice() {
    let fake = FakeGettoken::new(7200);
    let entry = fake.agent_token();
    let token = entry.current_or_fetch().await.expect("a token");
    let paths: Vec<_> = (0..4).map(|nth| PathKey::from_path(&format!("/cgi-bin/works/{nth}"))).collect();
    paths.iter().for_each(|path| token.mark_accepted_on(*path));
    let never = PathKey::from_path("/cgi-bin/never");
    fake.set_default_response(FakeResponse::SameToken);
    assert!(matches!(entry.replace_refused(&token, never).await, ReplaceOutcome::Unchanged(_)));
    assert_eq!(throttled_seconds(entry.replace_refused(&token, never).await), 10.0);
    advance(1.0).await;
    assert!(
        matches!(entry.replace_refused(&token, paths[0]).await, ReplaceOutcome::Unchanged(_)),
        "the cooldown ends early"
    );
    assert_eq!(
        throttled_seconds(entry.replace_refused(&token, paths[1]).await),
        10.0,
        "not ended early twice"
    );
    advance(9.9).await;
    assert_eq!(throttled_seconds(entry.replace_refused(&token, paths[2]).await), 0.0);
    advance(0.1).await;
    assert!(matches!(entry.replace_refused(&token, never).await, ReplaceOutcome::Unchanged(_)));
    assert!(
        matches!(entry.replace_refused(&token, paths[3]).await, ReplaceOutcome::Unchanged(_)),
        "the cooldown ends early again"
    );
    assert_eq!(fake.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn cooldown_starts_although_the_caller_left() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let entry = fake.agent_token();
    let user = PathKey::from_path("/cgi-bin/user/list");
    for _ in 0..600 {
        let token = entry.current_or_fetch().await.expect("a token");
        token.mark_accepted_on(user);
        // The caller disconnects before its second attempt.
        let _ = entry.replace_refused(&token, path()).await;
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 7, "one every ten seconds");
    // A path that accepts the new token is not blocked by one that always refuses.
    let token = entry.current_or_fetch().await.expect("a token");
    token.mark_accepted_on(user);
    assert!(matches!(entry.replace_refused(&token, user).await, ReplaceOutcome::Refreshed(_)));
}
