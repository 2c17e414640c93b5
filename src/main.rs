//! Parses the command line, runs the command and returns the exit status.

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
        /// Also check each agent at WeCom, with one gettoken and one read-only call, and check the store
        #[arg(long)]
        online: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
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
    },
    /// Generate a client's key and the configuration lines with its hash
    Key {
        /// The client's name
        name: String,
    },
    /// Query /readyz of the admin listener; for container health checks
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
        Err(CliError { exit_code, message }) => {
            cli::print_error(&message);
            ExitCode::from(exit_code)
        }
    }
}
