//! A failure in the JSON of `check`.

use serde::Serialize;

use crate::{cli::online_check::Problem, text::Language};

/// A failure, and what to do about it.
#[derive(Serialize)]
pub(super) struct ProblemJson {
    step: &'static str,
    kind: &'static str,
    errcode: Option<i64>,
    what: String,
    what_zh: String,
    seen_from: Option<String>,
    hint: Option<HintJson>,
}

#[derive(Serialize)]
pub(super) struct HintJson {
    meaning_en: &'static str,
    meaning_zh: &'static str,
    action_en: &'static str,
    action_zh: &'static str,
    place_en: Option<&'static str>,
    place_zh: Option<&'static str>,
}

/// The failure of a step.
pub(super) fn problem_json(step: &'static str, problem: &Problem) -> ProblemJson {
    let hint = problem.explanation().map(|explanation| HintJson {
        meaning_en: explanation.meaning_en,
        meaning_zh: explanation.meaning_zh,
        action_en: explanation.action_en,
        action_zh: explanation.action_zh,
        place_en: explanation.console_path_en,
        place_zh: explanation.console_path_zh,
    });
    let what = problem.text();
    let seen_from = problem.source_address().map(|address| address.to_string());
    ProblemJson {
        step,
        kind: problem.kind(),
        errcode: problem.errcode(),
        what: what.english().to_owned(),
        what_zh: what.get(Language::Chinese).to_owned(),
        seen_from,
        hint,
    }
}
