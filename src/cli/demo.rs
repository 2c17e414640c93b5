//! `demo`: the simulator with one proxy or several in one process, and three curl commands to try.

mod callbacks;
mod replicas;
mod suites;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tempfile::TempDir;

use self::replicas::{LoadBalancer, RedisProcess, random_store_key};
use super::{CliError, block_on, print, run};
use crate::{
    app::{App, PreparedConfig},
    config::{self, Address, KeyHash, SocketAccess},
    format_text,
    secret::hex,
    server::BoundListener,
    simulator::{Settings, SimulatedAgent, Simulator},
    telemetry::logs::LogHandle,
    text,
};

/// The port of the demo's proxy, which is the default of `server.listen`.
const DEFAULT_PROXY_PORT: u16 = 8080;
/// The port of the simulator's control API, which is the default of `simulator --control`.
const DEFAULT_CONTROL_PORT: u16 = 8082;

/// An agent of the simulator that the demo's proxy does not know until it is added.
const NEW_AGENT: &str = "it";

/// The options of `demo`.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The proxy's address; without it, the default port, or a free one if that is taken.
    pub listen: Option<SocketAddr>,
    /// Number of proxies, which share their tokens through Redis if they are several.
    pub replicas: u8,
    /// The URL of that Redis.
    pub redis: Option<String>,
    /// Show a service provider with a suite in place of agents.
    pub suite: bool,
}

/// Runs the demo until SIGTERM or SIGINT.
pub fn demo(DemoOptions { listen, replicas, redis, suite }: DemoOptions) -> Result<(), CliError> {
    check_redis_url(redis.as_deref())?;
    let wanted = listen.unwrap_or(loopback(DEFAULT_PROXY_PORT));
    let control = if wanted.port() == 0 { 0 } else { DEFAULT_CONTROL_PORT };
    let listen = listen.unwrap_or_else(default_or_free_address);
    block_on(async {
        let hangup = run::catch_hangup()?;
        let settings = if suite { suites::simulator_settings() } else { Settings::default() };
        let agents = settings.agents.clone();
        let simulator = start_simulator(settings.clone(), control).await?;
        let no_dir = |error| {
            CliError::other(format_text!(
                "cannot make a temporary directory for the demo's proxy.toml: {}",
                "无法为演示的 proxy.toml 创建临时目录：{}",
                error
            ))
        };
        let dir = tempfile::tempdir().map_err(no_dir)?;
        let ports = (wanted.port(), control);
        if suite {
            let sections = suites::config_sections(&dir, &settings);
            let started = start_proxy(&config_text(listen, &simulator, &agents, &sections), &dir, &agents)?;
            suites::print_instructions(&started.0, ports, &simulator)?;
            return run::run_until_signal(started.0, hangup, &started.1).await;
        }
        if replicas == 1 && redis.is_none() {
            let (app, log_handle) = start_with_state(listen, ports, &simulator, &dir, &agents)?;
            return run::run_until_signal(app, hangup, &log_handle).await;
        }
        let (url, _server) = match redis {
            Some(url) => (url, None),
            None => RedisProcess::start(&dir).await.map(|server| (server.url(), Some(server)))?,
        };
        let tokens = format!("\n[tokens]\nstore = {{ redis = {url:?}, key = {:?} }}\n", random_store_key());
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let text = config_text(any_port, &simulator, &agents, &tokens);
        let balancer = LoadBalancer::bind(listen).await?;
        let (first, log_handle) = start_proxy(&text, &dir, &agents)?;
        let mut others = Vec::new();
        for _ in 1..replicas {
            others.push(start_proxy(&text, &dir, &agents)?.0);
        }
        for app in [&first].into_iter().chain(&others) {
            replicas::wait_for_store(app).await?;
        }
        let dashboards = dashboard_urls([&first].into_iter().chain(&others), "");
        print_replica_instructions(
            balancer.address(),
            &dashboards,
            replicas,
            wanted.port(),
            &simulator,
            control,
        )?;
        balancer.serve([&first].into_iter().chain(&others).flat_map(App::addresses));
        let outcome = run::run_until_signal(first, hangup, &log_handle).await;
        for app in others {
            app.shutdown().await;
        }
        outcome
    })
}

