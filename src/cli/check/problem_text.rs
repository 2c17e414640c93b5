//! A failure in the text of `check --online`.

use crate::{
    cli::{
        language::{language, shown},
        online_check::Problem,
    },
    config::UpstreamConfig,
    format_text, text,
    text::{Language, Text},
    wecom::errcode,
};

/// The errcode, or the kind of failure if there was none.
pub(super) fn errcode_or_kind(problem: &Problem) -> Text {
    match problem {
        Problem::Refused { errcode, .. } => format_text!("{errcode}", "{errcode}"),
        Problem::Unreachable(_) => text!("unreachable", "无法连接"),
        Problem::NoResponse(_) => text!("no-answer", "没有响应"),
        Problem::InvalidResponse(_) => text!("senseless", "响应无效"),
        Problem::AppDisabled => text!("disabled", "已停用"),
    }
}

/// What to do; in English with the Chinese text below, because most admin consoles are in Chinese.
pub(super) fn action_text(action: &Text) -> String {
    let chinese = format!("  处理：{}。\n", action.get(Language::Chinese));
    match language() {
        Language::English => format!("  What to do: {}.\n{chinese}", action.english()),
        Language::Chinese => chinese,
    }
}

/// The explanation; in English with the Chinese text below, because most admin consoles are in Chinese.
pub(super) fn hint_text(upstream: Option<&UpstreamConfig>, problem: &Problem) -> String {
    let mut text = String::new();
    if let Some(address) =
        problem.source_address().filter(|_| problem.errcode() == Some(errcode::UNTRUSTED_IP))
    {
        let source = match upstream.is_some_and(|upstream| !upstream.via.is_empty()) {
            true => text!("upstream.via", "upstream.via"),
            false => text!("this machine", "本机"),
        };
        text += shown(&format_text!(
            "  WeCom sees {} as {address}.\n",
            "  企业微信看到的{}地址是 {address}。\n",
            source
        ));
    }
    let Some(explanation) = problem.explanation() else { return text };
    if language() == Language::English {
        text +=
            &format!("  It means: {}.\n  What to do: {}.\n", explanation.meaning_en, explanation.action_en);
        if let Some(path) = explanation.console_path_en {
            text += &format!("  Admin console: {path}\n");
        }
    }
    text += &format!("  含义：{}。\n  处理：{}。\n", explanation.meaning_zh, explanation.action_zh);
    if let Some(path) = explanation.console_path_zh {
        text += &format!("  管理后台：{path}\n");
    }
    text
}
