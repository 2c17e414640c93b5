//! What each command of the program does. Results go to stdout, logs and complaints to stderr.

mod check;
mod core_dumps;
mod demo;
mod health;
mod key;
mod man;
pub mod online_check;
mod run;
mod simulator;
mod style;

use std::{
    fmt,
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

pub use self::{
    check::{CheckOptions, check},
    core_dumps::forbid_core_dumps,
    demo::demo,
    health::health,
    key::key,
    man::man,
    simulator::simulator,
};
use tokio::runtime::{Builder, LocalOptions};

use crate::{
    app::{App, PreparedConfig, SetupError, StartOptions},
    config,
    server::{self, Inherited},
    telemetry::logs::LogHandle,
};

/// How long an end that is to come at once waits for anything.
const FORCED_EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the program ends with a status other than 0.
#[derive(Debug)]
pub struct CliError {
    /// 2 for a bad command line or configuration, 1 for anything else.
    pub exit_code: u8,
    /// What to tell the operator.
    pub message: String,
}

impl CliError {
    /// The configuration is at fault.
    fn config(words: impl fmt::Display) -> Self {
        Self { exit_code: 2, message: words.to_string() }
    }

    /// Something else is.
    fn other(words: impl fmt::Display) -> Self {
        Self { exit_code: 1, message: words.to_string() }
    }
}

/// Runs the proxy until it is told to stop.
pub fn serve(path: &Path) -> Result<(), CliError> {
    let inherited = Inherited::from_env().map_err(CliError::other)?;
    server::raise_descriptor_limit();
    let prepared = prepare(path)?;
    let telemetry = LogHandle::start(prepared.log()).map_err(CliError::other)?;
    let _last_lines = FlushOnDrop(&telemetry);
    for warning in prepared.warnings() {
        tracing::warn!("{warning}");
    }
    block_on(async {
        let surroundings = StartOptions { inherited, access_log: None };
        let app = App::start_with(prepared, surroundings).map_err(CliError::other)?;
        run::run_until_signal(app, &telemetry).await
    })
}

/// Sees to it that what was logged is written before the program ends, however it ends.
struct FlushOnDrop<'a>(&'a LogHandle);

impl Drop for FlushOnDrop<'_> {
    fn drop(&mut self) {
        self.0.flush(FORCED_EXIT_TIMEOUT);
    }
}

/// A duration on the command line, written as in the configuration.
pub fn parse_duration_arg(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "write it like 10s (ms, s, m, h)".to_owned())
}

/// Tells the operator why the program ends. A stderr that nobody reads does not keep it from ending.
pub fn print_error(words: &str) {
    let (said, heard) = mpsc::channel();
    let line = format!("wecom-proxy: {words}\n");
    let say = move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = said.send(());
    };
    if thread::Builder::new().spawn(say).is_ok() {
        let _ = heard.recv_timeout(FORCED_EXIT_TIMEOUT);
    }
}

/// Prints a result. Whoever reads it may have seen enough: a closed pipe is no failure.
pub fn print(text: impl AsRef<[u8]>) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::other(error)),
        _ => Ok(()),
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// The file itself.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// What it names.
    #[error("{file}: {1}", file = .0.display())]
    Setup(PathBuf, SetupError),
}

impl From<PrepareError> for CliError {
    fn from(refused: PrepareError) -> Self {
        Self::config(refused)
    }
}

/// Loads the file and what it names.
fn prepare(path: &Path) -> Result<PreparedConfig, PrepareError> {
    PreparedConfig::new(config::load(path)?).map_err(|error| PrepareError::Setup(path.to_owned(), error))
}

/// The runtime of everything but requests.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(CliError::other)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}
