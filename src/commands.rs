//! What each command of the program does. Results go to stdout, logs and complaints to stderr.

mod check;
mod core_dumps;
mod demo;
mod health;
mod key;
mod man;
mod paint;
mod run;
mod simulator;

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
    check::{Manner, check},
    core_dumps::forbid_core_dumps,
    demo::demo,
    health::health,
    key::key,
    man::man,
    simulator::simulator,
};
use tokio::runtime::{Builder, LocalOptions};

use crate::{
    app::{App, Prepared, Surroundings, Unusable},
    config,
    server::{self, Inherited},
    telemetry::Telemetry,
};

/// How long an end that is to come at once waits for anything.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Why the program ends with a status other than 0.
#[derive(Debug)]
pub struct Failed {
    /// 2 for a bad command line or configuration, 1 for anything else.
    pub status: u8,
    /// What to tell the operator.
    pub words: String,
}

impl Failed {
    /// The configuration is at fault.
    fn config(words: impl fmt::Display) -> Self {
        Self { status: 2, words: words.to_string() }
    }

    /// Something else is.
    fn other(words: impl fmt::Display) -> Self {
        Self { status: 1, words: words.to_string() }
    }
}

/// Runs the proxy until it is told to stop.
pub fn serve(path: &Path) -> Result<(), Failed> {
    let inherited = Inherited::take().map_err(Failed::other)?;
    server::raise_descriptors();
    let prepared = prepared(path)?;
    let telemetry = Telemetry::start(prepared.log()).map_err(Failed::other)?;
    let _last_lines = LastLines(&telemetry);
    for warning in prepared.warnings() {
        tracing::warn!("{warning}");
    }
    on_runtime(async {
        let surroundings = Surroundings { inherited, access: None };
        let app = App::start_with(prepared, surroundings).map_err(Failed::other)?;
        run::until_told_to_stop(app, &telemetry).await
    })
}

/// Sees to it that what was logged is written before the program ends, however it ends.
struct LastLines<'a>(&'a Telemetry);

impl Drop for LastLines<'_> {
    fn drop(&mut self) {
        self.0.flush(AT_ONCE);
    }
}

/// A duration on the command line, written as in the configuration.
pub fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "write it like 10s (ms, s, m, h)".to_owned())
}

/// Tells the operator why the program ends. A stderr that nobody reads does not keep it from ending.
pub fn complain(words: &str) {
    let (said, heard) = mpsc::channel();
    let line = format!("wecom-proxy: {words}\n");
    let say = move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = said.send(());
    };
    if thread::Builder::new().spawn(say).is_ok() {
        let _ = heard.recv_timeout(AT_ONCE);
    }
}

/// Prints a result. Whoever reads it may have seen enough: a closed pipe is no failure.
pub fn say(text: impl AsRef<[u8]>) -> Result<(), Failed> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failed::other(error)),
        _ => Ok(()),
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// The file itself.
    #[error(transparent)]
    File(#[from] config::Error),
    /// What it names.
    #[error("{file}: {1}", file = .0.display())]
    Named(PathBuf, Unusable),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::config(refused)
    }
}

/// Loads the file and what it names.
fn prepared(path: &Path) -> Result<Prepared, Refused> {
    Prepared::new(config::load(path)?).map_err(|error| Refused::Named(path.to_owned(), error))
}

/// The runtime of everything but requests.
fn on_runtime<T>(work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(Failed::other)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}
