//! The result of the online check as text.

use crate::{
    cli::{
        online_check::{AgentFinding, AgentOutcome, OnlineReport, Problem, StoreFinding},
        style::{Cell, Style, Styler},
    },
    config::Config,
    wecom::errcode,
};

/// The table of agents, then each failure with its explanation, then notes.
pub(super) fn report_text(config: &Config, report: &OnlineReport, styler: Styler) -> String {
    let mut text = format!("\neach agent was checked at {}:\n\n", config.upstream.origin());
    let rows = report.agents.iter().map(table_row).collect();
    text += &styler.render_table(&["AGENT", "GETTOKEN", "CALL", "RESULT", "TOOK"], rows);
    for finding in &report.agents {
        if let Some(problem) = finding.outcome.problem() {
            text += &format!("\n{}: {problem}\n", styler.apply(Style::Bad, &heading(finding)));
            text += &hint_text(config, problem);
        }
    }
    text += &store_text(report, styler);
    let notes = [stop_note(report), clock_note(report), missing_agentid_note(config, report)];
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
    let agents = match (failed, skipped) {
        (0, 0) => return "all agents passed, but the shared store cannot be used".to_owned(),
        (_, 0) => format!("{failed} of {total} agents failed"),
        _ => format!("{failed} of {total} agents failed, {skipped} were not checked"),
    };
    match report.is_store_ok() {
        true => agents,
        false => format!("{agents}; the shared store cannot be used"),
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

/// The errcode, or the kind of failure if there was none.
fn errcode_or_kind(problem: &Problem) -> String {
    problem.errcode().map_or_else(|| problem.kind().to_owned(), |errcode| errcode.to_string())
}

fn heading(finding: &AgentFinding) -> String {
    let step = match finding.outcome {
        AgentOutcome::ProbeFailed(_) => finding.call,
        _ => "gettoken",
    };
    format!("{}, {step}", finding.agent)
}

/// The explanation in both languages, because most admin consoles are in Chinese.
fn hint_text(config: &Config, problem: &Problem) -> String {
    let mut text = String::new();
    if let Some(address) =
        problem.source_address().filter(|_| problem.errcode() == Some(errcode::UNTRUSTED_IP))
    {
        let source = if config.upstream.via.is_some() { "upstream.via" } else { "this machine" };
        text += &format!("  WeCom sees {source} as {address}.\n");
    }
    let Some(explanation) = problem.explanation() else { return text };
    text += &format!("  It means: {}.\n  What to do: {}.\n", explanation.meaning_en, explanation.action_en);
    if let Some(path) = explanation.console_path_en {
        text += &format!("  Admin console: {path}\n");
    }
    text += &format!("  含义：{}。\n  处理：{}。\n", explanation.meaning_zh, explanation.action_zh);
    if let Some(path) = explanation.console_path_zh {
        text += &format!("  管理后台：{path}\n");
    }
    text
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

/// The agents that passed without an agentid, so that only the token was checked.
fn missing_agentid_note(config: &Config, report: &OnlineReport) -> Option<String> {
    let passed = config.agents.values().zip(&report.agents).filter(|(agent, finding)| {
        agent.agentid.is_none() && matches!(finding.outcome, AgentOutcome::Passed)
    });
    let names: Vec<_> = passed.map(|(agent, _)| &*agent.name).collect();
    let text = "no agentid is set, so only the token was checked; with it the app and its trusted IPs are checked too";
    (!names.is_empty()).then(|| format!("{}: {text}", names.join(", ")))
}
