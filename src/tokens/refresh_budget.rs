//! What each renewal counts against, beyond an agent's first token and each expiry: its agent's renewals, and the hour's
//! renewals of all agents together. What fails for the address, or ahead of time, is counted elsewhere (`failures`, the
//! backoff).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{
    hourly_window::{HourlyWindow, Priority},
    refusal_budget::RefusalBudget,
};

/// Renewals ahead of the expiry of one token. The first counts as that expiry's own.
pub(super) const MAX_PROACTIVE_REFRESHES: u8 = 2;
/// Renewals an hour where the configuration says nothing: so many, or so many for each agent in use.
const MIN_REFRESHES_PER_HOUR: usize = 300;
const REFRESHES_PER_HOUR_PER_AGENT: usize = 3;

/// What a renewal counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BudgetClass {
    /// Nothing: an agent's first token, also with a changed secret, and each expiry.
    Free,
    /// Nothing, whatever has failed before: an operator's order.
    Operator,
    /// Its agent and the hour.
    Refusal {
        /// The path that refused the token had accepted it before.
        was_accepted: bool,
    },
    /// The hour: a second renewal ahead of an expiry, a repeated one after it.
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

    /// Whether it counts against its agent, and whether what is reserved for refusals of tokens that had worked is for it.
    fn uses_agent_reserve(self) -> Option<bool> {
        match self {
            Self::Refusal { was_accepted: worked } => Some(worked),
            Self::Free | Self::Operator | Self::Repeated => None,
        }
    }
}

/// What was taken for one renewal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge {
    pub(super) class: BudgetClass,
    charged_at: Instant,
}

/// The shares of all agents.
#[derive(Debug)]
pub(super) struct RefreshBudget {
    /// As configured.
    max_per_hour: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hourly_window: HourlyWindow,
    /// The agents that have asked for a token. What they have left outlives a changed secret.
    refusal_budgets: HashMap<Box<str>, RefusalBudget>,
}

impl RefreshBudget {
    /// `hourly` renewals in an hour, or as many as the agents in use need.
    pub(super) fn new(hourly: Option<u32>) -> Self {
        Self { max_per_hour: hourly.map(|hourly| hourly as usize), state: Mutex::default() }
    }

    /// Notes that this agent asks for tokens.
    pub(super) fn register_agent(&self, agent: &str) {
        self.state().refusal_budget(agent, Instant::now());
    }

    /// Takes what a renewal counts against; else when there will be enough.
    pub(super) fn try_charge(
        &self,
        agent: &str,
        share: BudgetClass,
        now: Instant,
    ) -> Result<Charge, Instant> {
        let mut state = self.state();
        let charge = Charge { class: share, charged_at: now };
        if let Some(worked) = share.uses_agent_reserve() {
            state.refusal_budget(agent, now).try_acquire(now, worked)?;
        }
        if let Some(class) = share.hourly_priority() {
            let most = self.max_per_hour.unwrap_or(
                MIN_REFRESHES_PER_HOUR.max(REFRESHES_PER_HOUR_PER_AGENT * state.refusal_budgets.len()),
            );
            if let Err(until) = state.hourly_window.try_acquire(now, class, most) {
                drop(state);
                self.refund_agent(agent, share);
                return Err(until);
            }
        }
        Ok(charge)
    }

    /// Gives back what was taken for a renewal that brought nothing.
    pub(super) fn refund(&self, agent: &str, charge: Charge) {
        self.refund_agent(agent, charge.class);
        if let Some(class) = charge.class.hourly_priority() {
            self.state().hourly_window.release(charge.charged_at, class);
        }
    }

    fn refund_agent(&self, agent: &str, share: BudgetClass) {
        if let Some(worked) = share.uses_agent_reserve() {
            self.state().refusal_budget(agent, Instant::now()).release(worked);
        }
    }

    /// Drops what is known of all agents but these, except where something would be forgotten that was spent.
    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        let now = Instant::now();
        self.state().refusal_budgets.retain(|agent, left| agents(agent) || !left.is_full(now));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refusal_budget(&mut self, agent: &str, now: Instant) -> &mut RefusalBudget {
        self.refusal_budgets.entry(agent.into()).or_insert_with(|| RefusalBudget::new(now))
    }
}

#[cfg(test)]
impl RefreshBudget {
    /// Whether one is left to a path on which the agent's token had worked.
    pub(super) fn has_remaining(&self, agent: &str, now: Instant) -> bool {
        self.state().refusal_budget(agent, now).has_remaining(now)
    }
}
