//! §9: each error of the proxy's own, and what a caller sees of an upstream that misbehaves.

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    certificates::Authority,
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, client_key, write_config,
    },
    process::Process,
    raw_http::RawConnection,
};

/// A port that nobody listens on.
async fn closed_port() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

#[tokio::test]
async fn proxy_errors_are_json_and_show_no_secret() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    stage.wecom.reset_secret("hr", "another").expect("an agent");
    let get = |client: &str, path: &str| {
        Request::get(format!("{path}&access_token=theirs&corpsecret=hush"))
            .header("x-api-key", client_key(client))
    };
    for (request, kind, status, errcode) in [
        (get("crm", "/hr/../x?a"), "bad-request", 400, 40035),
        (
            Request::get("/cgi-bin/user/get?corpsecret=hush").header("x-api-key", client_key("crm")),
            "no-agent",
            400,
            40035,
        ),
        (get("nobody", "/cgi-bin/user/get?a"), "unauthenticated", 401, 40001),
        (get("narrow", "/cgi-bin/tag/list?a"), "forbidden", 403, 48002),
        (get("crm", "/nil/cgi-bin/user/get?a"), "unknown-agent", 404, 40035),
        (get("crm", "/?a"), "no-route", 404, 40035),
        (get("crm", "/hr/cgi-bin/user/get?a"), "token-unavailable", 502, 40001),
    ] {
        let reply = stage.request(request, "").await;
        reply.assert_proxy_error(kind, status, errcode);
        assert!(reply.header("content-type").starts_with("application/json"));
        assert!(!reply.header("x-request-id").is_empty() && !reply.header("server-timing").is_empty());
        let all = format!("{reply:?}");
        for secret in ["theirs", "hush", "key-of-", "not-a-secret", "another"] {
            assert!(!all.contains(secret), "{kind} shows {secret}: {all}");
        }
        assert_eq!(reply.header("www-authenticate").is_empty(), status != 401);
    }
}

#[tokio::test]
async fn refused_gettoken_returns_wecoms_errcode() {
    for errcode in [40001, 40013, 45009, -1] {
        let stage = TestProxy::start_open().await;
        stage.wecom.inject(Fault::errcode(errcode).on_path("/cgi-bin/gettoken")).expect("a fault");
        let reply = stage.get(USER_GET).await;
        reply.assert_proxy_error("token-unavailable", 502, errcode);
        assert!(reply.text().contains(&format!("errcode {errcode}")), "{}", reply.text());
        let wait = reply.text().split_once("; next attempt in ").map(|(_, rest)| rest);
        let wait = wait.and_then(|wait| wait.split_once(" s (request id ")?.0.parse::<u64>().ok());
        let expected = if errcode == -1 { 1..=2 } else { 60..=75 };
        assert!(wait.is_some_and(|wait| expected.contains(&wait)), "{}", reply.text());
        assert_eq!((reply.header("x-wecom-agent"), stage.forwarded_count()), ("hr", 0));
    }
}

#[tokio::test]
async fn unsent_gettoken_returns_token_unavailable() {
    let nobody = closed_port().await;
    TestProxy::start_with_upstream(nobody, OPEN_CONFIG).await.get(USER_GET).await.assert_proxy_error(
        "token-unavailable",
        502,
        -1,
    );
    let nowhere = TestProxy::start_with_config(&OPEN_CONFIG.replace("{api}", "wecom.invalid")).await;
    let refused = nowhere.get(USER_GET).await;
    assert!(refused.assert_proxy_error("token-unavailable", 502, -1).text().contains("name not found"));
    let webhook = nowhere.request(Request::post("/cgi-bin/webhook/send?key=hush"), "{}").await;
    webhook.assert_proxy_error("upstream-unreachable", 502, -1);
}

/// What it says of the network is for the operator, who finds it in the log under the request's id.
#[tokio::test]
async fn error_message_hides_addresses_that_the_log_shows() {
    let dead = closed_port().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = authority.issue_server("elsewhere.test").server_config(&["http/1.1"]);
    let secure =
        Simulator::start_local(Settings { tls: Some(tls), ..Settings::default() }).await.expect("a WeCom");
    let with_ca =
        |ca: &Authority| format!("https://{}\"\nca_file = \"{}", secure.api_addr(), ca.ca_file().display());
    let port = format!(":{}", dead.port());
    for (url, words, logged) in [
        (format!("http://{dead}"), "connection refused", port.as_str()),
        (
            format!("http://{dead}\"\nvia = \"http://egress-user:hush@{dead}"),
            "the egress proxy: connection refused",
            &port,
        ),
        ("http://wecom.invalid".to_owned(), "name not found", "wecom.invalid"),
        (
            "http://a.test\"\nvia = \"http://egress.invalid:3128".to_owned(),
            "egress proxy: name not found",
            "egress.invalid",
        ),
        (with_ca(&authority), "certificate is not for its name", "not for its name"),
        (with_ca(&other), "untrusted authority", "untrusted authority"),
    ] {
        let dir = TempDir::new().expect("a directory");
        let toml = OPEN_CONFIG.replace("http://{api}", &url);
        let config = write_config(&dir, dead, &Settings::default(), &toml);
        let proxy = Process::serve(&config).await;
        let mut caller = TestClient::connect_http1(proxy.address().await).await;
        for (path, kind) in
            [(USER_GET, "token-unavailable"), ("/cgi-bin/webhook/send?key=1", "upstream-unreachable")]
        {
            let reply = caller.get(path).await;
            reply.assert_proxy_error(kind, 502, -1);
            let (id, text) = (reply.header("x-request-id"), format!("{:?} {}", reply.headers, reply.text()));
            assert!(reply.text().contains(&format!("(request id {id})")), "{text}");
            assert!(reply.text().contains(words), "{text}");
            for detail in
                ["127.0.0.1", &port, ".invalid", "egress-user", "hush", "a.test", "elsewhere", "/tmp", ".pem"]
            {
                assert!(!text.contains(detail), "{detail} in {text}");
            }
            let line = proxy.err.wait_for_line(&format!("request_id=\"{id}\"")).await;
            assert!(line.contains(logged), "{line}");
        }
        assert_eq!(proxy.stop().await.status, 0);
    }
}

