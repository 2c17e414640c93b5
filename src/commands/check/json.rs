//! The same for programs: one JSON object, whose fields stay. README.md lists them.

use std::path::Path;

use serde::Serialize;

use super::{agents_of, allowed};
use crate::{
    commands::Refused,
    config::Config,
    doctor::{Finding, Outcome, Problem, Report, Stop, StoreFinding, StoreHint},
};

#[derive(Serialize)]
struct Checked<'a> {
    file: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Place<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<Place<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agents: Option<Vec<Agent<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<Vec<Client<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Online<'a>>,
}

/// A complaint about the file.
#[derive(Serialize)]
struct Place<'a> {
    file: String,
    line: Option<usize>,
    key: Option<&'a str>,
    what: String,
}

#[derive(Serialize)]
struct Agent<'a> {
    name: &'a str,
    corpid: &'a str,
    agentid: Option<u64>,
    limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Said<'a>>,
}

#[derive(Serialize)]
struct Client<'a> {
    name: &'a str,
    agents: Vec<&'a str>,
    allow: Vec<String>,
    limit: Option<String>,
}

/// All agents together, and the store.
#[derive(Serialize)]
struct Online<'a> {
    ok: bool,
    stopped: Option<&'static str>,
    clock_ahead_s: Option<i64>,
    store: Option<SharedStore<'a>>,
}

/// The store that replicas share.
#[derive(Serialize)]
struct SharedStore<'a> {
    ok: bool,
    place: &'a str,
    trouble: Option<&'a str>,
    readable: usize,
    unreadable: &'a [String],
    took_ms: u128,
    hint: Option<StoreAdvice>,
}

#[derive(Serialize)]
struct StoreAdvice {
    kind: &'static str,
    action_en: &'static str,
    action_zh: &'static str,
}

/// One agent.
#[derive(Serialize)]
struct Said<'a> {
    result: &'static str,
    call: &'a str,
    took_ms: u128,
    problem: Option<Wrong>,
}

#[derive(Serialize)]
struct Wrong {
    step: &'static str,
    kind: &'static str,
    errcode: Option<i64>,
    what: String,
    seen_from: Option<String>,
    hint: Option<Hint>,
}

#[derive(Serialize)]
struct Hint {
    meaning_en: &'static str,
    meaning_zh: &'static str,
    action_en: &'static str,
    action_zh: &'static str,
    place_en: Option<&'static str>,
    place_zh: Option<&'static str>,
}

/// A file that is refused.
pub(super) fn refused(path: &Path, refused: &Refused) -> String {
    let error = match refused {
        Refused::File(error) => Place {
            file: error.file.display().to_string(),
            line: error.line,
            key: error.key.as_deref(),
            what: error.what.clone(),
        },
        Refused::Named(file, error) => {
            Place { file: file.display().to_string(), line: None, key: None, what: error.to_string() }
        }
    };
    line(&Checked {
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

/// A file that passes, and what WeCom said where it was asked.
pub(super) fn valid(config: &Config, report: Option<&Report>) -> String {
    let warnings = config.warnings.iter().map(|warning| Place {
        file: warning.file.display().to_string(),
        line: warning.line,
        key: warning.key.as_deref(),
        what: warning.text.clone(),
    });
    // Both are in the order of the agents' names.
    let findings = report.map_or(&[][..], |report| &report.agents);
    let agents = config.agents.values().enumerate().map(|(nth, agent)| Agent {
        name: &agent.name,
        corpid: &agent.corpid,
        agentid: agent.agentid,
        limit: agent.limit.as_ref().map(ToString::to_string),
        online: findings.get(nth).map(said),
    });
    let clients = config.clients.values().map(|client| Client {
        name: &client.name,
        agents: agents_of(client),
        allow: allowed(client),
        limit: client.limit.as_ref().map(ToString::to_string),
    });
    line(&Checked {
        file: config.path.display().to_string(),
        valid: true,
        error: None,
        warnings: Some(warnings.collect()),
        open: Some(config.is_open()),
        agents: Some(agents.collect()),
        clients: Some(clients.collect()),
        online: report.map(online),
    })
}

fn online(report: &Report) -> Online<'_> {
    Online {
        ok: report.is_fine(),
        stopped: report.stopped.map(Stop::kind),
        clock_ahead_s: report.clock_ahead,
        store: report.store.as_ref().map(store),
    }
}

fn store(finding: &StoreFinding) -> SharedStore<'_> {
    let advice = |StoreHint { kind, action_en, action_zh }| StoreAdvice { kind, action_en, action_zh };
    SharedStore {
        ok: finding.is_fine(),
        place: &finding.place,
        trouble: finding.trouble.as_deref(),
        readable: finding.readable,
        unreadable: &finding.unreadable,
        took_ms: finding.took.as_millis(),
        hint: finding.hint().map(advice),
    }
}

fn said(finding: &Finding) -> Said<'_> {
    let (result, problem) = match &finding.outcome {
        Outcome::Fine => ("ok", None),
        Outcome::NoToken(problem) => ("failed", Some(wrong("gettoken", problem))),
        Outcome::NoCall(problem) => ("failed", Some(wrong(finding.call, problem))),
        Outcome::NotAsked => ("not-asked", None),
    };
    Said { result, call: finding.call, took_ms: finding.took.as_millis(), problem }
}

fn wrong(step: &'static str, problem: &Problem) -> Wrong {
    let hint = problem.explanation().map(|row| Hint {
        meaning_en: row.meaning_en,
        meaning_zh: row.meaning_zh,
        action_en: row.action_en,
        action_zh: row.action_zh,
        place_en: row.place_en,
        place_zh: row.place_zh,
    });
    let seen_from = problem.seen_from().map(|address| address.to_string());
    Wrong {
        step,
        kind: problem.kind(),
        errcode: problem.errcode(),
        what: problem.to_string(),
        seen_from,
        hint,
    }
}

fn line(checked: &Checked<'_>) -> String {
    // Cannot fail: there are no maps with odd keys in it.
    serde_json::to_string(checked).unwrap_or_default() + "\n"
}
