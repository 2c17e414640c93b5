//! A failure in the JSON of `check`.

use serde_json::{Value, json};

use crate::{cli::online_check::Problem, text::Language};

/// An object with the members of `always`, and those of `known` that are not null.
pub(super) fn object(mut always: Value, known: Value) -> Value {
    if let (Value::Object(object), Value::Object(known)) = (&mut always, known) {
        object.extend(known.into_iter().filter(|(_, value)| !value.is_null()));
    }
    always
}

/// The failure of a step, and what to do about it.
pub(super) fn problem_json(step: &str, problem: &Problem) -> Value {
    let hint = problem.explanation().map(|explanation| {
        json!({
            "meaning_en": explanation.meaning_en,
            "meaning_zh": explanation.meaning_zh,
            "action_en": explanation.action_en,
            "action_zh": explanation.action_zh,
            "place_en": explanation.console_path_en,
            "place_zh": explanation.console_path_zh,
        })
    });
    let what = problem.text();
    json!({
        "step": step,
        "kind": problem.kind(),
        "errcode": problem.errcode(),
        "what": what.english(),
        "what_zh": what.get(Language::Chinese),
        "seen_from": problem.source_address().map(|address| address.to_string()),
        "hint": hint,
    })
}
