//! The results for callbacks, as text and for programs.

use serde::Serialize;

use crate::cli::{
    online_check::{CallbackFinding, CallbackProblem},
    style::{Cell, Style, Styler},
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
                true => Cell::styled(Style::Good, "ok"),
                false => Cell::styled(Style::Bad, "unreachable"),
            };
            (&*target.name, result)
        });
        let none = finding.targets.is_empty().then(|| ("-", Cell::plain("-")));
        targets.chain(none).map(move |(target, result)| of_target(target, result)).collect::<Vec<_>>()
    });
    let mut text = styler.render_table(&["CALLBACK", "TARGET", "CONNECTION", "CALLERS"], rows.collect());
    text.insert(0, '\n');
    for finding in findings {
        for problem in &finding.problems {
            let style = if problem.is_note { Style::Warning } else { Style::Bad };
            let heading = styler.apply(style, &format!("/callbacks/{}", finding.name));
            let CallbackProblem { message, action_en, action_zh, .. } = problem;
            text += &format!("\n{heading}: {message}\n  What to do: {action_en}.\n  处理：{action_zh}。\n");
        }
    }
    text
}

/// One callback for programs.
#[derive(Serialize)]
pub(super) struct CallbackResultJson<'a> {
    name: &'a str,
    ok: bool,
    targets: Vec<TargetResultJson<'a>>,
    callers: usize,
    problems: Vec<CallbackProblemJson<'a>>,
}

#[derive(Serialize)]
struct TargetResultJson<'a> {
    name: &'a str,
    reachable: bool,
}

#[derive(Serialize)]
struct CallbackProblemJson<'a> {
    kind: &'static str,
    what: &'a str,
    action_en: &'static str,
    action_zh: &'static str,
}

impl<'a> CallbackResultJson<'a> {
    pub(super) fn new(finding: &'a CallbackFinding) -> Self {
        let targets = finding.targets.iter();
        let problems = finding.problems.iter().map(|problem| CallbackProblemJson {
            kind: problem.kind,
            what: &problem.message,
            action_en: problem.action_en,
            action_zh: problem.action_zh,
        });
        Self {
            name: &finding.name,
            ok: finding.is_ok(),
            targets: targets
                .map(|target| TargetResultJson { name: &target.name, reachable: target.is_reachable })
                .collect(),
            callers: finding.callers,
            problems: problems.collect(),
        }
    }
}
