//! Shares over hours, by chance: whatever the other agents do, an agent whose token was voided after it had worked gets the
//! next at once, as long as its own share is not spent. `SIMULATION_SEED=17 cargo test shares`.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    super::{PathKey, Replacement, TokenSlot},
    fake::{Fake, agent, busiest_hour, pass, path},
    simulation::chance::Chance,
};

const SEEDS: u64 = 30;
const STEPS: usize = 1_500;
/// Agents whose tokens are voided; 24 renewals an hour each are fewer than half of 300.
const GOOD: usize = 6;
/// Agents that call what always refuses.
const BAD: usize = 40;
/// As the contract has it for so many agents.
const RENEWALS_AN_HOUR: usize = 300;
const AN_AGENT: usize = 12 + 12;

#[derive(Default)]
struct Seen {
    at_once: usize,
    own_share_spent: usize,
    held: usize,
    orders: Vec<Instant>,
}

struct Shares {
    chance: Chance,
    fake: Fake,
    agents: Vec<(String, Arc<TokenSlot>)>,
    seen: Seen,
}

impl Shares {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let fake = Fake::new(chance.one_of(&[7_200, 24 * 3_600]));
        let issuer = fake.issuer();
        let names = (0..GOOD + BAD).map(|nth| format!("agent-{nth}"));
        let agents = names.map(|name| (name.clone(), agent(&issuer, &name))).collect();
        Self { chance, fake, agents, seen: Seen::default() }
    }

    async fn step(&mut self) {
        let good = self.chance.below(GOOD as u64) as usize;
        let bad = GOOD + self.chance.below(BAD as u64) as usize;
        match self.chance.below(12) {
            0..=1 => self.voided(good).await,
            2 => self.always_refused(good).await,
            3..=8 => self.always_refused(bad).await,
            9 => {
                let nth = self.chance.one_of(&[good, bad]);
                self.ordered(nth).await;
            }
            10 if self.chance.below(20) == 0 => pass(self.chance.below(4_000) as f64).await,
            _ => pass(self.chance.below(60_000) as f64 / 1_000.0).await,
        }
    }

    /// A token works, is voided, and the same path refuses it.
    async fn voided(&mut self, nth: usize) {
        let (name, slot) = &self.agents[nth];
        let token = slot.current().await.expect("a token");
        token.worked_on(path());
        self.fake.revoke(name);
        let has_share = slot.issuer.shares.has_any(name, Instant::now());
        let began = Instant::now();
        match slot.replace(&token, path()).await {
            Replacement::Renewed(next) => {
                assert!(has_share && self.fake.accepts(name, &next) && began.elapsed().is_zero());
                self.seen.at_once += 1;
            }
            other => {
                assert!(!has_share, "{name} has a share, and yet {other:?}");
                self.seen.own_share_spent += 1;
            }
        }
    }

    async fn always_refused(&mut self, nth: usize) {
        let (_, slot) = &self.agents[nth];
        let token = slot.current().await.expect("a token");
        let forbidden = PathKey::of("/cgi-bin/forbidden");
        match slot.replace(&token, forbidden).await {
            Replacement::Renewed(next) | Replacement::SameAgain(next) => slot.refused_again(&next, forbidden),
            _ => self.seen.held += 1,
        }
    }

    async fn ordered(&mut self, nth: usize) {
        if self.agents[nth].1.refresh().await.is_ok() {
            self.seen.orders.push(Instant::now());
        }
    }

    /// No hour has more than its shares, beyond first tokens, two renewals ahead of an expiry, and one after it.
    fn check(&self) {
        let calls = self.fake.calls_by_agent();
        let all: Vec<_> = self.fake.call_times();
        // No agent has two tokens whose lives end in one hour, unless one was renewed for another reason.
        let due = 1 + 3;
        let orders = busiest_hour(&self.seen.orders);
        let most = RENEWALS_AN_HOUR + orders + due * self.agents.len();
        assert!(
            busiest_hour(&all) <= most,
            "{} calls within an hour, {orders} of them orders",
            busiest_hour(&all)
        );
        for (name, calls) in calls {
            assert!(
                busiest_hour(&calls) <= AN_AGENT + due + orders,
                "{} calls for {name}",
                busiest_hour(&calls)
            );
        }
    }
}

fn run(seed: u64) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut shares = Shares::new(seed);
        for _ in 0..STEPS {
            shares.step().await;
        }
        shares.check();
        shares.seen
    })
}

#[test]
fn no_agent_spends_the_share_of_another() {
    let one = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut all = Seen::default();
    for seed in one.map_or(1..=SEEDS, |seed| seed..=seed) {
        println!("seed {seed}");
        let seen = run(seed);
        all.at_once += seen.at_once;
        all.own_share_spent += seen.own_share_spent;
        all.held += seen.held;
        all.orders.extend(seen.orders);
    }
    let seen = [all.at_once, all.own_share_spent, all.held, all.orders.len()];
    println!("{seen:?}");
    assert!(one.is_some() || seen.into_iter().all(|times| times > 100), "too little happened: {seen:?}");
}
