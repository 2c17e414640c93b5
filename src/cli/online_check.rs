//! `check --online`: checks each agent at WeCom as `serve` would call it, and the shared store. Changes nothing.
//!
//! Sends one gettoken and one read-only call for each agent, one agent after another, and stops before repeated
//! failures could get this machine's IP address banned.

mod callback_check;
mod probe;
mod problem;
mod store_check;
mod suites_check;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use self::{
    callback_check::{CallbackAddresses, check_callbacks},
    probe::{Probe, fetch_callback_addresses},
};
pub use self::{
    callback_check::{CallbackFinding, CallbackProblem},
    problem::Problem,
    store_check::{StoreFinding, StoreHint},
    suites_check::{CommandUrlFinding, SuiteFinding, SuiteUrls, TicketFinding, TokenFinding},
};
use crate::{
    config::{AgentConfig, Config, SourcedSecret},
    directory,
    secret::Masked,
    text,
    text::Text,
    tokens::fetch::GettokenClient,
    upstream::Settings,
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
    /// One result for each provider and then each suite, in the order of their names.
    pub suites: Vec<SuiteFinding>,
    /// Why the remaining agents of an upstream were skipped; the first reason, if there are several.
    pub stopped: Option<StopReason>,
    /// Seconds that this machine's clock is ahead of WeCom's, if known; negative: behind.
    pub clock_ahead_seconds: Option<i64>,
    /// The result for the shared store, if one is configured.
    pub store: Option<StoreFinding>,
    /// One result per callback, in the order of their names.
    pub callbacks: Vec<CallbackFinding>,
}

impl OnlineReport {
    /// Whether every agent, provider and suite was checked and works, and the store and the callbacks work.
    pub fn is_ok(&self) -> bool {
        self.agents.iter().all(|finding| matches!(finding.outcome, AgentOutcome::Passed))
            && self.suites.iter().all(SuiteFinding::is_ok)
            && self.is_store_ok()
            && self.callbacks.iter().all(CallbackFinding::is_ok)
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
    /// Whether WeCom refused the first of two secrets and accepted the second one.
    pub uses_second_secret: bool,
    /// The duration of all calls.
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

    /// Whether WeCom refused the secret, so that another one is to be tried.
    fn is_wrong_secret(&self) -> bool {
        matches!(self, Self::GettokenFailed(Problem::Refused { errcode, .. })
            if errcode::is_credential_or_rate_limit(*errcode) && !errcode::is_rate_limit(*errcode))
    }
}

/// Why the check stopped early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// WeCom reported too many calls.
    RateLimited,
    /// Several credentials were refused.
    CredentialsRefused,
    /// Connecting to WeCom failed.
    Unreachable,
    /// Several calls got no valid response.
    NoResponses,
}

impl StopReason {
    /// Why, and what to do.
    pub fn text(self) -> Text {
        match self {
            Self::RateLimited => text!(
                "WeCom reports too many calls, and more would get this IP address banned; try again later",
                "企业微信报告调用太多，继续下去本机 IP 会被封禁；请稍后再试"
            ),
            Self::CredentialsRefused => text!(
                "three agents in a row were refused, and repeated failures get this IP address banned; fix these first",
                "连续三个应用被拒绝，失败过多会使本机 IP 被封禁；请先修正它们"
            ),
            Self::Unreachable => {
                text!("WeCom cannot be reached, for any agent", "任何应用都无法连接企业微信")
            }
            Self::NoResponses => {
                text!("three agents in a row got no valid response", "连续三个应用没有得到有效响应")
            }
        }
    }

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

/// Which agents are checked, and how far.
#[derive(Debug, Clone, Copy, Default)]
pub struct AgentSelection<'a> {
    /// Their names; empty for all.
    pub names: &'a [String],
    /// Whether repeated failures do not stop the check.
    pub keep_going: bool,
}

