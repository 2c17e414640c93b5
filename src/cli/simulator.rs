//! `simulator`: runs the simulated WeCom without a proxy.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{CliError, block_on, print};
use crate::simulator::{Settings, SimulatedAgent, Simulator};

/// Runs the simulator until SIGTERM or SIGINT.
pub fn simulator(listen: SocketAddr, control: SocketAddr, token_lifetime: Duration) -> Result<(), CliError> {
    block_on(async {
        let settings = Settings { token_lifetime, ..Settings::default() };
        let agents = settings.agents.clone();
        let simulator =
            Simulator::serve(settings, bind("--listen", listen).await?, bind("--control", control).await?)
                .map_err(CliError::other)?;
        let mut text = format!(
            "# A simulated WeCom. Its control address: curl http://{}/control\n# For proxy.toml:\n[upstream]\nurl = \"http://{}\"\n",
            simulator.control_addr(),
            simulator.api_addr()
        );
        for SimulatedAgent { name, corpid, secret, agentid } in agents {
            let section = format!(
                "\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = \"{secret}\"\nagentid = {agentid}\n"
            );
            text.push_str(&section);
        }
        print(text)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(CliError::other)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        simulator.stop().await;
        Ok(())
    })
}

async fn bind(option: &str, address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| {
                CliError::other(format!(
                    "cannot listen on {address}: {error}; choose another address with {option}, or stop what listens there"
                ))
    })
}
