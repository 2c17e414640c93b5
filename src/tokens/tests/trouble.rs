//! Refused, failing.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::{Replacement, TokenSlot},
    fake::{Fake, Says, agent, at_once, pass, path, replaced, serial, settle},
};

#[tokio::test(start_paused = true)]
async fn a_refused_token_that_comes_back_gets_one_try_and_then_ten_seconds_of_peace() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    let token = slot.current().await.expect("a token");
    fake.then_always(Says::Same);
    assert_eq!(replaced(&slot.replace(&token, path()).await), (1, true));
    slot.refused_again(&token, path());
    let held = Instant::now();
    while held.elapsed() < Duration::from_millis(9_900) {
        assert!(matches!(slot.replace(&token, path()).await, Replacement::Held(_)));
        slot.refused_again(&token, path());
        pass(0.1).await;
    }
    assert_eq!(fake.calls(), 2);
    pass(0.2).await;
    assert_eq!(replaced(&slot.replace(&token, path()).await), (1, true));
    assert!(matches!(slot.replace(&token, path()).await, Replacement::Held(_)));
    assert_eq!(fake.calls(), 3);
    assert_eq!(serial(&at_once(&slot).expect("a token")), 1, "other calls go on with it");
}

#[tokio::test(start_paused = true)]
async fn the_cooldown_does_not_grow_and_the_share_bounds_it() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    let token = slot.current().await.expect("a token");
    fake.then_always(Says::Same);
    for _ in 0..6_000 {
        let _ = slot.replace(&token, path()).await;
        slot.refused_again(&token, path());
        pass(0.1).await;
    }
    let gaps: Vec<_> = fake.gaps().iter().skip(1).map(|gap| gap.round()).collect();
    assert_eq!(gaps, [10.0, 10.0, 10.0, 10.0, 10.0, 250.0], "six, and then one every five minutes");
}

#[tokio::test(start_paused = true)]
async fn two_hundred_refused_again_together_count_once() {
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let slot = fake.slot();
    let old = slot.current().await.expect("a token");
    let Replacement::Renewed(new) = slot.replace(&old, path()).await else { panic!("not renewed") };
    for _ in 0..200 {
        slot.refused_again(&new, path());
        slot.refused_again(&old, path());
    }
    assert!(matches!(slot.replace(&new, path()).await, Replacement::Held(_)));
    pass(10.1).await;
    assert_eq!(replaced(&slot.replace(&new, path()).await), (3, false));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_while_gettoken_fails_is_told_at_once() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    let token = slot.current().await.expect("a token");
    fake.then_always(Says::Refuses(40001));
    for _ in 0..200 {
        let Replacement::Unavailable(failure) = slot.replace(&token, path()).await else { panic!("a token") };
        assert_eq!(failure.errcode(), 40001);
        pass(0.1).await;
    }
    assert_eq!(fake.calls(), 2);
}

/// Asks every tenth of a second; each ask is answered at once with the last failure.
async fn ask_for(slot: &std::sync::Arc<TokenSlot>, errcode: i64, seconds: u64) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        let asked = Instant::now();
        assert_eq!(slot.current().await.expect_err("it fails").errcode(), errcode);
        assert_eq!(asked.elapsed(), Duration::ZERO);
        pass(0.1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_gettoken_is_left_alone_from_one_second_to_a_minute() {
    let fake = Fake::new(7200);
    fake.then_always(Says::Refuses(-1));
    let slot = fake.slot();
    ask_for(&slot, -1, 1200).await;
    let gaps = fake.gaps();
    assert!(gaps.iter().all(|gap| (1.0..60.2).contains(gap)), "{gaps:?}");
    assert!(gaps[0] < 1.5 && gaps[gaps.len() - 1] > 50.0, "{gaps:?}");
    assert!(gaps.windows(2).all(|pair| pair[1] >= pair[0] - 6.2), "{gaps:?}");
    fake.then_always(Says::New);
    pass(60.0).await;
    slot.current().await.expect("a token");
    assert!(slot.report().failing.is_none(), "a success forgets the failures");
}

#[tokio::test(start_paused = true)]
async fn a_dangerous_errcode_is_left_alone_from_a_minute_to_a_quarter_of_an_hour() {
    for errcode in [40001, 40013, 40091, 41002, 41004, 45009, 45031, 45033, 50003] {
        let fake = Fake::new(7200);
        fake.then_always(Says::Refuses(errcode));
        let slot = fake.slot();
        ask_for(&slot, errcode, 3600).await;
        let gaps = fake.gaps();
        assert!(gaps.iter().all(|gap| (60.0..900.2).contains(gap)), "{errcode}: {gaps:?}");
        assert!(gaps[0] < 75.0 && gaps[gaps.len() - 1] > 700.0, "{errcode}: {gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_who_asks_gets_a_try_at_once() {
    let fake = Fake::new(7200);
    fake.next(&[Says::Refuses(40001), Says::Refuses(40001)]);
    let slot = fake.slot();
    assert!(slot.current().await.is_err());
    assert!(slot.refresh().await.is_err());
    assert_eq!(fake.calls(), 2);
    assert!(slot.current().await.is_err());
    assert_eq!(fake.calls(), 2, "only the operator's try is free");
    let token = slot.refresh().await.expect("a token");
    assert_eq!(fake.calls(), 3);

    fake.then_always(Says::Same);
    assert_eq!(replaced(&slot.replace(&token, path()).await), (1, true));
    assert!(matches!(slot.replace(&token, path()).await, Replacement::Held(_)));
    fake.then_always(Says::New);
    assert_eq!(serial(&slot.refresh().await.expect("a token")), 2, "a hold does not bind him either");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_breaks_does_not_keep_its_agent_for_ever() {
    let fake = Fake::new(7200);
    fake.next(&[Says::Panics]);
    let slot = fake.slot();
    let waited = tokio::time::timeout(Duration::from_secs(1), slot.current()).await;
    assert!(waited.expect("nobody hangs").is_err());
    assert!(slot.current().await.is_err(), "it is left alone for a while, as after any failure");
    assert_eq!(fake.calls(), 1);
    pass(2.0).await;
    slot.current().await.expect("a token");
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_agents_trouble_is_its_own() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    let (bad, good) = (agent(&issuer, "bad"), agent(&issuer, "good"));
    fake.next(&[Says::Refuses(40001)]);
    assert!(bad.current().await.is_err());
    assert_eq!(serial(&good.current().await.expect("a token")), 1);
    settle().await;
    assert!(bad.current().await.is_err());
}
