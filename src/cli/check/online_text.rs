//! What WeCom said of each agent, for people.

use crate::{
    cli::{
        online_check::{AgentFinding, AgentOutcome, OnlineReport, Problem, StoreFinding},
        style::{Cell, Style, Styler},
    },
    config::Config,
    wecom::errcode,
};

/// The table of agents, then what is wrong with each, what to do about it and where.
pub(super) fn report_text(config: &Config, report: &OnlineReport, paint: Styler) -> String {
    let mut text = format!("\n{} was asked about each agent:\n\n", config.upstream.origin());
    let rows = report.agents.iter().map(table_row).collect();
    text += &paint.render_table(&["AGENT", "GETTOKEN", "CALL", "RESULT", "TOOK"], rows);
    for finding in &report.agents {
        if let Some(problem) = finding.outcome.problem() {
            text += &format!("\n{}: {problem}\n", paint.apply(Style::Bad, &heading(finding)));
            text += &hint_text(config, problem);
        }
    }
    text += &store_text(report, paint);
    let remarks = [stop_note(report), clock_note(report), missing_agentid_note(config, report)];
    for remark in remarks.into_iter().flatten() {
        text += &format!("\n{}: {remark}\n", paint.apply(Style::Warning, "note"));
    }
    text
}

/// One line on all of it.
pub(super) fn summary(report: &OnlineReport) -> String {
    let all = report.agents.len();
    let failed = report.agents.iter().filter(|finding| finding.outcome.problem().is_some()).count();
    let unasked =
        report.agents.iter().filter(|finding| matches!(finding.outcome, AgentOutcome::Skipped)).count();
    let agents = match (failed, unasked) {
        (0, 0) => return "the agents are fine, but the store that replicas share is not".to_owned(),
        (_, 0) => format!("{failed} of {all} agents failed"),
        _ => format!("{failed} of {all} agents failed, and {unasked} were not asked about"),
    };
    match report.is_store_ok() {
        true => agents,
        false => format!("{agents}; and the store that replicas share cannot be used"),
    }
}

/// The store that replicas share, where there is one.
fn store_text(report: &OnlineReport, paint: Styler) -> String {
    let Some(store) = &report.store else { return String::new() };
    let StoreFinding { address: place, readable, unreadable, checked: looked_for, duration: took, .. } =
        store;
    let took = took.as_millis();
    let mut text = match (&store.error, unreadable.is_empty()) {
        (Some(trouble), _) => {
            let subject = paint.apply(Style::Bad, &format!("the store at {place}"));
            format!("\n{subject}: cannot be used, so each replica goes on by itself: {trouble}\n")
        }
        (None, true) => {
            let ok = paint.apply(Style::Good, "ok");
            format!(
                "\nthe store at {place}: {ok}, {took} ms; it holds tokens of {readable} of {looked_for} agents\n"
            )
        }
        (None, false) => {
            let subject = paint.apply(Style::Bad, &format!("the store at {place}"));
            format!("\n{subject}: it holds what this key cannot read, for {}\n", unreadable.join(", "))
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
        AgentOutcome::Skipped => (none(), none(), Cell::styled(Style::Warning, "not asked")),
    };
    let took = match finding.outcome {
        AgentOutcome::Skipped => none(),
        _ => Cell::plain(format!("{} ms", finding.duration.as_millis())),
    };
    vec![Cell::plain(&finding.agent), gettoken, call, result, took]
}

/// The errcode, or the kind of failure where WeCom said none.
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

/// What it means, what to do and where, in both languages: the admin console is mostly met in Chinese.
fn hint_text(config: &Config, problem: &Problem) -> String {
    let mut text = String::new();
    if let Some(address) =
        problem.source_address().filter(|_| problem.errcode() == Some(errcode::UNTRUSTED_IP))
    {
        let who = if config.upstream.via.is_some() { "upstream.via" } else { "this machine" };
        text += &format!("  WeCom sees {who} as {address}.\n");
    }
    let Some(row) = problem.explanation() else { return text };
    text += &format!("  It means: {}.\n  What to do: {}.\n", row.meaning_en, row.action_en);
    if let Some(place) = row.console_path_en {
        text += &format!("  Admin console: {place}\n");
    }
    text += &format!("  含义：{}。\n  处理：{}。\n", row.meaning_zh, row.action_zh);
    if let Some(place) = row.console_path_zh {
        text += &format!("  管理后台：{place}\n");
    }
    text
}

fn stop_note(report: &OnlineReport) -> Option<String> {
    let unasked = report.agents.iter().any(|finding| matches!(finding.outcome, AgentOutcome::Skipped));
    report.stopped.filter(|_| unasked).map(|stop| format!("no more agents were asked about: {stop}"))
}

fn clock_note(report: &OnlineReport) -> Option<String> {
    let ahead = report.clock_skew_seconds()?;
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let seconds = ahead.unsigned_abs();
    Some(format!(
        "this machine's clock is {seconds} s {way} WeCom's; set it, or certificates and passes fail"
    ))
}

/// The agents that are fine as far as was tried, which was not far.
fn missing_agentid_note(config: &Config, report: &OnlineReport) -> Option<String> {
    let fine = config.agents.values().zip(&report.agents).filter(|(agent, finding)| {
        agent.agentid.is_none() && matches!(finding.outcome, AgentOutcome::Passed)
    });
    let names: Vec<_> = fine.map(|(agent, _)| &*agent.name).collect();
    let text = "no agentid is set, so little but the token was tried; with it the app and its trusted IPs are tried too";
    (!names.is_empty()).then(|| format!("{}: {text}", names.join(", ")))
}
