//! How many calls leave the proxy, whatever happens.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{Replacement, TokenSlot},
    fake::{Fake, Says, agent, agent_with, pass},
};

const AGENTS: usize = 50;
const HOUR: Duration = Duration::from_secs(3600);

fn agents(fake: &Fake) -> Vec<Arc<TokenSlot>> {
    let issuer = fake.issuer();
    (0..AGENTS).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect()
}

/// The most calls within any hour.
fn busiest_hour(calls: &[Instant]) -> usize {
    let from = |first: usize| calls[first..].iter().take_while(|at| **at - calls[first] < HOUR).count();
    (0..calls.len()).map(from).max().unwrap_or(0)
}

/// A request whose token is refused whatever it is.
async fn refused(slot: &Arc<TokenSlot>) {
    let Ok(token) = slot.current().await else { return };
    if let Replacement::Renewed(next) | Replacement::SameAgain(next) = slot.replace(&token).await {
        slot.refused_again(&next);
    }
}

#[tokio::test(start_paused = true)]
async fn many_agents_refused_all_the_time_stay_within_the_hours_budget() {
    let fake = Fake::new(24 * 3600);
    fake.then_always(Says::New);
    let slots = agents(&fake);
    for _ in 0..3 * 3600 {
        for slot in &slots {
            refused(slot).await;
        }
        pass(1.0).await;
    }
    let calls = fake.call_times();
    let busiest = busiest_hour(&calls);
    assert!(busiest <= 300 + AGENTS, "{busiest} calls within an hour");
    assert!(calls.len() >= 3 * 290, "and the budget of each hour is there to be used: {}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn many_agents_whose_gettoken_fails_stay_within_it_too() {
    let fake = Fake::new(7200);
    fake.then_always(Says::Refuses(-1));
    let slots = agents(&fake);
    for second in 0..2 * 3600 {
        for slot in &slots {
            let _ = slot.current().await;
            if second % 600 == 0 {
                let _ = slot.refresh().await;
            }
        }
        pass(1.0).await;
    }
    let busiest = busiest_hour(&fake.call_times());
    assert!(busiest <= 300 + AGENTS, "{busiest} calls within an hour");
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
    assert!(busiest <= 300 + 3 * AGENTS, "{busiest} calls within an hour");
}

#[tokio::test(start_paused = true)]
async fn an_agent_refused_with_every_new_token_leaves_room_for_the_others() {
    let fake = Fake::new(24 * 3600);
    fake.then_always(Says::New);
    let slot = fake.slot();
    for _ in 0..3600 {
        refused(&slot).await;
        pass(1.0).await;
    }
    assert!((60..=70).contains(&fake.calls()), "{} calls in an hour", fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_stops_no_first_token_and_no_expiry() {
    let fake = Fake::new(7200);
    fake.then_always(Says::New);
    let issuer = fake.issuer();
    let (greedy, modest) = (agent(&issuer, "greedy"), agent(&issuer, "modest"));
    while greedy.refresh().await.is_ok() {}
    assert_eq!(fake.calls(), 300);
    let token = modest.current().await.expect("its first");
    assert!(matches!(modest.replace(&token).await, Replacement::Held), "a refusal stands meanwhile");
    assert_eq!(fake.calls(), 301);
    pass(7201.0).await;
    modest.current().await.expect("it has expired");
}

#[tokio::test(start_paused = true)]
async fn an_operators_try_that_is_not_made_forgets_no_failure() {
    let fake = Fake::new(7200);
    let issuer = fake.issuer();
    let (greedy, failing) = (agent(&issuer, "greedy"), agent(&issuer, "failing"));
    while greedy.refresh().await.is_ok() {}
    fake.then_always(Says::Refuses(40001));
    assert_eq!(failing.current().await.expect_err("refused").errcode(), 40001);
    assert_eq!(failing.refresh().await.expect_err("no call is left").errcode(), 40001);
    assert_eq!(failing.current().await.expect_err("left alone").errcode(), 40001);
    assert_eq!(fake.calls(), 301);
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
async fn however_often_its_secret_changes_an_agent_has_one_first_gettoken() {
    let fake = Fake::new(7200);
    fake.then_always(Says::Refuses(40001));
    let issuer = fake.issuer();
    for nth in 0..400 {
        let _ = agent_with(&issuer, "a", &format!("secret-{nth}")).current().await;
    }
    assert_eq!(fake.calls(), 301, "each is tried at once while the hour's budget lasts");
    fake.then_always(Says::New);
    agent(&issuer, "b").current().await.expect("its first");
}
