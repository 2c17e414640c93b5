//! Overload: excess requests are refused at once, and all others are served as usual.

use std::{net::SocketAddr, process::Command, time::Duration};

use http::Request;
use tokio::{task::JoinHandle, time::Instant};
use wecom_proxy::simulator::{Fault, Simulator};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, client_key,
        start_simulator_with_config, wait_for, with_timeout,
    },
    process::Process,
    raw_http::{RawConnection, raw_get},
};

/// Shorter than any timeout configured here, so that a test which waits for one of them fails.
const NO_WAIT: Duration = Duration::from_secs(20);

/// The configuration with `count` permits, and a queue timeout that no test reaches.
fn config_with_in_flight(count: usize, toml: &str) -> String {
    toml.replace("[admin]", &format!("max_in_flight = {count}\nqueue_timeout = \"10m\"\n[admin]"))
}

/// Concurrent calls, each on its own connection: each holds a permit or waits for one.
struct ConcurrentCalls(Vec<JoinHandle<TestResponse>>);

impl ConcurrentCalls {
    async fn start(proxy: &TestProxy, count: usize, target: &str, client: &str) -> Self {
        let address = proxy.address();
        let call = |_| {
            let request = Request::get(target).header("x-api-key", client_key(client));
            tokio::spawn(async move { TestClient::connect_http1(address).await.request(request, "").await })
        };
        Self((0..count).map(call).collect())
    }

    async fn assert_all_ok(self) {
        for call in self.0 {
            with_timeout(call).await.expect("no panic").assert_ok();
        }
    }
}

/// Waits until a flood holds its full share of the permits: 59 of 64.
async fn wait_until_full(proxy: &TestProxy) {
    proxy.wecom.wait_until(|observed| observed.in_flight() >= 59).await.expect("a flood");
}

async fn get_as_client(proxy: &TestProxy, client: &str, path: &str) -> TestResponse {
    let started = Instant::now();
    let response = proxy.request(Request::get(path).header("x-api-key", client_key(client)), "").await;
    assert!(started.elapsed() < NO_WAIT, "{client} waited {:?} for {path}", started.elapsed());
    response
}

#[tokio::test]
async fn one_client_agent_or_endpoint_never_takes_all_permits() {
    let proxy = TestProxy::start_with_config(&config_with_in_flight(64, CONFIG_WITH_CLIENTS)).await;
    for agent in ["hr", "ops"] {
        get_as_client(&proxy, "crm", &format!("/{agent}{USER_GET}")).await.assert_ok();
    }
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let flood = ConcurrentCalls::start(&proxy, 90, &format!("/hr{ECHO}"), "crm").await;
    wait_until_full(&proxy).await;
    // Another client, another agent of the same client, and another endpoint of the same agent.
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    get_as_client(&proxy, "crm", &format!("/ops{USER_GET}")).await.assert_ok();
    get_as_client(&proxy, "crm", &format!("/hr{USER_GET}")).await.assert_ok();
    proxy.wecom.release_held();
    flood.assert_all_ok().await;
    assert!(proxy.wecom.observe(|observed| observed.max_in_flight()) <= 64);
}

#[tokio::test]
async fn without_clients_agents_share_the_permits() {
    let proxy = TestProxy::start_with_config(&config_with_in_flight(64, OPEN_CONFIG)).await;
    get_as_client(&proxy, "unknown", &format!("/hr{USER_GET}")).await.assert_ok();
    proxy.wecom.inject(Fault::hold().for_agent("hr")).expect("a fault");
    let flood = ConcurrentCalls::start(&proxy, 90, &format!("/hr{ECHO}"), "unknown").await;
    wait_until_full(&proxy).await;
    get_as_client(&proxy, "unknown", &format!("/ops{USER_GET}")).await.assert_ok();
    proxy.wecom.release_held();
    flood.assert_all_ok().await;
}

