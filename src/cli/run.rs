//! Runs a proxy and handles its signals.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, FORCED_EXIT_TIMEOUT};
use crate::{
    app::{App, Reloader},
    blocking,
    config::Address,
    telemetry::{access_log::FLUSH_TIMEOUT, logs::LogHandle},
    text,
};

/// From now on SIGHUP does not end the process; one that comes before the proxy is ready reloads it then.
pub(super) fn catch_hangup() -> Result<Signal, CliError> {
    signal(SignalKind::hangup()).map_err(CliError::of)
}

/// From now on a write beyond a file size limit fails instead of ending the process.
pub(super) fn catch_file_size_limit() -> Result<Signal, CliError> {
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map_err(CliError::of)
}

/// Logs that the proxy is ready, then waits for signals: the first SIGTERM or SIGINT drains it, a second one exits at
/// once, SIGHUP reloads the configuration, SIGUSR1 opens the access log's file again.
pub(super) async fn run_until_signal(
    app: App,
    mut hangup: Signal,
    log_handle: &LogHandle,
) -> Result<(), CliError> {
    let listen = |kind| signal(kind).map_err(CliError::of);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut reopen = listen(SignalKind::user_defined1())?;
    app.reloader().attach_log_handle(log_handle);
    log_ready(&app);
    loop {
        tokio::select! {
            () = wait_for_stop_signal(&mut terminate, &mut interrupt) => break,
            _ = hangup.recv() => {
                app.access_log().reopen_file();
                // Not awaited: a stop signal must not wait for it.
                tokio::spawn(reload(app.reloader()));
            }
            _ = reopen.recv() => app.access_log().reopen_file(),
        }
    }
    tracing::info!("stopping: draining requests in flight");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let access_log = app.access_log().clone();
    tokio::select! {
        () = wait_for_stop_signal(&mut terminate, &mut interrupt) => {
            // Stdout or stderr may be blocked, so the flush has a bound.
            access_log.flush(FORCED_EXIT_TIMEOUT);
            Err(CliError::other(text!("second stop signal, exiting now", "收到第二个停止信号，立即退出")))
        }
        drained = app.shutdown() => {
            tracing::info!(drained, "stopped");
            log_handle.flush(FLUSH_TIMEOUT);
            Ok(())
        }
    }
}

/// Reloads the configuration on another thread, because it blocks and token refreshes run on this one.
async fn reload(reloader: Arc<Reloader>) {
    // The reloader logs the result.
    if blocking::spawn(move || drop(reloader.reload())).await.is_err() {
        tracing::error!("reload panicked");
    }
}

async fn wait_for_stop_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Logs the bound addresses and a summary, and notifies systemd if it started the proxy with `Type=notify`.
fn log_ready(app: &App) {
    let join =
        |addresses: &[Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let summary = app.summary();
    tracing::info!(
        target: "wecom_proxy::ready",
                listen = join(app.addresses()),
                admin = join(app.admin_addresses()),
        version = env!("CARGO_PKG_VERSION"),
                upstream = summary.upstream,
                upstreams = summary.upstreams,
                via = summary.via,
                agents = summary.agents,
                clients = summary.clients,
                store = summary.store,
                open = summary.open,
        "ready"
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}
