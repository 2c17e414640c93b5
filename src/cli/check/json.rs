//! The result as one JSON object for programs. Its fields are stable; README.md lists them.

use std::path::Path;

use serde::Serialize;

use super::{allowed_agents, allowed_calls};
use crate::{
    cli::{
        PrepareError,
        online_check::{
            AgentFinding, AgentOutcome, OnlineReport, Problem, StopReason, StoreFinding, StoreHint,
        },
    },
    config::Config,
};

#[derive(Serialize)]
struct CheckJson<'a> {
    file: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<DiagnosticJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<DiagnosticJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agents: Option<Vec<AgentJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<Vec<ClientJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<OnlineJson<'a>>,
}

/// An error or warning about the file.
#[derive(Serialize)]
struct DiagnosticJson<'a> {
    file: String,
    line: Option<usize>,
    key: Option<&'a str>,
    what: String,
}

#[derive(Serialize)]
struct AgentJson<'a> {
    name: &'a str,
    corpid: &'a str,
    agentid: Option<u64>,
    limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<AgentResultJson<'a>>,
}

#[derive(Serialize)]
struct ClientJson<'a> {
    name: &'a str,
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

#[derive(Serialize)]
struct ProblemJson {
    step: &'static str,
    kind: &'static str,
    errcode: Option<i64>,
    what: String,
    seen_from: Option<String>,
    hint: Option<HintJson>,
}

#[derive(Serialize)]
struct HintJson {
    meaning_en: &'static str,
    meaning_zh: &'static str,
    action_en: &'static str,
    action_zh: &'static str,
    place_en: Option<&'static str>,
    place_zh: Option<&'static str>,
}

/// The result for an invalid file.
pub(super) fn invalid_config(path: &Path, error: &PrepareError) -> String {
    let error = match error {
        PrepareError::Config(error) => DiagnosticJson {
            file: error.file.display().to_string(),
            line: error.line,
            key: error.key.as_deref(),
            what: error.message.clone(),
        },
        PrepareError::Setup(file, error) => DiagnosticJson {
            file: file.display().to_string(),
            line: None,
            key: None,
            what: error.to_string(),
        },
    };
    to_json_line(&CheckJson {
        file: path.display().to_string(),
        valid: false,
        error: Some(error),
        warnings: None,
        open: None,
        agents: None,
        clients: None,
        online: None,
    })
}

/// The result for a valid file, with the online check if it ran.
pub(super) fn valid_config(config: &Config, report: Option<&OnlineReport>) -> String {
    let warnings = config.warnings.iter().map(|warning| DiagnosticJson {
        file: warning.file.display().to_string(),
        line: warning.line,
        key: warning.key.as_deref(),
        what: warning.message.clone(),
    });
    // Both are in the order of the agents' names.
    let findings = report.map_or(&[][..], |report| &report.agents);
    let agents = config.agents.values().enumerate().map(|(nth, agent)| AgentJson {
        name: &agent.name,
        corpid: &agent.corpid,
        agentid: agent.agentid,
        limit: agent.limit.as_ref().map(ToString::to_string),
        online: findings.get(nth).map(agent_result_json),
    });
    let clients = config.clients.values().map(|client| ClientJson {
        name: &client.name,
        agents: allowed_agents(client),
        allow: allowed_calls(client),
        limit: client.limit.as_ref().map(ToString::to_string),
    });
    to_json_line(&CheckJson {
        file: config.path.display().to_string(),
        valid: true,
        error: None,
        warnings: Some(warnings.collect()),
        open: Some(config.is_open()),
        agents: Some(agents.collect()),
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
    }
}

fn store_json(finding: &StoreFinding) -> StoreJson<'_> {
    let hint_json = |StoreHint { kind, action_en, action_zh }| StoreHintJson { kind, action_en, action_zh };
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

fn problem_json(step: &'static str, problem: &Problem) -> ProblemJson {
    let hint = problem.explanation().map(|explanation| HintJson {
        meaning_en: explanation.meaning_en,
        meaning_zh: explanation.meaning_zh,
        action_en: explanation.action_en,
        action_zh: explanation.action_zh,
        place_en: explanation.console_path_en,
        place_zh: explanation.console_path_zh,
    });
    let seen_from = problem.source_address().map(|address| address.to_string());
    ProblemJson {
        step,
        kind: problem.kind(),
        errcode: problem.errcode(),
        what: problem.to_string(),
        seen_from,
        hint,
    }
}

fn to_json_line(result: &CheckJson<'_>) -> String {
    // Serialization fails only for maps whose keys are not strings, and there are none.
    serde_json::to_string(result).unwrap_or_default() + "\n"
}
