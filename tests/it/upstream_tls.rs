//! TLS towards the upstream: private CAs, HTTP/2 by ALPN, and refused certificates.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use tokio::{net::TcpListener, time::Instant};
use wecom_proxy::{
    app::PreparedConfig,
    config,
    simulator::{Fault, Settings},
};

use crate::{
    certificates::{Authority, Identity},
    harness::{ECHO, TestClient, TestProxy, TestResponse, USER_GET, get_concurrently, sha256, wait_for},
};

const WEBHOOK: &str = "/cgi-bin/webhook/send?key=00000000-1111-2222-3333-444444444444";
const BOTH: &[&str] = &["h2", "http/1.1"];

/// A configuration with the simulator over TLS as upstream, and `more` lines in `[upstream]`.
fn config_with_tls(authority: &Authority, more: &str) -> String {
    let ca = authority.ca_file().display().to_string();
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{{api}}\"\nca_file = \"{ca}\"\n{more}\n{{agents}}"
    )
}

/// A proxy whose simulator has this certificate.
async fn start_with_identity(identity: &Identity, alpn: &[&str], toml: &str) -> TestProxy {
    TestProxy::start_with_settings(
        Settings { tls: Some(identity.server_config(alpn)), ..Settings::default() },
        toml,
    )
    .await
}

async fn start_trusted(alpn: &[&str]) -> TestProxy {
    let authority = Authority::new();
    start_with_identity(&authority.issue_server("127.0.0.1"), alpn, &config_with_tls(&authority, "")).await
}

/// The HTTP versions of the requests that the simulator received.
fn http_versions(proxy: &TestProxy) -> Vec<String> {
    let mut versions: Vec<_> = proxy.wecom.requests().into_iter().map(|record| record.version).collect();
    versions.dedup();
    versions
}

#[tokio::test]
async fn upstream_with_a_private_ca_is_reached_over_http1() {
    for alpn in [&["http/1.1"][..], &[]] {
        let proxy = start_trusted(alpn).await;
        proxy.get(USER_GET).await.assert_ok();
        proxy.post(ECHO, "{\"a\":1}").await.assert_ok();
        assert_eq!(http_versions(&proxy), ["HTTP/1.1"]);
    }
}

#[tokio::test]
async fn upstream_offering_h2_is_used_over_http2() {
    let proxy = start_trusted(BOTH).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.post(ECHO, "{\"a\":1}").await.assert_ok();
    assert_eq!(http_versions(&proxy), ["HTTP/2.0"]);
    let record = proxy.wecom.requests().pop().expect("a record");
    assert_eq!(record.header_values("connection"), Vec::<&str>::new());
    assert!(record.query.ends_with("access_token=token#1"), "{}", record.query);
}

#[tokio::test]
async fn query_invalid_in_http2_is_percent_encoded() {
    let proxy = start_trusted(BOTH).await;
    let target = format!("/hr{ECHO}?a=\"b\"&c=<d>&e={{|}}^`\\\u{5f20}");
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let response = proxy.send_raw(request).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let query = "a=%22b%22&c=%3Cd%3E&e={|}^`\\\u{5f20}&access_token=token#1";
    assert_eq!(
        (proxy.last_request(ECHO).query.as_str(), &http_versions(&proxy)[..]),
        (query, &["HTTP/2.0".to_owned()][..])
    );
}

#[tokio::test]
async fn large_body_is_replayed_over_http2_after_a_refresh() {
    let proxy = start_trusted(BOTH).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let body: Vec<u8> = (0..5 << 20).map(|index: u32| (index % 251) as u8).collect();
    let response = proxy.post(ECHO, body.clone()).await;
    response.assert_ok();
    assert_eq!(response.header("x-wecom-retried"), "40014");
    let mut records = proxy.wecom.requests();
    records.retain(|record| record.path == ECHO);
    let executed: Vec<_> = records.iter().map(|record| record.executed).collect();
    assert_eq!((executed, &*records[1].version), (vec![false, true], "HTTP/2.0"));
    assert_eq!(records[1].body_bytes, body.len() as u64);
    assert_eq!(records[1].body_sha256, Some(sha256(&body)));
}

#[tokio::test]
async fn many_clients_share_few_http2_connections() {
    let proxy = Arc::new(start_trusted(BOTH).await);
    for response in get_concurrently(&proxy, 300, USER_GET).await {
        response.assert_ok();
    }
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let connections = proxy.wecom.observe(|observed| observed.connection_count());
    // A connection carries at most 128 requests, so 300 clients need four however they are spread over two workers;
    // gettoken has its own.
    assert!(connections <= workers + 3, "{connections} connections for {workers} workers");
}

