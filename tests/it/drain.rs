//! The end of the real program: in order, and soon.

use std::{io, net::SocketAddr, os::unix::net::UnixDatagram, time::Duration};

use http::Request;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    certificates::Authority,
    harness::{ECHO, OPEN_CONFIG, TestClient, USER_GET, write_config},
    process::{Process, log_field, wecom_proxy},
    raw_http::RawConnection,
};

/// Without waiting for anything: every grace here but the shortest is far longer.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// The real program before a simulator; `grace` is its `shutdown_grace`.
struct DrainScenario {
    wecom: Simulator,
    dir: TempDir,
    proxy: Process,
    address: SocketAddr,
}

impl DrainScenario {
    async fn start(grace: &str) -> Self {
        let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
        let dir = TempDir::new().expect("a directory");
        let toml = OPEN_CONFIG.replace("[upstream]", &format!("shutdown_grace = \"{grace}\"\n[upstream]"));
        let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
        let address = proxy.address().await;
        Self { wecom, dir, proxy, address }
    }

    /// A request that WeCom holds.
    async fn start_held_request(
        &self,
    ) -> tokio::task::JoinHandle<hyper::Result<http::Response<hyper::body::Incoming>>> {
        let mut caller = TestClient::connect_http1(self.address).await;
        caller.get(USER_GET).await.assert_ok();
        self.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
        let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
        let call = tokio::spawn(async move { caller.send(request).await });
        self.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        call
    }

    async fn terminate(&self) {
        self.proxy.signal("TERM");
        self.proxy.err.wait_for_line("stopping").await;
    }
}