#[tokio::test]
async fn body_above_the_limit_is_refused_declared_or_not() {
    let stage = TestProxy::start_with_config(
        &OPEN_CONFIG.replace("[upstream]", "max_request_body = \"1000\"\n[upstream]"),
    )
    .await;
    stage.post(ECHO, vec![1; 1000]).await.assert_ok();
    stage.post(ECHO, vec![1; 1001]).await.assert_proxy_error("body-too-large", 413, 45001);
    assert_eq!(stage.forwarded_count(), 1);

    let mut line = RawConnection::connect(stage.address()).await;
    let chunk = format!("3e9\r\n{}\r\n", "x".repeat(1001));
    let head = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    line.send(format!("POST /hr{ECHO} HTTP/1.1\r\n{head}{chunk}")).await.expect("it is taken");
    let (head, body) = line.read_response().await;
    assert!(head.starts_with("HTTP/1.1 413 ") && head.contains("body-too-large"), "{head}{body}");
    assert_eq!(stage.wecom.executed_count(ECHO), 1);

    let mut caller = TestClient::connect_http2(stage.address()).await;
    caller.request(Request::post(format!("/hr{ECHO}")), vec![1; 1001]).await.assert_proxy_error(
        "body-too-large",
        413,
        45001,
    );
    caller.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn client_sending_a_refused_body_still_gets_the_response() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for request in [
        Request::post(ECHO),
        Request::post("/nowhere").header("x-api-key", client_key("crm")),
        Request::post("/cgi-bin/tag/list").header("x-api-key", client_key("narrow")),
    ] {
        let reply = stage.request(request, vec![1; 20_000_000]).await;
        assert!(reply.status.is_client_error(), "{reply:?}");
        assert!(!reply.header("x-wecom-proxy-error").is_empty());
    }
    let mut line = RawConnection::connect(stage.address()).await;
    let head = "Host: x\r\nContent-Length: 20000000\r\nConnection: keep-alive\r\n\r\n";
    line.send(format!("POST {ECHO} HTTP/1.1\r\n{head}")).await.expect("it is taken");
    line.send(vec![1; 20_000_000]).await.expect("it is taken to its end");
    let (head, _) = line.read_response().await;
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
}

#[tokio::test]
async fn stopped_upstream_returns_upstream_unreachable() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.stop().await;
    let reply = stage.get(USER_GET).await;
    reply.assert_proxy_error("upstream-unreachable", 502, -1);
    let reply = stage.request(Request::post("/cgi-bin/webhook/send?key=hush"), "{}").await;
    assert!(!reply.assert_proxy_error("upstream-unreachable", 502, -1).text().contains("hush"));
}

#[tokio::test]
async fn request_beyond_the_queue_timeout_gets_retry_after() {
    let bounds = "max_in_flight = 1\nqueue_timeout = \"2s\"\n[admin]";
    let stage = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", bounds)).await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let busy = async {
        stage.get(ECHO).await.assert_ok();
    };
    let second = async {
        stage.wecom.wait_until(|seen| seen.received_count(ECHO) == 1).await.expect("it arrives");
        let reply = stage.get(USER_GET).await;
        assert!(
            reply
                .assert_proxy_error("overloaded", 503, -1)
                .header("retry-after")
                .parse::<u32>()
                .expect("a number")
                >= 1
        );
        stage.wecom.release_held();
    };
    tokio::join!(busy, second);
    stage.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn queued_requests_are_served_within_max_in_flight() {
    let stage =
        TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "max_in_flight = 2\n[admin]")).await;
    let stage = std::sync::Arc::new(stage);
    for reply in crate::harness::get_concurrently(&stage, 50, USER_GET).await {
        reply.assert_ok();
    }
    assert!(stage.wecom.observe(|seen| seen.max_in_flight()) <= 2);
}
