//! The result of the online check as text.

use super::{
    callbacks::callback_results_text,
    problem_text::{action_text, errcode_or_kind, hint_text},
    suites_text,
};
use crate::{
    cli::{
        language::shown,
        online_check::{AgentFinding, AgentOutcome, OnlineReport, StoreFinding},
        style::{Cell, Style, Styler},
    },
    config::Config,
    format_text, text,
    text::{Language, Text},
};

/// The table of agents, then each failure with its explanation, then notes.
pub(super) fn report_text(config: &Config, report: &OnlineReport, styler: Styler) -> String {
    let mut text = agents_text(config, report, styler);
    for finding in &report.agents {
        if let Some(problem) = finding.outcome.problem() {
            let heading = styler.apply(Style::Bad, &heading(finding));
            text += shown(&format_text!("\n{heading}: {}\n", "\n{heading}：{}\n", problem));
            text += &hint_text(
                config.agents.get(finding.agent.as_str()).map(|agent| config.upstream_of(agent)),
                problem,
            );
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
    let label = styler.apply(Style::Warning, shown(&text!("note", "注意")));
    for note in notes.into_iter().flatten() {
        text += shown(&format_text!("\n{label}: {}\n", "\n{label}：{}\n", note));
    }
    text
}

/// The table of agents; nothing without any.
fn agents_text(config: &Config, report: &OnlineReport, styler: Styler) -> String {
    if report.agents.is_empty() {
        return String::new();
    }
    let urls: Vec<_> = config.all_upstreams().map(|(_, upstream)| upstream.base_url()).collect();
    let urls = Text::formatted(urls.join(" or "), urls.join(" 或 "));
    let titles = [
        text!("AGENT", "应用"),
        text!("GETTOKEN", "GETTOKEN"),
        text!("CALL", "调用"),
        text!("RESULT", "结果"),
        text!("TOOK", "用时"),
    ];
    let table = styler.render_table(&titles, report.agents.iter().map(table_row).collect());
    let checked = match report.agents.len() == config.agents.len() {
        true => text!("each agent was", "每个应用"),
        false => text!("the named agents were", "指定的应用"),
    };
    let text = format_text!("\n{} checked at {}:\n\n{table}", "\n{}已在 {} 检查：\n\n{table}", checked, urls);
    shown(&text).to_owned()
}

/// A summary in one line.
pub(super) fn summary(report: &OnlineReport) -> Text {
    let total_agents = report.agents.len();
    let failed = report.agents.iter().filter(|finding| finding.outcome.problem().is_some()).count();
    let skipped =
        report.agents.iter().filter(|finding| matches!(finding.outcome, AgentOutcome::Skipped)).count();
    let mut parts = match (failed, skipped) {
        (0, 0) => Vec::new(),
        (_, 0) => vec![format_text!(
            "{failed} of {total_agents} agents failed",
            "{total_agents} 个应用中 {failed} 个失败"
        )],
        _ => vec![format_text!(
            "{failed} of {total_agents} agents failed, {skipped} were not checked",
            "{total_agents} 个应用中 {failed} 个失败，{skipped} 个没有检查"
        )],
    };
    if !report.is_store_ok() {
        parts.push(text!("the shared store cannot be used", "共享存储不可用"));
    }
    let (bad, total) = (report.suites.iter().filter(|finding| !finding.is_ok()).count(), report.suites.len());
    if bad > 0 {
        parts.push(format_text!(
            "{bad} of {total} providers and suites failed",
            "{total} 个服务商和套件中 {bad} 个失败"
        ));
    }
    let (bad, total) =
        (report.callbacks.iter().filter(|finding| !finding.is_ok()).count(), report.callbacks.len());
    if bad > 0 {
        parts.push(format_text!(
            "{bad} of {total} callbacks need attention",
            "{total} 个回调中 {bad} 个需要处理"
        ));
    }
    let joined = |language: Language, separator: &str| {
        parts.iter().map(|part| part.get(language)).collect::<Vec<_>>().join(separator)
    };
    match (failed, skipped) {
        (0, 0) if total_agents > 0 => Text::formatted(
            format!("all agents passed, but {}", joined(Language::English, ", and ")),
            format!("应用全部通过，但有问题：{}", joined(Language::Chinese, "，")),
        ),
        _ => Text::formatted(joined(Language::English, "; "), joined(Language::Chinese, "；")),
    }
}

/// The result for the shared store, if one is configured.
fn store_text(report: &OnlineReport, styler: Styler) -> String {
    let Some(store) = &report.store else { return String::new() };
    let StoreFinding { address, readable, unreadable, checked, duration, .. } = store;
    let ms = duration.as_millis();
    let subject = format_text!("the store at {address}", "位于 {address} 的存储");
    let bad_subject = styler.apply(Style::Bad, shown(&subject));
    let result = match (&store.error, unreadable.is_empty()) {
        (Some(error), _) => format_text!(
            "\n{bad_subject}: cannot be used, so each replica serves from memory: {error}\n",
            "\n{bad_subject}：不可用，因此每个副本只用内存中的 token：{error}\n"
        ),
        (None, true) => {
            let ok = styler.apply(Style::Good, shown(&text!("ok", "正常")));
            format_text!(
                "\n{}: {ok}, {ms} ms; it contains tokens of {readable} of {checked} agents\n",
                "\n{}：{ok}，{ms} ms；其中有 {checked} 个应用中 {readable} 个的 token\n",
                subject
            )
        }
        (None, false) => {
            let names = unreadable.join(", ");
            format_text!(
                "\n{bad_subject}: contains entries this key cannot decrypt, for {names}\n",
                "\n{bad_subject}：其中有此密钥无法解密的内容：{names}\n"
            )
        }
    };
    let hint = store.hint().map(|hint| action_text(&hint.action)).unwrap_or_default();
    shown(&result).to_owned() + &hint
}

fn table_row(finding: &AgentFinding) -> Vec<Cell> {
    let good = || Cell::text(Style::Good, &text!("ok", "正常"));
    let (bad, none) = (|text: &Text| Cell::text(Style::Bad, text), || Cell::plain("-"));
    let failed = || bad(&text!("failed", "失败"));
    let call = finding.call;
    let (gettoken, call, result) = match &finding.outcome {
        AgentOutcome::Passed => {
            (good(), Cell::text(Style::Plain, &format_text!("{call} ok", "{call} 正常")), good())
        }
        AgentOutcome::GettokenFailed(problem) => (bad(&errcode_or_kind(problem)), none(), failed()),
        AgentOutcome::ProbeFailed(problem) => {
            let result = format_text!("{call} {}", "{call} {}", errcode_or_kind(problem));
            (good(), bad(&result), failed())
        }
        AgentOutcome::Skipped => {
            (none(), none(), Cell::text(Style::Warning, &text!("not checked", "没有检查")))
        }
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

fn stop_note(report: &OnlineReport) -> Option<Text> {
    let skipped = report.agents.iter().any(|finding| matches!(finding.outcome, AgentOutcome::Skipped));
    let reason = report.stopped.filter(|_| skipped)?.text();
    Some(format_text!("the other agents were not checked: {}", "其余应用没有检查：{}", reason))
}

fn clock_note(report: &OnlineReport) -> Option<Text> {
    let ahead = report.clock_skew_seconds()?;
    let direction = if ahead > 0 { text!("ahead of", "快") } else { text!("behind", "慢") };
    let seconds = ahead.unsigned_abs();
    Some(format_text!(
        "this machine's clock is {seconds} s {} WeCom's; set it, or certificates and passes fail",
        "本机时钟比企业微信{} {seconds} 秒；请校准，否则证书和通行证会失效",
        direction
    ))
}

/// The agents whose first secret WeCom refused.
fn second_secret_note(report: &OnlineReport) -> Option<Text> {
    let names =
        report.agents.iter().filter(|finding| finding.uses_second_secret).map(|finding| &*finding.agent);
    let names = names.collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| {
        format_text!(
            "{names}: WeCom refuses the first secret and accepts the second one; remove the first one from the file",
            "{names}：企业微信拒绝第一个 secret，接受第二个；请从文件中去掉第一个"
        )
    })
}

/// The agents that passed without an agentid, so that only the token was checked.
fn missing_agentid_note(config: &Config, report: &OnlineReport) -> Option<Text> {
    let has_agentid =
        |name: &str| config.agents.get(name).is_some_and(|agent| agent.settings.agentid.is_some());
    let passed = report
        .agents
        .iter()
        .filter(|finding| !has_agentid(&finding.agent) && matches!(finding.outcome, AgentOutcome::Passed));
    let names = passed.map(|finding| &*finding.agent).collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| {
        format_text!(
            "{names}: no agentid is set, so only the token was checked; with it the app and its trusted IPs are checked too",
            "{names}：没有设置 agentid，因此只检查了 token；设置后还会检查应用及其可信 IP"
        )
    })
}