/// Waits until nobody listens any more.
async fn wait_until_refused(address: SocketAddr) {
    let attempts = async {
        loop {
            match TcpStream::connect(address).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    timeout(SHUTDOWN_TIMEOUT, attempts).await.expect("new connections are refused soon");
}

#[tokio::test]
async fn drain_finishes_requests_and_refuses_new_connections() {
    let scene = DrainScenario::start("10m").await;
    let call = scene.start_held_request().await;
    scene.terminate().await;
    wait_until_refused(scene.address).await;
    assert!(!call.is_finished());
    scene.wecom.release_held();
    let response = call.await.expect("no panic").expect("an answer");
    assert_eq!(response.status(), 200);
    let ended = scene.proxy.wait().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
}

#[tokio::test]
async fn drain_closes_idle_connections_at_once() {
    let scene = DrainScenario::start("10m").await;
    let mut idle = Vec::new();
    for first in ["", "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = TcpStream::connect(scene.address).await.expect("a connection");
        stream.write_all(first.as_bytes()).await.expect("a write");
        if !first.is_empty() {
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).await.expect("an answer") > 0);
        }
        idle.push(stream);
    }
    let mut http2 = TestClient::connect_http2(scene.address).await;
    http2.get(USER_GET).await.assert_ok();
    let began = Instant::now();
    scene.terminate().await;
    for mut stream in idle {
        let mut rest = Vec::new();
        timeout(SHUTDOWN_TIMEOUT, stream.read_to_end(&mut rest)).await.expect("it closes at once").ok();
    }
    let ended = scene.proxy.wait().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    assert!(began.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn drain_does_not_wait_for_silent_clients_or_partial_heads() {
    let scene = DrainScenario::start("30s").await;
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut mute = Vec::new();
    // None of them answers when it is told to leave; one has begun a request.
    for more in [&b""[..], b"\0\0\x09\x01\x01\0\0\0\x01\x82\x86"] {
        let mut line = RawConnection::connect(scene.address).await;
        line.send([&hello[..], more].concat()).await.expect("it is taken");
        line.read_exact(9).await;
        mute.push(line);
    }
    for half in ["GET /hr", "PRI * HTTP"] {
        let mut line = RawConnection::connect(scene.address).await;
        line.send(half).await.expect("it is taken");
        mute.push(line);
    }
    let mut kept = RawConnection::connect(scene.address).await;
    kept.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: a\r\n\r\n")).await.expect("it is taken");
    kept.read_response().await;
    kept.send("GET /hr").await.expect("it is taken");
    let began = Instant::now();
    scene.terminate().await;
    let ended = scene.proxy.wait().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    assert!(began.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn drain_finishes_http2_streams_in_flight() {
    let scene = DrainScenario::start("10m").await;
    let mut caller = TestClient::connect_http2(scene.address).await;
    caller.get(USER_GET).await.assert_ok();
    scene.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        scene.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        scene.terminate().await;
        wait_until_refused(scene.address).await;
        scene.wecom.release_held();
    };
    tokio::join!(caller.get(USER_GET), during).0.assert_ok();
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn drain_ends_when_the_grace_period_expires() {
    let scene = DrainScenario::start("500ms").await;
    let call = scene.start_held_request().await;
    let began = Instant::now();
    scene.terminate().await;
    let ended = scene.proxy.wait().await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400) && took < SHUTDOWN_TIMEOUT, "{took:?}");
    assert!(ended.err.contains("drained=false"), "{}", ended.err);
    assert!(call.await.expect("no panic").is_err(), "what did not finish is broken off");
}

#[tokio::test]
async fn second_signal_stops_at_once() {
    for second in ["TERM", "INT"] {
        let scene = DrainScenario::start("10m").await;
        let call = scene.start_held_request().await;
        scene.terminate().await;
        let began = Instant::now();
        scene.proxy.signal(second);
        let ended = scene.proxy.wait().await;
        assert!(began.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", began.elapsed());
        assert_ne!(ended.status, 0, "it did not end in order");
        assert!(call.await.expect("no panic").is_err());
    }
}

#[tokio::test]
async fn sighup_during_drain_is_harmless() {
    let scene = DrainScenario::start("10m").await;
    let call = scene.start_held_request().await;
    scene.terminate().await;
    scene.proxy.signal("HUP");
    wait_until_refused(scene.address).await;
    scene.wecom.release_held();
    assert_eq!(call.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn unix_socket_is_removed_on_exit() {
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN_CONFIG.replacen("\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]", 1);
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let socket = dir.path().join("proxy.sock");
    assert!(socket.exists());
    assert_eq!(proxy.stop().await.status, 0);
    assert!(!socket.exists());
}

#[tokio::test]
async fn service_manager_is_notified_of_ready_and_stopping() {
    let scene = DrainScenario::start("10m").await;
    let manager = scene.dir.path().join("notify.sock");
    let socket = UnixDatagram::bind(&manager).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let config = scene.dir.path().join("proxy.toml");
    let mut command = wecom_proxy(&["--config", config.to_str().expect("UTF-8")]);
    command.env("NOTIFY_SOCKET", &manager);
    let proxy = Process::start(command);
    proxy.err.wait_for_line("ready listen=").await;
    let heard = || {
        let mut buffer = [0; 1024];
        let read = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    };
    let first = heard();
    assert!(first.lines().any(|line| line == "READY=1"), "{first}");
    proxy.signal("TERM");
    let second = heard();
    assert!(second.lines().any(|line| line == "STOPPING=1"), "{second}");
    assert_eq!(proxy.wait().await.status, 0);
}

/// A call on a connection that a story speaks by hand.
fn raw_get(path: &str) -> String {
    format!("GET /hr{path} HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
}

/// A connection on which one request was answered.
async fn open_used_connection(address: SocketAddr) -> RawConnection {
    let mut line = RawConnection::connect(address).await;
    line.send(raw_get(USER_GET)).await.expect("it is taken");
    assert!(line.read_response().await.0.starts_with("HTTP/1.1 200"));
    line
}

fn says_close(head: &str) -> bool {
    head.to_ascii_lowercase().lines().any(|line| line == "connection: close")
}

#[tokio::test]
async fn late_request_on_keep_alive_gets_503_and_is_not_forwarded() {
    let scene = DrainScenario::start("10m").await;
    let mut line = open_used_connection(scene.address).await;
    let late = raw_get(USER_GET);
    let (beginning, rest) = late.split_at(20);
    line.send(beginning).await.expect("it is taken");
    scene.terminate().await;
    wait_until_refused(scene.address).await;
    line.send(rest).await.expect("it is taken");
    let (head, body) = line.read_response().await;
    assert!(head.starts_with("HTTP/1.1 503") && says_close(&head), "{head}");
    assert!(
        head.contains("x-wecom-proxy-error: shutting-down") && body.contains("\"errcode\":-1"),
        "{head}{body}"
    );
    assert_eq!(line.read_to_end().await.0, b"");
    assert_eq!(scene.wecom.observe(|seen| seen.received_count("/cgi-bin/user/get")), 1);
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn last_response_closes_and_pipelined_requests_are_dropped() {
    let scene = DrainScenario::start("10m").await;
    let mut line = open_used_connection(scene.address).await;
    scene.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    line.send(raw_get(USER_GET) + &raw_get(USER_GET)).await.expect("it is taken");
    scene.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
    scene.terminate().await;
    wait_until_refused(scene.address).await;
    scene.wecom.release_held();
    let (head, _) = line.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200") && says_close(&head), "{head}");
    assert_eq!(line.read_to_end().await.0, b"");
    assert_eq!(scene.wecom.observe(|seen| seen.received_count("/cgi-bin/user/get")), 2);
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn new_connection_before_drain_is_served() {
    let scene = DrainScenario::start("10m").await;
    open_used_connection(scene.address).await;
    let mut line = RawConnection::connect(scene.address).await;
    scene.terminate().await;
    wait_until_refused(scene.address).await;
    line.send(raw_get(USER_GET)).await.expect("it is taken");
    let (head, _) = line.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200") && says_close(&head), "{head}");
    assert_eq!(line.read_to_end().await.0, b"");
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn new_tls_connection_before_drain_is_served_over_http1_and_2() {
    let authority = Authority::new();
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let toml =
        OPEN_CONFIG.replace("[upstream]", &format!("{}\n[upstream]", authority.tls_config_line("localhost")));
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let scene = DrainScenario { wecom, dir, address: proxy.address().await, proxy };
    let greet = async |alpn| authority.connect_tls(scene.address, &[alpn], None).await.expect("a handshake");
    let (http1, http2) = (greet("http/1.1").await, greet("h2").await);
    scene.terminate().await;
    wait_until_refused(scene.address).await;
    let (mut http1, mut http2) = (TestClient::http1_over(http1).await, TestClient::http2_over(http2).await);
    let (one, two) = tokio::join!(http1.get(USER_GET), http2.get(USER_GET));
    one.assert_ok();
    two.assert_ok();
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn connections_in_the_backlog_are_served_at_stop() {
    let scene = DrainScenario::start("10m").await;
    open_used_connection(scene.address).await;
    scene.proxy.signal("STOP");
    let mut lines = Vec::new();
    for _ in 0..50 {
        let mut line = RawConnection::connect(scene.address).await;
        line.send(raw_get(USER_GET)).await.expect("it is taken");
        lines.push(line);
    }
    scene.proxy.signal("TERM");
    scene.proxy.signal("CONT");
    for mut line in lines {
        let (head, _) = line.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn queued_request_at_drain_gets_503_and_is_not_forwarded() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN_CONFIG.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let scene = DrainScenario { wecom, dir, address: proxy.address().await, proxy };
    let held = scene.start_held_request().await;
    let mut line = RawConnection::connect(scene.address).await;
    line.send(raw_get(ECHO)).await.expect("it is taken");
    // It waits, and on a kept connection or a new one: what comes of it now can only be an answer too early.
    assert!(timeout(Duration::from_millis(200), line.read_more()).await.is_err(), "it waits");
    let began = Instant::now();
    scene.terminate().await;
    let (head, _) = line.read_response().await;
    assert!(head.contains("x-wecom-proxy-error: shutting-down") && says_close(&head), "{head}");
    assert!(began.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", began.elapsed());
    assert_eq!(scene.wecom.observe(|seen| seen.received_count(ECHO)), 0);
    scene.wecom.release_held();
    assert_eq!(held.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(scene.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn stream_before_goaway_gets_503_and_is_not_forwarded() {
    let scene = DrainScenario::start("10m").await;
    let (gate, shut) = watch::channel(false);
    let mut caller = TestClient::connect_http2(start_gated_relay(scene.address, shut).await).await;
    caller.get(USER_GET).await.assert_ok();
    scene.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let TestClient::Http2(sender) = &caller else { unreachable!() };
    let mut second = TestClient::Http2(sender.clone());
    let during = async {
        scene.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        gate.send_replace(true);
        scene.terminate().await;
        wait_until_refused(scene.address).await;
        let open = async {
            // The stream is on its way by then; only its answer waits behind the gate.
            scene.proxy.err.wait_for_line("shutting-down").await;
            gate.send_replace(false);
        };
        tokio::join!(second.get(ECHO), open).0.assert_proxy_error("shutting-down", 503, -1);
        scene.wecom.release_held();
    };
    tokio::join!(caller.get(USER_GET), during).0.assert_ok();
    assert_eq!(scene.wecom.observe(|seen| seen.received_count(ECHO)), 0);
    assert_eq!(scene.proxy.wait().await.status, 0);
}

/// The TCP address among those of a program that listens on several.
async fn first_tcp_address(proxy: &Process) -> SocketAddr {
    let listen = log_field(&proxy.err.wait_for_line("ready listen=").await, "listen");
    listen.split(", ").find_map(|address| address.parse().ok()).expect("an address")
}

/// A way to the proxy on which nothing comes back while it is shut.
async fn start_gated_relay(address: SocketAddr, mut shut: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gate = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (near, _) = listener.accept().await?;
        let (mut from_caller, mut to_caller) = near.into_split();
        let (mut from_proxy, mut to_proxy) = TcpStream::connect(address).await?.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_caller, &mut to_proxy).await });
        let mut buffer = [0; 8192];
        loop {
            let read = from_proxy.read(&mut buffer).await?;
            let _ = shut.wait_for(|shut| !shut).await;
            to_caller.write_all(&buffer[..read]).await?;
            if read == 0 {
                return Ok::<_, io::Error>(());
            }
        }
    });
    gate
}

#[tokio::test]
async fn draining_process_keeps_its_successors_unix_socket() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN_CONFIG.replacen("\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]", 1);
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let path = dir.path().join("proxy.sock");
    let first = Process::serve(&config).await;
    let scene = DrainScenario { wecom, dir, address: first_tcp_address(&first).await, proxy: first };
    let held = scene.start_held_request().await;
    // Another one in the same place, while the first still serves there: the file is replaced under its feet.
    std::fs::remove_file(&path).expect("a file");
    let second = Process::serve(&config).await;
    scene.terminate().await;
    wait_until_refused(scene.address).await;
    scene.wecom.release_held();
    assert_eq!(held.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(scene.proxy.wait().await.status, 0);
    let unix = tokio::net::UnixStream::connect(&path).await.expect("the second one listens there");
    TestClient::http1_over(unix).await.get(USER_GET).await.assert_ok();
    assert_eq!(second.stop().await.status, 0);
    assert!(!path.exists());
}
