//! TLS towards the upstream: private authorities, HTTP/2 by ALPN, and certificates that are refused.

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
    harness::{ECHO, TestClient, TestProxy, TestResponse, USER_GET, get_concurrently},
};

const WEBHOOK: &str = "/cgi-bin/webhook/send?key=00000000-1111-2222-3333-444444444444";
const BOTH: &[&str] = &["h2", "http/1.1"];

/// A configuration whose upstream is the simulator behind TLS.
fn config_with_tls(authority: &Authority, more: &str) -> String {
    let ca = authority.ca_file().display().to_string();
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{{api}}\"\nca_file = \"{ca}\"\n{more}\n{{agents}}"
    )
}

/// A stage whose simulator shows this certificate.
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

/// The protocol versions that the simulator was spoken to in.
fn http_versions(stage: &TestProxy) -> Vec<String> {
    let mut versions: Vec<_> = stage.wecom.requests().into_iter().map(|record| record.version).collect();
    versions.dedup();
    versions
}

#[tokio::test]
async fn upstream_with_a_private_ca_is_reached_over_http1() {
    for alpn in [&["http/1.1"][..], &[]] {
        let stage = start_trusted(alpn).await;
        stage.get(USER_GET).await.assert_ok();
        stage.post(ECHO, "{\"a\":1}").await.assert_ok();
        assert_eq!(http_versions(&stage), ["HTTP/1.1"]);
    }
}

#[tokio::test]
async fn upstream_offering_h2_is_used_over_http2() {
    let stage = start_trusted(BOTH).await;
    stage.get(USER_GET).await.assert_ok();
    stage.post(ECHO, "{\"a\":1}").await.assert_ok();
    assert_eq!(http_versions(&stage), ["HTTP/2.0"]);
    let record = stage.wecom.requests().pop().expect("a record");
    assert_eq!(record.header_values("connection"), Vec::<&str>::new());
    assert!(record.query.ends_with("access_token=token#1"), "{}", record.query);
}

#[tokio::test]
async fn query_invalid_in_http2_is_percent_encoded() {
    let stage = start_trusted(BOTH).await;
    let target = format!("/hr{ECHO}?a=\"b\"&c=<d>&e={{|}}^`\\\u{5f20}");
    let given = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = stage.send_raw(given).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let query = "a=%22b%22&c=%3Cd%3E&e={|}^`\\\u{5f20}&access_token=token#1";
    assert_eq!(
        (stage.last_request(ECHO).query.as_str(), &http_versions(&stage)[..]),
        (query, &["HTTP/2.0".to_owned()][..])
    );
}

