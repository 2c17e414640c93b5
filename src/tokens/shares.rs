//! What each renewal counts against, beyond an agent's first token and each expiry: its agent's renewals, and the hour's
//! renewals of all agents together. What fails for the address, or ahead of time, is counted elsewhere (`failures`, the
//! backoff).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{
    hourly::{Class, Hourly},
    refusals::Refusals,
};

/// Renewals ahead of the expiry of one token. The first counts as that expiry's own.
pub(super) const AHEAD: u8 = 2;
/// Renewals an hour where the configuration says nothing: so many, or so many for each agent in use.
const MIN_HOURLY: usize = 300;
const HOURLY_PER_AGENT: usize = 3;

/// What a renewal counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Nothing: an agent's first token, also with a changed secret, and each expiry.
    Free,
    /// Nothing, whatever has failed before: an operator's order.
    Operator,
    /// Its agent and the hour.
    Refusal {
        /// The path that refused the token had accepted it before.
        worked: bool,
    },
    /// The hour: a second renewal ahead of an expiry, a repeated one after it.
    Other,
}

impl Share {
    fn class(self) -> Option<Class> {
        match self {
            Self::Free | Self::Operator => None,
            Self::Refusal { worked: true } => Some(Class::Worked),
            Self::Refusal { worked: false } | Self::Other => Some(Class::Other),
        }
    }

    /// Whether it counts against its agent, and whether what is reserved for refusals of tokens that had worked is for it.
    fn of_agent(self) -> Option<bool> {
        match self {
            Self::Refusal { worked } => Some(worked),
            Self::Free | Self::Operator | Self::Other => None,
        }
    }
}

/// What was taken for one renewal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge {
    pub(super) share: Share,
    at: Instant,
}

/// The shares of all agents.
#[derive(Debug)]
pub(super) struct Shares {
    /// As configured.
    hourly: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hourly: Hourly,
    /// The agents that have asked for a token. What they have left outlives a changed secret.
    agents: HashMap<Box<str>, Refusals>,
}

impl Shares {
    /// `hourly` renewals in an hour, or as many as the agents in use need.
    pub(super) fn new(hourly: Option<u32>) -> Self {
        Self { hourly: hourly.map(|hourly| hourly as usize), state: Mutex::default() }
    }

    /// Notes that this agent asks for tokens.
    pub(super) fn note_in_use(&self, agent: &str) {
        self.state().left(agent, Instant::now());
    }

    /// Takes what a renewal counts against; else when there will be enough.
    pub(super) fn take(&self, agent: &str, share: Share, now: Instant) -> Result<Charge, Instant> {
        let mut state = self.state();
        let charge = Charge { share, at: now };
        if let Some(worked) = share.of_agent() {
            state.left(agent, now).take(now, worked)?;
        }
        if let Some(class) = share.class() {
            let most = self.hourly.unwrap_or(MIN_HOURLY.max(HOURLY_PER_AGENT * state.agents.len()));
            if let Err(until) = state.hourly.take(now, class, most) {
                drop(state);
                self.give_back_to_agent(agent, share);
                return Err(until);
            }
        }
        Ok(charge)
    }

    /// Gives back what was taken for a renewal that brought nothing.
    pub(super) fn give_back(&self, agent: &str, charge: Charge) {
        self.give_back_to_agent(agent, charge.share);
        if let Some(class) = charge.share.class() {
            self.state().hourly.give_back(charge.at, class);
        }
    }

    fn give_back_to_agent(&self, agent: &str, share: Share) {
        if let Some(worked) = share.of_agent() {
            self.state().left(agent, Instant::now()).give_back(worked);
        }
    }

    /// Drops what is known of all agents but these, except where something would be forgotten that was spent.
    pub(super) fn keep(&self, agents: impl Fn(&str) -> bool) {
        let now = Instant::now();
        self.state().agents.retain(|agent, left| agents(agent) || !left.is_full(now));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn left(&mut self, agent: &str, now: Instant) -> &mut Refusals {
        self.agents.entry(agent.into()).or_insert_with(|| Refusals::new(now))
    }
}

#[cfg(test)]
impl Shares {
    /// Whether one is left to a path on which the agent's token had worked.
    pub(super) fn has_any(&self, agent: &str, now: Instant) -> bool {
        self.state().left(agent, now).has_any(now)
    }
}
