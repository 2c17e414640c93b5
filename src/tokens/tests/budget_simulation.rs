//! Random simulation of refresh budgets over hours: whatever other agents do, an agent whose accepted token was
//! voided gets the next at once, while its own budget lasts. `SIMULATION_SEED=17 cargo test budget_simulation`.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    fake_gettoken::{FakeGettoken, advance, agent_token, max_calls_per_hour, path},
    simulation::rng::SimRng,
};
use crate::tokens::{CachedToken, PathKey, ReplaceOutcome};

const SEEDS: u64 = 30;
const STEPS: usize = 1_500;
/// Agents whose tokens are voided; their 24 refreshes an hour each are fewer than half of 300.
const GOOD_AGENTS: usize = 6;
/// Agents that call a path that always refuses.
const BAD_AGENTS: usize = 40;
/// The default for this many agents.
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
    agents: Vec<(String, Arc<CachedToken>)>,
    counts: SimBudgetCounts,
}

impl SimBudget {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng::new(seed);
        let fake = FakeGettoken::new(rng.choose(&[7_200, 24 * 3_600]));
        let service = fake.service();
        let names = (0..GOOD_AGENTS + BAD_AGENTS).map(|nth| format!("agent-{nth}"));
        let agents = names.map(|name| (name.clone(), agent_token(&service, &name))).collect();
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

    /// A path accepts a token, which is then voided, and the same path refuses it.
    async fn use_voided_token(&mut self, nth: usize) {
        let (name, entry) = &self.agents[nth];
        let token = entry.current_or_fetch().await.expect("a token");
        token.mark_accepted_on(path());
        self.fake.revoke(name);
        let has_budget = entry.service.refresh_budget.has_remaining(&name.as_str().into(), Instant::now());
        let started_at = Instant::now();
        match entry.replace_refused(&token, path()).await {
            ReplaceOutcome::Refreshed(next) => {
                assert!(has_budget && self.fake.accepts(name, &next) && started_at.elapsed().is_zero());
                self.counts.refreshed += 1;
            }
            other => {
                assert!(!has_budget, "{name} has budget left, but got {other:?}");
                self.counts.own_budget_spent += 1;
            }
        }
    }

    async fn use_forbidden_path(&mut self, nth: usize) {
        let (_, entry) = &self.agents[nth];
        let token = entry.current_or_fetch().await.expect("a token");
        let forbidden = PathKey::from_path("/cgi-bin/forbidden");
        match entry.replace_refused(&token, forbidden).await {
            ReplaceOutcome::Refreshed(next) | ReplaceOutcome::Unchanged(next) => {
                entry.mark_refused_again(&next, forbidden)
            }
            _ => self.counts.throttled += 1,
        }
    }

    async fn refresh_manually(&mut self, nth: usize) {
        if self.agents[nth].1.force_refresh().await.is_ok() {
            self.counts.manual_refreshes.push(Instant::now());
        }
    }

    /// No hour has more refreshes than its budget, beyond first tokens, two proactive refreshes per expiry, and
    /// one after it.
    fn check_invariants(&self) {
        let calls = self.fake.calls_by_agent();
        let totals: Vec<_> = self.fake.call_times();
        // No agent has two expiries in one hour, unless a token was refreshed for another reason.
        let due_per_agent = 1 + 3;
        let manual = max_calls_per_hour(&self.counts.manual_refreshes);
        let max_calls = MAX_REFRESHES_PER_HOUR + manual + due_per_agent * self.agents.len();
        assert!(
            max_calls_per_hour(&totals) <= max_calls,
            "{} calls within an hour, {manual} of them manual",
            max_calls_per_hour(&totals)
        );
        for (name, calls) in calls {
            assert!(
                max_calls_per_hour(&calls) <= MAX_REFRESHES_PER_AGENT_HOUR + due_per_agent + manual,
                "{} calls for {name}",
                max_calls_per_hour(&calls)
            );
        }
    }
}

fn run(seed: u64) -> SimBudgetCounts {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut simulation = SimBudget::new(seed);
        for _ in 0..STEPS {
            simulation.step().await;
        }
        simulation.check_invariants();
        simulation.counts
    })
}

#[test]
fn agent_never_spends_the_budget_of_another() {
    let single_seed = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut totals = SimBudgetCounts::default();
    for seed in single_seed.map_or(1..=SEEDS, |seed| seed..=seed) {
        println!("seed {seed}");
        let counts = run(seed);
        totals.refreshed += counts.refreshed;
        totals.own_budget_spent += counts.own_budget_spent;
        totals.throttled += counts.throttled;
        totals.manual_refreshes.extend(counts.manual_refreshes);
    }
    let counts = [totals.refreshed, totals.own_budget_spent, totals.throttled, totals.manual_refreshes.len()];
    println!("{counts:?}");
    assert!(
        single_seed.is_some() || counts.into_iter().all(|count| count > 100),
        "too few events: {counts:?}"
    );
}
