//! `demo`: simulator and proxy in one process, and three curl lines to try.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{Failed, on_runtime, run, say};
use crate::{
    app::{App, Prepared},
    config::{self, Address, Config},
    server::Bound,
    simulator::{Agent, Settings, Simulator},
    telemetry::Telemetry,
};

/// Where the demo's proxy listens, as every proxy does by default.
const PROXY_PORT: u16 = 8080;
/// Where the demo's simulator takes orders, as the lone simulator does by default.
const CONTROL_PORT: u16 = 8082;

/// Runs the demo until it is told to stop. Where it is not told where to listen, it takes the usual port, or a free one.
pub fn demo(listen: Option<SocketAddr>) -> Result<(), Failed> {
    let wanted = listen.unwrap_or(local(PROXY_PORT));
    let control = if wanted.port() == 0 { 0 } else { CONTROL_PORT };
    let listen = listen.unwrap_or_else(usual_or_free);
    on_runtime(async {
        let settings = Settings::default();
        let agents = settings.agents.clone();
        let simulator = simulator(settings, control).await?;
        let config = config_for(&agents, listen, &simulator)?;
        let telemetry = Telemetry::start(config.log);
        let app = App::start(Prepared::new(config).map_err(Failed::other)?).map_err(Failed::other)?;
        introduce(&app, wanted.port(), &simulator, control)?;
        run::until_told_to_stop(app, &telemetry).await
    })
}

/// The usual address, where nobody listens on it; else one with any port.
fn usual_or_free() -> SocketAddr {
    match Bound::open(&Address::Tcp(local(PROXY_PORT))) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => local(0),
        _ => local(PROXY_PORT),
    }
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A configuration with the simulator's agents.
fn config_for(agents: &[Agent], listen: SocketAddr, simulator: &Simulator) -> Result<Config, Failed> {
    let mut text = format!(
        "[server]\nlisten = \"{listen}\"\nopen = true\n\n[upstream]\nurl = \"http://{}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n",
        simulator.api_addr()
    );
    for agent in agents {
        let (name, corpid, agentid) = (&agent.name, &agent.corpid, agent.agentid);
        text.push_str(&format!(
            "\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = {{ env = \"{name}\" }}\nagentid = {agentid}\n"
        ));
    }
    let no_dir = |error| {
        Failed::other(format!("cannot make a temporary directory for the demo's proxy.toml: {error}"))
    };
    let dir = tempfile::tempdir().map_err(no_dir)?;
    let path = dir.path().join("proxy.toml");
    fs::write(&path, text).map_err(Failed::other)?;
    let secret =
        |name: &str| agents.iter().find(|agent| agent.name == name).map(|agent| agent.secret.clone());
    config::load_with(&path, &secret).map_err(Failed::other)
}

/// A simulator whose control address is the same each time, so that a line typed once can be typed again; another one
/// where that is taken.
async fn simulator(settings: Settings, control: u16) -> Result<Simulator, Failed> {
    if let Ok(simulator) = Simulator::start(settings.clone(), local(0), local(control)).await {
        return Ok(simulator);
    }
    Simulator::start(settings, local(0), local(0)).await.map_err(Failed::other)
}

/// Prints what to try. Every line works as it stands. Where a port is not the wanted one, it says so.
fn introduce(app: &App, wanted: u16, simulator: &Simulator, wanted_control: u16) -> Result<(), Failed> {
    let Some(Address::Tcp(proxy)) = app.addresses().first() else { return Ok(()) };
    let mut proxy = *proxy;
    if proxy.ip().is_unspecified() {
        proxy.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let control = simulator.control_addr();
    let moved =
        moved("proxy", wanted, proxy) + &moved("simulator's control address", wanted_control, control);
    say(format!(
        r#"{moved}wecom-proxy demo: a proxy on http://{proxy} before a simulated WeCom. Paste these, in another terminal:

# 1. A call without any token; the proxy adds it
curl 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan'

# 2. A message
curl 'http://{proxy}/hr/cgi-bin/message/send' -d '{{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{{"content":"你好"}}}}'

# 3. The token is voided, and the next call is answered all the same: see X-Wecom-Retried
curl -s -X POST 'http://{control}/control/revoke?agent=hr' && curl -i 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan'

What the simulator can do: curl http://{control}/control    Stop: Ctrl-C
"#
    ))
}

fn moved(what: &str, wanted: u16, real: SocketAddr) -> String {
    match wanted == 0 || wanted == real.port() {
        true => String::new(),
        false => format!("Port {wanted} is taken, so the {what} is on {real} instead.\n"),
    }
}
