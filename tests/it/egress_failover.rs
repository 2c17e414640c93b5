//! `upstream.via` as a list: an agent stays with one egress proxy by its corpid, and goes to the next while connecting
//! through that one fails.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};
use wecom_proxy::simulator::{Settings, SimulatedAgent};

use crate::harness::{
    ECHO, TestClient, TestProxy, TestResponse, USER_GET, admin_get, wait_for, with_timeout,
};

/// What an egress proxy does with CONNECT.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Connects,
    Responds(&'static str),
    /// Accepts the connection, and sends nothing.
    IsSilent,
    /// Opens a tunnel that ends at once.
    Closes,
}

/// An egress proxy that can be stopped and started again at its address.
struct EgressProxy {
    address: SocketAddr,
    /// Keeps the port while nothing listens there.
    _reserved: TcpSocket,
    tunnels: Arc<AtomicUsize>,
    running: Mutex<JoinHandle<()>>,
}

impl EgressProxy {
    async fn start() -> Self {
        let reserved = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = reserved.local_addr().expect("an address");
        let running = Mutex::new(tokio::spawn(async {}));
        let egress = Self { address, _reserved: reserved, tunnels: Arc::default(), running };
        egress.restart(Behaviour::Connects).await;
        egress
    }

    /// Closes the listener and all tunnels.
    async fn stop(&self) {
        let stopped = std::mem::replace(&mut *self.running.lock().expect("no panic"), tokio::spawn(async {}));
        stopped.abort();
        let _ = stopped.await;
    }

    async fn restart(&self, behaviour: Behaviour) {
        self.stop().await;
        let listener = bind(self.address).listen(1024).expect("a listener");
        *self.running.lock().expect("no panic") =
            tokio::spawn(serve(listener, self.tunnels.clone(), behaviour));
    }

    /// Number of tunnels opened so far.
    fn tunnels(&self) -> usize {
        self.tunnels.load(Relaxed)
    }
}

/// A socket that shares its port with the others of this function; only one that listens gets connections.
fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseport(true).expect("a socket");
    socket.bind(address).expect("a port");
    socket
}

/// Serves until the task is aborted, which closes all tunnels.
async fn serve(listener: TcpListener, tunnels: Arc<AtomicUsize>, behaviour: Behaviour) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_connection(stream, tunnels.clone(), behaviour));
    }
}

async fn serve_connection(mut stream: TcpStream, tunnels: Arc<AtomicUsize>, behaviour: Behaviour) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    match behaviour {
        Behaviour::Connects => {}
        Behaviour::Responds(status) => {
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await;
            return;
        }
        Behaviour::IsSilent => std::future::pending().await,
        Behaviour::Closes => return,
    }
    let head = String::from_utf8(head).expect("UTF-8");
    let target = head.split(' ').nth(1).expect("a target");
    let mut upstream = TcpStream::connect(target).await.expect("the simulator");
    tunnels.fetch_add(1, Relaxed);
    let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let _ = copy_bidirectional(&mut stream, &mut upstream).await;
}

/// A proxy with two egress proxies, and agents of several companies.
struct Setup {
    egress: [EgressProxy; 2],
    proxy: Arc<TestProxy>,
}

const AGENTS: u64 = 12;

impl Setup {
    async fn start() -> Self {
        let egress = [EgressProxy::start().await, EgressProxy::start().await];
        let agents = (0..AGENTS).map(|nth| SimulatedAgent {
            corpid: format!("ww{nth:016x}"),
            ..SimulatedAgent::new(
                &format!("a{nth}"),
                &format!("not-a-secret-a{nth}-000000000000000"),
                nth + 1,
            )
        });
        let settings = Settings { agents: agents.collect(), ..Settings::default() };
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://{{api}}\"\nconnect_timeout = \"2s\"\n\
             via = [\"http://{}\", {{ url = \"http://{}\", user = \"robot\", password = \"not-a-secret-of-egress\" }}]\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n{{agents}}",
            egress[0].address, egress[1].address
        );
        let proxy = Arc::new(TestProxy::start_with_settings(settings, &toml).await);
        Self { egress, proxy }
    }

    async fn get(&self, agent: u64) -> TestResponse {
        self.proxy.request(Request::get(format!("/a{agent}{USER_GET}")), "").await
    }

    fn tunnels(&self) -> [usize; 2] {
        self.egress.each_ref().map(EgressProxy::tunnels)
    }

    /// The egress proxy that an agent uses, by the tunnels that its first request opens.
    async fn egress_of(&self, agent: u64) -> usize {
        let before = self.tunnels();
        self.get(agent).await.assert_ok();
        let after = self.tunnels();
        let used: Vec<_> = (0..2).filter(|nth| after[*nth] > before[*nth]).collect();
        assert_eq!(used.len(), 1, "gettoken and the request use one: {before:?} {after:?}");
        used[0]
    }

