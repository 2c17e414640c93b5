//! The commands of the program. Results go to stdout, logs and errors to stderr.

mod check;
mod command_line;
mod completions;
mod config_command;
mod core_dumps;
mod demo;
mod health;
mod init;
mod input;
mod key;
mod language;
mod listener_client;
mod live;
mod man;
pub mod online_check;
mod run;
mod simulated_suite;
mod simulator;
mod state;
mod style;
mod version;

use std::{
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use self::language::shown;
pub use self::{
    check::{CheckOptions, check},
    command_line::{exit_with_usage_error, parse_duration_arg},
    completions::completions,
    config_command::{config_schema, config_show},
    core_dumps::forbid_core_dumps,
    demo::{DemoOptions, demo},
    health::health,
    init::init,
    key::key,
    language::set_language,
    listener_client::AdminLocation,
    live::{TailOptions, agents, diag, inspect, refresh, reload, status, tail},
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
    display_text, format_text,
    server::{self, Inherited},
    telemetry::logs::LogHandle,
    text::{Localized, Text},
};

/// How long a forced exit waits for output to be written.
const FORCED_EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the program ends with a status other than 0.
#[derive(Debug)]
pub struct CliError {
    /// 2 for a bad command line or configuration, 1 for anything else.
    pub exit_code: u8,
    /// The error text for the operator.
    pub message: Text,
}

impl CliError {
    /// An error in the command line or configuration.
    fn config(message: Text) -> Self {
        Self { exit_code: 2, message }
    }

    /// Any other error.
    fn other(message: Text) -> Self {
        Self { exit_code: 1, message }
    }

    /// As [`other`](Self::other), with the text of an error.
    fn of(error: impl Localized) -> Self {
        Self::other(Text::of(&error))
    }

    /// As [`of`](Self::of), for an error of a library, which has no Chinese text.
    fn foreign(error: impl std::error::Error) -> Self {
        Self::other(format_text!("{error}", "出错：{error}"))
    }
}

/// Fails if the system has no source of randomness. Called before anything else: even a hash table needs it.
pub fn require_randomness() -> Result<(), CliError> {
    let explain = |error| {
        CliError::other(format_text!(
            "the system provides no random numbers ({error}): allow the system call getrandom, or provide /dev/urandom",
            "系统不提供随机数（{error}）：请允许系统调用 getrandom，或提供 /dev/urandom"
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
        let inherited = Inherited::from_env().map_err(CliError::of)?;
        server::raise_descriptor_limit();
        let prepared = prepare(path)?;
        let log_handle = LogHandle::start(prepared.log()).map_err(CliError::of)?;
        let _flush = FlushOnDrop(&log_handle);
        for warning in config::summarize_warnings(prepared.warnings()) {
            tracing::warn!("{}", warning.english());
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

/// Prints the error that ends the program, in the language of this process. Writes on another thread, so that a blocked stderr does not delay the exit
/// for longer than [`FORCED_EXIT_TIMEOUT`].
pub fn print_error(message: &Text) {
    let (written, done) = mpsc::channel();
    let line = format!("wecom-proxy: {}\n", shown(message));
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
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::of(error)),
        _ => Ok(()),
    }
}

/// Prints a result in the language of this process.
fn print_text(text: &Text) -> Result<(), CliError> {
    print(shown(text))
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// The file is invalid.
    Config(#[from] config::Error),
    /// The file is valid, but names something unusable.
    Setup(PathBuf, SetupError),
}

display_text!(PrepareError);

impl PrepareError {
    fn text(&self) -> Text {
        match self {
            Self::Config(error) => Text::of(error),
            Self::Setup(file, error) => format_text!("{}: {}", "{}：{}", file.display(), error),
        }
    }
}

impl From<PrepareError> for CliError {
    fn from(error: PrepareError) -> Self {
        Self::config(error.text())
    }
}

impl From<config::Error> for CliError {
    fn from(error: config::Error) -> Self {
        Self::config(Text::of(&error))
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let message = Text::of(&error);
        match &error {
            StartError::Open(_) => Self::config(message),
            StartError::State(state) if state.is_configuration() => Self::config(message),
            _ => Self::other(message),
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
    config::load_with(path, &process_env, SecretMode::Optional).map_err(CliError::from)
}

fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Runs `work` on a new runtime, which serves everything but requests.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(CliError::of)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}