/// Closes all connections of the simulator, and waits until none is open.
async fn close_upstream_connections(proxy: &TestProxy) {
    proxy.wecom.close_connections();
    proxy.wecom.wait_until(|observed| observed.open_connections() == 0).await.expect("closed connections");
}

#[tokio::test]
async fn dead_http2_connection_is_replaced() {
    let proxy = start_trusted(BOTH).await;
    // A client connection stays on one worker, and so uses one upstream connection.
    let mut client = TestClient::connect_http1(proxy.address()).await;
    for _ in 0..10 {
        client.get(USER_GET).await.assert_ok();
        close_upstream_connections(&proxy).await;
    }
    client.get(USER_GET).await.assert_ok();
    // With a request in flight: a GET is retried, because it is idempotent; a POST may have been executed.
    for path in [USER_GET, ECHO] {
        let path_only = path.split('?').next().expect("a path");
        proxy.wecom.inject(Fault::hold().on_path(path_only).times(1)).expect("a fault");
        let close = async {
            proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
            proxy.wecom.close_connections();
        };
        match path {
            ECHO => tokio::join!(client.request(Request::post(format!("/hr{ECHO}")), "{}"), close)
                .0
                .assert_proxy_error("upstream-broke", 502, -1),
            _ => tokio::join!(client.get(path), close).0.assert_ok(),
        };
        proxy.wecom.reset();
    }
    client.get(USER_GET).await.assert_ok();
    assert_eq!(proxy.wecom.observe(|observed| observed.received_count(ECHO)), 0, "the POST is not retried");
}

#[tokio::test]
async fn idle_http2_connection_is_closed_and_busy_one_is_not() {
    let authority = Authority::new();
    let toml = config_with_tls(&authority, "idle_timeout = \"1s\"");
    let proxy = start_with_identity(&authority.issue_server("127.0.0.1"), BOTH, &toml).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get(USER_GET).await.assert_ok();
    proxy
        .wecom
        .inject(Fault::delay(Duration::from_millis(2500)).on_path("/cgi-bin/user/get").times(1))
        .expect("a fault");
    client.get(USER_GET).await.assert_ok();
    proxy.wecom.wait_until(|observed| observed.open_connections() == 0).await.expect("a closed connection");
    client.get(USER_GET).await.assert_ok();
    assert_eq!(
        proxy.wecom.observe(|observed| observed.received_count("/cgi-bin/user/get")),
        3,
        "no request is retried"
    );
}

/// Asserts that an untrusted upstream is refused, by a call that needs a token and by one that does not; returns the
/// errors.
async fn assert_refused(identity: &Identity, toml: &str) -> [TestResponse; 2] {
    let proxy = start_with_identity(identity, BOTH, toml).await;
    let responses = [proxy.get(USER_GET).await, proxy.post(WEBHOOK, "{\"msgtype\":\"text\"}").await];
    responses[0].assert_proxy_error("token-unavailable", 502, -1);
    responses[1].assert_proxy_error("upstream-unreachable", 502, -1);
    assert_eq!(
        proxy.wecom.observe(|observed| observed.request_count()),
        0,
        "no request reaches an untrusted upstream"
    );
    responses
}