#[tokio::test]
async fn large_body_is_replayed_over_http2_after_a_refresh() {
    let stage = start_trusted(BOTH).await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.revoke_tokens("hr").expect("an agent");
    let body: Vec<u8> = (0..5 << 20).map(|at: u32| (at % 251) as u8).collect();
    let reply = stage.post(ECHO, body.clone()).await;
    reply.assert_ok();
    assert_eq!(reply.header("x-wecom-retried"), "40014");
    let mut echoes = stage.wecom.requests();
    echoes.retain(|record| record.path == ECHO);
    let executed: Vec<_> = echoes.iter().map(|record| record.executed).collect();
    assert_eq!((executed, &*echoes[1].version), (vec![false, true], "HTTP/2.0"));
    assert_eq!(echoes[1].body_bytes, body.len() as u64);
    assert_eq!(echoes[1].body_sha256, Some(sha256(&body)));
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn many_clients_share_few_http2_connections() {
    let stage = Arc::new(start_trusted(BOTH).await);
    for reply in get_concurrently(&stage, 300, USER_GET).await {
        reply.assert_ok();
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let connections = stage.wecom.observe(|seen| seen.connection_count());
    // The simulator takes 200 requests at once on each, and the callers need not be spread evenly.
    assert!(connections <= workers + 2, "{connections} connections for {workers} workers");
}

/// Ends all connections of the simulator, and waits until they are gone.
async fn close_upstream_connections(stage: &TestProxy) {
    stage.wecom.close_connections();
    stage.wecom.wait_until(|seen| seen.open_connections() == 0).await.expect("they close");
}

#[tokio::test]
async fn dead_http2_connection_is_replaced() {
    let stage = start_trusted(BOTH).await;
    // One connection of a client stays with one worker, and so with one connection to the upstream.
    let mut caller = TestClient::connect_http1(stage.address()).await;
    for _ in 0..10 {
        caller.get(USER_GET).await.assert_ok();
        close_upstream_connections(&stage).await;
    }
    caller.get(USER_GET).await.assert_ok();
    // With a request on it: a GET is sent again, since it does no harm; a POST may have been carried out.
    for path in [USER_GET, ECHO] {
        let bare = path.split('?').next().expect("a path");
        stage.wecom.inject(Fault::hold().on_path(bare).times(1)).expect("a fault");
        let cut = async {
            stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
            stage.wecom.close_connections();
        };
        match path {
            ECHO => tokio::join!(caller.request(Request::post(format!("/hr{ECHO}")), "{}"), cut)
                .0
                .assert_proxy_error("upstream-broke", 502, -1),
            _ => tokio::join!(caller.get(path), cut).0.assert_ok(),
        };
        stage.wecom.reset();
    }
    caller.get(USER_GET).await.assert_ok();
    assert_eq!(stage.wecom.observe(|seen| seen.received_count(ECHO)), 0, "it was not sent again");
}

#[tokio::test]
async fn idle_http2_connection_is_closed_and_busy_one_is_not() {
    let authority = Authority::new();
    let toml = config_with_tls(&authority, "idle_timeout = \"1s\"");
    let stage = start_with_identity(&authority.issue_server("127.0.0.1"), BOTH, &toml).await;
    let mut caller = TestClient::connect_http1(stage.address()).await;
    caller.get(USER_GET).await.assert_ok();
    stage
        .wecom
        .inject(Fault::delay(Duration::from_millis(2500)).on_path("/cgi-bin/user/get").times(1))
        .expect("a fault");
    caller.get(USER_GET).await.assert_ok();
    stage.wecom.wait_until(|seen| seen.open_connections() == 0).await.expect("it closes");
    caller.get(USER_GET).await.assert_ok();
    assert_eq!(
        stage.wecom.observe(|seen| seen.received_count("/cgi-bin/user/get")),
        3,
        "none was sent twice"
    );
}

/// What the proxy says of an upstream that it cannot trust, with and without a token to get first.
async fn assert_refused(identity: &Identity, toml: &str) -> [TestResponse; 2] {
    let stage = start_with_identity(identity, BOTH, toml).await;
    let replies = [stage.get(USER_GET).await, stage.post(WEBHOOK, "{\"msgtype\":\"text\"}").await];
    replies[0].assert_proxy_error("token-unavailable", 502, -1);
    replies[1].assert_proxy_error("upstream-unreachable", 502, -1);
    assert_eq!(
        stage.wecom.observe(|seen| seen.request_count()),
        0,
        "nothing reaches an upstream that is not trusted"
    );
    replies
}

#[track_caller]
fn assert_message(replies: &[TestResponse; 2], words: &str) {
    for text in replies.iter().map(TestResponse::text) {
        assert!(text.contains(words), "{text}");
        for secret in ["not-a-secret", "00000000-1111", "corpsecret", "access_token"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn self_signed_certificate_is_trusted_if_listed() {
    let (listed, identity) = Authority::self_signed("127.0.0.1", |_| {});
    let stage = start_with_identity(&identity, BOTH, &config_with_tls(&listed, "")).await;
    stage.get(USER_GET).await.assert_ok();

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
    let replies =
        assert_refused(&authority.issue_server("elsewhere.test"), &config_with_tls(&authority, "")).await;
    assert_message(&replies, "certificate is not for its name");
}

#[tokio::test]
async fn certificate_of_an_unknown_ca_is_refused() {
    let replies =
        assert_refused(&Authority::new().issue_server("127.0.0.1"), &config_with_tls(&Authority::new(), ""))
            .await;
    assert_message(&replies, "upstream.ca_file");
    let built_in = "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{api}\"\n{agents}";
    assert_message(
        &assert_refused(&Authority::new().issue_server("127.0.0.1"), built_in).await,
        "untrusted authority",
    );
}

#[tokio::test]
async fn expired_certificate_is_refused() {
    let authority = Authority::new();
    let replies =
        assert_refused(&authority.issue_expired("127.0.0.1"), &config_with_tls(&authority, "")).await;
    assert_message(&replies, "certificate has expired");
}

#[tokio::test]
async fn upstream_without_tls_is_unreachable() {
    let authority = Authority::new();
    let stage = TestProxy::start_with_config(&config_with_tls(&authority, "")).await;
    let reply = stage.post(WEBHOOK, "{}").await;
    reply.assert_proxy_error("upstream-unreachable", 502, -1);
    assert!(reply.text().contains("does not speak TLS"), "{}", reply.text());
}

#[tokio::test]
async fn ca_file_without_certificates_prevents_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("proxy.toml");
    fs::write(dir.path().join("empty.pem"), "no certificate\n").expect("a file");
    let start = |file: &str| {
        let toml = format!(
            "[upstream]\nca_file = \"{file}\"\n[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-hr\"\n"
        );
        fs::write(&path, toml).expect("a file");
        let outcome = config::load(&path).map_err(|error| error.to_string());
        let outcome =
            outcome.and_then(|config| PreparedConfig::new(config).map_err(|error| error.to_string()));
        outcome.err().expect("it does not start")
    };
    for (file, words) in [("empty.pem", "no certificate"), ("missing.pem", "missing.pem")] {
        let said = start(file);
        assert!(said.contains("ca_file") && said.contains(words), "{said}");
        assert!(!said.contains("a-secret-of-hr"), "{said}");
    }
}

/// A server that accepts connections and says nothing.
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
    let stage = Arc::new(TestProxy::start_with_config(&toml).await);
    let began = Instant::now();
    for reply in get_concurrently(&stage, 40, WEBHOOK).await {
        reply.assert_proxy_error("upstream-unreachable", 502, -1);
        assert!(reply.text().contains("upstream.connect_timeout"), "{}", reply.text());
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
