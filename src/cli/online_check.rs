//! The doctor: asks WeCom about each agent, as `serve` would, tries the store that replicas share, and says what is wrong. It
//! changes nothing, there or here.
//!
//! For each agent one gettoken and one harmless call leave, one agent after another, and it stops where going on could
//! get this machine's address banned.

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

/// After so many failures of a kind that the next agent may share, one behind the other, no more agents are asked.
const MAX_CONSECUTIVE_FAILURES: u32 = 3;
/// A clock that is wrong by less is not spoken of.
const MAX_CLOCK_SKEW_SECONDS: i64 = 60;

/// What was found.
#[derive(Debug)]
pub struct OnlineReport {
    /// Each agent, in the order of their names.
    pub agents: Vec<AgentFinding>,
    /// Why the agents after some point were not asked.
    pub stopped: Option<StopReason>,
    /// How many seconds this machine's clock is ahead of WeCom's, where it is known; negative: behind.
    pub clock_ahead_seconds: Option<i64>,
    /// The store that replicas share, where there is one.
    pub store: Option<StoreFinding>,
}

impl OnlineReport {
    /// Whether every agent was asked and works, and the store does.
    pub fn is_ok(&self) -> bool {
        self.agents.iter().all(|finding| matches!(finding.outcome, AgentOutcome::Passed))
            && self.is_store_ok()
    }

    /// Whether the store works, or there is none.
    pub fn is_store_ok(&self) -> bool {
        self.store.as_ref().is_none_or(StoreFinding::is_ok)
    }

    /// How far the clock is off, where that is too far.
    pub fn clock_skew_seconds(&self) -> Option<i64> {
        self.clock_ahead_seconds.filter(|ahead| ahead.abs() > MAX_CLOCK_SKEW_SECONDS)
    }
}

/// What was found of one agent.
#[derive(Debug)]
pub struct AgentFinding {
    /// Its name.
    pub agent: String,
    /// The harmless call that is made with its token.
    pub call: &'static str,
    /// How it went.
    pub outcome: AgentOutcome,
    /// How long it took.
    pub duration: Duration,
}

/// How it went with one agent.
#[derive(Debug)]
pub enum AgentOutcome {
    /// It has a token, and a call with it succeeds.
    Passed,
    /// gettoken failed.
    GettokenFailed(Problem),
    /// There is a token, but the harmless call failed.
    ProbeFailed(Problem),
    /// It was not asked about: see [`Report::stopped`].
    Skipped,
}

impl AgentOutcome {
    /// What is wrong, where something is.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::GettokenFailed(problem) | Self::ProbeFailed(problem) => Some(problem),
            Self::Passed | Self::Skipped => None,
        }
    }
}

/// Why no more agents were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// WeCom says that there were too many calls.
    #[error("WeCom says that there are too many calls, and bans the address that goes on; come back later")]
    RateLimited,
    /// Several credentials were refused.
    #[error(
        "three agents in a row were refused, and WeCom bans the address of who repeats that; put these right first"
    )]
    CredentialsRefused,
    /// There is no way to WeCom.
    #[error("WeCom cannot be reached, whichever agent asks")]
    Unreachable,
    /// Several calls had no good answer.
    #[error("three agents in a row had no good answer")]
    NoResponses,
}

impl StopReason {
    /// One word for programs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::RateLimited => "frequency",
            Self::CredentialsRefused => "refusals",
            Self::Unreachable => "unreachable",
            Self::NoResponses => "no-answers",
        }
    }
}

/// Asks about every agent of `config`, through `upstream`, and tries the store.
pub async fn run(config: &Config, upstream: &Arc<Settings>) -> OnlineReport {
    let store = store_check::check_store(config).await;
    let mut report = OnlineReport { agents: Vec::new(), stopped: None, clock_ahead_seconds: None, store };
    let mut run = FailureStreak::default();
    for agent in config.agents.values() {
        let call = Probe::for_agent(agent);
        let began = Instant::now();
        let outcome = match report.stopped {
            Some(_) => AgentOutcome::Skipped,
            None => {
                let (date, outcome) =
                    check_agent(agent, &call, upstream, fetch::call_timeout(&config.upstream)).await;
                report.clock_ahead_seconds =
                    report.clock_ahead_seconds.or_else(|| date.map(clock_ahead_seconds));
                outcome
            }
        };
        report.stopped = report.stopped.or(run.record_outcome(&outcome));
        let (agent, call) = (agent.name.clone(), call.name());
        report.agents.push(AgentFinding { agent, call, outcome, duration: began.elapsed() });
    }
    report
}

/// One gettoken and one harmless call. The connections are the agent's own: on one that was kept from before, a gettoken
/// might have to be sent twice.
async fn check_agent(
    agent: &AgentConfig,
    call: &Probe,
    upstream: &Arc<Settings>,
    patience: Duration,
) -> (Option<SystemTime>, AgentOutcome) {
    let asker = GettokenClient::new(Upstream::new(upstream.clone()), patience);
    let credentials = Credentials { corpid: agent.corpid.clone(), secret: agent.secret.clone() };
    let (date, grant) = asker.fetch(&credentials).await;
    let outcome = match grant {
        Err(failure) => AgentOutcome::GettokenFailed(failure.into()),
        Ok(grant) => match call.send(asker.upstream(), &grant.token, patience).await {
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

/// Failures one behind the other.
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