/// An error of `config` would name the generated file instead of the option.
fn check_redis_url(url: Option<&str>) -> Result<(), CliError> {
    match url.is_none_or(|url| ["redis://", "rediss://"].iter().any(|start| url.starts_with(start))) {
        true => Ok(()),
        false => Err(CliError::config(text!(
            "--redis must start with redis:// or rediss://, as in redis://127.0.0.1:6379/0",
            "--redis 必须以 redis:// 或 rediss:// 开头，如 redis://127.0.0.1:6379/0"
        ))),
    }
}

/// Starts the only proxy, with a state and an admin key, and prints what to try. `ports` are the wanted ones of the proxy
/// and of the simulator's control API.
fn start_with_state(
    listen: SocketAddr,
    ports: (u16, u16),
    simulator: &Simulator,
    dir: &TempDir,
    agents: &[SimulatedAgent],
) -> Result<(App, LogHandle), CliError> {
    let new_agent = SimulatedAgent::new(NEW_AGENT, &random_store_key(), 1_000_004);
    simulator.add_agent(new_agent.clone());
    let admin_key = random_store_key();
    let sections = format!(
        "key_sha256 = \"{}\"\n{}",
        hex::encode(KeyHash::of(&admin_key).as_bytes()),
        callbacks::config_sections(dir, simulator.control_addr())
    );
    let started = start_proxy(&config_text(listen, simulator, agents, &sections), dir, agents)?;
    print_instructions(&started.0, ports, simulator, (&admin_key, &new_agent))?;
    Ok(started)
}

