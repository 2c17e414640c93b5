//! The result as one JSON object for programs. Its fields are stable; docs/getting-started.md lists them.

use std::{collections::HashMap, path::Path};

use serde::Serialize;

use super::{
    Openness, allowed_agents, allowed_calls,
    callbacks::CallbackResultJson,
    problem_json::{ProblemJson, problem_json},
    suites_json::{SuiteJson, suites_json},
};
use crate::{
    cli::{
        PrepareError,
        online_check::{AgentFinding, AgentOutcome, OnlineReport, StopReason, StoreFinding, StoreHint},
    },
    config::{self, Config},
    text::{Language, Text},
};

#[derive(Serialize)]
struct CheckJson<'a> {
    file: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<DiagnosticJson<'a>>,
    /// All mistakes, the one in `error` among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<DiagnosticJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<DiagnosticJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agents: Option<Vec<AgentJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suites: Option<Vec<SuiteJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<Vec<ClientJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<OnlineJson<'a>>,
}

/// An error or warning about the file.
#[derive(Clone, Serialize)]
struct DiagnosticJson<'a> {
    file: String,
    line: Option<usize>,
    key: Option<&'a str>,
    what: String,
    what_zh: String,
}

impl<'a> DiagnosticJson<'a> {
    fn new(file: &Path, line: Option<usize>, key: Option<&'a str>, message: &Text) -> Self {
        Self {
            file: file.display().to_string(),
            line,
            key,
            what: message.english().to_owned(),
            what_zh: message.get(Language::Chinese).to_owned(),
        }
    }
}

impl<'a> From<&'a config::Error> for DiagnosticJson<'a> {
    fn from(error: &'a config::Error) -> Self {
        Self::new(&error.file, error.line, error.key.as_deref(), &error.message)
    }
}

#[derive(Serialize)]
struct AgentJson<'a> {
    name: &'a str,
    corpid: &'a str,
    agentid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    /// How many secrets are set, where it is more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets: Option<usize>,
    limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<AgentResultJson<'a>>,
}

#[derive(Serialize)]
struct ClientJson<'a> {
    name: &'a str,
    /// How many keys are set, where it is more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<usize>,
    agents: Vec<&'a str>,
    allow: Vec<String>,
    limit: Option<String>,
}

/// The result for all agents together, and the store.
#[derive(Serialize)]
struct OnlineJson<'a> {
    ok: bool,
    stopped: Option<&'static str>,
    clock_ahead_s: Option<i64>,
    store: Option<StoreJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    callbacks: Vec<CallbackResultJson<'a>>,
}

/// The shared store.
#[derive(Serialize)]
struct StoreJson<'a> {
    ok: bool,
    place: &'a str,
    trouble: Option<&'a str>,
    readable: usize,
    unreadable: &'a [String],
    took_ms: u128,
    hint: Option<StoreHintJson>,
}

#[derive(Serialize)]
struct StoreHintJson {
    kind: &'static str,
    action_en: &'static str,
    action_zh: &'static str,
}

/// The result for one agent.
#[derive(Serialize)]
struct AgentResultJson<'a> {
    result: &'static str,
    call: &'a str,
    took_ms: u128,
    problem: Option<ProblemJson>,
}

/// The result for an invalid file.
pub(super) fn invalid_config(path: &Path, error: &PrepareError) -> String {
    let errors: Vec<_> = match error {
        PrepareError::Config(error) => error.all().map(DiagnosticJson::from).collect(),
        PrepareError::Setup(file, error) => {
            vec![DiagnosticJson::new(file, None, None, &Text::of(error))]
        }
    };
    to_json_line(&CheckJson {
        file: path.display().to_string(),
        valid: false,
        error: errors.first().cloned(),
        errors,
        warnings: None,
        open: None,
        agents: None,
        suites: None,
        clients: None,
        online: None,
    })
}

/// The result for a valid file, with the online check if it ran.
pub(super) fn valid_config(config: &Config, openness: Openness, report: Option<&OnlineReport>) -> String {
    let warnings = config.warnings.iter().map(|warning| {
        DiagnosticJson::new(&warning.file, warning.line, warning.key.as_deref(), &warning.message)
    });
    let findings: HashMap<_, _> =
        report.iter().flat_map(|report| &report.agents).map(|finding| (&*finding.agent, finding)).collect();
    let agents = config.agents.values().map(|agent| AgentJson {
        name: &agent.name,
        corpid: &agent.corpid,
        agentid: agent.settings.agentid,
        upstream: agent.upstream.name(),
        secrets: Some(agent.secrets.len()).filter(|count| *count > 1),
        limit: agent.settings.limit.as_ref().map(ToString::to_string),
        online: findings.get(&*agent.name).copied().map(agent_result_json),
    });
    let clients = config.clients.values().map(|client| ClientJson {
        name: &client.name,
        keys: Some(client.keys.len()).filter(|count| *count > 1),
        agents: allowed_agents(client),
        allow: allowed_calls(client),
        limit: client.limit.as_ref().map(ToString::to_string),
    });
    to_json_line(&CheckJson {
        file: config.path.display().to_string(),
        valid: true,
        error: None,
        errors: Vec::new(),
        warnings: Some(warnings.collect()),
        open: match openness {
            Openness::Open => Some(true),
            Openness::Closed | Openness::ClosedByState(_) => Some(false),
            Openness::Unknown => None,
        },
        agents: Some(agents.collect()),
        suites: suites_json(config, report.map(|report| &*report.suites)),
        clients: Some(clients.collect()),
        online: report.map(online_json),
    })
}

fn online_json(report: &OnlineReport) -> OnlineJson<'_> {
    OnlineJson {
        ok: report.is_ok(),
        stopped: report.stopped.map(StopReason::kind),
        clock_ahead_s: report.clock_ahead_seconds,
        store: report.store.as_ref().map(store_json),
        callbacks: report.callbacks.iter().map(CallbackResultJson::new).collect(),
    }
}

fn store_json(finding: &StoreFinding) -> StoreJson<'_> {
    let hint_json = |StoreHint { kind, action }: &'static StoreHint| StoreHintJson {
        kind,
        action_en: action.english(),
        action_zh: action.get(Language::Chinese),
    };
    StoreJson {
        ok: finding.is_ok(),
        place: &finding.address,
        trouble: finding.error.as_deref(),
        readable: finding.readable,
        unreadable: &finding.unreadable,
        took_ms: finding.duration.as_millis(),
        hint: finding.hint().map(hint_json),
    }
}

fn agent_result_json(finding: &AgentFinding) -> AgentResultJson<'_> {
    let (result, problem) = match &finding.outcome {
        AgentOutcome::Passed => ("ok", None),
        AgentOutcome::GettokenFailed(problem) => ("failed", Some(problem_json("gettoken", problem))),
        AgentOutcome::ProbeFailed(problem) => ("failed", Some(problem_json(finding.call, problem))),
        AgentOutcome::Skipped => ("not-asked", None),
    };
    AgentResultJson { result, call: finding.call, took_ms: finding.duration.as_millis(), problem }
}

fn to_json_line(result: &CheckJson<'_>) -> String {
    // Serialization fails only for maps whose keys are not strings, and there are none.
    serde_json::to_string(result).unwrap_or_default() + "\n"
}
