//! `demo`: simulator and proxy in one process, or several proxies, and three curl lines to try.

mod replicas;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tempfile::TempDir;

use self::replicas::{LoadBalancer, RedisProcess, random_store_key};
use super::{CliError, block_on, print, run};
use crate::{
    app::{App, PreparedConfig},
    config::{self, Address},
    server::BoundListener,
    simulator::{Settings, SimulatedAgent, Simulator},
    telemetry::logs::LogHandle,
};

/// Where the demo's proxy listens, as every proxy does by default.
const DEFAULT_PROXY_PORT: u16 = 8080;
/// Where the demo's simulator takes orders, as the lone simulator does by default.
const DEFAULT_CONTROL_PORT: u16 = 8082;

/// Runs the demo until it is told to stop: one proxy, or several that share their tokens through Redis. Where it is not
/// told where to listen, it takes the usual port, or a free one.
pub fn demo(listen: Option<SocketAddr>, replicas: u8, redis: Option<String>) -> Result<(), CliError> {
    // Said here it names the option, and not a file that nobody has written.
    if redis.as_ref().is_some_and(|url| !["redis://", "rediss://"].iter().any(|start| url.starts_with(start)))
    {
        let words = "--redis must start with redis:// or rediss://, as in redis://127.0.0.1:6379/0";
        return Err(CliError::config(words));
    }
    let wanted = listen.unwrap_or(loopback(DEFAULT_PROXY_PORT));
    let control = if wanted.port() == 0 { 0 } else { DEFAULT_CONTROL_PORT };
    let listen = listen.unwrap_or_else(default_or_free_address);
    block_on(async {
        let settings = Settings::default();
        let agents = settings.agents.clone();
        let simulator = start_simulator(settings, control).await?;
        let no_dir = |error| {
            CliError::other(format!("cannot make a temporary directory for the demo's proxy.toml: {error}"))
        };
        let dir = tempfile::tempdir().map_err(no_dir)?;
        if replicas == 1 && redis.is_none() {
            let (app, telemetry) = start_proxy(&config_text(listen, &simulator, &agents, ""), &dir, &agents)?;
            print_instructions(&app, wanted.port(), &simulator, control)?;
            return run::run_until_signal(app, &telemetry).await;
        }
        let (url, _server) = match redis {
            Some(url) => (url, None),
            None => RedisProcess::start(&dir).await.map(|server| (server.url(), Some(server)))?,
        };
        let tokens = format!("\n[tokens]\nstore = {{ redis = {url:?}, key = {:?} }}\n", random_store_key());
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let text = config_text(free, &simulator, &agents, &tokens);
        let relay = LoadBalancer::bind(listen).await?;
        let (first, telemetry) = start_proxy(&text, &dir, &agents)?;
        let mut others = Vec::new();
        for _ in 1..replicas {
            others.push(start_proxy(&text, &dir, &agents)?.0);
        }
        for app in [&first].into_iter().chain(&others) {
            replicas::wait_for_store(app).await?;
        }
        let dashboards = dashboard_urls([&first].into_iter().chain(&others));
        print_replica_instructions(
            relay.address(),
            &dashboards,
            replicas,
            wanted.port(),
            &simulator,
            control,
        )?;
        relay.serve([&first].into_iter().chain(&others).flat_map(App::addresses));
        let ended = run::run_until_signal(first, &telemetry).await;
        for app in others {
            app.shutdown().await;
        }
        ended
    })
}

/// The usual address, where nobody listens on it; else one with any port.
fn default_or_free_address() -> SocketAddr {
    match BoundListener::open(&Address::Tcp(loopback(DEFAULT_PROXY_PORT))) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => loopback(0),
        _ => loopback(DEFAULT_PROXY_PORT),
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The demo's proxy.toml, with `more` sections.
fn config_text(listen: SocketAddr, simulator: &Simulator, agents: &[SimulatedAgent], more: &str) -> String {
    let mut text = format!(
        "[server]\nlisten = \"{listen}\"\nopen = true\n\n[upstream]\nurl = \"http://{}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}",
        simulator.api_addr()
    );
    for SimulatedAgent { name, corpid, agentid, .. } in agents {
        let section = format!(
            "\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = {{ env = \"{name}\" }}\nagentid = {agentid}\n"
        );
        text.push_str(&section);
    }
    text
}

fn start_proxy(text: &str, dir: &TempDir, agents: &[SimulatedAgent]) -> Result<(App, LogHandle), CliError> {
    let path = dir.path().join("proxy.toml");
    fs::write(&path, text).map_err(CliError::other)?;
    let secret =
        |name: &str| agents.iter().find(|agent| agent.name == name).map(|agent| agent.secret.clone());
    let config = config::load_with_env(&path, &secret).map_err(CliError::other)?;
    let telemetry = LogHandle::start(config.log).map_err(CliError::other)?;
    let app = App::start(PreparedConfig::new(config).map_err(CliError::other)?).map_err(CliError::other)?;
    Ok((app, telemetry))
}

/// A simulator whose control address is the same each time, so that a line typed once can be typed again; another one
/// where that is taken.
async fn start_simulator(settings: Settings, control: u16) -> Result<Simulator, CliError> {
    if let Ok(simulator) = Simulator::start(settings.clone(), loopback(0), loopback(control)).await {
        return Ok(simulator);
    }
    Simulator::start(settings, loopback(0), loopback(0)).await.map_err(CliError::other)
}

/// Prints what to try. Every line works as it stands. Where a port is not the wanted one, it says so.
fn print_instructions(
    app: &App,
    wanted: u16,
    simulator: &Simulator,
    wanted_control: u16,
) -> Result<(), CliError> {
    let Some(Address::Tcp(proxy)) = app.addresses().first() else { return Ok(()) };
    let (proxy, control) = (connectable_address(*proxy), simulator.control_addr());
    let dashboards = dashboard_urls([app].into_iter());
    let moved = port_taken_note("proxy", wanted, proxy)
        + &port_taken_note("simulator's control address", wanted_control, control);
    print(format!(
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
fn dashboard_urls<'a>(apps: impl Iterator<Item = &'a App>) -> String {
    let addresses = apps.flat_map(App::admin_addresses).filter_map(|address| match address {
        Address::Tcp(address) => Some(format!("http://{}/", connectable_address(*address))),
        Address::Unix(_) => None,
    });
    addresses.collect::<Vec<_>>().join("  ")
}

fn port_taken_note(what: &str, wanted: u16, real: SocketAddr) -> String {
    match wanted == 0 || wanted == real.port() {
        true => String::new(),
        false => format!("Port {wanted} is taken, so the {what} is on {real} instead.\n"),
    }
}

/// The same for several proxies behind one address.
fn print_replica_instructions(
    relay: SocketAddr,
    dashboards: &str,
    replicas: u8,
    wanted: u16,
    simulator: &Simulator,
    wanted_control: u16,
) -> Result<(), CliError> {
    let (proxy, control) = (connectable_address(relay), simulator.control_addr());
    let moved = port_taken_note("proxies", wanted, proxy)
        + &port_taken_note("simulator's control address", wanted_control, control);
    print(format!(
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
fn connectable_address(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}
