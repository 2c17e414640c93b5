//! The result as one JSON object for programs. Its fields are stable; docs/getting-started.md lists them.

use std::{collections::HashMap, path::Path};

use serde_json::{Value, json};

use super::{
    Openness, allowed_calls,
    callbacks::callback_json,
    problem_json::{object, problem_json},
    suites_json::suites_json,
};
use crate::{
    cli::{
        PrepareError,
        online_check::{AgentFinding, AgentOutcome, OnlineReport, StopReason, StoreFinding, StoreHint},
    },
    config::Config,
    text::{Language, Text},
};

/// An error or warning about the file.
fn diagnostic_json(file: &Path, line: Option<usize>, key: Option<&str>, message: &Text) -> Value {
    json!({
        "file": file.display().to_string(),
        "line": line,
        "key": key,
        "what": message.english(),
        "what_zh": message.get(Language::Chinese),
    })
}

/// The result for an invalid file; `error` is the first of all its `errors`.
pub(super) fn invalid_config(path: &Path, error: &PrepareError) -> String {
    let errors: Vec<_> = match error {
        PrepareError::Config(error) => {
            let all = error.all();
            all.map(|one| diagnostic_json(&one.file, one.line, one.key.as_deref(), &one.message)).collect()
        }
        PrepareError::Setup(file, error) => vec![diagnostic_json(file, None, None, &Text::of(error))],
    };
    let file = path.display().to_string();
    let result = json!({ "file": file, "valid": false, "error": errors.first(), "errors": errors });
    format!("{result}\n")
}

/// The result for a valid file, with the online check if it ran.
pub(super) fn valid_config(config: &Config, openness: Openness, report: Option<&OnlineReport>) -> String {
    let warnings = config.warnings.iter().map(|warning| {
        diagnostic_json(&warning.file, warning.line, warning.key.as_deref(), &warning.message)
    });
    let findings: HashMap<_, _> =
        report.iter().flat_map(|report| &report.agents).map(|finding| (&*finding.agent, finding)).collect();
    let agents = config.agents.values().map(|agent| {
        let always = json!({
            "name": agent.name,
            "corpid": agent.corpid,
            "agentid": agent.settings.agentid,
            "limit": agent.settings.limit.map(|limit| limit.to_string()),
        });
        let known = json!({
            "upstream": agent.upstream.name(),
            "secrets": Some(agent.secrets.len()).filter(|count| *count > 1),
            "online": findings.get(&*agent.name).copied().map(agent_result_json),
        });
        object(always, known)
    });
    let clients = config.clients.values().map(|client| {
        let always = json!({
            "name": client.name,
            "agents": client.agents.listed(),
            "allow": allowed_calls(client),
            "limit": client.limit.map(|limit| limit.to_string()),
        });
        object(always, json!({ "keys": Some(client.keys.len()).filter(|count| *count > 1) }))
    });
    let always = json!({
        "file": config.path.display().to_string(),
        "valid": true,
        "warnings": warnings.collect::<Vec<_>>(),
        "agents": agents.collect::<Vec<_>>(),
        "clients": clients.collect::<Vec<_>>(),
    });
    let known = json!({
        "open": match openness {
            Openness::Open => Some(true),
            Openness::Closed | Openness::ClosedByState(_) => Some(false),
            Openness::Unknown => None,
        },
        "suites": suites_json(config, report.map(|report| &*report.suites)),
        "online": report.map(online_json),
    });
    format!("{}\n", object(always, known))
}

/// The result for all agents together, the store and the callbacks.
fn online_json(report: &OnlineReport) -> Value {
    let callbacks: Vec<_> = report.callbacks.iter().map(callback_json).collect();
    let always = json!({
        "ok": report.is_ok(),
        "stopped": report.stopped.map(StopReason::kind),
        "clock_ahead_s": report.clock_ahead_seconds,
        "store": report.store.as_ref().map(store_json),
    });
    object(always, json!({ "callbacks": Some(callbacks).filter(|callbacks| !callbacks.is_empty()) }))
}

fn store_json(finding: &StoreFinding) -> Value {
    let hint_json = |StoreHint { kind, action }: &StoreHint| json!({ "kind": kind, "action_en": action.english(), "action_zh": action.get(Language::Chinese) });
    json!({
        "ok": finding.is_ok(),
        "place": finding.address,
        "trouble": finding.error,
        "readable": finding.readable,
        "unreadable": finding.unreadable,
        "took_ms": finding.duration.as_millis() as u64,
        "hint": finding.hint().map(hint_json),
    })
}

/// The result for one agent.
fn agent_result_json(finding: &AgentFinding) -> Value {
    let (result, problem) = match &finding.outcome {
        AgentOutcome::Passed => ("ok", None),
        AgentOutcome::GettokenFailed(problem) => ("failed", Some(problem_json("gettoken", problem))),
        AgentOutcome::ProbeFailed(problem) => ("failed", Some(problem_json(finding.call, problem))),
        AgentOutcome::Skipped => ("not-asked", None),
    };
    let took_ms = finding.duration.as_millis() as u64;
    json!({ "result": result, "call": finding.call, "took_ms": took_ms, "problem": problem })
}