/// The default address, or one with port 0 if the default is taken.
fn default_or_free_address() -> SocketAddr {
    match BoundListener::open(&Address::Tcp(loopback(DEFAULT_PROXY_PORT)), &SocketAccess::default()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => loopback(0),
        _ => loopback(DEFAULT_PROXY_PORT),
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The demo's proxy.toml, with additional `sections`.
fn config_text(
    listen: SocketAddr,
    simulator: &Simulator,
    agents: &[SimulatedAgent],
    sections: &str,
) -> String {
    let mut text = format!(
        "[server]\nlisten = \"{listen}\"\nopen = true\n\n[upstream]\nurl = \"http://{}\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n{sections}",
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
    fs::write(&path, text).map_err(CliError::of)?;
    let secret =
        |name: &str| agents.iter().find(|agent| agent.name == name).map(|agent| agent.secret.clone());
    let config = config::load_with_env(&path, &secret).map_err(CliError::of)?;
    let log_handle = LogHandle::start(&config.log).map_err(CliError::of)?;
    let app = App::start(PreparedConfig::new(config).map_err(CliError::of)?).map_err(CliError::of)?;
    Ok((app, log_handle))
}

/// Starts a simulator on the fixed control port, so that a copied command works in the next demo too; on a free port if
/// the fixed one is taken.
async fn start_simulator(settings: Settings, control: u16) -> Result<Simulator, CliError> {
    if let Ok(simulator) = Simulator::start(settings.clone(), loopback(0), loopback(control)).await {
        return Ok(simulator);
    }
    Simulator::start(settings, loopback(0), loopback(0)).await.map_err(CliError::of)
}

/// Prints commands to try, which work as printed, and a note if a port is not the wanted one.
fn print_instructions(
    app: &App,
    (wanted, wanted_control): (u16, u16),
    simulator: &Simulator,
    (admin_key, new_agent): (&str, &SimulatedAgent),
) -> Result<(), CliError> {
    let Some(proxy) = app.addresses().first().and_then(Address::to_connect) else { return Ok(()) };
    let control = simulator.control_addr();
    let dashboard = dashboard_urls([app].into_iter(), &format!("demo:{admin_key}@"));
    let admin = dashboard_urls([app].into_iter(), "");
    let SimulatedAgent { name, corpid, secret, .. } = new_agent;
    simulator.add_callback(callbacks::console_settings(proxy));
    let notes = port_taken_note("proxy", wanted, proxy)
        + &port_taken_note("simulator's control address", wanted_control, control);
    print(format!(
        r#"{notes}wecom-proxy demo: a proxy on http://{proxy} in front of a simulated WeCom. Paste these in another terminal:

# 1. A call without any token; the proxy adds it
curl 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan'

# 2. A message
curl 'http://{proxy}/hr/cgi-bin/message/send' -d '{{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{{"content":"你好"}}}}'

# 3. The token is revoked, and the next call succeeds all the same: see X-Wecom-Retried
curl -s -X POST 'http://{control}/control/revoke?agent=hr' && curl -i 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan'

WeCom pushes an event to the proxy, which delivers it to a program; what that received:
  curl -X POST 'http://{control}/control/push?callback=hr&event=change_contact'
  curl 'http://{control}/control/deliveries'

To add an agent while it runs, and use it: curl -X PUT '{admin}api/agents/{name}' -H 'Authorization: Bearer {admin_key}' -H 'Content-Type: application/json' -d '{{"corpid":"{corpid}","secret":"{secret}"}}' && curl 'http://{proxy}/{name}/cgi-bin/user/get?userid=zhangsan'

Dashboard of the proxy, for a browser: {dashboard}
Commands of the simulator: curl http://{control}/control    Stop: Ctrl-C
"#
    ))
}

/// The dashboards' URLs; `login` stands before the host.
fn dashboard_urls<'a>(apps: impl Iterator<Item = &'a App>, login: &str) -> String {
    let addresses = apps.flat_map(App::admin_addresses).filter_map(Address::to_connect);
    addresses.map(|address| format!("http://{login}{address}/")).collect::<Vec<_>>().join("  ")
}

fn port_taken_note(subject: &str, wanted: u16, bound: SocketAddr) -> String {
    match wanted == 0 || wanted == bound.port() {
        true => String::new(),
        false => format!("Port {wanted} is taken, so the {subject} is on {bound} instead.\n"),
    }
}

/// Prints commands to try with several proxies behind one address.
fn print_replica_instructions(
    balancer: SocketAddr,
    dashboards: &str,
    replicas: u8,
    wanted: u16,
    simulator: &Simulator,
    wanted_control: u16,
) -> Result<(), CliError> {
    let proxy = Address::Tcp(balancer).to_connect().unwrap_or(balancer);
    let control = simulator.control_addr();
    let notes = port_taken_note("proxies", wanted, proxy)
        + &port_taken_note("simulator's control address", wanted_control, control);
    print(format!(
        r#"{notes}wecom-proxy demo: {replicas} proxies behind http://{proxy}, which share their tokens, in front of a simulated WeCom. Each connection goes to the next proxy. Paste these in another terminal:

# 1. A call at each proxy, without any token
curl -H 'Connection: close' 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan&nth=[1-{replicas}]'

# 2. The token is revoked, and each proxy is called again: the first fetches a new one, see X-Wecom-Retried, for all of them
curl -s -X POST 'http://{control}/control/revoke?agent=hr' && curl -i -H 'Connection: close' 'http://{proxy}/hr/cgi-bin/user/get?userid=zhangsan&nth=[1-{replicas}]'

# 3. How often all proxies together fetched a token: once, and once more after it was revoked
curl -s 'http://{control}/control/requests' | grep -o '/gettoken"' | wc -l

Dashboards of the proxies, for a browser: {dashboards}
Commands of the simulator: curl http://{control}/control    Stop: Ctrl-C
"#
    ))
}
