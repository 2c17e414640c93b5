//! Gettokens that fail: for the credentials, which endangers the address, and for other reasons.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{Replacement, TokenSlot},
    fake::{Fake, Says, agent, busiest_hour, pass, path, whole},
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn failures_that_are_no_credentials_are_bounded_by_their_backoff() {
    let fake = Fake::new(7200);
    fake.then_always(Says::Refuses(-1));
    let issuer = fake.issuer();
    let slots: Vec<_> = (0..50).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect();
    for _ in 0..2 * 3600 {
        for slot in &slots {
            let _ = slot.current().await;
        }
        pass(1.0).await;
    }
    let busiest = busiest_hour(&fake.call_times());
    assert!(busiest <= 50 * 75, "{busiest} calls within an hour");
    fake.then_always(Says::New);
    pass(60.0).await;
    for slot in &slots {
        slot.current().await.expect("nothing is held against those who failed");
    }
}

#[tokio::test(start_paused = true)]
async fn secrets_that_never_worked_fail_sixty_times_and_then_once_a_minute() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    let good = agent(&issuer, "good");
    good.current().await.expect("a token").worked_on(path());
    fake.then_always(Says::Refuses(40001));
    let slots: Vec<_> = (0..200).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect();
    let all: Vec<_> =
        slots.iter().cloned().map(|slot| tokio::spawn(async move { slot.current().await })).collect();
    for one in all {
        assert!(one.await.expect("no panic").is_err());
    }
    assert!((61..=63).contains(&fake.calls()), "{} calls, however many come at once", fake.calls());
    let began = Instant::now();
    while began.elapsed() < HOUR {
        for slot in &slots {
            assert!(slot.current().await.is_err());
        }
        pass(1.0).await;
    }
    assert!((115..=123).contains(&fake.calls()), "{} calls", fake.calls());
    // The last in the row is told so.
    assert!(slots.iter().any(|slot| slot.next_try_in() > Duration::from_secs(3600)));
    assert!(issuer.held().len() > 50, "{} are held back", issuer.held().len());
    // An agent whose secret had worked does not wait for them.
    fake.then_always(Says::New);
    let token = good.current().await.expect("a token");
    let next = good.replace(&token, path()).await;
    assert!(matches!(next, Replacement::Renewed(_)), "{next:?}");
    // An operator's order is tried at once.
    slots[199].refresh().await.expect("a token");
}

#[tokio::test(start_paused = true)]
async fn proven_secrets_gone_bad_together_fail_a_bounded_number() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    let slots: Vec<_> = (0..300).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect();
    for slot in &slots {
        slot.current().await.expect("a token");
    }
    fake.then_always(Says::Refuses(40001));
    let all: Vec<_> = slots.iter().cloned().map(|slot| tokio::spawn(refused(slot))).collect();
    for one in all {
        assert!(!matches!(one.await.expect("no panic"), Replacement::Renewed(_)));
    }
    assert!((60..=63).contains(&(fake.calls() - 300)), "{} failed at once", fake.calls() - 300);
    let began = Instant::now();
    while began.elapsed() < HOUR {
        for slot in &slots {
            refused(slot.clone()).await;
        }
        pass(1.0).await;
    }
    let failed = fake.calls() - 300;
    assert!((170..=245).contains(&failed), "{failed} failed in an hour");
    let found: HashSet<_> = fake.calls_by_agent().into_iter().filter(|(_, calls)| calls.len() > 1).collect();
    assert!(found.len() >= 170, "{} bad secrets were found out", found.len());
    // Where they are good again, each that serves lets others follow: all do within minutes.
    fake.then_always(Says::New);
    let mut held: Vec<_> = slots.iter().filter(|slot| slot.report().failing.is_none()).collect();
    for _ in 0..300 {
        let mut still_held = Vec::new();
        for slot in held {
            if !matches!(refused(slot.clone()).await, Replacement::Renewed(_)) {
                still_held.push(slot);
            }
        }
        held = still_held;
        pass(1.0).await;
    }
    assert_eq!(held.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn proven_secret_renews_while_others_that_never_worked_fail() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    let good = agent(&issuer, "good");
    good.current().await.expect("a token");
    fake.then_always(Says::Refuses(40001));
    for nth in 0..100 {
        let _ = agent(&issuer, &format!("agent-{nth}")).current().await;
    }
    fake.then_always(Says::New);
    assert!(matches!(refused(good).await, Replacement::Renewed(_)));
}

/// A token of this agent is refused by a path on which it had worked.
async fn refused(slot: Arc<TokenSlot>) -> Replacement {
    let token = slot.held().expect("a token");
    token.worked_on(path());
    slot.replace(&token, path()).await
}

#[tokio::test(start_paused = true)]
async fn secrets_that_never_worked_are_tried_in_the_order_they_came() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    fake.then_always(Says::Refuses(40001));
    for nth in 0..60 {
        let _ = agent(&issuer, &format!("agent-{nth}")).current().await;
    }
    let (first, second, third) = (agent(&issuer, "first"), agent(&issuer, "second"), agent(&issuer, "third"));
    for slot in [&first, &second, &third] {
        let failure = slot.current().await.expect_err("none left");
        assert_eq!(failure.errcode(), -1, "{failure}");
    }
    assert_eq!([&first, &second, &third].map(|slot| whole(slot.next_try_in())), [60.0, 120.0, 180.0]);
    fake.then_always(Says::New);
    pass(61.0).await;
    assert!(third.current().await.is_err() && second.current().await.is_err());
    // The first lets its turn pass.
    pass(60.0).await;
    second.current().await.expect("its turn");
    first.current().await.expect("good secrets return their permits");
    pass(60.0).await;
    third.current().await.expect("its turn");
}

#[tokio::test(start_paused = true)]
async fn a_gettoken_that_hangs_holds_up_no_first_token_for_long() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    fake.hold(true);
    for nth in 0..300 {
        let slot = agent(&issuer, &format!("agent-{nth}"));
        tokio::spawn(async move { slot.current().await });
    }
    pass(0.4).await;
    assert_eq!(fake.calls(), 60);
    pass(1.7).await;
    assert_eq!(fake.calls(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_of_very_many_good_secrets_waits_for_nothing() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    let slots = (0..10_000).map(|nth| agent(&issuer, &format!("agent-{nth}")));
    let all: Vec<_> = slots.map(|slot| tokio::spawn(async move { slot.current().await })).collect();
    let began = Instant::now();
    for one in all {
        one.await.expect("no panic").expect("a token");
    }
    assert_eq!((fake.calls(), began.elapsed()), (10_000, Duration::ZERO));
}
