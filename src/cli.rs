//! The commands of the program. Results go to stdout, logs and errors to stderr.

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

/// Runs the proxy until SIGTERM or SIGINT.
pub fn serve(path: &Path) -> Result<(), CliError> {
    let inherited = Inherited::from_env().map_err(CliError::other)?;
    server::raise_descriptor_limit();
    let prepared = prepare(path)?;
    let log_handle = LogHandle::start(prepared.log()).map_err(CliError::other)?;
    let _flush = FlushOnDrop(&log_handle);
    for warning in prepared.warnings() {
        tracing::warn!("{warning}");
    }
    block_on(async {
        let options = StartOptions { inherited, access_log: None };
        let app = App::start_with(prepared, options).map_err(CliError::other)?;
        run::run_until_signal(app, &log_handle).await
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
    let write = move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = written.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = done.recv_timeout(FORCED_EXIT_TIMEOUT);
    }
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

/// Loads the file and the files that it names.
fn prepare(path: &Path) -> Result<PreparedConfig, PrepareError> {
    PreparedConfig::new(config::load(path)?).map_err(|error| PrepareError::Setup(path.to_owned(), error))
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
