//! Shares over hours, by chance: whatever the other agents do, an agent whose token was voided after it had worked gets the
//! next at once, as long as its own share is not spent. `SIMULATION_SEED=17 cargo test shares`.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    fake_gettoken::{FakeGettoken, advance, agent_token, max_calls_per_hour, path},
    simulation::rng::SimRng,
};
use crate::tokens::{AgentToken, PathKey, Replacement};

const SEEDS: u64 = 30;
const STEPS: usize = 1_500;
/// Agents whose tokens are voided; 24 renewals an hour each are fewer than half of 300.
const GOOD_AGENTS: usize = 6;
/// Agents that call what always refuses.
const BAD_AGENTS: usize = 40;
/// As the contract has it for so many agents.
const MAX_REFRESHES_PER_HOUR: usize = 300;
const MAX_REFRESHES_PER_AGENT_HOUR: usize = 12 + 12;

#[derive(Default)]
struct SimBudgetCounts {
    refreshed: usize,
    own_budget_spent: usize,
    throttled: usize,
    manual_refreshes: Vec<Instant>,
}

struct SimBudget {
    rng: SimRng,
    fake: FakeGettoken,
    agents: Vec<(String, Arc<AgentToken>)>,
    counts: SimBudgetCounts,
}

impl SimBudget {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng::new(seed);
        let fake = FakeGettoken::new(rng.choose(&[7_200, 24 * 3_600]));
        let issuer = fake.service();
        let names = (0..GOOD_AGENTS + BAD_AGENTS).map(|nth| format!("agent-{nth}"));
        let agents = names.map(|name| (name.clone(), agent_token(&issuer, &name))).collect();
        Self { rng, fake, agents, counts: SimBudgetCounts::default() }
    }

    async fn step(&mut self) {
        let good = self.rng.below(GOOD_AGENTS as u64) as usize;
        let bad = GOOD_AGENTS + self.rng.below(BAD_AGENTS as u64) as usize;
        match self.rng.below(12) {
            0..=1 => self.use_voided_token(good).await,
            2 => self.use_forbidden_path(good).await,
            3..=8 => self.use_forbidden_path(bad).await,
            9 => {
                let nth = self.rng.choose(&[good, bad]);
                self.refresh_manually(nth).await;
            }
            10 if self.rng.below(20) == 0 => advance(self.rng.below(4_000) as f64).await,
            _ => advance(self.rng.below(60_000) as f64 / 1_000.0).await,
        }
    }

    /// A token works, is voided, and the same path refuses it.
    async fn use_voided_token(&mut self, nth: usize) {
        let (name, slot) = &self.agents[nth];
        let token = slot.current_or_fetch().await.expect("a token");
        token.mark_accepted_on(path());
        self.fake.revoke(name);
        let has_share = slot.service.refresh_budget.has_remaining(name, Instant::now());
        let began = Instant::now();
        match slot.replace_refused(&token, path()).await {
            Replacement::Refreshed(next) => {
                assert!(has_share && self.fake.accepts(name, &next) && began.elapsed().is_zero());
                self.counts.refreshed += 1;
            }
            other => {
                assert!(!has_share, "{name} has a share, and yet {other:?}");
                self.counts.own_budget_spent += 1;
            }
        }
    }

    async fn use_forbidden_path(&mut self, nth: usize) {
        let (_, slot) = &self.agents[nth];
        let token = slot.current_or_fetch().await.expect("a token");
        let forbidden = PathKey::from_path("/cgi-bin/forbidden");
        match slot.replace_refused(&token, forbidden).await {
            Replacement::Refreshed(next) | Replacement::Unchanged(next) => {
                slot.mark_refused_again(&next, forbidden)
            }
            _ => self.counts.throttled += 1,
        }
    }

    async fn refresh_manually(&mut self, nth: usize) {
        if self.agents[nth].1.force_refresh().await.is_ok() {
            self.counts.manual_refreshes.push(Instant::now());
        }
    }

    /// No hour has more than its shares, beyond first tokens, two renewals ahead of an expiry, and one after it.
    fn check_invariants(&self) {
        let calls = self.fake.calls_by_agent();
        let all: Vec<_> = self.fake.call_times();
        // No agent has two tokens whose lives end in one hour, unless one was renewed for another reason.
        let due = 1 + 3;
        let orders = max_calls_per_hour(&self.counts.manual_refreshes);
        let most = MAX_REFRESHES_PER_HOUR + orders + due * self.agents.len();
        assert!(
            max_calls_per_hour(&all) <= most,
            "{} calls within an hour, {orders} of them orders",
            max_calls_per_hour(&all)
        );
        for (name, calls) in calls {
            assert!(
                max_calls_per_hour(&calls) <= MAX_REFRESHES_PER_AGENT_HOUR + due + orders,
                "{} calls for {name}",
                max_calls_per_hour(&calls)
            );
        }
    }
}

fn run(seed: u64) -> SimBudgetCounts {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut shares = SimBudget::new(seed);
        for _ in 0..STEPS {
            shares.step().await;
        }
        shares.check_invariants();
        shares.counts
    })
}

#[test]
fn agent_never_spends_the_budget_of_another() {
    let one = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut all = SimBudgetCounts::default();
    for seed in one.map_or(1..=SEEDS, |seed| seed..=seed) {
        println!("seed {seed}");
        let seen = run(seed);
        all.refreshed += seen.refreshed;
        all.own_budget_spent += seen.own_budget_spent;
        all.throttled += seen.throttled;
        all.manual_refreshes.extend(seen.manual_refreshes);
    }
    let seen = [all.refreshed, all.own_budget_spent, all.throttled, all.manual_refreshes.len()];
    println!("{seen:?}");
    assert!(one.is_some() || seen.into_iter().all(|times| times > 100), "too little happened: {seen:?}");
}
