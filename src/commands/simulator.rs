//! `simulator`: a WeCom to test against, alone.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{Failed, on_runtime, say};
use crate::simulator::{Agent, Settings, Simulator};

/// Runs the simulator until it is told to stop.
pub fn simulator(listen: SocketAddr, control: SocketAddr, token_lifetime: Duration) -> Result<(), Failed> {
    on_runtime(async {
        let settings = Settings { token_lifetime, ..Settings::default() };
        let agents = settings.agents.clone();
        let simulator =
            Simulator::serve(settings, bind("--listen", listen).await?, bind("--control", control).await?)
                .map_err(Failed::other)?;
        let mut text = format!(
            "# A simulated WeCom. Its control address: curl http://{}/control\n# For proxy.toml:\n[upstream]\nurl = \"http://{}\"\n",
            simulator.control_addr(),
            simulator.api_addr()
        );
        for Agent { name, corpid, secret, agentid } in agents {
            let section = format!(
                "\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = \"{secret}\"\nagentid = {agentid}\n"
            );
            text.push_str(&section);
        }
        say(text)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Failed::other)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        simulator.stop().await;
        Ok(())
    })
}

async fn bind(option: &str, address: SocketAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind(address).await.map_err(|error| {
        let what = format!("cannot listen on {address}: {error}");
        Failed::other(format!("{what}; choose another address with {option}, or end what listens there"))
    })
}
