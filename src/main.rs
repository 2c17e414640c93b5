//! Parses the command line, runs the command and returns the exit status.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use wecom_proxy::{
    cli::{self, AdminLocation, CheckOptions, CliError, DemoOptions, TailOptions},
    text::Language,
};

/// A reverse proxy for the WeCom (企业微信) server API that owns the access tokens.
#[derive(Parser)]
#[command(version = cli::VERSION, about, max_term_width = 100)]
struct Arguments {
    /// The configuration file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WECOM_PROXY_CONFIG",
        default_value = "proxy.toml"
    )]
    config: PathBuf,
    /// Language of errors and of what commands print; help and logs are in English [default: the locale, by LC_ALL,
    /// LC_MESSAGES and LANG]
    #[arg(long = "lang", global = true, value_name = "LANG")]
    language: Option<LanguageOption>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LanguageOption {
    En,
    Zh,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy (the default)
    Serve,
    /// Write a first configuration, with one agent and the admin listener; an existing file is never changed
    Init,
    /// Validate the configuration and show its agents and clients; names all mistakes at once
    Check {
        /// The configuration, in place of --config; - reads it from the standard input
        file: Option<PathBuf>,
        /// Read no secret and no certificate, so that the file can be checked where there are none, as in CI
        #[arg(long, conflicts_with = "online")]
        no_secrets: bool,
        /// Check only this agent at WeCom; can be given several times
        #[arg(long = "agent", value_name = "NAME", requires = "online")]
        agents: Vec<String>,
        /// Check every agent at WeCom, even after repeated failures, which can get this machine's address banned
        #[arg(long, requires = "online")]
        keep_going: bool,
        /// Also check each agent at WeCom, with one gettoken and one read-only call, and check the store
        #[arg(long)]
        online: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration without its secrets, or its JSON Schema
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run the proxy in front of a simulated WeCom, without configuration
    Demo {
        /// Listen address of the demo's proxy; port 0 picks a free port [default: 127.0.0.1:8080, or a free port if
        /// that is taken]
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<std::net::SocketAddr>,
        /// Number of proxies behind that address; they share their tokens through Redis
        #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=9))]
        replicas: u8,
        /// URL of the shared Redis, such as redis://127.0.0.1:6379/0; without it, the demo starts redis-server
        #[arg(long, value_name = "URL", requires = "replicas")]
        redis: Option<String>,
        /// Show a service provider: a suite whose ticket arrives, and a corp that authorises it
        #[arg(long, conflicts_with_all = ["replicas", "redis"])]
        suite: bool,
    },
    /// Run the WeCom simulator alone
    Simulator {
        /// Listen address of the simulated API
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
        listen: std::net::SocketAddr,
        /// Listen address of the control API: revoke, expire, delay, fail, drop
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8082")]
        control: std::net::SocketAddr,
        /// Token lifetime, such as 10s or 2h
        #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = cli::parse_duration_arg)]
        token_lifetime: std::time::Duration,
        /// Add a service provider with a suite; in proxy.toml, these need [state]
        #[arg(long)]
        suite: bool,
    },
    /// Generate a client's key and the configuration lines with its hash
    Key {
        /// The client's name
        name: String,
    },
    /// Query /readyz of the admin listener; for container health checks
    Health,
    /// Show the state of the running proxy; fails if it is not ready
    Status {
        #[command(flatten)]
        admin: AdminOption,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the agents of the running proxy and the state of their tokens
    Agents {
        #[command(flatten)]
        admin: AdminOption,
        /// Only those in trouble
        #[arg(long)]
        trouble: bool,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Print the recent exchanges of the running proxy, then new ones as they end
    Tail {
        #[command(flatten)]
        admin: AdminOption,
        /// Only those that failed
        #[arg(long)]
        failed: bool,
        /// Only those of this agent
        #[arg(long, value_name = "NAME")]
        agent: Option<String>,
        /// One exchange, in full, by its request id
        #[arg(long, value_name = "REQUEST_ID", conflicts_with_all = ["failed", "agent"])]
        id: Option<String>,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
        /// Print the recent exchanges only
        #[arg(long)]
        once: bool,
    },
    /// Refresh an agent's token now
    Refresh {
        #[command(flatten)]
        admin: AdminOption,
        /// The agent's name
        name: String,
    },
    /// Reload the configuration of the running proxy
    Reload {
        #[command(flatten)]
        admin: AdminOption,
    },
    /// Capture headers and bodies of an agent's exchanges for a while
    Inspect {
        #[command(flatten)]
        admin: AdminOption,
        /// The agent's name
        name: String,
        /// For how long, at most 1h; 0s ends the capture
        #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = cli::parse_duration_arg)]
        duration: std::time::Duration,
    },
    /// Write what a maintainer needs to understand a problem into a ZIP file, without secrets
    Diag {
        #[command(flatten)]
        admin: AdminOption,
        /// The new file; one that exists is never overwritten
        file: PathBuf,
    },
    /// Back the state up, check it, or change its key; each also while the proxy runs
    State {
        #[command(subcommand)]
        command: StateCommand,
    },
    /// Print shell completions
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, for man -l
    Man,
}

#[derive(Args)]
struct AdminOption {
    /// URL of the admin listener, such as http://127.0.0.1:9090 or unix:/run/admin.sock [default: admin.listen of the
    /// configuration file]. Its key is read from WECOM_PROXY_ADMIN_KEY
    #[arg(long = "admin", value_name = "URL", env = "WECOM_PROXY_ADMIN")]
    url: Option<String>,
    /// Certificates, in PEM, that an https:// URL may be signed by, in place of the public authorities
    #[arg(long = "admin-ca", value_name = "FILE", env = "WECOM_PROXY_ADMIN_CA")]
    ca_file: Option<PathBuf>,
}

impl AdminOption {
    fn location<'a>(&'a self, config: &'a Path) -> AdminLocation<'a> {
        AdminLocation { url: self.url.as_deref(), ca_file: self.ca_file.as_deref(), config }
    }
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of proxy.toml, for editors
    Schema,
    /// Print the settings of the file and of the files that it includes as TOML; secrets show only that they are set
    Show {
        /// Also the defaults of the settings that are not in the file
        #[arg(long)]
        effective: bool,
    },
}

#[derive(Subcommand)]
enum StateCommand {
    /// Copy the state into a new file, as it is at this moment
    Backup {
        /// The new file; one that exists is never overwritten
        file: PathBuf,
    },
    /// Read and decrypt everything, and count the records
    Check,
    /// Encrypt under the key what is still encrypted under old_key
    Rekey,
}

fn main() -> ExitCode {
    cli::forbid_core_dumps();
    if let Err(CliError { exit_code, message }) = cli::require_randomness() {
        cli::print_error(&message);
        return ExitCode::from(exit_code);
    }
    let Arguments { config, language, command } = Arguments::try_parse().unwrap_or_else(|error| {
        let arguments: Vec<_> =
            std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
        cli::exit_with_usage_error(&error, &arguments)
    });
    if let Some(language) = language {
        cli::set_language(match language {
            LanguageOption::En => Language::English,
            LanguageOption::Zh => Language::Chinese,
        });
    }
    match run(&config, command.unwrap_or(Command::Serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError { exit_code, message }) => {
            cli::print_error(&message);
            ExitCode::from(exit_code)
        }
    }
}

fn run(config: &Path, command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve => cli::serve(config),
        Command::Init => cli::init(config),
        Command::Check { file, online, json, no_secrets, agents, keep_going } => {
            let options = CheckOptions { online, json, no_secrets, agents, keep_going };
            cli::check(file.as_deref().unwrap_or(config), &options)
        }
        Command::Config { command: ConfigCommand::Schema } => cli::config_schema(),
        Command::Config { command: ConfigCommand::Show { effective } } => cli::config_show(config, effective),
        Command::Demo { listen, replicas, redis, suite } => {
            cli::demo(DemoOptions { listen, replicas, redis, suite })
        }
        Command::Simulator { listen, control, token_lifetime, suite } => {
            cli::simulator(listen, control, token_lifetime, suite)
        }
        Command::Key { name } => cli::key(&name),
        Command::State { command: StateCommand::Backup { file } } => cli::state_backup(config, &file),
        Command::State { command: StateCommand::Check } => cli::state_check(config),
        Command::State { command: StateCommand::Rekey } => cli::state_rekey(config),
        Command::Health => cli::health(config),
        Command::Completions { shell } => cli::completions(shell, Arguments::command()),
        Command::Man => cli::man(Arguments::command()),
        Command::Status { admin, json } => cli::status(admin.location(config), json),
        Command::Agents { admin, trouble, json } => cli::agents(admin.location(config), trouble, json),
        Command::Tail { admin, failed, agent, id, json, once } => {
            cli::tail(admin.location(config), &TailOptions { failed, agent, id, json, once })
        }
        Command::Refresh { admin, name } => cli::refresh(admin.location(config), &name),
        Command::Reload { admin } => cli::reload(admin.location(config)),
        Command::Inspect { admin, name, duration } => cli::inspect(admin.location(config), &name, duration),
        Command::Diag { admin, file } => cli::diag(admin.location(config), &file),
    }
}
