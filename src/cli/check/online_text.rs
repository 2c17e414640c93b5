//! The result of the online check as text.

use super::{
    callbacks::callback_results_text,
    problem_text::{errcode_or_kind, hint_text},
    suites_text,
};
use crate::{
    cli::{
        online_check::{AgentFinding, AgentOutcome, OnlineReport, StoreFinding},
        style::{Cell, Style, Styler},
    },
    config::Config,
};

/// The table of agents, then each failure with its explanation, then notes.
pub(super) fn report_text(config: &Config, report: &OnlineReport, styler: Styler) -> String {
    let urls = config.all_upstreams().map(|(_, upstream)| upstream.base_url());
    let urls = urls.collect::<Vec<_>>().join(" or ");
    let mut text = String::new();
    if !report.agents.is_empty() {
        let rows = report.agents.iter().map(table_row).collect();
        let table = styler.render_table(&["AGENT", "GETTOKEN", "CALL", "RESULT", "TOOK"], rows);
        let checked = match report.agents.len() == config.agents.len() {
            true => "each agent was",
            false => "the named agents were",
        };
        text = format!("\n{checked} checked at {urls}:\n\n{table}");
    }
    for finding in &report.agents {
        if let Some(problem) = finding.outcome.problem() {
            text += &format!("\n{}: {problem}\n", styler.apply(Style::Bad, &heading(finding)));
            text +=
                &hint_text(config.agents.get(&finding.agent).map(|agent| config.upstream_of(agent)), problem);
        }
    }
    text += &suites_text::report_text(config, report, styler);
    text += &store_text(report, styler);
    text += &callback_results_text(&report.callbacks, styler);
    let notes = [
        stop_note(report),
        clock_note(report),
        missing_agentid_note(config, report),
        second_secret_note(report),
    ];
    for note in notes.into_iter().flatten() {
        text += &format!("\n{}: {note}\n", styler.apply(Style::Warning, "note"));
    }
    text
}

/// A summary in one line.
pub(super) fn summary(report: &OnlineReport) -> String {
    let total = report.agents.len();
    let failed = report.agents.iter().filter(|finding| finding.outcome.problem().is_some()).count();
    let skipped =
        report.agents.iter().filter(|finding| matches!(finding.outcome, AgentOutcome::Skipped)).count();
    let mut parts = match (failed, skipped) {
        (0, 0) => Vec::new(),
        (_, 0) => vec![format!("{failed} of {total} agents failed")],
        _ => vec![format!("{failed} of {total} agents failed, {skipped} were not checked")],
    };
    if !report.is_store_ok() {
        parts.push("the shared store cannot be used".to_owned());
    }
    let bad = report.suites.iter().filter(|finding| !finding.is_ok()).count();
    if bad > 0 {
        parts.push(format!("{bad} of {} providers and suites failed", report.suites.len()));
    }
    let bad = report.callbacks.iter().filter(|finding| !finding.is_ok()).count();
    if bad > 0 {
        parts.push(format!("{bad} of {} callbacks need attention", report.callbacks.len()));
    }
    match (failed, skipped) {
        (0, 0) => format!("all agents passed, but {}", parts.join(", and ")),
        _ => parts.join("; "),
    }
}

/// The result for the shared store, if one is configured.
fn store_text(report: &OnlineReport, styler: Styler) -> String {
    let Some(store) = &report.store else { return String::new() };
    let StoreFinding { address, readable, unreadable, checked, duration, .. } = store;
    let ms = duration.as_millis();
    let mut text = match (&store.error, unreadable.is_empty()) {
        (Some(error), _) => {
            let subject = styler.apply(Style::Bad, &format!("the store at {address}"));
            format!("\n{subject}: cannot be used, so each replica serves from memory: {error}\n")
        }
        (None, true) => {
            let ok = styler.apply(Style::Good, "ok");
            format!(
                "\nthe store at {address}: {ok}, {ms} ms; it contains tokens of {readable} of {checked} agents\n"
            )
        }
        (None, false) => {
            let subject = styler.apply(Style::Bad, &format!("the store at {address}"));
            format!("\n{subject}: contains entries this key cannot decrypt, for {}\n", unreadable.join(", "))
        }
    };
    if let Some(hint) = store.hint() {
        text += &format!("  What to do: {}.\n  处理：{}。\n", hint.action_en, hint.action_zh);
    }
    text
}

fn table_row(finding: &AgentFinding) -> Vec<Cell> {
    let (good, bad) = (|| Cell::styled(Style::Good, "ok"), |text: &str| Cell::styled(Style::Bad, text));
    let none = || Cell::plain("-");
    let call = finding.call;
    let (gettoken, call, result) = match &finding.outcome {
        AgentOutcome::Passed => (good(), Cell::plain(format!("{call} ok")), good()),
        AgentOutcome::GettokenFailed(problem) => (bad(&errcode_or_kind(problem)), none(), bad("failed")),
        AgentOutcome::ProbeFailed(problem) => {
            (good(), bad(&format!("{call} {}", errcode_or_kind(problem))), bad("failed"))
        }
        AgentOutcome::Skipped => (none(), none(), Cell::styled(Style::Warning, "not checked")),
    };
    let duration = match finding.outcome {
        AgentOutcome::Skipped => none(),
        _ => Cell::plain(format!("{} ms", finding.duration.as_millis())),
    };
    vec![Cell::plain(&finding.agent), gettoken, call, result, duration]
}

fn heading(finding: &AgentFinding) -> String {
    let step = match finding.outcome {
        AgentOutcome::ProbeFailed(_) => finding.call,
        _ => "gettoken",
    };
    format!("{}, {step}", finding.agent)
}

fn stop_note(report: &OnlineReport) -> Option<String> {
    let skipped = report.agents.iter().any(|finding| matches!(finding.outcome, AgentOutcome::Skipped));
    report.stopped.filter(|_| skipped).map(|reason| format!("the other agents were not checked: {reason}"))
}

fn clock_note(report: &OnlineReport) -> Option<String> {
    let ahead = report.clock_skew_seconds()?;
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let seconds = ahead.unsigned_abs();
    Some(format!(
        "this machine's clock is {seconds} s {direction} WeCom's; set it, or certificates and passes fail"
    ))
}

/// The agents whose first secret WeCom refused.
fn second_secret_note(report: &OnlineReport) -> Option<String> {
    let names =
        report.agents.iter().filter(|finding| finding.uses_second_secret).map(|finding| &*finding.agent);
    let names: Vec<_> = names.collect();
    let text =
        "WeCom refuses the first secret and accepts the second one; remove the first one from the file";
    (!names.is_empty()).then(|| format!("{}: {text}", names.join(", ")))
}

/// The agents that passed without an agentid, so that only the token was checked.
fn missing_agentid_note(config: &Config, report: &OnlineReport) -> Option<String> {
    let has_agentid =
        |name: &str| config.agents.get(name).is_some_and(|agent| agent.settings.agentid.is_some());
    let passed = report
        .agents
        .iter()
        .filter(|finding| !has_agentid(&finding.agent) && matches!(finding.outcome, AgentOutcome::Passed));
    let names: Vec<_> = passed.map(|finding| &*finding.agent).collect();
    let text = "no agentid is set, so only the token was checked; with it the app and its trusted IPs are checked too";
    (!names.is_empty()).then(|| format!("{}: {text}", names.join(", ")))
}