#[tokio::test]
async fn request_of_another_client_is_served_before_a_flood() {
    let proxy = TestProxy::start_with_config(&config_with_in_flight(1, CONFIG_WITH_CLIENTS)).await;
    get_as_client(&proxy, "crm", &format!("/hr{USER_GET}")).await.assert_ok();
    // Each call of the flood takes 50 ms: 40 of them in a row take at least 2 s.
    proxy.wecom.inject(Fault::delay(Duration::from_millis(50)).on_path(ECHO)).expect("a fault");
    let flood = ConcurrentCalls::start(&proxy, 40, &format!("/hr{ECHO}"), "crm").await;
    proxy.wecom.wait_until(|observed| observed.received_count(ECHO) >= 2).await.expect("a flood");
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    let before = proxy.wecom.observe(|observed| observed.received_count(ECHO));
    assert!(before < 20, "{before} requests of the flood were served first");
    flood.assert_all_ok().await;
}

#[tokio::test]
async fn agent_with_hanging_gettoken_takes_no_permits() {
    let proxy = TestProxy::start_with_config(&config_with_in_flight(2, OPEN_CONFIG)).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken").for_agent("hr")).expect("a fault");
    let flood = ConcurrentCalls::start(&proxy, 20, &format!("/hr{USER_GET}"), "unknown").await;
    proxy
        .wecom
        .wait_until(|observed| observed.received_count("/cgi-bin/gettoken") == 1)
        .await
        .expect("a gettoken");
    for _ in 0..5 {
        get_as_client(&proxy, "unknown", &format!("/ops{USER_GET}")).await.assert_ok();
    }
    for call in &flood.0 {
        call.abort();
    }
    proxy.wecom.release_held();
}

/// Starts requests over HTTP/2, which needs few connections for many requests.
async fn start_http2_flood(
    proxy: &TestProxy,
    connections: usize,
    streams: usize,
) -> Vec<JoinHandle<TestResponse>> {
    let mut calls = Vec::new();
    for _ in 0..connections {
        let TestClient::Http2(sender) = TestClient::connect_http2(proxy.address()).await else {
            unreachable!()
        };
        for _ in 0..streams {
            let mut sender = sender.clone();
            let target = format!("http://proxy.test/hr{ECHO}");
            let request =
                Request::get(target).header("x-api-key", client_key("crm")).body(Default::default());
            calls.push(tokio::spawn(async move {
                sender.ready().await.expect("a connection");
                TestResponse::read(
                    sender.send_request(request.expect("a request")).await.expect("a response"),
                )
                .await
            }));
        }
    }
    calls
}

