//! `simulator`: a WeCom to test against, alone.

use std::{net::SocketAddr, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use super::{Failed, on_runtime};
use crate::simulator::{Settings, Simulator};

/// Runs the simulator until it is told to stop.
pub fn simulator(listen: SocketAddr, control: SocketAddr, token_lifetime: Duration) -> Result<(), Failed> {
    on_runtime(async {
        let settings = Settings { token_lifetime, ..Settings::default() };
        let agents = settings.agents.clone();
        let cannot = |error| Failed::other(format!("cannot listen on {listen} and {control}: {error}"));
        let simulator = Simulator::start(settings, listen, control).await.map_err(cannot)?;
        println!(
            "# A simulated WeCom. Its control address: curl http://{}/control",
            simulator.control_addr()
        );
        println!("# For proxy.toml:\n[upstream]\nurl = \"http://{}\"", simulator.api_addr());
        for agent in agents {
            println!(
                "\n[agents.{}]\ncorpid = \"{}\"\nsecret = \"{}\"\nagentid = {}",
                agent.name, agent.corpid, agent.secret, agent.agentid
            );
        }
        let mut terminate = signal(SignalKind::terminate()).map_err(Failed::other)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        simulator.stop().await;
        Ok(())
    })
}
