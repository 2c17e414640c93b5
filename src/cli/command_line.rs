//! Errors of the command line in Chinese; clap writes the English ones.

use std::error::Error;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{language, print_error};
use crate::text::{Language, Text};

/// What the parser of durations says, and the same in Chinese.
const DURATION_SYNTAX: Text =
    crate::text!("write it like 10s (ms, s, m, h)", "请写成 10s 这样（ms、s、m、h）");

/// Parses a duration on the command line, in the configuration's syntax.
pub fn parse_duration_arg(text: &str) -> Result<std::time::Duration, String> {
    crate::config::parse_duration(text).ok_or_else(|| DURATION_SYNTAX.english().to_owned())
}

/// Prints a mistake in the command line in the language of this process, and ends it. Help, which is no mistake, is in
/// English.
pub fn exit_with_usage_error(error: &clap::Error, arguments: &[String]) -> ! {
    if let Some(language) = language_option(arguments) {
        language::set_language(language);
    }
    let chinese = (language::language() == Language::Chinese).then(|| chinese_text(error)).flatten();
    if let Some(chinese) = chinese {
        print_error(&Text::formatted(chinese.clone(), chinese));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// The value of `--lang`, which clap does not report with an error.
fn language_option(arguments: &[String]) -> Option<Language> {
    let values = arguments.iter().enumerate().filter_map(|(at, argument)| match argument.as_str() {
        "--lang" => arguments.get(at + 1).map(String::as_str),
        other => other.strip_prefix("--lang="),
    });
    let mut languages = values.filter_map(|value| match value {
        "en" => Some(Language::English),
        "zh" => Some(Language::Chinese),
        _ => None,
    });
    languages.next_back()
}

fn chinese_text(error: &clap::Error) -> Option<String> {
    let context = |kind| error.get(kind).map(context_text).filter(|text| !text.is_empty());
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    let suggest = |kind| context(kind).map(|name| format!("；是否想写 {name}？")).unwrap_or_default();
    let mut text = match (error.kind(), value) {
        (ErrorKind::UnknownArgument, _) => {
            format!("未知的参数 {argument}{}", suggest(ContextKind::SuggestedArg))
        }
        (ErrorKind::InvalidSubcommand, _) => format!(
            "未知的命令 {}{}",
            context(ContextKind::InvalidSubcommand).unwrap_or_default(),
            suggest(ContextKind::SuggestedSubcommand)
        ),
        (ErrorKind::MissingRequiredArgument, _) => format!("缺少 {argument}"),
        (ErrorKind::ArgumentConflict, _) => match context(ContextKind::PriorArg) {
            Some(prior) if prior != argument => format!("{argument} 不能与 {prior} 同时使用"),
            _ => format!("{argument} 只能写一次"),
        },
        (ErrorKind::InvalidValue, None) => format!("{argument} 需要一个值"),
        (ErrorKind::InvalidValue | ErrorKind::ValueValidation, Some(value)) => {
            format!("{argument} 的值 {value:?} 无效{}", expected_value(error))
        }
        _ => return None,
    };
    if let Some(usage) = context(ContextKind::Usage) {
        text += &format!("\n用法：{}", usage.trim().trim_start_matches("Usage: "));
    }
    Some(text + "\n全部选项：wecom-proxy --help 或 wecom-proxy help COMMAND")
}

/// What a value may be.
fn expected_value(error: &clap::Error) -> String {
    let allowed = error.get(ContextKind::ValidValue).map(context_text).filter(|text| !text.is_empty());
    match (allowed, error.source().map(ToString::to_string)) {
        (Some(allowed), _) => format!("；可用：{allowed}"),
        (None, Some(cause)) if cause == DURATION_SYNTAX.english() => {
            format!("；{}", DURATION_SYNTAX.get(Language::Chinese))
        }
        (None, Some(cause)) => format!("：{cause}"),
        (None, None) => String::new(),
    }
}

fn context_text(value: &ContextValue) -> String {
    match value {
        ContextValue::Strings(texts) => texts.join(", "),
        other => other.to_string(),
    }
}
