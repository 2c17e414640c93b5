//! How many calls leave the proxy, whatever happens.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    super::{PathKey, Replacement, TokenSlot},
    fake::{Fake, Says, agent, agent_with, busiest_hour, held, pass, path, serial, whole},
};

const AGENTS: usize = 50;

fn agents(fake: &Fake) -> Vec<Arc<TokenSlot>> {
    let issuer = fake.issuer();
    (0..AGENTS).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect()
}

/// A request whose token is refused whatever it is.
async fn refused(slot: &Arc<TokenSlot>, worked: bool) {
    let Ok(token) = slot.current().await else { return };
    if worked {
        token.worked_on(path());
    }
    if let Replacement::Renewed(next) | Replacement::SameAgain(next) = slot.replace(&token, path()).await {
        slot.refused_again(&next, path());
    }
}

#[tokio::test(start_paused = true)]
async fn agents_refused_all_the_time_stay_within_the_hours_share() {
    let fake = Fake::new(24 * 3600);
    fake.then_always(Says::New);
    let slots = agents(&fake);
    for _ in 0..3 * 3600 {
        for (nth, slot) in slots.iter().enumerate() {
            refused(slot, nth % 2 == 0).await;
        }
        pass(1.0).await;
    }
    let calls = fake.call_times();
    let busiest = busiest_hour(&calls);
    assert!(busiest <= 300 + AGENTS, "{busiest} calls within an hour");
    assert!(calls.len() >= 3 * 290, "and the share of each hour is there to be used: {}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn paths_that_never_worked_leave_half_of_the_hour() {
    let fake = Fake::new(24 * 3600);
    fake.then_always(Says::New);
    let slots = agents(&fake);
    for _ in 0..60 {
        for slot in &slots[1..] {
            refused(slot, false).await;
        }
        pass(10.0).await;
    }
    assert_eq!(fake.calls(), AGENTS - 1 + 150);
    let token = slots[0].current().await.expect("its first");
    let wait = held(slots[0].replace(&token, path()).await);
    assert!((2990.0..=3001.0).contains(&wait), "{wait}");
    token.worked_on(path());
    let next = slots[0].replace(&token, path()).await;
    assert!(matches!(&next, Replacement::Renewed(next) if serial(next) > serial(&token)), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn one_agent_has_twelve_refusals_and_half_are_for_working_paths() {
    let fake = Fake::new(24 * 3600);
    fake.then_always(Says::New);
    let slot = fake.slot();
    for _ in 0..100 {
        refused(&slot, false).await;
        pass(10.0).await;
    }
    assert_eq!(fake.calls(), 1 + 6 + 3, "1,000 s give three back");
    for _ in 0..100 {
        refused(&slot, true).await;
        pass(0.1).await;
    }
    assert_eq!(fake.calls(), 10 + 6);
    let token = slot.current().await.expect("a token");
    token.worked_on(path());
    let wait = held(slot.replace(&token, path()).await);
    assert!((1.0..=300.0).contains(&wait), "{wait}");
    assert_eq!(whole(slot.next_try_in()), wait, "and reports say the same");
    pass(wait).await;
    refused(&slot, true).await;
    assert_eq!(fake.calls(), 17);
    assert!(slot.issuer.held().is_empty(), "it was renewed");
}

#[tokio::test(start_paused = true)]
async fn renewals_ahead_that_bring_nothing_new_are_two_per_token() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer_with(Some(400));
    let slots: Vec<_> = (0..150).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect();
    for slot in &slots {
        slot.current().await.expect("its first");
    }
    for _ in 0..7190 {
        pass(1.0).await;
        slots.iter().for_each(|slot| assert!(slot.ready(Instant::now()).is_some()));
    }
    assert_eq!(fake.calls(), 3 * slots.len(), "its first and two ahead");
    let token = slots[3].current().await.expect("a token");
    token.worked_on(path());
    fake.revoke("agent-3");
    let next = slots[3].replace(&token, path()).await;
    assert!(matches!(next, Replacement::Renewed(_)), "{next:?}");
    pass(20.0).await;
    for slot in &slots {
        slot.current().await.expect("it has expired");
    }
    assert_eq!(fake.calls(), 4 * slots.len());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_tokens_voided_at_once_are_all_renewed() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    let slots: Vec<_> = (0..1000).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect();
    for slot in &slots {
        slot.current().await.expect("its first").worked_on(path());
    }
    for (nth, slot) in slots.iter().enumerate() {
        fake.revoke(&format!("agent-{nth}"));
        let token = slot.current().await.expect("a token");
        assert!(matches!(slot.replace(&token, path()).await, Replacement::Renewed(_)), "{nth}");
    }
    assert_eq!((fake.calls(), issuer.held().len()), (2000, 0));
}

#[tokio::test(start_paused = true)]
async fn a_configured_share_holds_back_and_says_until_when() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer_with(Some(10));
    let slots: Vec<_> = (0..20).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect();
    for (nth, slot) in slots.iter().enumerate() {
        let token = slot.current().await.expect("its first");
        token.worked_on(path());
        fake.revoke(&format!("agent-{nth}"));
        match slot.replace(&token, path()).await {
            Replacement::Renewed(_) => assert!(nth < 10),
            replacement => assert_eq!((held(replacement), nth >= 10), (3600.0, true)),
        }
    }
    let names: Vec<_> = issuer.held().into_iter().map(|(name, wait)| (name, whole(wait))).collect();
    assert_eq!((names.len(), &names[0]), (10, &("agent-10".to_owned(), 3600.0)));
    assert!(slots[10].report().held && !slots[9].report().held);
    pass(3600.0).await;
    assert!(issuer.held().is_empty(), "it may be tried");
}

#[tokio::test(start_paused = true)]
async fn one_expiry_is_two_calls_even_if_gettoken_never_moves_on() {
    let fake = Fake::new(60);
    fake.then_always(Says::Same);
    let slots = agents(&fake);
    for _ in 0..2 * 3600 {
        for slot in &slots {
            let _ = slot.current().await;
        }
        pass(1.0).await;
    }
    let busiest = busiest_hour(&fake.call_times());
    // Its first, one ahead of its expiry, one after that.
    assert!(busiest <= 150 + 3 * AGENTS, "{busiest} calls within an hour");
}

#[tokio::test(start_paused = true)]
async fn operators_orders_are_tried_at_once_and_spend_no_share() {
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let issuer = fake.issuer();
    let (ordered, modest) = (agent(&issuer, "ordered"), agent(&issuer, "modest"));
    for _ in 0..40 {
        ordered.refresh().await.expect("it is tried");
    }
    for slot in [&ordered, &modest] {
        let token = slot.current().await.expect("a token");
        token.worked_on(path());
        assert!(matches!(slot.replace(&token, path()).await, Replacement::Renewed(_)));
    }
    // One whose share is spent can still be ordered.
    let never = PathKey::of("/cgi-bin/never");
    loop {
        let token = ordered.current().await.expect("a token");
        if matches!(ordered.replace(&token, never).await, Replacement::Held(_)) {
            break;
        }
        pass(11.0).await;
    }
    ordered.refresh().await.expect("it is tried");
}

#[tokio::test(start_paused = true)]
async fn two_agents_of_one_secret_that_void_each_other_are_bounded() {
    // Each gettoken voids the token before it, whichever agent has that.
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let issuer = fake.issuer();
    let (one, other) = (agent(&issuer, "one"), agent(&issuer, "other"));
    for _ in 0..10_000 {
        refused(&one, true).await;
        refused(&other, true).await;
        pass(0.01).await;
    }
    assert_eq!(fake.calls(), 2 * 13, "100 s give none back");
}

#[tokio::test(start_paused = true)]
async fn tokens_of_the_shortest_life_do_not_busy_the_loop() {
    for life in [1, 2, 3] {
        let fake = Fake::new(life);
        let slot = fake.slot();
        for _ in 0..6_000 {
            slot.current().await.expect("a token");
            pass(0.01).await;
        }
        let most = 60.0 / (0.75 * life as f64) + 62.0;
        assert!(fake.calls() as f64 <= most, "{} calls in a minute, life {life}", fake.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_changes_to_and_fro_is_left_alone_while_it_is_wrong() {
    let fake = Fake::new(7200);
    fake.then_always(Says::Refuses(40001));
    let issuer = fake.issuer();
    for nth in 0..400 {
        let slot = agent_with(&issuer, "a", ["one", "other"][nth % 2]);
        assert_eq!(slot.current().await.expect_err("refused").errcode(), 40001);
        pass(0.1).await;
    }
    assert_eq!(fake.calls(), 2, "one for each secret within its 60 s");
    pass(3600.0 - 40.0).await;
    let _ = agent_with(&issuer, "a", "one").current().await;
    assert_eq!(fake.calls(), 3, "its time has come");
    // An operator's word counts more.
    fake.then_always(Says::New);
    agent_with(&issuer, "a", "one").refresh().await.expect("a token");
    agent_with(&issuer, "a", "one").current().await.expect("nothing is held against it");
}

#[tokio::test(start_paused = true)]
async fn secrets_that_change_and_fail_are_bounded_for_the_address() {
    let fake = Fake::new(7200);
    fake.then_always(Says::Refuses(40001));
    let issuer = fake.issuer();
    for nth in 0..400 {
        let _ = agent_with(&issuer, "a", &format!("secret-{nth}")).current().await;
    }
    assert_eq!(fake.calls(), 60, "as many as may fail in an hour");
    fake.then_always(Says::New);
    agent_with(&issuer, "a", "right").current().await.expect_err("it waits for its turn");
    pass(61.0).await;
    agent_with(&issuer, "a", "right").current().await.expect("a token");
}

#[tokio::test(start_paused = true)]
async fn changed_secret_is_tried_at_once_whatever_is_spent() {
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let issuer = fake.issuer();
    let never = PathKey::of("/cgi-bin/never");
    for nth in 0..30 {
        let slot = agent_with(&issuer, "a", &format!("secret-{nth}"));
        let mut token = slot.current().await.expect("a token");
        while let Replacement::Renewed(next) = slot.replace(&token, never).await {
            token = next;
            pass(11.0).await;
        }
    }
}
