//! The agents whose refreshes are throttled by a budget, and the log message about them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::ceil_seconds;
use crate::blocking;

/// Wait before the first message, so that it lists all agents that are throttled at the same time.
const GATHER_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two messages while any agent is throttled.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Agents listed in one message.
const MAX_LOGGED_AGENTS: usize = 20;

/// By agent, when its next refresh may be tried.
#[derive(Debug, Default)]
pub(super) struct ThrottledAgents(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    retry_times: BTreeMap<Box<str>, Instant>,
    is_logging: bool,
}

impl ThrottledAgents {
    /// Adds a throttled agent; the message is logged by a task on `runtime`.
    pub(super) fn insert(self: &Arc<Self>, agent: &str, retry_at: Instant, runtime: &Handle) {
        let mut state = self.0.lock();
        match state.retry_times.get_mut(agent) {
            Some(known) => *known = retry_at,
            None => {
                state.retry_times.insert(agent.into(), retry_at);
            }
        }
        if !std::mem::replace(&mut state.is_logging, true) {
            runtime.spawn(self.clone().run_log());
        }
    }

    /// Removes an agent whose refresh was made, with or without success.
    pub(super) fn remove(&self, agent: &str) {
        self.0.lock().retry_times.remove(agent);
    }

    /// When this agent's next refresh may be tried, while it is throttled.
    pub(super) fn retry_at(&self, agent: &str, now: Instant) -> Option<Instant> {
        self.0.lock().retry_times.get(agent).copied().filter(|retry_at| now < *retry_at)
    }

    fn lock_retry_times(&self) -> MappedMutexGuard<'_, BTreeMap<Box<str>, Instant>> {
        MutexGuard::map(self.0.lock(), |state| &mut state.retry_times)
    }

    /// All throttled agents, by name.
    pub(super) fn snapshot(&self, now: Instant) -> Vec<(String, Duration)> {
        let mut state = self.0.lock();
        state.retry_times.retain(|_, retry_at| now < *retry_at);
        state.retry_times.iter().map(|(agent, retry_at)| (agent.to_string(), *retry_at - now)).collect()
    }

    /// Drops all agents but these.
    pub(super) fn retain(&self, agents: impl Fn(&str) -> bool) {
        blocking::retain_in_slices(|| self.lock_retry_times(), |agent| agents(agent));
    }

    async fn run_log(self: Arc<Self>) {
        sleep(GATHER_INTERVAL).await;
        loop {
            let throttled = self.snapshot(Instant::now());
            let Some(first) = throttled.iter().map(|(_, wait)| *wait).min() else {
                let mut state = self.0.lock();
                // An agent added after the snapshot has found `is_logging` set and started no task.
                if state.retry_times.is_empty() {
                    state.is_logging = false;
                    return;
                }
                continue;
            };
            let listed = throttled.iter().take(MAX_LOGGED_AGENTS);
            let listed: Vec<_> = listed
                .map(|(agent, wait)| format!("{agent} (next try in {} s)", ceil_seconds(*wait)))
                .collect();
            tracing::warn!(
                agents = listed.join(", "),
                not_named = throttled.len().checked_sub(MAX_LOGGED_AGENTS).filter(|more| *more > 0),
                held = throttled.len(),
                next_try_in_s = ceil_seconds(first),
                "token refreshes throttled by a budget; callers get WeCom's refusal, or 503 where there is no token"
            );
            sleep(LOG_INTERVAL).await;
        }
    }
}
