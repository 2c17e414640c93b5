//! Which agents' renewals are held back because a share is spent, and the log of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::whole_seconds;

/// The first line waits so long for others that are held back at the same time.
const GATHER: Duration = Duration::from_secs(1);
/// Time between two lines while any agent is held back.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Agents that one line names.
const MAX_NAMED: usize = 20;

/// By agent, when its next renewal may be tried.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    agents: BTreeMap<Box<str>, Instant>,
    logging: bool,
}

impl Held {
    /// Notes that a renewal of this agent is held back, and logs it on `runtime`.
    pub(super) fn note(self: &Arc<Self>, agent: &str, until: Instant, runtime: &Handle) {
        let mut state = self.state();
        match state.agents.get_mut(agent) {
            Some(known) => *known = until,
            None => {
                state.agents.insert(agent.into(), until);
            }
        }
        if !std::mem::replace(&mut state.logging, true) {
            runtime.spawn(self.clone().log());
        }
    }

    /// Notes that this agent's token was renewed.
    pub(super) fn clear(&self, agent: &str) {
        self.state().agents.remove(agent);
    }

    /// When this agent's next renewal may be tried, while it is held back.
    pub(super) fn until(&self, agent: &str, now: Instant) -> Option<Instant> {
        self.state().agents.get(agent).copied().filter(|until| now < *until)
    }

    /// All that are held back, by name.
    pub(super) fn all(&self, now: Instant) -> Vec<(String, Duration)> {
        let mut state = self.state();
        state.agents.retain(|_, until| now < *until);
        state.agents.iter().map(|(agent, until)| (agent.to_string(), *until - now)).collect()
    }

    /// Drops all agents but these.
    pub(super) fn keep(&self, agents: impl Fn(&str) -> bool) {
        self.state().agents.retain(|agent, _| agents(agent));
    }

    async fn log(self: Arc<Self>) {
        sleep(GATHER).await;
        loop {
            let held = self.all(Instant::now());
            let Some(first) = held.iter().map(|(_, wait)| *wait).min() else {
                let mut state = self.state();
                // One that came after the look has found the log still on.
                if state.agents.is_empty() {
                    state.logging = false;
                    return;
                }
                continue;
            };
            let named = held.iter().take(MAX_NAMED);
            let named: Vec<_> = named
                .map(|(agent, wait)| format!("{agent} (next try in {} s)", whole_seconds(*wait)))
                .collect();
            tracing::warn!(
                agents = named.join(", "),
                not_named = held.len().checked_sub(MAX_NAMED).filter(|more| *more > 0),
                held = held.len(),
                next_try_in_s = whole_seconds(first),
                "token renewals held back: too many were needed; callers get the refusal of their token"
            );
            sleep(LOG_INTERVAL).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
