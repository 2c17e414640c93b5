//! The budget for refreshes beyond an agent's first token and each expiry: a budget per agent, and an hourly
//! window for all agents. Failures are bounded elsewhere (`failure_budget`, `backoff`).

use std::collections::BTreeMap;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use tokio::time::Instant;

use super::{
    hourly_window::{HourlyWindow, Priority},
    refusal_budget::RefusalBudget,
};
use crate::{blocking, text::SharedStr};

/// Proactive refreshes of one token. The first counts as that of its expiry.
pub(super) const MAX_PROACTIVE_REFRESHES: u8 = 2;
/// Default of the hourly maximum: the larger of these, the second one for each agent in use.
const DEFAULT_MAX_PER_HOUR: usize = 300;
const DEFAULT_MAX_PER_HOUR_PER_AGENT: usize = 3;

/// What a refresh is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BudgetClass {
    /// Nothing: an agent's first token, also after a changed secret, a token's first proactive refresh, and one
    /// after its expiry unless gettoken has already returned the expired token.
    Free,
    /// Nothing, and backoff is ignored: a manual refresh.
    Operator,
    /// The agent's budget and the hourly window.
    Refusal {
        /// The path that refused the token had accepted it before.
        was_accepted: bool,
    },
    /// The hourly window: a second proactive refresh, or a repeated one after the expiry.
    Repeated,
}

impl BudgetClass {
    fn hourly_priority(self) -> Option<Priority> {
        match self {
            Self::Free | Self::Operator => None,
            Self::Refusal { was_accepted: true } => Some(Priority::High),
            Self::Refusal { was_accepted: false } | Self::Repeated => Some(Priority::Normal),
        }
    }

    /// Whether it is charged to the agent's budget (`Some`), and may use the part reserved for paths that had
    /// accepted the token.
    fn agent_charge(self) -> Option<bool> {
        match self {
            Self::Refusal { was_accepted } => Some(was_accepted),
            Self::Free | Self::Operator | Self::Repeated => None,
        }
    }
}

/// The charge of one refresh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge {
    pub(super) class: BudgetClass,
    charged_at: Instant,
}

/// The budgets of all agents.
#[derive(Debug)]
pub(super) struct RefreshBudget {
    /// As configured; `None`: by the number of agents in use.
    max_per_hour: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hourly_window: HourlyWindow,
    /// The agents that have requested a token, with the budgets of the few of them of whose refreshes some were caused by
    /// refusals; of the others it is full. A budget outlives a changed secret.
    refusal_budgets: BTreeMap<SharedStr, Option<Box<RefusalBudget>>>,
}

impl RefreshBudget {
    /// At most `max_per_hour` refreshes an hour; `None`: the default for the number of agents in use.
    pub(super) fn new(max_per_hour: Option<u32>) -> Self {
        Self { max_per_hour: max_per_hour.map(|max_per_hour| max_per_hour as usize), state: Mutex::default() }
    }

    /// Registers an agent as in use.
    pub(super) fn register_agent(&self, agent: &SharedStr) {
        self.state.lock().refusal_budgets.entry(agent.clone()).or_default();
    }

    /// Charges a refresh. Error: the instant at which the budget is sufficient.
    pub(super) fn try_charge(
        &self,
        agent: &SharedStr,
        class: BudgetClass,
        now: Instant,
    ) -> Result<Charge, Instant> {
        let mut state = self.state.lock();
        let charge = Charge { class, charged_at: now };
        if let Some(was_accepted) = class.agent_charge() {
            state.refusal_budget(agent, now).try_acquire(now, was_accepted)?;
        }
        if let Some(priority) = class.hourly_priority() {
            let max = self.max_per_hour(&state);
            if let Err(retry_at) = state.hourly_window.try_acquire(now, priority, max) {
                drop(state);
                self.refund_agent(agent, class);
                return Err(retry_at);
            }
        }
        Ok(charge)
    }

    /// The refreshes of the last hour that were charged, and the most that may be.
    pub(super) fn usage(&self, now: Instant) -> (usize, usize) {
        let mut state = self.state.lock();
        let max = self.max_per_hour(&state);
        (state.hourly_window.count(now), max)
    }

    fn max_per_hour(&self, state: &State) -> usize {
        self.max_per_hour
            .unwrap_or(DEFAULT_MAX_PER_HOUR.max(DEFAULT_MAX_PER_HOUR_PER_AGENT * state.refusal_budgets.len()))
    }

    /// Refunds a charge.
    pub(super) fn refund(&self, agent: &SharedStr, charge: Charge) {
        self.refund_agent(agent, charge.class);
        if let Some(priority) = charge.class.hourly_priority() {
            self.state.lock().hourly_window.release(charge.charged_at, priority);
        }
    }

    fn refund_agent(&self, agent: &SharedStr, class: BudgetClass) {
        if let Some(was_accepted) = class.agent_charge() {
            self.state.lock().refusal_budget(agent, Instant::now()).release(was_accepted);
        }
    }

    /// Drops the budgets of all agents but these; a budget that is not full is kept, because dropping it would
    /// refill it.
    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        let now = Instant::now();
        let gone = blocking::copy_in_slices(|| self.lock_budgets(), |agent, _| agent.clone());
        let gone = blocking::in_slices(gone).filter(|agent| !agents(agent));
        for agent in gone {
            let mut budgets = self.lock_budgets();
            if budgets.get_mut(&agent).is_some_and(|budget| budget.as_mut().is_none_or(|it| it.is_full(now)))
            {
                budgets.remove(&agent);
            }
        }
    }

    fn lock_budgets(&self) -> MappedMutexGuard<'_, BTreeMap<SharedStr, Option<Box<RefusalBudget>>>> {
        MutexGuard::map(self.state.lock(), |state| &mut state.refusal_budgets)
    }
}

impl State {
    fn refusal_budget(&mut self, agent: &SharedStr, now: Instant) -> &mut RefusalBudget {
        let budget = self.refusal_budgets.entry(agent.clone()).or_default();
        budget.get_or_insert_with(|| Box::new(RefusalBudget::new(now)))
    }
}

#[cfg(test)]
impl RefreshBudget {
    /// Whether a refresh is left for a path that had accepted the token.
    pub(super) fn has_remaining(&self, agent: &SharedStr, now: Instant) -> bool {
        self.state.lock().refusal_budget(agent, now).has_remaining(now)
    }
}
