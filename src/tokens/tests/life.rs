//! Fetched, used, renewed.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::fake::{Fake, Says, at_once, pass, path, replaced, serial, settle};

#[tokio::test(start_paused = true)]
async fn however_many_ask_there_is_one_gettoken() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    fake.hold(true);
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let slot = slot.clone();
            tokio::spawn(async move { serial(&slot.current().await.expect("a token")) })
        })
        .collect();
    settle().await;
    assert_eq!(fake.calls(), 1);
    fake.hold(false);
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), 1);
    }
    assert_eq!((fake.calls(), fake.most_in_flight()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn callers_who_go_away_take_nothing_from_the_others() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    fake.hold(true);
    let ask = || {
        let slot = slot.clone();
        tokio::spawn(async move { slot.current().await })
    };
    let (first, second) = (ask(), ask());
    settle().await;
    first.abort();
    settle().await;
    fake.hold(false);
    assert_eq!(serial(&second.await.expect("no panic").expect("a token")), 1);

    fake.revoke("a");
    fake.hold(true);
    let refused = slot.current().await.expect("a token");
    let lonely = {
        let (slot, refused) = (slot.clone(), refused.clone());
        tokio::spawn(async move { slot.replace(&refused, path()).await })
    };
    settle().await;
    lonely.abort();
    fake.hold(false);
    settle().await;
    assert_eq!(serial(&at_once(&slot).expect("a token")), 2, "nobody waited, and it landed all the same");
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_counts_only_against_the_token_it_was_sent_with() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    let old = slot.current().await.expect("a token");
    fake.revoke("a");
    let refuse = |after: u64| {
        let (slot, old) = (slot.clone(), old.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            replaced(&slot.replace(&old, path()).await)
        })
    };
    let refusals: Vec<_> = (0..200).map(|nth| refuse((nth * 7919) % 200)).collect();
    for refusal in refusals {
        assert_eq!(refusal.await.expect("no panic"), (2, false));
    }
    assert_eq!(fake.calls(), 2);

    // Later still, when the new one has expired: that is no refusal of it.
    pass(7200.0).await;
    settle().await;
    let newest = replaced(&slot.replace(&old, path()).await);
    assert!(newest > (2, false), "{newest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_in_use_is_renewed_ahead_and_nobody_waits() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    slot.current().await.expect("a token");
    pass(100.0).await;
    assert_eq!(serial(&at_once(&slot).expect("a token")), 1);
    pass(6795.0).await;
    assert_eq!(fake.calls(), 1, "not before it is due");
    fake.then_always(Says::New);
    fake.hold(true);
    pass(235.0).await;
    assert_eq!(fake.calls(), 2);
    assert_eq!(serial(&at_once(&slot).expect("a token")), 1, "the old one serves on meanwhile");
    fake.hold(false);
    settle().await;
    assert_eq!(serial(&at_once(&slot).expect("a token")), 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_waited_for_a_token_uses_it() {
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let slot = fake.slot();
    slot.current().await.expect("a token");
    pass(7126.0).await;
    assert_eq!(fake.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_nobody_uses_is_left_alone() {
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let slot = fake.slot();
    slot.current().await.expect("a token");
    pass(100_000.0).await;
    assert_eq!(fake.calls(), 2, "its first, and one ahead for the use of the first");
    slot.current().await.expect("a token");
    assert_eq!(fake.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_use_in_the_last_minutes_renews_too() {
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let slot = fake.slot();
    slot.refresh().await.expect("a token");
    pass(7126.0).await;
    assert_eq!(fake.calls(), 1, "nobody has used it yet");
    assert_eq!(serial(&at_once(&slot).expect("a token")), 1);
    settle().await;
    assert_eq!(serial(&at_once(&slot).expect("a token")), 2);
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_serves_on_while_its_renewal_fails() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    slot.current().await.expect("a token");
    fake.then_always(Says::Refuses(-1));
    for second in 1..7200 {
        pass(1.0).await;
        if second < 7199 {
            assert_eq!(serial(&at_once(&slot).expect("it is valid")), 1, "{second}");
        }
    }
    assert!((5..=20).contains(&fake.calls()), "{} calls", fake.calls());
    pass(2.0).await;
    let failure = tokio::time::timeout(Duration::from_secs(1), slot.current()).await.expect("at once");
    assert_eq!(failure.expect_err("it has expired").errcode(), -1);
    fake.then_always(Says::New);
    pass(61.0).await;
    assert_eq!(serial(&slot.current().await.expect("a token")), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_token_again_moves_no_expiry_and_does_not_spin() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    let began = Instant::now();
    let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
    slot.current().await.expect("a token");
    for _ in 0..71_999 {
        pass(0.1).await;
        let _ = slot.ready(Instant::now());
    }
    assert!((3..=15).contains(&fake.calls()), "{} calls", fake.calls());
    assert!(slot.ready(at(7199.99)).is_some(), "good until its day");
    assert!(slot.ready(at(7200.01)).is_none(), "and no longer, however often it came back");
    let before = fake.calls();
    pass(1.0).await;
    assert_eq!(serial(&slot.current().await.expect("a token")), 2);
    assert_eq!(fake.calls(), before + 1, "expired, and fetched once");
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_that_gettoken_still_hands_out_is_believed_for_a_minute() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    slot.current().await.expect("a token");
    pass(6000.0).await;
    fake.then_always(Says::Same);
    pass(1201.0).await;
    let before = fake.calls();
    for _ in 0..6000 {
        pass(0.1).await;
        assert_eq!(serial(&slot.current().await.expect("the same")), 1);
    }
    let made = fake.calls() - before;
    assert!((5..=15).contains(&made), "{made} calls in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_gone_is_not_renewed() {
    let fake = Fake::new(7200);
    let slot = fake.slot();
    slot.current().await.expect("a token");
    let weak = Arc::downgrade(&slot);
    drop(slot);
    settle().await;
    assert!(weak.upgrade().is_none());
    pass(8000.0).await;
    assert_eq!(fake.calls(), 1);
}
