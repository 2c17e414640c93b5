//! `check --online`: checks each agent at WeCom as `serve` would call it, and the shared store. Changes nothing.
//!
//! Sends one gettoken and one read-only call for each agent, one agent after another, and stops before repeated
//! failures could get this machine's IP address banned.

mod probe;
mod problem;
mod store_check;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use self::probe::Probe;
pub use self::{
    problem::Problem,
    store_check::{StoreFinding, StoreHint},
};
use crate::{
    config::{AgentConfig, Config},
    tokens::{
        Credentials,
        fetch::{self, GettokenClient},
    },
    upstream::{Settings, Upstream},
    wecom::errcode,
};

/// The check stops after this many consecutive failures of a kind that the next agent may share.
const MAX_CONSECUTIVE_FAILURES: u32 = 3;
/// A smaller clock skew is not reported.
const MAX_CLOCK_SKEW_SECONDS: i64 = 60;

/// The results of the check.
#[derive(Debug)]
pub struct OnlineReport {
    /// One result per agent, in the order of their names.
    pub agents: Vec<AgentFinding>,
    /// Why the remaining agents were skipped.
    pub stopped: Option<StopReason>,
    /// Seconds that this machine's clock is ahead of WeCom's, if known; negative: behind.
    pub clock_ahead_seconds: Option<i64>,
    /// The result for the shared store, if one is configured.
    pub store: Option<StoreFinding>,
}

impl OnlineReport {
    /// Whether every agent was checked and works, and the store works.
    pub fn is_ok(&self) -> bool {
        self.agents.iter().all(|finding| matches!(finding.outcome, AgentOutcome::Passed))
            && self.is_store_ok()
    }

    /// Whether the store works, or there is none.
    pub fn is_store_ok(&self) -> bool {
        self.store.as_ref().is_none_or(StoreFinding::is_ok)
    }

    /// The clock skew in seconds, if it exceeds [`MAX_CLOCK_SKEW_SECONDS`].
    pub fn clock_skew_seconds(&self) -> Option<i64> {
        self.clock_ahead_seconds.filter(|ahead| ahead.abs() > MAX_CLOCK_SKEW_SECONDS)
    }
}

/// The result for one agent.
#[derive(Debug)]
pub struct AgentFinding {
    /// The agent's name.
    pub agent: String,
    /// The call that checks its token.
    pub call: &'static str,
    /// The outcome.
    pub outcome: AgentOutcome,
    /// The duration of both calls.
    pub duration: Duration,
}

/// The outcome for one agent.
#[derive(Debug)]
pub enum AgentOutcome {
    /// gettoken and the call with the token succeeded.
    Passed,
    /// gettoken failed.
    GettokenFailed(Problem),
    /// gettoken succeeded, but the call with the token failed.
    ProbeFailed(Problem),
    /// Not checked: see [`OnlineReport::stopped`].
    Skipped,
}

impl AgentOutcome {
    /// The failure, if there was one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::GettokenFailed(problem) | Self::ProbeFailed(problem) => Some(problem),
            Self::Passed | Self::Skipped => None,
        }
    }
}

/// Why the check stopped early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// WeCom reported too many calls.
    #[error("WeCom reports too many calls, and more would get this IP address banned; try again later")]
    RateLimited,
    /// Several credentials were refused.
    #[error(
        "three agents in a row were refused, and repeated failures get this IP address banned; fix these first"
    )]
    CredentialsRefused,
    /// Connecting to WeCom failed.
    #[error("WeCom cannot be reached, for any agent")]
    Unreachable,
    /// Several calls got no valid response.
    #[error("three agents in a row got no valid response")]
    NoResponses,
}

impl StopReason {
    /// A stable identifier for programs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::RateLimited => "frequency",
            Self::CredentialsRefused => "refusals",
            Self::Unreachable => "unreachable",
            Self::NoResponses => "no-answers",
        }
    }
}

/// Checks every agent of `config` through `upstream`, and the store.
pub async fn run(config: &Config, upstream: &Arc<Settings>) -> OnlineReport {
    let store = store_check::check_store(config).await;
    let mut report = OnlineReport { agents: Vec::new(), stopped: None, clock_ahead_seconds: None, store };
    let mut streak = FailureStreak::default();
    for agent in config.agents.values() {
        let probe = Probe::for_agent(agent);
        let start = Instant::now();
        let outcome = match report.stopped {
            Some(_) => AgentOutcome::Skipped,
            None => {
                let call_timeout = fetch::call_timeout(&config.upstream);
                let (date, outcome) = check_agent(agent, &probe, upstream, call_timeout).await;
                report.clock_ahead_seconds =
                    report.clock_ahead_seconds.or_else(|| date.map(clock_ahead_seconds));
                outcome
            }
        };
        report.stopped = report.stopped.or(streak.record_outcome(&outcome));
        let (agent, call) = (agent.name.clone(), probe.name());
        report.agents.push(AgentFinding { agent, call, outcome, duration: start.elapsed() });
    }
    report
}

/// Sends one gettoken and one call with the token. Each agent gets new connections: on a reused one, gettoken might
/// have to be sent twice.
async fn check_agent(
    agent: &AgentConfig,
    probe: &Probe,
    upstream: &Arc<Settings>,
    call_timeout: Duration,
) -> (Option<SystemTime>, AgentOutcome) {
    let client = GettokenClient::new(Upstream::new(upstream.clone()), call_timeout);
    let credentials = Credentials { corpid: agent.corpid.clone(), secret: agent.secret.clone() };
    let (date, response) = client.fetch(&credentials).await;
    let outcome = match response {
        Err(error) => AgentOutcome::GettokenFailed(error.into()),
        Ok(response) => match probe.send(client.upstream(), &response.token, call_timeout).await {
            Err(problem) => AgentOutcome::ProbeFailed(problem),
            Ok(()) => AgentOutcome::Passed,
        },
    };
    (date, outcome)
}

fn clock_ahead_seconds(date: SystemTime) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    SystemTime::now().duration_since(date).map_or_else(|error| -seconds(error.duration()), seconds)
}

/// Consecutive failures.
#[derive(Default)]
struct FailureStreak {
    refusals: u32,
    no_responses: u32,
}

impl FailureStreak {
    fn record_outcome(&mut self, outcome: &AgentOutcome) -> Option<StopReason> {
        match outcome.problem() {
            Some(Problem::Refused { errcode, .. }) if errcode::is_rate_limit(*errcode) => {
                return Some(StopReason::RateLimited);
            }
            Some(Problem::Unreachable(_)) => return Some(StopReason::Unreachable),
            Some(Problem::Refused { errcode, .. }) if errcode::is_credential_or_rate_limit(*errcode) => {
                *self = Self { refusals: self.refusals + 1, no_responses: 0 };
            }
            Some(Problem::NoResponse(_) | Problem::InvalidResponse(_)) => {
                *self = Self { refusals: 0, no_responses: self.no_responses + 1 };
            }
            Some(Problem::Refused { .. } | Problem::AppDisabled) | None => *self = Self::default(),
        }
        match (self.refusals, self.no_responses) {
            (MAX_CONSECUTIVE_FAILURES, _) => Some(StopReason::CredentialsRefused),
            (_, MAX_CONSECUTIVE_FAILURES) => Some(StopReason::NoResponses),
            _ => None,
        }
    }
}
