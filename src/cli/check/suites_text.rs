//! Providers and suites as text: what the file says of them, and what the online check found.

use super::problem_text::{errcode_or_kind, hint_text};
use crate::{
    cli::{
        online_check::{
            CommandUrlFinding, OnlineReport, SuiteFinding, SuiteUrls, TicketFinding, TokenFinding,
        },
        style::{Cell, Style, Styler},
    },
    config::Config,
};

/// The providers and suites of the file; nothing without any.
pub(super) fn overview_text(config: &Config, styler: Styler) -> String {
    let mut text = String::new();
    if !config.suites.providers.is_empty() {
        let providers = config.suites.providers.values().map(|provider| {
            let found = Cell::styled(Style::Good, "found");
            vec![Cell::plain(&provider.name), Cell::plain(&provider.corpid), found]
        });
        text += &format!("\n{}", styler.render_table(&["PROVIDER", "CORPID", "SECRET"], providers.collect()));
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
        let titles = ["SUITE", "SUITE_ID", "PROVIDER", "CORPS IN FILES", "LIMIT PER CORP"];
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
    let mut text = format!(
        "\n{}",
        styler.render_table(&["PROVIDER OR SUITE", "ID", "TICKET", "TOKEN", "CALLBACK", "TOOK"], rows)
    );
    for finding in &report.suites {
        if let Some(problem) = finding.problem() {
            let heading = styler.apply(Style::Bad, &format!("{}, its token", finding.name));
            text += &format!(
                "\n{heading}: {problem}\n{}",
                hint_text(config.all_upstreams().map(|(_, upstream)| upstream).next(), problem)
            );
        }
        for (style, advice) in finding.suite.iter().flat_map(|suite| advice(&finding.name, suite)) {
            text += &format!("\n{}: {advice}\n", styler.apply(style, &finding.name));
        }
    }
    text
}

/// What is to be done about the ticket and the command URL of a suite.
fn advice(name: &str, SuiteUrls { ticket, callback }: &SuiteUrls) -> Vec<(Style, String)> {
    let url = format!("https://YOUR-HOST/callbacks/{name}");
    let mut advice = Vec::new();
    match ticket {
        ticket if ticket.is_ok() => {}
        TicketFinding::Unreadable(error) => advice.push((Style::Bad, format!("its ticket cannot be read: {error}"))),
        TicketFinding::Age(age) => advice.push((
            Style::Bad,
            format!(
                "the last suite_ticket came {} minutes ago, and WeCom pushes one every 10: see that WeCom reaches {url}, and push \
                 one by hand in the console (服务商管理后台 → 应用管理 → 刷新Ticket)",
                age.as_secs() / 60
            ),
        )),
        TicketFinding::Missing => advice.push((
            Style::Bad,
            format!(
                "no suite_ticket has come yet: set {url} as the command URL (指令回调URL) in the console while the proxy runs, and push \
                 one by hand there (刷新Ticket)"
            ),
        )),
    }
    match callback {
        CommandUrlFinding::Refused(status) => advice.push((
            Style::Bad,
            format!(
                "the proxy that runs here refuses this file's token and aes_key at /callbacks/{name} (HTTP {status}): reload it, or \
                 restart it"
            ),
        )),
        CommandUrlFinding::NotRunning => advice.push((
            Style::Warning,
            "no proxy runs here at the address of server.listen, so its command URL was not verified".to_owned(),
        )),
        CommandUrlFinding::Answers | CommandUrlFinding::NotChecked => {}
    }
    advice
}

fn table_row(finding: &SuiteFinding) -> Vec<Cell> {
    let token = match &finding.token {
        TokenFinding::Passed => Cell::styled(Style::Good, "ok"),
        TokenFinding::Failed(problem) => Cell::styled(Style::Bad, errcode_or_kind(problem)),
        TokenFinding::Skipped => Cell::styled(Style::Warning, "not checked"),
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
        TicketFinding::Age(age) => Cell::styled(style, format!("{} min old", age.as_secs() / 60)),
        TicketFinding::Missing => Cell::styled(style, "none"),
        TicketFinding::Unreadable(_) => Cell::styled(style, "unreadable"),
    }
}

fn callback_cell(callback: &CommandUrlFinding) -> Cell {
    match callback {
        CommandUrlFinding::Answers => Cell::styled(Style::Good, "answers"),
        CommandUrlFinding::Refused(status) => Cell::styled(Style::Bad, status.to_string()),
        CommandUrlFinding::NotRunning => Cell::styled(Style::Warning, "not running here"),
        CommandUrlFinding::NotChecked => Cell::plain("-"),
    }
}
