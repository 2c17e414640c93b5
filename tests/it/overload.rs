//! More than the proxy can take: who is too much is told so at once, and the others are served as ever.

use std::{net::SocketAddr, process::Command, time::Duration};

use http::Request;
use tokio::{task::JoinHandle, time::Instant};
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, client_key,
        wait_for, with_timeout, write_config,
    },
    process::Process,
    raw_http::RawConnection,
};

/// Far less than any time-out here that a story could wait for by mistake.
const NO_WAIT: Duration = Duration::from_secs(20);

/// Places for 64 and a wait that no story outlasts.
fn config_with_64_in_flight(toml: &str) -> String {
    toml.replace("[admin]", "max_in_flight = 64\nqueue_timeout = \"10m\"\n[admin]")
}

/// Calls on a connection each that hold their places; those that find none wait.
struct ConcurrentCalls(Vec<JoinHandle<TestResponse>>);

impl ConcurrentCalls {
    async fn start(stage: &TestProxy, count: usize, path: &str, client: &str) -> Self {
        let address = stage.address();
        let call = |_| {
            let request = Request::get(path).header("x-api-key", client_key(client));
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

/// How many calls of one kind WeCom holds when a flood has taken all that it gets: of 64 places 59.
async fn wait_until_full(stage: &TestProxy) {
    stage.wecom.wait_until(|seen| seen.in_flight() >= 59).await.expect("a flood");
}

async fn get_as_client(stage: &TestProxy, client: &str, path: &str) -> TestResponse {
    let came = Instant::now();
    let reply = stage.request(Request::get(path).header("x-api-key", client_key(client)), "").await;
    assert!(came.elapsed() < NO_WAIT, "{client} waited {:?} for {path}", came.elapsed());
    reply
}

#[tokio::test]
async fn one_client_agent_or_endpoint_never_takes_all_permits() {
    let stage = TestProxy::start_with_config(&config_with_64_in_flight(CONFIG_WITH_CLIENTS)).await;
    for agent in ["hr", "ops"] {
        get_as_client(&stage, "crm", &format!("/{agent}{USER_GET}")).await.assert_ok();
    }
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let flood = ConcurrentCalls::start(&stage, 90, &format!("/hr{ECHO}"), "crm").await;
    wait_until_full(&stage).await;
    // Another client, another agent of the same client, another endpoint of the same agent.
    get_as_client(&stage, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    get_as_client(&stage, "crm", &format!("/ops{USER_GET}")).await.assert_ok();
    get_as_client(&stage, "crm", &format!("/hr{USER_GET}")).await.assert_ok();
    stage.wecom.release_held();
    flood.assert_all_ok().await;
    assert!(stage.wecom.observe(|seen| seen.max_in_flight()) <= 64);
}

#[tokio::test]
async fn without_clients_agents_share_the_permits() {
    let stage = TestProxy::start_with_config(&config_with_64_in_flight(OPEN_CONFIG)).await;
    get_as_client(&stage, "nobody", &format!("/hr{USER_GET}")).await.assert_ok();
    stage.wecom.inject(Fault::hold().for_agent("hr")).expect("a fault");
    let flood = ConcurrentCalls::start(&stage, 90, &format!("/hr{ECHO}"), "nobody").await;
    wait_until_full(&stage).await;
    get_as_client(&stage, "nobody", &format!("/ops{USER_GET}")).await.assert_ok();
    stage.wecom.release_held();
    flood.assert_all_ok().await;
}

#[tokio::test]
async fn request_of_another_client_is_served_before_a_flood() {
    let stage = TestProxy::start_with_config(
        &CONFIG_WITH_CLIENTS.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]"),
    )
    .await;
    get_as_client(&stage, "crm", &format!("/hr{USER_GET}")).await.assert_ok();
    // Each call of the flood takes its time: 40 of them would take two seconds and more.
    stage.wecom.inject(Fault::delay(Duration::from_millis(50)).on_path(ECHO)).expect("a fault");
    let flood = ConcurrentCalls::start(&stage, 40, &format!("/hr{ECHO}"), "crm").await;
    stage.wecom.wait_until(|seen| seen.received_count(ECHO) >= 2).await.expect("a flood");
    get_as_client(&stage, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    let before = stage.wecom.observe(|seen| seen.received_count(ECHO));
    assert!(before < 20, "{before} of the flood went first");
    flood.assert_all_ok().await;
}

#[tokio::test]
async fn agent_with_hanging_gettoken_takes_no_permits() {
    let stage = TestProxy::start_with_config(
        &OPEN_CONFIG.replace("[admin]", "max_in_flight = 2\nqueue_timeout = \"10m\"\n[admin]"),
    )
    .await;
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken").for_agent("hr")).expect("a fault");
    let flood = ConcurrentCalls::start(&stage, 20, &format!("/hr{USER_GET}"), "nobody").await;
    stage.wecom.wait_until(|seen| seen.received_count("/cgi-bin/gettoken") == 1).await.expect("a gettoken");
    for _ in 0..5 {
        get_as_client(&stage, "nobody", &format!("/ops{USER_GET}")).await.assert_ok();
    }
    for call in &flood.0 {
        call.abort();
    }
    stage.wecom.release_held();
}

#[tokio::test]
async fn request_with_a_full_queue_is_refused_at_once() {
    let stage = TestProxy::start_with_config(
        &CONFIG_WITH_CLIENTS.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]"),
    )
    .await;
    get_as_client(&stage, "crm", &format!("/hr{USER_GET}")).await.assert_ok();
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    // Over HTTP/2, which needs few connections for many requests.
    let mut refused = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let TestClient::Http2(sender) = TestClient::connect_http2(stage.address()).await else {
            unreachable!()
        };
        for _ in 0..240 {
            let mut sender = sender.clone();
            let target = format!("http://proxy.test/hr{ECHO}");
            let request =
                Request::get(target).header("x-api-key", client_key("crm")).body(Default::default());
            waiting.push(tokio::spawn(async move {
                sender.ready().await.expect("a connection");
                TestResponse::read(sender.send_request(request.expect("a request")).await.expect("an answer"))
                    .await
            }));
        }
    }
    let some = async {
        while refused.len() < 100 {
            for nth in (0..waiting.len()).rev() {
                if waiting[nth].is_finished() {
                    refused.push(waiting.swap_remove(nth).await.expect("no panic"));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    with_timeout(some).await;
    for reply in refused {
        let wait = reply
            .assert_proxy_error("overloaded", 503, -1)
            .header("retry-after")
            .parse::<u32>()
            .expect("a number");
        assert!(wait >= 1);
    }
    // There is room in the row for another, who has the next turn.
    let mut late = tokio::spawn({
        let (address, request) = (
            stage.address(),
            Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("billing")),
        );
        async move { TestClient::connect_http1(address).await.request(request, "").await }
    });
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut late).await.is_err(), "it waits");
    stage.wecom.release_held();
    with_timeout(late).await.expect("no panic").assert_ok();
    for call in waiting {
        call.abort();
    }
}

/// The real program with these lines in `[server]`.
async fn start_program(lines: &str) -> (Simulator, tempfile::TempDir, Process, SocketAddr) {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let toml = OPEN_CONFIG.replace("[upstream]", &format!("{lines}\n[upstream]"));
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let address = proxy.address().await;
    (wecom, dir, proxy, address)
}

fn raw_get() -> String {
    format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
}

/// Connections on which one request was answered, and which are kept.
async fn open_used_connections(address: SocketAddr, count: usize) -> Vec<RawConnection> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = RawConnection::connect(address).await;
        line.send(raw_get()).await.expect("it is taken");
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 200"));
        lines.push(line);
    }
    lines
}

#[tokio::test]
async fn full_proxy_evicts_longest_idle_connections_and_logs_once() {
    let (_wecom, _dir, proxy, address) = start_program("max_connections = 6").await;
    let mut first = open_used_connections(address, 2).await;
    let mut http2 = TestClient::connect_http2(address).await;
    http2.get(USER_GET).await.assert_ok();
    let mut second = open_used_connections(address, 3).await;
    let began = Instant::now();
    let newcomers = open_used_connections(address, 3).await;
    assert!(began.elapsed() < NO_WAIT, "{:?}", began.elapsed());
    for line in &mut first {
        assert_eq!(line.read_to_end().await.0, b"", "the oldest were closed");
    }
    let TestClient::Http2(sender) = &mut http2 else { unreachable!() };
    wait_for("the end of HTTP/2", async || sender.is_closed() || sender.ready().await.is_err()).await;
    for line in second.iter_mut().chain(&mut { newcomers }) {
        line.send(raw_get()).await.expect("it is taken");
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 200"), "the younger ones are kept");
    }
    let ended = proxy.stop().await;
    assert_eq!(ended.err.matches("max_connections reached").count(), 1, "{}", ended.err);
}

#[tokio::test]
async fn full_proxy_keeps_busy_connections_and_makes_new_ones_wait() {
    let (wecom, _dir, _proxy, address) = start_program("max_connections = 2").await;
    open_used_connections(address, 1).await;
    wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(2)).expect("a fault");
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut line = RawConnection::connect(address).await;
        line.send(raw_get()).await.expect("it is taken");
        busy.push(line);
    }
    wecom.wait_until(|seen| seen.in_flight() == 2).await.expect("two requests");
    let mut third = RawConnection::connect(address).await;
    third.send(raw_get()).await.expect("it is taken");
    assert!(tokio::time::timeout(Duration::from_millis(700), third.read_more()).await.is_err(), "it waits");
    wecom.release_held();
    for line in &mut busy {
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 200"), "it was not disturbed");
    }
    assert!(third.read_response().await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn partial_requests_block_no_client_of_a_full_proxy() {
    let lines = "max_connections = 3\nheader_timeout = \"60s\"\nidle_timeout = \"60s\"";
    let (_wecom, _dir, _proxy, address) = start_program(lines).await;
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x09\x01\x01\0\0\0\x01\x82\x86";
    for half in [&b""[..], b"\r\n", b"GET /hr", b"GET / HTTP/1.1\r\nHost: x\r\n", &http2[..20], http2] {
        let mut crowd = Vec::new();
        for _ in 0..3 {
            let mut line = RawConnection::connect(address).await;
            line.send(half).await.expect("it is taken");
            crowd.push(line);
        }
        // One drips on.
        let (mut drips, mut last) = (tokio::time::interval(Duration::from_millis(100)), crowd.pop());
        let drip = async {
            while let Some(line) = &mut last {
                drips.tick().await;
                if !half.is_empty() && line.send("x").await.is_err() {
                    last = None;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            lines = open_used_connections(address, 3) => assert_eq!(lines.len(), 3),
            () = drip => unreachable!(),
        }
        for line in &mut crowd {
            assert!(!line.read_to_end().await.0.starts_with(b"HTTP/1.1 200"), "{half:?} has made room");
        }
    }
}

#[tokio::test]
async fn fewer_connections_than_listeners_starve_no_listener() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let three = "[\"127.0.0.1:0\", \"127.0.0.2:0\", \"unix:{dir}/proxy.sock\"]\nmax_connections = 1";
    let toml = OPEN_CONFIG.replacen("\"127.0.0.1:0\"", three, 1);
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
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
    // They begin a request: none of them is idle.
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let mut line = RawConnection::connect(address).await;
        line.send("GET ").await.expect("it is taken");
        crowd.push(line);
    }
    proxy.err.wait_for_line("accept failed").await;
    let before = proxy.cpu_time();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let spent = proxy.cpu_time() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} of processor time in half a second");
    for line in crowd {
        line.reset();
    }
    let mut caller = RawConnection::connect(address).await;
    caller.send(raw_get()).await.expect("it is taken");
    assert!(caller.read_response().await.0.starts_with("HTTP/1.1 200"));
    let ended = proxy.stop().await;
    assert_eq!(ended.err.matches("accept failed").count(), 1, "{}", ended.err);
    assert_eq!(ended.status, 0);
}

