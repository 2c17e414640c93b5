//! The doctor: asks WeCom about each agent, as `serve` would, tries the store that replicas share, and says what is wrong. It
//! changes nothing, there or here.
//!
//! For each agent one gettoken and one harmless call leave, one agent after another, and it stops where going on could
//! get this machine's address banned.

mod harmless;
mod problem;
mod shared;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use self::harmless::Harmless;
pub use self::{
    problem::Problem,
    shared::{StoreFinding, StoreHint},
};
use crate::{
    config::{Agent, Config},
    tokens::{
        Credentials,
        fetch::{self, Asker},
    },
    upstream::{Settings, Upstream},
    wecom::errcode,
};

/// After so many failures of a kind that the next agent may share, one behind the other, no more agents are asked.
const MOST_IN_A_ROW: u32 = 3;
/// A clock that is wrong by less is not spoken of.
const TOLERABLE_SKEW: i64 = 60;

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Each agent, in the order of their names.
    pub agents: Vec<Finding>,
    /// Why the agents after some point were not asked.
    pub stopped: Option<Stop>,
    /// How many seconds this machine's clock is ahead of WeCom's, where it is known; negative: behind.
    pub clock_ahead: Option<i64>,
    /// The store that replicas share, where there is one.
    pub store: Option<StoreFinding>,
}

impl Report {
    /// Whether every agent was asked and works, and the store does.
    pub fn is_fine(&self) -> bool {
        self.agents.iter().all(|finding| matches!(finding.outcome, Outcome::Fine)) && self.is_store_fine()
    }

    /// Whether the store works, or there is none.
    pub fn is_store_fine(&self) -> bool {
        self.store.as_ref().is_none_or(StoreFinding::is_fine)
    }

    /// How far the clock is off, where that is too far.
    pub fn wrong_clock(&self) -> Option<i64> {
        self.clock_ahead.filter(|ahead| ahead.abs() > TOLERABLE_SKEW)
    }
}

/// What was found of one agent.
#[derive(Debug)]
pub struct Finding {
    /// Its name.
    pub agent: String,
    /// The harmless call that is made with its token.
    pub call: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// How it went with one agent.
#[derive(Debug)]
pub enum Outcome {
    /// It has a token, and a call with it succeeds.
    Fine,
    /// gettoken failed.
    NoToken(Problem),
    /// There is a token, but the harmless call failed.
    NoCall(Problem),
    /// It was not asked about: see [`Report::stopped`].
    NotAsked,
}

impl Outcome {
    /// What is wrong, where something is.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::NoToken(problem) | Self::NoCall(problem) => Some(problem),
            Self::Fine | Self::NotAsked => None,
        }
    }
}

/// Why no more agents were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// WeCom says that there were too many calls.
    #[error("WeCom says that there are too many calls, and bans the address that goes on; come back later")]
    Frequency,
    /// Several credentials were refused.
    #[error(
        "three agents in a row were refused, and WeCom bans the address of who repeats that; put these right first"
    )]
    Refusals,
    /// There is no way to WeCom.
    #[error("WeCom cannot be reached, whichever agent asks")]
    Unreachable,
    /// Several calls had no good answer.
    #[error("three agents in a row had no good answer")]
    NoAnswers,
}

impl Stop {
    /// One word for programs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Frequency => "frequency",
            Self::Refusals => "refusals",
            Self::Unreachable => "unreachable",
            Self::NoAnswers => "no-answers",
        }
    }
}

/// Asks about every agent of `config`, through `upstream`, and tries the store.
pub async fn examine(config: &Config, upstream: &Arc<Settings>) -> Report {
    let store = shared::examine(config).await;
    let mut report = Report { agents: Vec::new(), stopped: None, clock_ahead: None, store };
    let mut run = Run::default();
    for agent in config.agents.values() {
        let call = Harmless::of(agent);
        let began = Instant::now();
        let outcome = match report.stopped {
            Some(_) => Outcome::NotAsked,
            None => {
                let (date, outcome) = ask(agent, &call, upstream, fetch::patience(&config.upstream)).await;
                report.clock_ahead = report.clock_ahead.or_else(|| date.map(ahead_of));
                outcome
            }
        };
        report.stopped = report.stopped.or(run.stop_after(&outcome));
        let (agent, call) = (agent.name.clone(), call.name());
        report.agents.push(Finding { agent, call, outcome, took: began.elapsed() });
    }
    report
}

/// One gettoken and one harmless call. The connections are the agent's own: on one that was kept from before, a gettoken
/// might have to be sent twice.
async fn ask(
    agent: &Agent,
    call: &Harmless,
    upstream: &Arc<Settings>,
    patience: Duration,
) -> (Option<SystemTime>, Outcome) {
    let asker = Asker::new(Upstream::new(upstream.clone()), patience);
    let credentials = Credentials { corpid: agent.corpid.clone(), secret: agent.secret.clone() };
    let (date, grant) = asker.ask(&credentials).await;
    let outcome = match grant {
        Err(failure) => Outcome::NoToken(failure.into()),
        Ok(grant) => match call.make(asker.upstream(), &grant.token, patience).await {
            Err(problem) => Outcome::NoCall(problem),
            Ok(()) => Outcome::Fine,
        },
    };
    (date, outcome)
}

fn ahead_of(date: SystemTime) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    SystemTime::now().duration_since(date).map_or_else(|error| -seconds(error.duration()), seconds)
}

/// Failures one behind the other.
#[derive(Default)]
struct Run {
    refusals: u32,
    no_answers: u32,
}

impl Run {
    fn stop_after(&mut self, outcome: &Outcome) -> Option<Stop> {
        match outcome.problem() {
            Some(Problem::Refused { errcode, .. }) if errcode::is_frequency(*errcode) => {
                return Some(Stop::Frequency);
            }
            Some(Problem::Unreachable(_)) => return Some(Stop::Unreachable),
            Some(Problem::Refused { errcode, .. }) if errcode::is_credential_or_frequency(*errcode) => {
                *self = Self { refusals: self.refusals + 1, no_answers: 0 };
            }
            Some(Problem::NoAnswer(_) | Problem::Senseless(_)) => {
                *self = Self { refusals: 0, no_answers: self.no_answers + 1 };
            }
            Some(Problem::Refused { .. } | Problem::Disabled) | None => *self = Self::default(),
        }
        match (self.refusals, self.no_answers) {
            (MOST_IN_A_ROW, _) => Some(Stop::Refusals),
            (_, MOST_IN_A_ROW) => Some(Stop::NoAnswers),
            _ => None,
        }
    }
}
