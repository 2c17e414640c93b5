//! The commands of the program. Results go to stdout, logs and errors to stderr.

mod check;
mod completions;
mod config_command;
mod core_dumps;
mod demo;
mod health;
mod init;
mod input;
mod key;
mod live;
mod local_request;
mod man;
pub mod online_check;
mod run;
mod simulated_suite;
mod simulator;
mod state;
mod style;
mod version;

use std::{
    fmt,
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

pub use self::{
    check::{CheckOptions, check},
    completions::completions,
    config_command::{config_schema, config_show},
    core_dumps::forbid_core_dumps,
    demo::{DemoOptions, demo},
    health::health,
    init::init,
    key::key,
    live::{AdminLocation, TailOptions, agents, diag, inspect, refresh, reload, status, tail},
    man::man,
    simulator::simulator,
    state::{state_backup, state_check, state_rekey},
    version::VERSION,
};
use tokio::runtime::{Builder, LocalOptions};

use crate::{
    app::{App, PreparedConfig, SetupError, StartError, StartOptions},
    blocking,
    config::{self, SecretMode},
    server::{self, Inherited},
    telemetry::logs::LogHandle,
};

/// How long a forced exit waits for output to be written.
const FORCED_EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the program ends with a status other than 0.
#[derive(Debug)]
pub struct CliError {
    /// 2 for a bad command line or configuration, 1 for anything else.
    pub exit_code: u8,
    /// The error text for the operator.
    pub message: String,
}

impl CliError {
    /// An error in the command line or configuration.
    fn config(message: impl fmt::Display) -> Self {
        Self { exit_code: 2, message: message.to_string() }
    }

    /// Any other error.
    fn other(message: impl fmt::Display) -> Self {
        Self { exit_code: 1, message: message.to_string() }
    }
}

/// Fails if the system has no source of randomness. Called before anything else: even a hash table needs it.
pub fn require_randomness() -> Result<(), CliError> {
    let explain = |error| {
        CliError::other(format!(
            "the system provides no random numbers ({error}): allow the system call getrandom, or provide /dev/urandom"
        ))
    };
    getrandom::u64().map(drop).map_err(explain)
}

/// Runs the proxy until SIGTERM or SIGINT.
pub fn serve(path: &Path) -> Result<(), CliError> {
    block_on(async {
        // First of all: until then, SIGHUP ends the process.
        let hangup = run::catch_hangup()?;
        let _file_size_limit = run::catch_file_size_limit()?;
        let inherited = Inherited::from_env().map_err(CliError::other)?;
        server::raise_descriptor_limit();
        let prepared = prepare(path)?;
        let log_handle = LogHandle::start(prepared.log()).map_err(CliError::other)?;
        let _flush = FlushOnDrop(&log_handle);
        for warning in config::summarize_warnings(prepared.warnings()) {
            tracing::warn!("{warning}");
        }
        let options = StartOptions { inherited, ..StartOptions::default() };
        let app = App::start_with(prepared, options)?;
        run::run_until_signal(app, hangup, &log_handle).await
    })
}

/// Flushes the log when the program ends, also after an error or panic.
struct FlushOnDrop<'a>(&'a LogHandle);

impl Drop for FlushOnDrop<'_> {
    fn drop(&mut self) {
        self.0.flush(FORCED_EXIT_TIMEOUT);
    }
}

/// Parses a duration on the command line, in the configuration's syntax.
pub fn parse_duration_arg(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "write it like 10s (ms, s, m, h)".to_owned())
}

/// Prints the error that ends the program. Writes on another thread, so that a blocked stderr does not delay the exit
/// for longer than [`FORCED_EXIT_TIMEOUT`].
pub fn print_error(message: &str) {
    let (written, done) = mpsc::channel();
    let line = format!("wecom-proxy: {message}\n");
    let _in_progress = blocking::spawn(move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = written.send(());
    });
    let _ = done.recv_timeout(FORCED_EXIT_TIMEOUT);
}

/// Prints a result. A closed pipe is not an error: the reader, such as `head`, needs no more.
pub fn print(text: impl AsRef<[u8]>) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::other(error)),
        _ => Ok(()),
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// The file is invalid.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The file is valid, but names something unusable.
    #[error("{file}: {1}", file = .0.display())]
    Setup(PathBuf, SetupError),
}

impl From<PrepareError> for CliError {
    fn from(error: PrepareError) -> Self {
        Self::config(error)
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Open(_) => Self::config(error),
            StartError::State(state) if state.is_configuration() => Self::config(error),
            _ => Self::other(error),
        }
    }
}

/// Loads the file and the files that it names.
fn prepare(path: &Path) -> Result<PreparedConfig, PrepareError> {
    PreparedConfig::new(config::load(path)?).map_err(|error| PrepareError::Setup(path.to_owned(), error))
}

/// Loads the file for a command that needs few of its secrets or none: those that cannot be read in the shell that runs it
/// are replaced by placeholders.
fn load_without_secrets(path: &Path) -> Result<config::Config, CliError> {
    config::load_with(path, &process_env, SecretMode::Optional).map_err(CliError::config)
}

fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Runs `work` on a new runtime, which serves everything but requests.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(CliError::other)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}
