//! A running proxy and the signals that it obeys.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, FORCED_EXIT_TIMEOUT};
use crate::{
    app::App,
    config::Address,
    telemetry::{access_log::FLUSH_TIMEOUT, logs::LogHandle},
};

/// Says that the proxy is ready, then waits for a signal: SIGTERM or SIGINT ends it in order, a second one at once,
/// SIGHUP reloads the configuration.
pub(super) async fn run_until_signal(app: App, telemetry: &LogHandle) -> Result<(), CliError> {
    let listen = |kind| signal(kind).map_err(CliError::other);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut hangup = listen(SignalKind::hangup())?;
    app.reloader().attach_log_handle(telemetry);
    log_ready(&app);
    loop {
        tokio::select! {
            () = wait_for_stop_signal(&mut terminate, &mut interrupt) => break,
            _ = hangup.recv() => reload(&app).await,
        }
    }
    tracing::info!("stopping; requests in flight may finish");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let access = app.access_log().clone();
    tokio::select! {
        () = wait_for_stop_signal(&mut terminate, &mut interrupt) => {
            // Where nobody takes what is written, nobody waits for it long.
            access.flush(FORCED_EXIT_TIMEOUT);
            Err(CliError::other("told to stop twice; ended at once"))
        }
        drained = app.shutdown() => {
            tracing::info!(drained, "stopped");
            telemetry.flush(FLUSH_TIMEOUT);
            Ok(())
        }
    }
}

/// Reads the configuration again, away from this thread: that may take a while, and renewals happen here.
async fn reload(app: &App) {
    let reloader = app.reloader();
    // How it went, it says in the log.
    if tokio::task::spawn_blocking(move || drop(reloader.reload())).await.is_err() {
        tracing::error!("the reload broke off");
    }
}

async fn wait_for_stop_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// One log line with every real address and what is served there, and word to systemd where it waits for one.
fn log_ready(app: &App) {
    let written =
        |addresses: &[Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let outline = app.summary();
    tracing::info!(
        target: "wecom_proxy::ready",
        listen = written(app.addresses()),
        admin = written(app.admin_addresses()),
        version = env!("CARGO_PKG_VERSION"),
        upstream = outline.upstream,
        via = outline.via,
        agents = outline.agents,
        clients = outline.clients,
        store = outline.store,
        open = outline.open,
        "ready"
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}
