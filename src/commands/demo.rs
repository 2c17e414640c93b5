//! `demo`: simulator and proxy in one process, and three curl lines to try.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use super::{Failed, on_runtime, run, say};
use crate::{
    app::{App, Prepared},
    config::{self, Address},
    simulator::{Settings, Simulator},
    telemetry::Telemetry,
};

/// Where the demo's simulator takes orders, as the lone simulator does by default.
const CONTROL_PORT: u16 = 8082;

/// Runs the demo until it is told to stop.
pub fn demo(listen: SocketAddr) -> Result<(), Failed> {
    on_runtime(async {
        let settings = Settings::default();
        let agents = settings.agents.clone();
        let simulator = simulator(settings, listen).await?;
        let mut text = format!(
            "[server]\nlisten = \"{listen}\"\nopen = true\n\n[upstream]\nurl = \"http://{}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n",
            simulator.api_addr()
        );
        for agent in &agents {
            let (name, corpid, agentid) = (&agent.name, &agent.corpid, agent.agentid);
            let section = format!(
                "\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = {{ env = \"{name}\" }}\nagentid = {agentid}\n"
            );
            text.push_str(&section);
        }
        let no_dir = |error| {
            Failed::other(format!("cannot make a temporary directory for the demo's proxy.toml: {error}"))
        };
        let dir = tempfile::tempdir().map_err(no_dir)?;
        let path = dir.path().join("proxy.toml");
        fs::write(&path, text).map_err(Failed::other)?;
        let secret =
            |name: &str| agents.iter().find(|agent| agent.name == name).map(|agent| agent.secret.clone());
        let config = config::load_with(&path, &secret).map_err(Failed::other)?;
        let telemetry = Telemetry::start(config.log);
        let app = App::start(Prepared::new(config).map_err(Failed::other)?).map_err(Failed::other)?;
        introduce(&app, &simulator)?;
        run::until_told_to_stop(app, &telemetry).await
    })
}

/// A simulator whose control address is the same each time, so that a line typed once can be typed again; another one
/// where that is taken, or where the caller wants a free port anyway.
async fn simulator(settings: Settings, listen: SocketAddr) -> Result<Simulator, Failed> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if listen.port() != 0
        && let Ok(simulator) = Simulator::start(settings.clone(), local(0), local(CONTROL_PORT)).await
    {
        return Ok(simulator);
    }
    Simulator::start(settings, local(0), local(0)).await.map_err(Failed::other)
}

/// Prints what to try. Every line works as it stands.
fn introduce(app: &App, simulator: &Simulator) -> Result<(), Failed> {
    let Some(Address::Tcp(proxy)) = app.addresses().first() else { return Ok(()) };
    let mut proxy = *proxy;
    if proxy.ip().is_unspecified() {
        proxy.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let control = simulator.control_addr();
    say(format!(
        r#"wecom-proxy demo: a proxy on http://{proxy} before a simulated WeCom. Paste these, in another terminal:

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
