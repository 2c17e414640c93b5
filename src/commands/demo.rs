//! `demo`: simulator and proxy in one process, or several proxies, and three curl lines to try.

mod replicas;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tempfile::TempDir;

use self::replicas::{Redis, Relay, random_key};
use super::{Failed, on_runtime, run, say};
use crate::{
    app::{App, Prepared},
    config::{self, Address},
    server::Bound,
    simulator::{Agent, Settings, Simulator},
    telemetry::Telemetry,
};

/// Where the demo's proxy listens, as every proxy does by default.
const PROXY_PORT: u16 = 8080;
/// Where the demo's simulator takes orders, as the lone simulator does by default.
const CONTROL_PORT: u16 = 8082;

/// Runs the demo until it is told to stop: one proxy, or several that share their tokens through Redis. Where it is not
/// told where to listen, it takes the usual port, or a free one.
pub fn demo(listen: Option<SocketAddr>, replicas: u8, redis: Option<String>) -> Result<(), Failed> {
    // Said here it names the option, and not a file that nobody has written.
    if redis.as_ref().is_some_and(|url| !["redis://", "rediss://"].iter().any(|start| url.starts_with(start)))
    {
        let words = "--redis must start with redis:// or rediss://, as in redis://127.0.0.1:6379/0";
        return Err(Failed::config(words));
    }
    let wanted = listen.unwrap_or(local(PROXY_PORT));
    let control = if wanted.port() == 0 { 0 } else { CONTROL_PORT };
    let listen = listen.unwrap_or_else(usual_or_free);
    on_runtime(async {
        let settings = Settings::default();
        let agents = settings.agents.clone();
        let simulator = simulator(settings, control).await?;
        let no_dir = |error| {
            Failed::other(format!("cannot make a temporary directory for the demo's proxy.toml: {error}"))
        };
        let dir = tempfile::tempdir().map_err(no_dir)?;
        if replicas == 1 && redis.is_none() {
            let (app, telemetry) = start(&configuration(listen, &simulator, &agents, ""), &dir, &agents)?;
            introduce(&app, wanted.port(), &simulator, control)?;
            return run::until_told_to_stop(app, &telemetry).await;
        }
        let (url, _server) = match redis {
            Some(url) => (url, None),
            None => Redis::start(&dir).await.map(|server| (server.url(), Some(server)))?,
        };
        let tokens = format!("\n[tokens]\nstore = {{ redis = {url:?}, key = {:?} }}\n", random_key());
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let text = configuration(free, &simulator, &agents, &tokens);
        let relay = Relay::open(listen).await?;
        let (first, telemetry) = start(&text, &dir, &agents)?;
        let mut others = Vec::new();
        for _ in 1..replicas {
            others.push(start(&text, &dir, &agents)?.0);
        }
        for app in [&first].into_iter().chain(&others) {
            replicas::joined(app).await?;
        }
        let dashboards = dashboards([&first].into_iter().chain(&others));
        introduce_replicas(relay.address(), &dashboards, replicas, wanted.port(), &simulator, control)?;
        relay.serve([&first].into_iter().chain(&others).flat_map(App::addresses));
        let ended = run::until_told_to_stop(first, &telemetry).await;
        for app in others {
            app.shut_down().await;
        }
        ended
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

/// The demo's proxy.toml, with `more` sections.
fn configuration(listen: SocketAddr, simulator: &Simulator, agents: &[Agent], more: &str) -> String {
    let mut text = format!(
        "[server]\nlisten = \"{listen}\"\nopen = true\n\n[upstream]\nurl = \"http://{}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}",
        simulator.api_addr()
    );
    for Agent { name, corpid, agentid, .. } in agents {
        let section = format!(
            "\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = {{ env = \"{name}\" }}\nagentid = {agentid}\n"
        );
        text.push_str(&section);
    }
    text
}

fn start(text: &str, dir: &TempDir, agents: &[Agent]) -> Result<(App, Telemetry), Failed> {
    let path = dir.path().join("proxy.toml");
    fs::write(&path, text).map_err(Failed::other)?;
    let secret =
        |name: &str| agents.iter().find(|agent| agent.name == name).map(|agent| agent.secret.clone());
    let config = config::load_with(&path, &secret).map_err(Failed::other)?;
    let telemetry = Telemetry::start(config.log).map_err(Failed::other)?;
    let app = App::start(Prepared::new(config).map_err(Failed::other)?).map_err(Failed::other)?;
    Ok((app, telemetry))
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
    let (proxy, control) = (reachable(*proxy), simulator.control_addr());
    let dashboards = dashboards([app].into_iter());
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

What the proxy did, in a browser: {dashboards}
What the simulator can do: curl http://{control}/control    Stop: Ctrl-C
"#
    ))
}

/// Where the dashboards are.
fn dashboards<'a>(apps: impl Iterator<Item = &'a App>) -> String {
    let addresses = apps.flat_map(App::admin_addresses).filter_map(|address| match address {
        Address::Tcp(address) => Some(format!("http://{}/", reachable(*address))),
        Address::Unix(_) => None,
    });
    addresses.collect::<Vec<_>>().join("  ")
}

fn moved(what: &str, wanted: u16, real: SocketAddr) -> String {
    match wanted == 0 || wanted == real.port() {
        true => String::new(),
        false => format!("Port {wanted} is taken, so the {what} is on {real} instead.\n"),
    }
}

/// The same for several proxies behind one address.
fn introduce_replicas(
    relay: SocketAddr,
    dashboards: &str,
    replicas: u8,
    wanted: u16,
    simulator: &Simulator,
    wanted_control: u16,
) -> Result<(), Failed> {
    let (proxy, control) = (reachable(relay), simulator.control_addr());
    let moved =
        moved("proxies", wanted, proxy) + &moved("simulator's control address", wanted_control, control);
    say(format!(
        r#"{moved}wecom-proxy demo: {replicas} proxies behind http://{proxy}, which share their tokens, before a simulated WeCom. Each connection goes to the next. Paste these, in another terminal:

# 1. A call at each of them, without any token
curl -H 'Connection: close' 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan&nth=[1-{replicas}]'

# 2. The token is voided, and a call at each again: the first finds out, see X-Wecom-Retried, and the others know
curl -s -X POST 'http://{control}/control/revoke?agent=hr' && curl -i -H 'Connection: close' 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan&nth=[1-{replicas}]'

# 3. How often they fetched a token, all together: once, and once more when it was voided
curl -s 'http://{control}/control/requests' | grep -o '/gettoken"' | wc -l

What each proxy did, in a browser: {dashboards}
What the simulator can do: curl http://{control}/control    Stop: Ctrl-C
"#
    ))
}

/// The address that somebody on this machine connects to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}