#[track_caller]
fn assert_message(responses: &[TestResponse; 2], expected: &str) {
    for text in responses.iter().map(TestResponse::text) {
        assert!(text.contains(expected), "{text}");
        for secret in ["not-a-secret", "00000000-1111", "corpsecret", "access_token"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn self_signed_certificate_is_trusted_if_listed() {
    let (listed, identity) = Authority::self_signed("127.0.0.1", |_| {});
    let proxy = start_with_identity(&identity, BOTH, &config_with_tls(&listed, "")).await;
    proxy.get(USER_GET).await.assert_ok();

    let (other, _) = Authority::self_signed("127.0.0.1", |_| {});
    assert_refused(&identity, &config_with_tls(&other, "")).await;
    let (listed, identity) = Authority::self_signed("elsewhere.test", |_| {});
    assert_message(
        &assert_refused(&identity, &config_with_tls(&listed, "")).await,
        "certificate is not for its name",
    );
    let (listed, identity) = Authority::self_signed("127.0.0.1", |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    assert_message(
        &assert_refused(&identity, &config_with_tls(&listed, "")).await,
        "certificate has expired",
    );
}

#[tokio::test]
async fn certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let responses =
        assert_refused(&authority.issue_server("elsewhere.test"), &config_with_tls(&authority, "")).await;
    assert_message(&responses, "certificate is not for its name");
}

#[tokio::test]
async fn upstream_with_a_dot_after_its_name_is_reached() {
    let authority = Authority::new();
    let toml = config_with_tls(&authority, "");
    let other = start_with_identity(&authority.issue_server("localhost"), BOTH, &toml).await;
    let url = format!("https://localhost.:{}", other.wecom.api_addr().port());
    let proxy = TestProxy::start_with_config(&toml.replace("https://{api}", &url)).await;
    proxy.get(USER_GET).await.assert_ok();
    let host = other.last_request("/cgi-bin/user/get").header_values("host").join(",");
    assert!(host.is_empty() || host.starts_with("localhost:"), "{host}");
}

#[tokio::test]
async fn certificate_without_alt_name_is_refused_as_that() {
    let authority = Authority::new();
    let responses =
        assert_refused(&authority.issue_without_alt_name(), &config_with_tls(&authority, "")).await;
    assert_message(&responses, "has no subjectAltName");
}

#[tokio::test]
async fn certificate_of_an_unknown_ca_is_refused() {
    let responses =
        assert_refused(&Authority::new().issue_server("127.0.0.1"), &config_with_tls(&Authority::new(), ""))
            .await;
    assert_message(&responses, "upstream.ca_file");
    let built_in = "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{api}\"\n{agents}";
    assert_message(
        &assert_refused(&Authority::new().issue_server("127.0.0.1"), built_in).await,
        "untrusted authority",
    );
}

#[tokio::test]
async fn expired_certificate_is_refused() {
    let authority = Authority::new();
    let responses =
        assert_refused(&authority.issue_expired("127.0.0.1"), &config_with_tls(&authority, "")).await;
    assert_message(&responses, "certificate has expired");
}

#[tokio::test]
async fn upstream_without_tls_is_unreachable() {
    let authority = Authority::new();
    let proxy = TestProxy::start_with_config(&config_with_tls(&authority, "")).await;
    let response = proxy.post(WEBHOOK, "{}").await;
    response.assert_proxy_error("upstream-unreachable", 502, -1);
    assert!(response.text().contains("does not speak TLS"), "{}", response.text());
}

#[tokio::test]
async fn ca_file_without_certificates_prevents_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("proxy.toml");
    fs::write(dir.path().join("empty.pem"), "no certificate\n").expect("a file");
    let start_error = |file: &str| {
        let toml = format!(
            "[upstream]\nca_file = \"{file}\"\n[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-hr\"\n"
        );
        fs::write(&path, toml).expect("a file");
        let prepared = config::load(&path).map_err(|error| error.to_string());
        let prepared =
            prepared.and_then(|config| PreparedConfig::new(config).map_err(|error| error.to_string()));
        prepared.err().expect("a setup error")
    };
    for (file, expected) in [("empty.pem", "no certificate"), ("missing.pem", "missing.pem")] {
        let message = start_error(file);
        assert!(message.contains("ca_file") && message.contains(expected), "{message}");
        assert!(!message.contains("a-secret-of-hr"), "{message}");
    }
}

/// A server that accepts connections and never responds.
async fn silent_listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

#[tokio::test]
async fn connect_timeouts_of_concurrent_requests_run_in_parallel() {
    let (_listener, address) = silent_listener().await;
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{address}\"\nconnect_timeout = \"500ms\"\n{{agents}}"
    );
    let proxy = Arc::new(TestProxy::start_with_config(&toml).await);
    let started = Instant::now();
    for response in get_concurrently(&proxy, 40, WEBHOOK).await {
        response.assert_proxy_error("upstream-unreachable", 502, -1);
        assert!(response.text().contains("upstream.connect_timeout"), "{}", response.text());
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

/// A connection with a request when the certificates change finishes it and serves no other.
#[tokio::test]
async fn busy_connection_of_the_old_ca_file_gets_no_new_request() {
    for protocol in ["h2", "http/1.1"] {
        let (authority, other) = (Authority::new(), Authority::new());
        let identity = authority.issue_server("127.0.0.1");
        let toml = config_with_tls(&authority, "");
        let proxy = Arc::new(start_with_identity(&identity, &[protocol], &toml).await);
        proxy.get(USER_GET).await.assert_ok();
        proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(1)).expect("a fault");
        let held_proxy = proxy.clone();
        let held = tokio::spawn(async move { held_proxy.get(USER_GET).await.status });
        proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        fs::copy(other.ca_file(), authority.ca_file()).expect("copied");
        proxy.app.reload().expect("a reload");
        for is_held in [true, false] {
            // Each call is on a connection of its own, so that all workers serve some.
            for _ in 0..12 {
                proxy.get(USER_GET).await.assert_proxy_error("upstream-unreachable", 502, -1);
            }
            if is_held {
                proxy.wecom.release_held();
                wait_for("the held call", async || held.is_finished()).await;
            }
        }
        assert_eq!(held.await.expect("no panic"), 200, "{protocol}");
    }
}