#[tokio::test]
async fn few_descriptors_are_reserved_for_the_upstream() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), OPEN_CONFIG);
    let mut command = Command::new("sh");
    let words = "ulimit -n 64; exec \"$0\" --config \"$1\"";
    command.args(["-c", words, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    proxy.err.wait_for_line("max_connections lowered").await;
    let address = proxy.address().await;
    let mut silent = Vec::new();
    // More than twice as many as there is room for: all of the first ones have to go.
    for _ in 0..50 {
        silent.push(RawConnection::connect(address).await);
    }
    let mut callers = open_used_connections(address, 3).await;
    assert_eq!(silent[0].read_to_end().await.0, b"", "the oldest were closed");
    callers[0].send(raw_get()).await.expect("it is taken");
    assert!(callers[0].read_response().await.0.starts_with("HTTP/1.1 200"));
    let ended = proxy.stop().await;
    assert!(!ended.err.contains("accept failed"), "{}", ended.err);
}

#[tokio::test]
async fn descriptor_limit_is_raised_to_the_hard_limit() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let settings = OPEN_CONFIG.replace("[server]\n", "[server]\nmax_connections = 500\n");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), &settings);
    let mut command = Command::new("sh");
    let words = "ulimit -Hn 1024; ulimit -Sn 64; exec \"$0\" --config \"$1\"";
    command.args(["-c", words, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    proxy.err.wait_for_line("ready listen=").await;
    let ended = proxy.stop().await;
    assert!(!ended.err.contains("max_connections lowered"), "{}", ended.err);
}
