//! A running proxy and the signals that it obeys.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{AT_ONCE, Failed};
use crate::{access::LAST_LINES, app::App, config::Address, telemetry::Telemetry};

/// Says that the proxy is ready, then waits for a signal: SIGTERM or SIGINT ends it in order, a second one at once,
/// SIGHUP reloads the configuration.
pub(super) async fn until_told_to_stop(app: App, telemetry: &Telemetry) -> Result<(), Failed> {
    let listen = |kind| signal(kind).map_err(Failed::other);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut hangup = listen(SignalKind::hangup())?;
    app.reloader().lead(telemetry);
    announce(&app);
    loop {
        tokio::select! {
            () = either(&mut terminate, &mut interrupt) => break,
            _ = hangup.recv() => reload(&app).await,
        }
    }
    tracing::info!("stopping; requests in flight may finish");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let access = app.access().clone();
    tokio::select! {
        () = either(&mut terminate, &mut interrupt) => {
            // Where nobody takes what is written, nobody waits for it long.
            access.flush(AT_ONCE);
            Err(Failed::other("told to stop twice; ended at once"))
        }
        drained = app.shut_down() => {
            tracing::info!(drained, "stopped");
            telemetry.flush(LAST_LINES);
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

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// One log line with every real address and what is served there, and word to systemd where it waits for one.
fn announce(app: &App) {
    let written =
        |addresses: &[Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let outline = app.outline();
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
