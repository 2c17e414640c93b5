//! Graceful shutdown of the program: drain in order, and end promptly.

use std::{io, net::SocketAddr, os::unix::net::UnixDatagram, time::Duration};

use http::Request;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};
use wecom_proxy::simulator::{Fault, Simulator};

use crate::{
    certificates::Authority,
    harness::{ECHO, OPEN_CONFIG, TestClient, USER_GET, start_simulator_with_config},
    process::{Process, log_field, wecom_proxy},
    raw_http::{RawConnection, raw_get},
};

/// Bounds a shutdown that waits for nothing; the grace periods of these tests, except the shortest, are far longer.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// The program in front of a simulator.
struct DrainScenario {
    wecom: Simulator,
    dir: TempDir,
    proxy: Process,
    address: SocketAddr,
}

impl DrainScenario {
    /// `grace` is the `shutdown_grace`.
    async fn start(grace: &str) -> Self {
        let toml = OPEN_CONFIG.replace("[upstream]", &format!("shutdown_grace = \"{grace}\"\n[upstream]"));
        let (wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
        let address = proxy.address().await;
        Self { wecom, dir, proxy, address }
    }

    /// Starts a request that the simulator holds.
    async fn start_held_request(
        &self,
    ) -> tokio::task::JoinHandle<hyper::Result<http::Response<hyper::body::Incoming>>> {
        let mut client = TestClient::connect_http1(self.address).await;
        client.get(USER_GET).await.assert_ok();
        self.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
        let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
        let call = tokio::spawn(async move { client.send(request).await });
        self.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        call
    }

    async fn terminate(&self) {
        self.proxy.signal("TERM");
        self.proxy.err.wait_for_line("stopping").await;
    }
}

/// Waits until connections to `address` are refused.
async fn wait_until_refused(address: SocketAddr) {
    let attempts = async {
        loop {
            match TcpStream::connect(address).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    timeout(SHUTDOWN_TIMEOUT, attempts).await.expect("new connections are refused");
}

#[tokio::test]
async fn drain_finishes_requests_and_refuses_new_connections() {
    let scenario = DrainScenario::start("10m").await;
    let call = scenario.start_held_request().await;
    scenario.terminate().await;
    wait_until_refused(scenario.address).await;
    assert!(!call.is_finished());
    scenario.wecom.release_held();
    let response = call.await.expect("no panic").expect("a response");
    assert_eq!(response.status(), 200);
    let output = scenario.proxy.wait().await;
    assert_eq!(output.status, 0, "{}", output.err);
}

#[tokio::test]
async fn drain_closes_idle_connections_at_once() {
    let scenario = DrainScenario::start("10m").await;
    let mut idle = Vec::new();
    for first in ["", "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = TcpStream::connect(scenario.address).await.expect("a connection");
        stream.write_all(first.as_bytes()).await.expect("a write");
        if !first.is_empty() {
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).await.expect("a response") > 0);
        }
        idle.push(stream);
    }
    let mut http2 = TestClient::connect_http2(scenario.address).await;
    http2.get(USER_GET).await.assert_ok();
    let started = Instant::now();
    scenario.terminate().await;
    for mut stream in idle {
        let mut rest = Vec::new();
        timeout(SHUTDOWN_TIMEOUT, stream.read_to_end(&mut rest))
            .await
            .expect("the connection closes at once")
            .ok();
    }
    let output = scenario.proxy.wait().await;
    assert_eq!(output.status, 0, "{}", output.err);
    assert!(started.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test]
async fn drain_does_not_wait_for_silent_clients_or_partial_heads() {
    let scenario = DrainScenario::start("30s").await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut silent = Vec::new();
    // None of these HTTP/2 clients reacts to GOAWAY; one has an incomplete header block.
    for more in [&b""[..], b"\0\0\x09\x01\x01\0\0\0\x01\x82\x86"] {
        let mut connection = RawConnection::connect(scenario.address).await;
        connection.send([&preface[..], more].concat()).await.expect("sent");
        connection.read_exact(9).await;
        silent.push(connection);
    }
    for partial in ["GET /hr", "PRI * HTTP"] {
        let mut connection = RawConnection::connect(scenario.address).await;
        connection.send(partial).await.expect("sent");
        silent.push(connection);
    }
    let mut reused = RawConnection::connect(scenario.address).await;
    reused.send(raw_get(USER_GET)).await.expect("sent");
    reused.read_response().await;
    reused.send("GET /hr").await.expect("sent");
    let started = Instant::now();
    scenario.terminate().await;
    let output = scenario.proxy.wait().await;
    assert_eq!(output.status, 0, "{}", output.err);
    assert!(started.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test]
async fn drain_finishes_http2_streams_in_flight() {
    let scenario = DrainScenario::start("10m").await;
    let mut client = TestClient::connect_http2(scenario.address).await;
    client.get(USER_GET).await.assert_ok();
    scenario.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        scenario.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        scenario.terminate().await;
        wait_until_refused(scenario.address).await;
        scenario.wecom.release_held();
    };
    tokio::join!(client.get(USER_GET), during).0.assert_ok();
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn drain_ends_when_the_grace_period_expires() {
    let scenario = DrainScenario::start("500ms").await;
    let call = scenario.start_held_request().await;
    let started = Instant::now();
    scenario.terminate().await;
    let output = scenario.proxy.wait().await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(400) && took < SHUTDOWN_TIMEOUT, "{took:?}");
    assert!(output.err.contains("drained=false"), "{}", output.err);
    assert!(call.await.expect("no panic").is_err(), "an unfinished request is aborted");
}

#[tokio::test]
async fn second_signal_stops_at_once() {
    for second in ["TERM", "INT"] {
        let scenario = DrainScenario::start("10m").await;
        let call = scenario.start_held_request().await;
        scenario.terminate().await;
        let started = Instant::now();
        scenario.proxy.signal(second);
        let output = scenario.proxy.wait().await;
        assert!(started.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", started.elapsed());
        assert_ne!(output.status, 0, "the drain was interrupted");
        assert!(call.await.expect("no panic").is_err());
    }
}

#[tokio::test]
async fn sighup_during_drain_is_harmless() {
    let scenario = DrainScenario::start("10m").await;
    let call = scenario.start_held_request().await;
    scenario.terminate().await;
    scenario.proxy.signal("HUP");
    wait_until_refused(scenario.address).await;
    scenario.wecom.release_held();
    assert_eq!(call.await.expect("no panic").expect("a response").status(), 200);
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn unix_socket_is_removed_on_exit() {
    let toml = OPEN_CONFIG.replacen("\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]", 1);
    let (_wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let socket = dir.path().join("proxy.sock");
    assert!(socket.exists());
    assert_eq!(proxy.stop().await.status, 0);
    assert!(!socket.exists());
}

#[tokio::test]
async fn service_manager_is_notified_of_ready_and_stopping() {
    let scenario = DrainScenario::start("10m").await;
    let manager = scenario.dir.path().join("notify.sock");
    let socket = UnixDatagram::bind(&manager).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let config = scenario.dir.path().join("proxy.toml");
    let mut command = wecom_proxy(&["--config", config.to_str().expect("UTF-8")]);
    command.env("NOTIFY_SOCKET", &manager);
    let proxy = Process::start(command);
    proxy.err.wait_for_line("ready listen=").await;
    let receive = || {
        let mut buffer = [0; 1024];
        let read = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    };
    let first = receive();
    assert!(first.lines().any(|line| line == "READY=1"), "{first}");
    proxy.signal("TERM");
    let second = receive();
    assert!(second.lines().any(|line| line == "STOPPING=1"), "{second}");
    assert_eq!(proxy.wait().await.status, 0);
}

/// A connection on which one request succeeded.
async fn open_used_connection(address: SocketAddr) -> RawConnection {
    let mut connection = RawConnection::connect(address).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200"));
    connection
}

fn has_connection_close(head: &str) -> bool {
    head.to_ascii_lowercase().lines().any(|line| line == "connection: close")
}

#[tokio::test]
async fn late_request_on_keep_alive_gets_503_and_is_not_forwarded() {
    let scenario = DrainScenario::start("10m").await;
    let mut connection = open_used_connection(scenario.address).await;
    let late = raw_get(USER_GET);
    let (beginning, rest) = late.split_at(20);
    connection.send(beginning).await.expect("sent");
    scenario.terminate().await;
    wait_until_refused(scenario.address).await;
    connection.send(rest).await.expect("sent");
    let (head, body) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 503") && has_connection_close(&head), "{head}");
    assert!(
        head.contains("x-wecom-proxy-error: shutting-down") && body.contains("\"errcode\":-1"),
        "{head}{body}"
    );
    assert_eq!(connection.read_to_end().await.0, b"");
    assert_eq!(scenario.wecom.observe(|observed| observed.received_count("/cgi-bin/user/get")), 1);
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn last_response_closes_and_pipelined_requests_are_dropped() {
    let scenario = DrainScenario::start("10m").await;
    let mut connection = open_used_connection(scenario.address).await;
    scenario.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    connection.send(raw_get(USER_GET) + &raw_get(USER_GET)).await.expect("sent");
    scenario.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
    scenario.terminate().await;
    wait_until_refused(scenario.address).await;
    scenario.wecom.release_held();
    let (head, _) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200") && has_connection_close(&head), "{head}");
    assert_eq!(connection.read_to_end().await.0, b"");
    assert_eq!(scenario.wecom.observe(|observed| observed.received_count("/cgi-bin/user/get")), 2);
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn new_connection_before_drain_is_served() {
    let scenario = DrainScenario::start("10m").await;
    open_used_connection(scenario.address).await;
    let mut connection = RawConnection::connect(scenario.address).await;
    scenario.terminate().await;
    wait_until_refused(scenario.address).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    let (head, _) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200") && has_connection_close(&head), "{head}");
    assert_eq!(connection.read_to_end().await.0, b"");
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn new_tls_connection_before_drain_is_served_over_http1_and_2() {
    let authority = Authority::new();
    let toml =
        OPEN_CONFIG.replace("[upstream]", &format!("{}\n[upstream]", authority.tls_config_line("localhost")));
    let (wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let scenario = DrainScenario { wecom, dir, address: proxy.address().await, proxy };
    let connect_tls =
        async |alpn| authority.connect_tls(scenario.address, &[alpn], None).await.expect("a handshake");
    let (http1, http2) = (connect_tls("http/1.1").await, connect_tls("h2").await);
    scenario.terminate().await;
    wait_until_refused(scenario.address).await;
    let (mut http1, mut http2) = (TestClient::http1_over(http1).await, TestClient::http2_over(http2).await);
    let (one, two) = tokio::join!(http1.get(USER_GET), http2.get(USER_GET));
    one.assert_ok();
    two.assert_ok();
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn connections_in_the_backlog_are_served_at_stop() {
    let scenario = DrainScenario::start("10m").await;
    open_used_connection(scenario.address).await;
    scenario.proxy.signal("STOP");
    let mut connections = Vec::new();
    for _ in 0..50 {
        let mut connection = RawConnection::connect(scenario.address).await;
        connection.send(raw_get(USER_GET)).await.expect("sent");
        connections.push(connection);
    }
    scenario.proxy.signal("TERM");
    scenario.proxy.signal("CONT");
    for mut connection in connections {
        let (head, _) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn queued_request_at_drain_gets_503_and_is_not_forwarded() {
    let toml = OPEN_CONFIG.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]");
    let (wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let scenario = DrainScenario { wecom, dir, address: proxy.address().await, proxy };
    let held = scenario.start_held_request().await;
    let mut connection = RawConnection::connect(scenario.address).await;
    connection.send(raw_get(ECHO)).await.expect("sent");
    // The request waits in the queue, so any bytes read now would be a premature response.
    assert!(timeout(Duration::from_millis(200), connection.read_more()).await.is_err(), "the request waits");
    let started = Instant::now();
    scenario.terminate().await;
    let (head, _) = connection.read_response().await;
    assert!(head.contains("x-wecom-proxy-error: shutting-down") && has_connection_close(&head), "{head}");
    assert!(started.elapsed() < SHUTDOWN_TIMEOUT, "{:?}", started.elapsed());
    assert_eq!(scenario.wecom.observe(|observed| observed.received_count(ECHO)), 0);
    scenario.wecom.release_held();
    assert_eq!(held.await.expect("no panic").expect("a response").status(), 200);
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

#[tokio::test]
async fn stream_before_goaway_gets_503_and_is_not_forwarded() {
    let scenario = DrainScenario::start("10m").await;
    let (gate, closed) = watch::channel(false);
    let mut client = TestClient::connect_http2(start_gated_relay(scenario.address, closed).await).await;
    client.get(USER_GET).await.assert_ok();
    scenario.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let TestClient::Http2(sender) = &client else { unreachable!() };
    let mut second = TestClient::Http2(sender.clone());
    let during = async {
        scenario.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        gate.send_replace(true);
        scenario.terminate().await;
        wait_until_refused(scenario.address).await;
        let open = async {
            // The stream has reached the proxy by then; only its response waits behind the gate.
            scenario.proxy.err.wait_for_line("shutting-down").await;
            gate.send_replace(false);
        };
        tokio::join!(second.get(ECHO), open).0.assert_proxy_error("shutting-down", 503, -1);
        scenario.wecom.release_held();
    };
    tokio::join!(client.get(USER_GET), during).0.assert_ok();
    assert_eq!(scenario.wecom.observe(|observed| observed.received_count(ECHO)), 0);
    assert_eq!(scenario.proxy.wait().await.status, 0);
}

/// The first TCP address in the `listen` field of the ready message.
async fn first_tcp_address(proxy: &Process) -> SocketAddr {
    let listen = log_field(&proxy.err.wait_for_line("ready listen=").await, "listen");
    listen.split(", ").find_map(|address| address.parse().ok()).expect("an address")
}

/// A TCP relay to the proxy that delays the proxy's bytes while `closed` is true.
async fn start_gated_relay(address: SocketAddr, mut closed: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let relay = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (client, _) = listener.accept().await?;
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_proxy, mut to_proxy) = TcpStream::connect(address).await?.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_proxy).await });
        let mut buffer = [0; 8192];
        loop {
            let read = from_proxy.read(&mut buffer).await?;
            let _ = closed.wait_for(|closed| !closed).await;
            to_client.write_all(&buffer[..read]).await?;
            if read == 0 {
                return Ok::<_, io::Error>(());
            }
        }
    });
    relay
}

#[tokio::test]
async fn draining_process_keeps_its_successors_unix_socket() {
    let toml = OPEN_CONFIG.replacen("\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]", 1);
    let (wecom, dir, config) = start_simulator_with_config(&toml).await;
    let path = dir.path().join("proxy.sock");
    let first = Process::serve(&config).await;
    let scenario = DrainScenario { wecom, dir, address: first_tcp_address(&first).await, proxy: first };
    let held = scenario.start_held_request().await;
    // A second process binds the same path while the first still serves: the socket file is replaced.
    std::fs::remove_file(&path).expect("a file");
    let second = Process::serve(&config).await;
    scenario.terminate().await;
    wait_until_refused(scenario.address).await;
    scenario.wecom.release_held();
    assert_eq!(held.await.expect("no panic").expect("a response").status(), 200);
    assert_eq!(scenario.proxy.wait().await.status, 0);
    let unix = tokio::net::UnixStream::connect(&path).await.expect("the second process listens there");
    TestClient::http1_over(unix).await.get(USER_GET).await.assert_ok();
    assert_eq!(second.stop().await.status, 0);
    assert!(!path.exists());
}
