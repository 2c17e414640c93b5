//! Providers and suites as text: what the file says of them, and what the online check found.

use super::problem_text::{errcode_or_kind, hint_text};
use crate::{
    cli::{
        language::shown,
        online_check::{
            CommandUrlFinding, OnlineReport, SuiteFinding, SuiteUrls, TicketFinding, TokenFinding,
        },
        style::{Cell, Style, Styler},
    },
    config::Config,
    format_text, text,
    text::Text,
};

/// The providers and suites of the file; nothing without any.
pub(super) fn overview_text(config: &Config, styler: Styler) -> String {
    let mut text = String::new();
    if !config.suites.providers.is_empty() {
        let providers = config.suites.providers.values().map(|provider| {
            let found = Cell::text(Style::Good, &text!("found", "已找到"));
            vec![Cell::plain(&provider.name), Cell::plain(&provider.corpid), found]
        });
        text += &format!(
            "\n{}",
            styler.render_table(
                &[text!("PROVIDER", "服务商"), text!("CORPID", "CORPID"), text!("SECRET", "SECRET")],
                providers.collect()
            )
        );
    }
    if !config.suites.suites.is_empty() {
        let suites = config.suites.suites.values().map(|suite| {
            let corps = config.suites.corps.values().filter(|corp| corp.suite == suite.name).count();
            vec![
                Cell::plain(&suite.name),
                Cell::plain(&suite.suite_id),
                Cell::optional(suite.provider.as_ref()),
                Cell::plain(corps.to_string()),
                Cell::optional(suite.limit_per_corp.as_ref()),
            ]
        });
        let titles = [
            text!("SUITE", "套件"),
            text!("SUITE_ID", "SUITE_ID"),
            text!("PROVIDER", "服务商"),
            text!("CORPS IN FILES", "文件中的企业"),
            text!("LIMIT PER CORP", "每企业限制"),
        ];
        text += &format!("\n{}", styler.render_table(&titles, suites.collect()));
    }
    text
}

/// The table of what was found, then what to do; nothing without providers and suites.
pub(super) fn report_text(config: &Config, report: &OnlineReport, styler: Styler) -> String {
    if report.suites.is_empty() {
        return String::new();
    }
    let rows = report.suites.iter().map(table_row).collect();
    let titles = [
        text!("PROVIDER OR SUITE", "服务商或套件"),
        text!("ID", "ID"),
        text!("TICKET", "TICKET"),
        text!("TOKEN", "TOKEN"),
        text!("CALLBACK", "回调"),
        text!("TOOK", "用时"),
    ];
    let mut text = format!("\n{}", styler.render_table(&titles, rows));
    for finding in &report.suites {
        if let Some(problem) = finding.problem() {
            let heading = format_text!("{}, its token", "{} 的 token", finding.name);
            let heading = styler.apply(Style::Bad, shown(&heading));
            text += shown(&format_text!("\n{heading}: {}\n", "\n{heading}：{}\n", problem));
            text += &hint_text(config.all_upstreams().map(|(_, upstream)| upstream).next(), problem);
        }
        for (style, advice) in finding.suite.iter().flat_map(|suite| advice(&finding.name, suite)) {
            let heading = styler.apply(style, &finding.name);
            text += shown(&format_text!("\n{heading}: {}\n", "\n{heading}：{}\n", advice));
        }
    }
    text
}

/// What is to be done about the ticket and the command URL of a suite.
fn advice(name: &str, SuiteUrls { ticket, callback }: &SuiteUrls) -> Vec<(Style, Text)> {
    let mut advice = Vec::new();
    advice.extend(ticket_advice(name, ticket).map(|advice| (Style::Bad, advice)));
    match callback {
        CommandUrlFinding::Refused(status) => advice.push((
            Style::Bad,
            format_text!(
                "the proxy that runs here refuses this file's token and aes_key at /callbacks/{name} (HTTP {status}): reload it, or \
                 restart it",
                "这里运行的代理在 /callbacks/{name} 拒绝此文件的 token 和 aes_key（HTTP {status}）：请重新加载或重启它"
            ),
        )),
        CommandUrlFinding::NotRunning => advice.push((
            Style::Warning,
            text!(
                "no proxy runs here at the address of server.listen, so its command URL was not verified",
                "没有代理在这里的 server.listen 地址运行，因此没有验证它的指令回调 URL"
            ),
        )),
        CommandUrlFinding::Answers | CommandUrlFinding::NotChecked => {}
    }
    advice
}

fn ticket_advice(name: &str, ticket: &TicketFinding) -> Option<Text> {
    let url = format!("https://YOUR-HOST/callbacks/{name}");
    Some(match ticket {
        ticket if ticket.is_ok() => return None,
        TicketFinding::Unreadable(error) => {
            format_text!("its ticket cannot be read: {}", "无法读取它的 ticket：{}", error)
        }
        TicketFinding::Age(age) => format_text!(
            "the last suite_ticket came {} minutes ago, and WeCom pushes one every 10: see that WeCom reaches {url}, and push \
             one by hand in the console (服务商管理后台 → 应用管理 → 刷新Ticket)",
            "上一个 suite_ticket 是 {} 分钟前收到的，而企业微信每 10 分钟推送一次：请确认企业微信能访问 {url}，并在服务商管理后台手动推送\
             （应用管理 → 刷新Ticket）",
            age.as_secs() / 60
        ),
        TicketFinding::Missing => format_text!(
            "no suite_ticket has come yet: set {url} as the command URL (指令回调URL) in the console while the proxy runs, and push \
             one by hand there (刷新Ticket)",
            "还没有收到 suite_ticket：请在代理运行时，在管理后台把 {url} 设为指令回调URL，并手动推送一次（刷新Ticket）"
        ),
    })
}

fn table_row(finding: &SuiteFinding) -> Vec<Cell> {
    let token = match &finding.token {
        TokenFinding::Passed => Cell::text(Style::Good, &text!("ok", "正常")),
        TokenFinding::Failed(problem) => Cell::text(Style::Bad, &errcode_or_kind(problem)),
        TokenFinding::Skipped => Cell::text(Style::Warning, &text!("not checked", "没有检查")),
    };
    let (ticket, callback) = match &finding.suite {
        None => (Cell::plain("-"), Cell::plain("-")),
        Some(SuiteUrls { ticket, callback }) => (ticket_cell(ticket), callback_cell(callback)),
    };
    let duration = Cell::plain(format!("{} ms", finding.duration.as_millis()));
    vec![Cell::plain(&finding.name), Cell::plain(&finding.id), ticket, token, callback, duration]
}

fn ticket_cell(ticket: &TicketFinding) -> Cell {
    let style = if ticket.is_ok() { Style::Good } else { Style::Bad };
    match ticket {
        TicketFinding::Age(age) => {
            Cell::text(style, &format_text!("{} min old", "{} 分钟前", age.as_secs() / 60))
        }
        TicketFinding::Missing => Cell::text(style, &text!("none", "无")),
        TicketFinding::Unreadable(_) => Cell::text(style, &text!("unreadable", "无法读取")),
    }
}

fn callback_cell(callback: &CommandUrlFinding) -> Cell {
    match callback {
        CommandUrlFinding::Answers => Cell::text(Style::Good, &text!("answers", "有响应")),
        CommandUrlFinding::Refused(status) => Cell::styled(Style::Bad, status.to_string()),
        CommandUrlFinding::NotRunning => {
            Cell::text(Style::Warning, &text!("not running here", "没有在此运行"))
        }
        CommandUrlFinding::NotChecked => Cell::plain("-"),
    }
}
