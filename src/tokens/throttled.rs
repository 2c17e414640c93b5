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

use super::ceil_seconds;

/// The first line waits so long for others that are held back at the same time.
const GATHER_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two lines while any agent is held back.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Agents that one line names.
const MAX_LOGGED_AGENTS: usize = 20;

/// By agent, when its next renewal may be tried.
#[derive(Debug, Default)]
pub(super) struct ThrottledAgents(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    retry_times: BTreeMap<Box<str>, Instant>,
    is_logging: bool,
}

impl ThrottledAgents {
    /// Notes that a renewal of this agent is held back, and logs it on `runtime`.
    pub(super) fn insert(self: &Arc<Self>, agent: &str, until: Instant, runtime: &Handle) {
        let mut state = self.state();
        match state.retry_times.get_mut(agent) {
            Some(known) => *known = until,
            None => {
                state.retry_times.insert(agent.into(), until);
            }
        }
        if !std::mem::replace(&mut state.is_logging, true) {
            runtime.spawn(self.clone().run_log());
        }
    }

    /// Notes that this agent's token was renewed.
    pub(super) fn remove(&self, agent: &str) {
        self.state().retry_times.remove(agent);
    }

    /// When this agent's next renewal may be tried, while it is held back.
    pub(super) fn retry_at(&self, agent: &str, now: Instant) -> Option<Instant> {
        self.state().retry_times.get(agent).copied().filter(|until| now < *until)
    }

    /// All that are held back, by name.
    pub(super) fn snapshot(&self, now: Instant) -> Vec<(String, Duration)> {
        let mut state = self.state();
        state.retry_times.retain(|_, until| now < *until);
        state.retry_times.iter().map(|(agent, until)| (agent.to_string(), *until - now)).collect()
    }

    /// Drops all agents but these.
    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        self.state().retry_times.retain(|agent, _| agents(agent));
    }

    async fn run_log(self: Arc<Self>) {
        sleep(GATHER_INTERVAL).await;
        loop {
            let held = self.snapshot(Instant::now());
            let Some(first) = held.iter().map(|(_, wait)| *wait).min() else {
                let mut state = self.state();
                // One that came after the look has found the log still on.
                if state.retry_times.is_empty() {
                    state.is_logging = false;
                    return;
                }
                continue;
            };
            let named = held.iter().take(MAX_LOGGED_AGENTS);
            let named: Vec<_> = named
                .map(|(agent, wait)| format!("{agent} (next try in {} s)", ceil_seconds(*wait)))
                .collect();
            tracing::warn!(
                agents = named.join(", "),
                not_named = held.len().checked_sub(MAX_LOGGED_AGENTS).filter(|more| *more > 0),
                held = held.len(),
                next_try_in_s = ceil_seconds(first),
                "token renewals held back: too many were needed; callers get the refusal of their token"
            );
            sleep(LOG_INTERVAL).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