    /// `wecom_proxy_via_up` of both.
    async fn up(&self) -> [bool; 2] {
        let metrics = admin_get(&self.proxy, "/metrics").await;
        assert!(!metrics.text().contains("not-a-secret-of-egress") && !metrics.text().contains("robot"));
        self.egress.each_ref().map(|egress| {
            let series = format!("wecom_proxy_via_up{{upstream=\"default\",via=\"{}\"}} ", egress.address);
            let value = metrics.text().lines().find_map(|line| line.strip_prefix(&series));
            value.expect("a series") == "1"
        })
    }
}

#[tokio::test]
async fn agents_stay_with_one_egress_proxy_by_corpid() {
    let setup = Setup::start().await;
    let mut used = Vec::new();
    for agent in 0..AGENTS {
        let before = setup.tunnels();
        setup.get(agent).await.assert_ok();
        let after = setup.tunnels();
        // Pooled connections are shared, so that an agent need not open one; never does one open them at both.
        assert!(before[0] == after[0] || before[1] == after[1], "{before:?} {after:?}");
        used.extend((0..2).filter(|nth| after[*nth] > before[*nth]));
    }
    assert!(used.contains(&0) && used.contains(&1), "{used:?}");
    assert_eq!(setup.up().await, [true, true]);
}

#[tokio::test]
async fn failing_egress_proxy_loses_no_request_and_is_used_again() {
    tokio::join!(
        fail_over_and_back(None),
        fail_over_and_back(Some(Behaviour::Responds("502 Bad Gateway"))),
        fail_over_and_back(Some(Behaviour::Responds("503 Service Unavailable"))),
        fail_over_and_back(Some(Behaviour::Responds("407 Proxy Authentication Required"))),
        fail_over_and_back(Some(Behaviour::IsSilent)),
        fail_over_and_back(Some(Behaviour::Closes)),
    );
}

/// `failure`: what the egress proxy does then; `None`: its address is closed.
async fn fail_over_and_back(failure: Option<Behaviour>) {
    let setup = Setup::start().await;
    let preferred = setup.egress_of(0).await;
    let (own, other) = (&setup.egress[preferred], &setup.egress[1 - preferred]);
    match failure {
        None => own.stop().await,
        Some(behaviour) => own.restart(behaviour).await,
    }
    let (own_before, other_before) = (own.tunnels(), other.tunnels());
    let address = setup.proxy.address();
    let calls: Vec<_> = (0..20)
        .map(|nth| {
            tokio::spawn(async move {
                let request = if nth % 2 == 0 {
                    Request::get(format!("/a0{USER_GET}"))
                } else {
                    Request::post(format!("/a0{ECHO}"))
                };
                TestClient::connect_http1(address).await.request(request, "").await
            })
        })
        .collect();
    for call in calls {
        with_timeout(call).await.expect("no panic").assert_ok();
    }
    assert!(other.tunnels() > other_before && own.tunnels() == own_before, "{failure:?}");
    let mut expected = [true; 2];
    expected[preferred] = false;
    assert_eq!(setup.up().await, expected, "{failure:?}");

    own.restart(Behaviour::Connects).await;
    wait_for("a recovered egress proxy", async || setup.up().await == [true, true]).await;
    // The probe has opened a tunnel, too.
    let (own_before, other_before) = (own.tunnels(), other.tunnels());
    setup.get(0).await.assert_ok();
    assert_eq!((own.tunnels(), other.tunnels()), (own_before + 1, other_before), "{failure:?}");
}

#[tokio::test]
async fn gettoken_goes_over_too() {
    let setup = Setup::start().await;
    let preferred = setup.egress_of(0).await;
    setup.egress[preferred].stop().await;
    // Each agent's first request also fetches its token.
    for agent in 1..AGENTS {
        setup.get(agent).await.assert_ok();
    }
}

#[tokio::test]
async fn all_egress_proxies_down_is_an_error_that_ends_with_the_first_to_recover() {
    let setup = Setup::start().await;
    let preferred = setup.egress_of(0).await;
    setup.egress[0].stop().await;
    setup.egress[1].stop().await;
    setup.get(0).await.assert_proxy_error("upstream-unreachable", 502, -1);
    assert_eq!(setup.up().await, [false, false]);
    // Without a probe: while all are down, requests try them.
    setup.egress[1 - preferred].restart(Behaviour::Connects).await;
    setup.get(0).await.assert_ok();
}
