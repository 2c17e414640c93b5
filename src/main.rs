//! The program: arguments in, exit status out.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use wecom_proxy::cli::{self, CheckOptions, CliError};

/// A reverse proxy for the WeCom (企业微信) server API that owns the access tokens.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
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
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy (the default)
    Serve,
    /// Validate the configuration and show its agents and clients
    Check {
        /// Ask WeCom about each agent too, one gettoken and one harmless call for each, and try the store
        #[arg(long)]
        online: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Try it: simulator and proxy in one process, nothing to configure
    Demo {
        /// Where the demo's proxy listens; port 0 takes a free one [default: 127.0.0.1:8080, or a free port where that is
        /// taken]
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<std::net::SocketAddr>,
        /// How many proxies there are behind that address, which share their tokens through Redis
        #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=9))]
        replicas: u8,
        /// The Redis that they share, such as redis://127.0.0.1:6379/0; without it redis-server is started for the demo
        #[arg(long, value_name = "URL", requires = "replicas")]
        redis: Option<String>,
    },
    /// Run the WeCom simulator alone
    Simulator {
        /// Where the simulated API listens
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
        listen: std::net::SocketAddr,
        /// Where the simulator takes orders: revoke, expire, delay, fail, drop
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8082")]
        control: std::net::SocketAddr,
        /// How long a token serves, such as 10s or 2h
        #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = cli::parse_duration_arg)]
        token_lifetime: std::time::Duration,
    },
    /// Make a client's key and the lines that hold its hash
    Key {
        /// The client's name
        name: String,
    },
    /// Ask the admin listener's /readyz; for container health checks
    Health,
    /// Print shell completions
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, for man -l
    Man,
}

fn main() -> ExitCode {
    cli::forbid_core_dumps();
    let Arguments { config, command } = Arguments::parse();
    let outcome = match command.unwrap_or(Command::Serve) {
        Command::Serve => cli::serve(&config),
        Command::Check { online, json } => cli::check(&config, CheckOptions { online, json }),
        Command::Demo { listen, replicas, redis } => cli::demo(listen, replicas, redis),
        Command::Simulator { listen, control, token_lifetime } => {
            cli::simulator(listen, control, token_lifetime)
        }
        Command::Key { name } => cli::key(&name),
        Command::Health => cli::health(&config),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "wecom-proxy", &mut script);
            cli::print(script)
        }
        Command::Man => cli::man(Arguments::command()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError { exit_code: status, message: words }) => {
            cli::print_error(&words);
            ExitCode::from(status)
        }
    }
}