#[tokio::test]
async fn request_with_a_full_queue_is_refused_at_once() {
    let proxy = TestProxy::start_with_config(&config_with_in_flight(1, CONFIG_WITH_CLIENTS)).await;
    get_as_client(&proxy, "crm", &format!("/hr{USER_GET}")).await.assert_ok();
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let mut refused = Vec::new();
    let mut waiting = start_http2_flood(&proxy, 5, 240).await;
    let collect_refusals = async {
        while refused.len() < 100 {
            for nth in (0..waiting.len()).rev() {
                if waiting[nth].is_finished() {
                    refused.push(waiting.swap_remove(nth).await.expect("no panic"));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    with_timeout(collect_refusals).await;
    for response in refused {
        let wait = response
            .assert_proxy_error("overloaded", 503, -1)
            .header("retry-after")
            .parse::<u32>()
            .expect("a number");
        assert!(wait >= 1);
    }
    // The queue still accepts another client, which is served next.
    let mut queued = tokio::spawn({
        let (address, request) = (
            proxy.address(),
            Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("billing")),
        );
        async move { TestClient::connect_http1(address).await.request(request, "").await }
    });
    assert!(
        tokio::time::timeout(Duration::from_millis(100), &mut queued).await.is_err(),
        "the request waits"
    );
    proxy.wecom.release_held();
    with_timeout(queued).await.expect("no panic").assert_ok();
    for call in waiting {
        call.abort();
    }
}

/// Starts the program with these lines in `[server]`.
async fn start_program(server_lines: &str) -> (Simulator, tempfile::TempDir, Process, SocketAddr) {
    let toml = OPEN_CONFIG.replace("[upstream]", &format!("{server_lines}\n[upstream]"));
    let (wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let address = proxy.address().await;
    (wecom, dir, proxy, address)
}

/// Keep-alive connections, each after one completed request.
async fn open_used_connections(address: SocketAddr, count: usize) -> Vec<RawConnection> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = RawConnection::connect(address).await;
        connection.send(raw_get(USER_GET)).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200"));
        connections.push(connection);
    }
    connections
}

#[tokio::test]
async fn full_proxy_evicts_longest_idle_connections_and_logs_once() {
    let (_wecom, _dir, proxy, address) = start_program("max_connections = 6").await;
    let mut first = open_used_connections(address, 2).await;
    let mut http2 = TestClient::connect_http2(address).await;
    http2.get(USER_GET).await.assert_ok();
    let mut second = open_used_connections(address, 3).await;
    let started = Instant::now();
    let third = open_used_connections(address, 3).await;
    assert!(started.elapsed() < NO_WAIT, "{:?}", started.elapsed());
    for connection in &mut first {
        assert_eq!(connection.read_to_end().await.0, b"", "the oldest were closed");
    }
    let TestClient::Http2(sender) = &mut http2 else { unreachable!() };
    wait_for("the end of HTTP/2", async || sender.is_closed() || sender.ready().await.is_err()).await;
    for connection in second.iter_mut().chain(&mut { third }) {
        connection.send(raw_get(USER_GET)).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200"), "newer connections are kept");
    }
    let output = proxy.stop().await;
    assert_eq!(output.err.matches("max_connections reached").count(), 1, "{}", output.err);
}

#[tokio::test]
async fn full_proxy_keeps_busy_connections_and_makes_new_ones_wait() {
    let (wecom, _dir, _proxy, address) = start_program("max_connections = 2").await;
    open_used_connections(address, 1).await;
    wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(2)).expect("a fault");
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut connection = RawConnection::connect(address).await;
        connection.send(raw_get(USER_GET)).await.expect("sent");
        busy.push(connection);
    }
    wecom.wait_until(|observed| observed.in_flight() == 2).await.expect("two requests");
    let mut third = RawConnection::connect(address).await;
    third.send(raw_get(USER_GET)).await.expect("sent");
    assert!(
        tokio::time::timeout(Duration::from_millis(700), third.read_more()).await.is_err(),
        "the request waits"
    );
    wecom.release_held();
    for connection in &mut busy {
        assert!(
            connection.read_response().await.0.starts_with("HTTP/1.1 200"),
            "the busy connection is kept"
        );
    }
    assert!(third.read_response().await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn partial_requests_block_no_client_of_a_full_proxy() {
    let settings = "max_connections = 3\nheader_timeout = \"60s\"\nidle_timeout = \"60s\"";
    let (_wecom, _dir, _proxy, address) = start_program(settings).await;
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x09\x01\x01\0\0\0\x01\x82\x86";
    for partial in [&b""[..], b"\r\n", b"GET /hr", b"GET / HTTP/1.1\r\nHost: x\r\n", &http2[..20], http2] {
        let mut connections = Vec::new();
        for _ in 0..3 {
            let mut connection = RawConnection::connect(address).await;
            connection.send(partial).await.expect("sent");
            connections.push(connection);
        }
        // The last connection keeps sending single bytes.
        let (mut interval, mut dripping) =
            (tokio::time::interval(Duration::from_millis(100)), connections.pop());
        let keep_sending = async {
            while let Some(connection) = &mut dripping {
                interval.tick().await;
                if !partial.is_empty() && connection.send("x").await.is_err() {
                    dripping = None;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            served = open_used_connections(address, 3) => assert_eq!(served.len(), 3),
            () = keep_sending => unreachable!(),
        }
        for connection in &mut connections {
            assert!(!connection.read_to_end().await.0.starts_with(b"HTTP/1.1 200"), "{partial:?} is evicted");
        }
    }
}

#[tokio::test]
async fn fewer_connections_than_listeners_starve_no_listener() {
    let listeners = "[\"127.0.0.1:0\", \"127.0.0.2:0\", \"unix:{dir}/proxy.sock\"]\nmax_connections = 1";
    let toml = OPEN_CONFIG.replacen("\"127.0.0.1:0\"", listeners, 1);
    let (_wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let line = proxy.err.wait_for_line("ready listen=").await;
    let listen = crate::process::log_field(&line, "listen");
    let tcp: Vec<SocketAddr> = listen.split(", ").filter_map(|address| address.parse().ok()).collect();
    assert_eq!(tcp.len(), 2, "{line}");
    for _ in 0..2 {
        for address in &tcp {
            TestClient::connect_http1(*address).await.get(USER_GET).await.assert_ok();
        }
        let unix = with_timeout(tokio::net::UnixStream::connect(dir.path().join("proxy.sock")))
            .await
            .expect("a socket");
        TestClient::http1_over(unix).await.get(USER_GET).await.assert_ok();
    }
}

#[tokio::test]
async fn descriptor_exhaustion_neither_spins_nor_floods_the_log() {
    let (_wecom, _dir, proxy, address) = start_program("").await;
    TestClient::connect_http1(address).await.get(USER_GET).await.assert_ok();
    proxy.limit_descriptors(64);
    // Each connection has begun a request, so none is idle.
    let mut connections = Vec::new();
    for _ in 0..100 {
        let mut connection = RawConnection::connect(address).await;
        connection.send("GET ").await.expect("sent");
        connections.push(connection);
    }
    proxy.err.wait_for_line("accept failed").await;
    let before = proxy.cpu_time();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let cpu_time = proxy.cpu_time() - before;
    assert!(cpu_time < Duration::from_millis(200), "{cpu_time:?} of CPU time in 500 ms");
    for connection in connections {
        connection.reset();
    }
    let mut client = RawConnection::connect(address).await;
    client.send(raw_get(USER_GET)).await.expect("sent");
    assert!(client.read_response().await.0.starts_with("HTTP/1.1 200"));
    let output = proxy.stop().await;
    assert_eq!(output.err.matches("accept failed").count(), 1, "{}", output.err);
    assert_eq!(output.status, 0);
}

#[tokio::test]
async fn few_descriptors_are_reserved_for_the_upstream() {
    let (_wecom, _dir, config) = start_simulator_with_config(OPEN_CONFIG).await;
    let mut command = Command::new("sh");
    let script = "ulimit -n 64; exec \"$0\" --config \"$1\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    proxy.err.wait_for_line("max_connections lowered").await;
    let address = proxy.address().await;
    let mut idle = Vec::new();
    // More than twice the limit: all of the first connections are evicted.
    for _ in 0..50 {
        idle.push(RawConnection::connect(address).await);
    }
    let mut used = open_used_connections(address, 3).await;
    assert_eq!(idle[0].read_to_end().await.0, b"", "the oldest were closed");
    used[0].send(raw_get(USER_GET)).await.expect("sent");
    assert!(used[0].read_response().await.0.starts_with("HTTP/1.1 200"));
    let output = proxy.stop().await;
    assert!(!output.err.contains("accept failed"), "{}", output.err);
}

#[tokio::test]
async fn descriptor_limit_is_raised_to_the_hard_limit() {
    let settings = OPEN_CONFIG.replace("[server]\n", "[server]\nmax_connections = 500\n");
    let (_wecom, _dir, config) = start_simulator_with_config(&settings).await;
    let mut command = Command::new("sh");
    let script = "ulimit -Hn 1024; ulimit -Sn 64; exec \"$0\" --config \"$1\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    proxy.err.wait_for_line("ready listen=").await;
    let output = proxy.stop().await;
    assert!(!output.err.contains("max_connections lowered"), "{}", output.err);
}
