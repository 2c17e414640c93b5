//! The pause after a renewal that refusals caused.

use super::{
    super::{PathKey, Replacement},
    fake::{Fake, Says, held, pass, path},
};

/// A cooldown of ten seconds is not ended by a path that never worked, and not twice by those that did.
#[tokio::test(start_paused = true)]
async fn a_working_path_ends_a_cooldown_early_and_the_next_runs_full() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    let token = slot.current().await.expect("a token");
    let paths: Vec<_> = (0..4).map(|nth| PathKey::of(&format!("/cgi-bin/works/{nth}"))).collect();
    paths.iter().for_each(|path| token.worked_on(*path));
    let never = PathKey::of("/cgi-bin/never");
    fake.then_always(Says::Same);
    assert!(matches!(slot.replace(&token, never).await, Replacement::SameAgain(_)));
    assert_eq!(held(slot.replace(&token, never).await), 10.0);
    pass(1.0).await;
    assert!(matches!(slot.replace(&token, paths[0]).await, Replacement::SameAgain(_)), "it ends early");
    assert_eq!(held(slot.replace(&token, paths[1]).await), 10.0, "this one runs full");
    pass(9.9).await;
    assert_eq!(held(slot.replace(&token, paths[2]).await), 0.0);
    pass(0.1).await;
    assert!(matches!(slot.replace(&token, never).await, Replacement::SameAgain(_)));
    assert!(matches!(slot.replace(&token, paths[3]).await, Replacement::SameAgain(_)), "it ends early again");
    assert_eq!(fake.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_cooldown_begins_with_the_gettoken_though_its_caller_left() {
    let fake = Fake::new(24 * 3600);
    fake.then_always(Says::New);
    let slot = fake.slot();
    let user = PathKey::of("/cgi-bin/user/list");
    for _ in 0..600 {
        let token = slot.current().await.expect("a token");
        token.worked_on(user);
        // The caller leaves before its second try.
        let _ = slot.replace(&token, path()).await;
        pass(0.1).await;
    }
    assert_eq!(fake.calls(), 7, "one every ten seconds");
    // A path on which the new token works is not held up by the one that always refuses.
    let token = slot.current().await.expect("a token");
    token.worked_on(user);
    assert!(matches!(slot.replace(&token, user).await, Replacement::Renewed(_)));
}
