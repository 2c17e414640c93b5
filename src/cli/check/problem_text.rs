//! A failure in the text of `check --online`.

use crate::{cli::online_check::Problem, config::UpstreamConfig, wecom::errcode};

/// The errcode, or the kind of failure if there was none.
pub(super) fn errcode_or_kind(problem: &Problem) -> String {
    problem.errcode().map_or_else(|| problem.kind().to_owned(), |errcode| errcode.to_string())
}

/// The explanation in both languages, because most admin consoles are in Chinese.
pub(super) fn hint_text(upstream: Option<&UpstreamConfig>, problem: &Problem) -> String {
    let mut text = String::new();
    if let Some(address) =
        problem.source_address().filter(|_| problem.errcode() == Some(errcode::UNTRUSTED_IP))
    {
        let source = if upstream.is_some_and(|upstream| !upstream.via.is_empty()) {
            "upstream.via"
        } else {
            "this machine"
        };
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
