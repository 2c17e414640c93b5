//! `check`: validates the configuration and shows its agents and clients; `--online` also checks each agent at WeCom.

mod callbacks;
mod json;
mod online_text;
mod problem_json;
mod problem_text;
mod suites_json;
mod suites_text;

use std::path::Path;

use super::online_check::{self, AgentSelection, OnlineReport};
use super::{
    CliError, PrepareError, block_on,
    input::load_input,
    language::shown,
    print,
    style::{Cell, Style, Styler},
};
use crate::{
    app::PreparedConfig,
    config::{self, AgentConfig, ClientConfig, Config, SecretMode, Warning},
    format_text,
    state::maintenance,
    text,
};

/// The options of `check`.
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// Check each agent at WeCom, and the store.
    pub online: bool,
    /// Print one JSON object instead of tables.
    pub json: bool,
    /// Read no secret, and none of the files that the configuration names.
    pub no_secrets: bool,
    /// Only these agents are checked at WeCom; empty for all.
    pub agents: Vec<String>,
    /// Check every agent at WeCom, whatever the ones before it said.
    pub keep_going: bool,
}

/// A valid configuration.
enum Checked {
    /// With the files that it names.
    Prepared(Box<PreparedConfig>),
    /// Alone.
    ConfigOnly(Box<Config>),
}

impl Checked {
    fn load(path: &Path, no_secrets: bool) -> Result<Self, PrepareError> {
        let secrets = if no_secrets { SecretMode::Unread } else { SecretMode::Required };
        let config = load_input(path, secrets)?;
        if no_secrets {
            return Ok(Self::ConfigOnly(Box::new(config)));
        }
        let prepared =
            PreparedConfig::new(config).map_err(|error| PrepareError::Setup(path.to_owned(), error))?;
        Ok(Self::Prepared(Box::new(prepared)))
    }

    fn config(&self) -> &Config {
        match self {
            Self::Prepared(prepared) => prepared.config(),
            Self::ConfigOnly(config) => config,
        }
    }
}

/// Prints the agents and clients and the result of the online check to stdout, warnings to stderr.
pub fn check(path: &Path, options: &CheckOptions) -> Result<(), CliError> {
    let json = options.json;
    let checked = match Checked::load(path, options.no_secrets) {
        Ok(checked) => checked,
        Err(error) => {
            if json {
                print(json::invalid_config(path, &error))?;
            }
            return Err(error.into());
        }
    };
    let config = checked.config();
    let openness = Openness::of(config, options.no_secrets);
    if !json {
        print_warnings(&config.warnings);
        print(format!(
            "{}{}{}\n{}",
            overview_text(config, openness, Styler::stdout()),
            suites_text::overview_text(config, Styler::stdout()),
            callbacks_text(config, Styler::stdout()),
            shown(&format_text!("{} is valid\n", "{} 有效\n", config.path.display()))
        ))?;
    }
    let report = match &checked {
        Checked::Prepared(prepared) if options.online => Some(run_online_check(prepared, options)?),
        _ => None,
    };
    match (&report, json) {
        (report, true) => print(json::valid_config(config, openness, report.as_ref()))?,
        (Some(report), false) => print(online_text::report_text(config, report, Styler::stdout()))?,
        (None, false) => {}
    }
    match report {
        Some(report) if !report.is_ok() => Err(CliError::other(online_text::summary(&report))),
        _ => Ok(()),
    }
}

fn run_online_check(prepared: &PreparedConfig, options: &CheckOptions) -> Result<OnlineReport, CliError> {
    let config = prepared.config();
    if let Some(unknown) = options.agents.iter().find(|name| !config.agents.contains_key(name.as_str())) {
        let path = config.path.display();
        return Err(CliError::config(format_text!(
            "--agent {unknown}: there is no agent of this name in {path}",
            "--agent {unknown}：{path} 中没有这个名字的应用"
        )));
    }
    let selection = AgentSelection { names: &options.agents, keep_going: options.keep_going };
    block_on(async { Ok(online_check::run(config, prepared.upstreams(), selection).await) })
}

/// Prints all warnings with one write, because there may be one for each of very many agents.
fn print_warnings(warnings: &[Warning]) {
    let label = Styler::stderr().apply(Style::Warning, shown(&text!("warning", "警告")));
    let texts = config::summarize_warnings(warnings);
    let lines = texts.iter().map(|warning| format_text!("{label}: {}\n", "{label}：{}\n", warning));
    eprint!("{}", lines.map(|line| shown(&line).to_owned()).collect::<String>());
}

/// Whether callers without a key are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Openness {
    /// There is no client, or `server.open` is set.
    Open,
    /// The files have a client.
    Closed,
    /// The state alone has so many.
    ClosedByState(usize),
    /// It depends on a state that cannot be read here.
    Unknown,
}

impl Openness {
    /// The state is read only with its key.
    fn of(config: &Config, no_secrets: bool) -> Self {
        match &config.state {
            _ if !config.is_open() => Self::Closed,
            Some(_) if no_secrets && !config.server.open => Self::Unknown,
            Some(state) if !config.server.open => match maintenance::count_clients(state) {
                Some(0) => Self::Open,
                Some(clients) => Self::ClosedByState(clients),
                None => Self::Unknown,
            },
            _ => Self::Open,
        }
    }
}

