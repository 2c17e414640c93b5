//! `simulator`: runs the simulated WeCom without a proxy.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{
    CliError, block_on, print,
    simulated_suite::{sections, with_suite},
};
use crate::{
    format_text,
    simulator::{Settings, SimulatedAgent, Simulator},
};

/// Runs the simulator until SIGTERM or SIGINT, with a provider and a suite if `suite` is set.
pub fn simulator(
    listen: SocketAddr,
    control: SocketAddr,
    token_lifetime: Duration,
    suite: bool,
) -> Result<(), CliError> {
    block_on(async {
        let settings = Settings { token_lifetime, ..Settings::default() };
        let settings = if suite { with_suite(settings) } else { settings };
        let simulator = Simulator::serve(
            settings.clone(),
            bind("--listen", listen).await?,
            bind("--control", control).await?,
        )
        .map_err(CliError::of)?;
        let mut text = format!(
            "# A simulated WeCom. Its control address: curl http://{}/control\n# For proxy.toml:\n[upstream]\nurl = \"http://{}\"\n",
            simulator.control_addr(),
            simulator.api_addr()
        );
        for SimulatedAgent { name, corpid, secret, agentid } in &settings.agents {
            let section = format!(
                "\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = \"{secret}\"\nagentid = {agentid}\n"
            );
            text.push_str(&section);
        }
        text.push_str(&sections(&settings));
        print(text)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(CliError::of)?;
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
                CliError::other(format_text!(
            "cannot listen on {address}: {}; choose another address with {option}, or stop what listens there",
            "无法监听 {address}：{}；请用 {option} 换一个地址，或停止占用它的程序",
            error
        ))
    })
}
