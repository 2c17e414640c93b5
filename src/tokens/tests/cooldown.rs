//! The pause after a renewal that refusals caused.

use super::fake_gettoken::{FakeGettoken, FakeResponse, advance, path, throttled_seconds};
use crate::tokens::{PathKey, Replacement};

/// A cooldown of ten seconds is not ended by a path that never worked, and not twice by those that did.
#[tokio::test(start_paused = true)]
async fn accepted_path_ends_cooldown_early_but_not_twice() {
    let fake = FakeGettoken::new(7200);
    let slot = fake.agent_token();
    let token = slot.current_or_fetch().await.expect("a token");
    let paths: Vec<_> = (0..4).map(|nth| PathKey::from_path(&format!("/cgi-bin/works/{nth}"))).collect();
    paths.iter().for_each(|path| token.mark_accepted_on(*path));
    let never = PathKey::from_path("/cgi-bin/never");
    fake.set_default_response(FakeResponse::SameToken);
    assert!(matches!(slot.replace_refused(&token, never).await, Replacement::Unchanged(_)));
    assert_eq!(throttled_seconds(slot.replace_refused(&token, never).await), 10.0);
    advance(1.0).await;
    assert!(
        matches!(slot.replace_refused(&token, paths[0]).await, Replacement::Unchanged(_)),
        "it ends early"
    );
    assert_eq!(throttled_seconds(slot.replace_refused(&token, paths[1]).await), 10.0, "this one runs full");
    advance(9.9).await;
    assert_eq!(throttled_seconds(slot.replace_refused(&token, paths[2]).await), 0.0);
    advance(0.1).await;
    assert!(matches!(slot.replace_refused(&token, never).await, Replacement::Unchanged(_)));
    assert!(
        matches!(slot.replace_refused(&token, paths[3]).await, Replacement::Unchanged(_)),
        "it ends early again"
    );
    assert_eq!(fake.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn cooldown_starts_although_the_caller_left() {
    let fake = FakeGettoken::new(24 * 3600);
    fake.set_default_response(FakeResponse::NewToken);
    let slot = fake.agent_token();
    let user = PathKey::from_path("/cgi-bin/user/list");
    for _ in 0..600 {
        let token = slot.current_or_fetch().await.expect("a token");
        token.mark_accepted_on(user);
        // The caller leaves before its second try.
        let _ = slot.replace_refused(&token, path()).await;
        advance(0.1).await;
    }
    assert_eq!(fake.calls(), 7, "one every ten seconds");
    // A path on which the new token works is not held up by the one that always refuses.
    let token = slot.current_or_fetch().await.expect("a token");
    token.mark_accepted_on(user);
    assert!(matches!(slot.replace_refused(&token, user).await, Replacement::Refreshed(_)));
}