fn overview_text(config: &Config, openness: Openness, styler: Styler) -> String {
    let has_upstreams = !config.upstreams.is_empty();
    let agents = config.agents.values().map(|agent| {
        let mut row = vec![
            Cell::plain(&agent.name),
            Cell::plain(&agent.corpid),
            Cell::optional(agent.settings.agentid),
            secret_cell(agent),
            Cell::optional(agent.settings.limit.as_ref()),
        ];
        row.extend(has_upstreams.then(|| Cell::plain(config.upstream_of(agent).base_url())));
        row
    });
    let mut headings = vec![
        text!("AGENT", "应用"),
        text!("CORPID", "CORPID"),
        text!("AGENTID", "AGENTID"),
        text!("SECRET", "SECRET"),
        text!("LIMIT", "限制"),
    ];
    headings.extend(has_upstreams.then_some(text!("UPSTREAM", "上游")));
    let mut text = String::new();
    if !config.agents.is_empty() {
        text += &styler.render_table(&headings, agents.collect());
        text.push('\n');
    }
    if config.clients.is_empty() {
        text.push_str(shown(&match openness {
            Openness::ClosedByState(clients) => format_text!(
                "No clients in the files, {clients} in the state: callers need the key of one.\n",
                "文件中没有调用方，状态库中有 {clients} 个：请求需要其中一个的密钥。\n"
            ),
            Openness::Unknown => text!(
                "No clients in the files, and the state cannot be read here: without one in it, the proxy is open to every \
                 client that can connect.\n",
                "文件中没有调用方，而状态库在这里无法读取：如果其中也没有，代理对所有能连接的程序开放。\n"
            ),
            _ => text!(
                "No clients: the proxy is open to every client that can connect.\n",
                "没有调用方：代理对所有能连接的程序开放。\n"
            ),
        }));
        return text;
    }
    text.push_str(&clients_table(config, styler));
    if config.is_open() {
        text.push_str(shown(&text!(
            "\nCallers without a key are served too (server.open).\n",
            "\n没有密钥的请求也会得到服务（server.open）。\n"
        )));
    }
    text
}

fn secret_cell(agent: &AgentConfig) -> Cell {
    match agent.secrets.len() {
        _ if agent.secrets.iter().any(|secret| config::is_unread(&secret.value)) => {
            Cell::text(Style::Plain, &text!("not read", "没有读取"))
        }
        1 => Cell::text(Style::Good, &text!("found", "已找到")),
        _ => Cell::text(Style::Good, &text!("found, two set", "已找到，设置了两个")),
    }
}

/// The clients; how many keys they have only where one has several, which is so while a key is changed.
fn clients_table(config: &Config, styler: Styler) -> String {
    let shows_keys = config.clients.values().any(|client| client.keys.len() > 1);
    let keys_cell = |client: &ClientConfig| match client.keys.len() {
        1 => Cell::text(Style::Plain, &text!("one", "一个")),
        2 => Cell::text(Style::Warning, &text!("two set", "设置了两个")),
        count => Cell::text(Style::Warning, &format_text!("{count} set", "设置了 {count} 个")),
    };
    let rows = config.clients.values().map(|client| {
        let mut row = vec![Cell::plain(&client.name), Cell::plain(client.agents.listed().join(", "))];
        row.extend(shows_keys.then(|| keys_cell(client)));
        row.push(Cell::plain(allowed_calls(client).join(", ")));
        row.push(Cell::optional(client.limit.as_ref()));
        row
    });
    let mut titles = vec![text!("CLIENT", "调用方"), text!("AGENTS", "应用")];
    titles.extend(shows_keys.then_some(text!("KEYS", "密钥")));
    titles.extend([text!("ALLOW", "允许"), text!("LIMIT", "限制")]);
    styler.render_table(&titles, rows.collect())
}

/// The receiver URLs and their targets; nothing without any.
fn callbacks_text(config: &Config, styler: Styler) -> String {
    if config.callbacks.is_empty() {
        return String::new();
    }
    let callbacks = config.callbacks.values().map(|callback| {
        let empty = text!("(empty)", "（空）");
        let receive_ids =
            callback.receive_ids.iter().map(|id| if id.is_empty() { shown(&empty) } else { id.as_str() });
        let targets = callback.targets.iter().map(|target| &*target.name);
        vec![
            // The data URL of a suite has a name with a dot.
            Cell::plain(format!("/callbacks/{}", callback.name.replace('.', "/"))),
            Cell::plain(receive_ids.collect::<Vec<_>>().join(", ")),
            Cell::plain(targets.collect::<Vec<_>>().join(", ")),
        ]
    });
    let titles = [text!("CALLBACK", "回调"), text!("RECEIVEID", "RECEIVEID"), text!("TARGETS", "目标")];
    format!("\n{}", styler.render_table(&titles, callbacks.collect()))
}

fn allowed_calls(client: &ClientConfig) -> Vec<String> {
    client.allow.iter().map(ToString::to_string).collect()
}