/// Checks the agents of `config` at their upstreams, of which `upstreams` has the settings, and the store.
pub async fn run(
    config: &Config,
    upstreams: &[Arc<Settings>],
    selection: AgentSelection<'_>,
) -> OnlineReport {
    let store = store_check::check_store(config).await;
    let mut report = OnlineReport {
        agents: Vec::new(),
        suites: Vec::new(),
        stopped: None,
        clock_ahead_seconds: None,
        store,
        callbacks: Vec::new(),
    };
    let mut addresses: CallbackAddresses = Err(None);
    let mut streaks: Vec<_> = upstreams.iter().map(|_| FailureStreak::default()).collect();
    let is_selected =
        |name: &str| selection.names.is_empty() || selection.names.iter().any(|known| known == name);
    for agent in config.agents.values().filter(|agent| is_selected(&agent.name)) {
        let probe = Probe::for_agent(agent);
        let start = Instant::now();
        let nth = agent.upstream.index();
        let (mut outcome, mut uses_second_secret) = (AgentOutcome::Skipped, false);
        if streaks[nth].stopped.is_none() {
            for (place, secret) in agent.secrets.iter().enumerate() {
                let (date, checked, token) = check_agent(agent, secret, &probe, &upstreams[nth]).await;
                // One answer serves all: WeCom's addresses are the same for each corp.
                if let (Some(token), Err(_), false) = (token, &addresses, config.callbacks.is_empty()) {
                    addresses = fetch_callback_addresses(&upstreams[nth], agent, &token).await.map_err(Some);
                }
                report.clock_ahead_seconds =
                    report.clock_ahead_seconds.or_else(|| date.map(clock_ahead_seconds));
                (outcome, uses_second_secret) = (checked, place > 0);
                if !outcome.is_wrong_secret() {
                    break;
                }
            }
        }
        if !selection.keep_going {
            report.stopped = report.stopped.or(streaks[nth].record(outcome.problem()));
        }
        uses_second_secret &= !outcome.is_wrong_secret();
        let (agent, call, duration) = (agent.name.to_string(), probe.name(), start.elapsed());
        report.agents.push(AgentFinding { agent, call, outcome, uses_second_secret, duration });
    }
    let (suites, stopped) = suites_check::check_suites(config, &upstreams[0], &mut streaks[0]).await;
    (report.suites, report.stopped) = (suites, report.stopped.or(stopped));
    report.callbacks = check_callbacks(config, addresses).await;
    report
}

/// Sends one gettoken and one call with the token, which is returned if both succeed. Each agent gets new connections: on a reused one, gettoken might
/// have to be sent twice.
async fn check_agent(
    agent: &AgentConfig,
    secret: &SourcedSecret,
    probe: &Probe,
    upstream: &Arc<Settings>,
) -> (Option<SystemTime>, AgentOutcome, Option<Masked>) {
    let client = GettokenClient::new(upstream.clone());
    let call_timeout = client.timeout();
    let (date, response) = client.fetch(&directory::credentials(agent, secret)).await;
    let (outcome, token) = match response {
        Err(error) => (AgentOutcome::GettokenFailed(error.into()), None),
        Ok(response) => {
            match probe.send(client.upstream(), &agent.corpid, &response.token, call_timeout).await {
                Err(problem) => (AgentOutcome::ProbeFailed(problem), None),
                Ok(()) => (AgentOutcome::Passed, Some(response.token)),
            }
        }
    };
    (date, outcome, token)
}

fn clock_ahead_seconds(date: SystemTime) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    SystemTime::now().duration_since(date).map_or_else(|error| -seconds(error.duration()), seconds)
}

/// Consecutive failures at one upstream.
#[derive(Default)]
struct FailureStreak {
    refusals: u32,
    no_responses: u32,
    /// Why its remaining agents are skipped.
    stopped: Option<StopReason>,
}

impl FailureStreak {
    /// Returns why the remaining agents are skipped, if they are.
    fn record(&mut self, problem: Option<&Problem>) -> Option<StopReason> {
        self.stopped = self.stopped.or_else(|| self.stop_reason(problem));
        self.stopped
    }

    fn stop_reason(&mut self, problem: Option<&Problem>) -> Option<StopReason> {
        match problem {
            Some(Problem::Refused { errcode, .. }) if errcode::is_rate_limit(*errcode) => {
                return Some(StopReason::RateLimited);
            }
            Some(Problem::Unreachable(_)) => return Some(StopReason::Unreachable),
            Some(Problem::Refused { errcode, .. }) if errcode::is_credential_or_rate_limit(*errcode) => {
                (self.refusals, self.no_responses) = (self.refusals + 1, 0);
            }
            Some(Problem::NoResponse(_) | Problem::InvalidResponse(_)) => {
                (self.refusals, self.no_responses) = (0, self.no_responses + 1);
            }
            Some(Problem::Refused { .. } | Problem::AppDisabled) | None => {
                (self.refusals, self.no_responses) = (0, 0);
            }
        }
        match (self.refusals, self.no_responses) {
            (MAX_CONSECUTIVE_FAILURES, _) => Some(StopReason::CredentialsRefused),
            (_, MAX_CONSECUTIVE_FAILURES) => Some(StopReason::NoResponses),
            _ => None,
        }
    }
}
