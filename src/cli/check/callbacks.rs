//! The results for callbacks, as text and for programs.

use serde_json::{Value, json};

use super::problem_text::action_text;
use crate::{
    cli::{
        language::shown,
        online_check::{CallbackFinding, CallbackProblem},
        style::{Cell, Style, Styler},
    },
    format_text, text,
    text::Language,
};

/// The table of callbacks and targets, then each problem with what to do; nothing without callbacks.
pub(super) fn callback_results_text(findings: &[CallbackFinding], styler: Styler) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let rows = findings.iter().flat_map(|finding| {
        let name = format!("/callbacks/{}", finding.name);
        let callers = finding.callers.to_string();
        let of_target = move |target: &str, result| {
            vec![Cell::plain(&name), Cell::plain(target), result, Cell::plain(&callers)]
        };
        let targets = finding.targets.iter().map(|target| {
            let result = match target.is_reachable {
                true => Cell::text(Style::Good, &text!("ok", "正常")),
                false => Cell::text(Style::Bad, &text!("unreachable", "无法连接")),
            };
            (&*target.name, result)
        });
        let none = finding.targets.is_empty().then(|| ("-", Cell::plain("-")));
        targets.chain(none).map(move |(target, result)| of_target(target, result)).collect::<Vec<_>>()
    });
    let titles = [
        text!("CALLBACK", "回调"),
        text!("TARGET", "目标"),
        text!("CONNECTION", "连接"),
        text!("CALLERS", "来源数"),
    ];
    let mut text = styler.render_table(&titles, rows.collect());
    text.insert(0, '\n');
    for finding in findings {
        for problem in &finding.problems {
            let style = if problem.is_note { Style::Warning } else { Style::Bad };
            let heading = styler.apply(style, &format!("/callbacks/{}", finding.name));
            let CallbackProblem { message, action, .. } = problem;
            text += shown(&format_text!("\n{heading}: {}\n", "\n{heading}：{}\n", message));
            text += &action_text(action);
        }
    }
    text
}

/// One callback for programs.
pub(super) fn callback_json(finding: &CallbackFinding) -> Value {
    let targets = finding.targets.iter();
    let targets = targets.map(|target| json!({ "name": target.name, "reachable": target.is_reachable }));
    let problems = finding.problems.iter().map(|problem| {
        json!({
            "kind": problem.kind,
            "what": problem.message.english(),
            "what_zh": problem.message.get(Language::Chinese),
            "action_en": problem.action.english(),
            "action_zh": problem.action.get(Language::Chinese),
        })
    });
    json!({
        "name": finding.name,
        "ok": finding.is_ok(),
        "targets": targets.collect::<Vec<_>>(),
        "callers": finding.callers,
        "problems": problems.collect::<Vec<_>>(),
    })
}
