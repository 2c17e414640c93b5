//! The proxy's own errors (contract §9), and the response to a client when the upstream fails.

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    certificates::Authority,
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, client_key, closed_port,
        write_config,
    },
    process::Process,
    raw_http::RawConnection,
};

#[tokio::test]
async fn proxy_errors_are_json_and_show_no_secret() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    proxy.wecom.reset_secret("hr", "another").expect("an agent");
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
        (get("unknown", "/cgi-bin/user/get?a"), "unauthenticated", 401, 40001),
        (get("narrow", "/cgi-bin/tag/list?a"), "forbidden", 403, 48002),
        (get("crm", "/nil/cgi-bin/user/get?a"), "unknown-agent", 404, 40035),
        (get("crm", "/?a"), "no-route", 404, 40035),
        (get("crm", "/hr/cgi-bin/user/get?a"), "token-unavailable", 502, 40001),
    ] {
        let response = proxy.request(request, "").await;
        response.assert_proxy_error(kind, status, errcode);
        assert!(response.header("content-type").starts_with("application/json"));
        assert!(!response.header("server-timing").is_empty());
        let id = response.header("x-request-id");
        let names_id = response.text().contains(&format!("(request id {id})"));
        assert!(!id.is_empty() && names_id == (status >= 500), "{response:?}");
        let text = format!("{response:?}");
        for secret in ["theirs", "hush", "key-of-", "not-a-secret", "another"] {
            assert!(!text.contains(secret), "{kind} shows {secret}: {text}");
        }
        assert_eq!(response.header("www-authenticate").is_empty(), status != 401);
    }
}

#[tokio::test]
async fn refused_gettoken_returns_wecoms_errcode() {
    for errcode in [40001, 40013, 45009, -1] {
        let proxy = TestProxy::start_open().await;
        proxy.wecom.inject(Fault::errcode(errcode).on_path("/cgi-bin/gettoken")).expect("a fault");
        let response = proxy.get(USER_GET).await;
        response.assert_proxy_error("token-unavailable", 502, errcode);
        assert!(response.text().contains(&format!("errcode {errcode}")), "{}", response.text());
        let wait = response.text().split_once("; next attempt in ").map(|(_, rest)| rest);
        let wait = wait.and_then(|wait| wait.split_once(" s (request id ")?.0.parse::<u64>().ok());
        let expected = if errcode == -1 { 1..=2 } else { 60..=75 };
        assert!(wait.is_some_and(|wait| expected.contains(&wait)), "{}", response.text());
        assert_eq!((response.header("x-wecom-agent"), proxy.forwarded_count()), ("hr", 0));
    }
}

#[tokio::test]
async fn unsent_gettoken_returns_token_unavailable() {
    let closed = closed_port();
    TestProxy::start_with_upstream(closed, OPEN_CONFIG).await.get(USER_GET).await.assert_proxy_error(
        "token-unavailable",
        502,
        -1,
    );
    let unresolvable = TestProxy::start_with_config(&OPEN_CONFIG.replace("{api}", "wecom.invalid")).await;
    let refused = unresolvable.get(USER_GET).await;
    assert!(refused.assert_proxy_error("token-unavailable", 502, -1).text().contains("name not found"));
    let webhook = unresolvable.request(Request::post("/cgi-bin/webhook/send?key=hush"), "{}").await;
    webhook.assert_proxy_error("upstream-unreachable", 502, -1);
}

/// Network details go to the log under the request id, and never to the client.
#[tokio::test]
async fn error_message_hides_addresses_that_the_log_shows() {
    let closed = closed_port();
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = authority.issue_server("elsewhere.test").server_config(&["http/1.1"]);
    let secure = Simulator::start_local(Settings { tls: Some(tls), ..Settings::default() })
        .await
        .expect("a simulator");
    let with_ca =
        |ca: &Authority| format!("https://{}\"\nca_file = \"{}", secure.api_addr(), ca.ca_file().display());
    let port = format!(":{}", closed.port());
    for (url, expected, logged) in [
        (format!("http://{closed}"), "connection refused", port.as_str()),
        (
            format!("http://{closed}\"\nvia = \"http://egress-user:hush@{closed}"),
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
        let config = write_config(&dir, closed, &Settings::default(), &toml);
        let proxy = Process::serve(&config).await;
        let mut client = TestClient::connect_http1(proxy.address().await).await;
        for (path, kind) in
            [(USER_GET, "token-unavailable"), ("/cgi-bin/webhook/send?key=1", "upstream-unreachable")]
        {
            let response = client.get(path).await;
            response.assert_proxy_error(kind, 502, -1);
            let (id, text) =
                (response.header("x-request-id"), format!("{:?} {}", response.headers, response.text()));
            assert!(response.text().contains(&format!("(request id {id})")), "{text}");
            assert!(response.text().contains(expected), "{text}");
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
    let proxy = TestProxy::start_with_config(
        &OPEN_CONFIG.replace("[upstream]", "max_request_body = \"1000\"\n[upstream]"),
    )
    .await;
    proxy.post(ECHO, vec![1; 1000]).await.assert_ok();
    proxy.post(ECHO, vec![1; 1001]).await.assert_proxy_error("body-too-large", 413, 45001);
    assert_eq!(proxy.forwarded_count(), 1);

    let mut connection = RawConnection::connect(proxy.address()).await;
    let chunk = format!("3e9\r\n{}\r\n", "x".repeat(1001));
    let head = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(format!("POST /hr{ECHO} HTTP/1.1\r\n{head}{chunk}")).await.expect("sent");
    let (head, body) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 413 ") && head.contains("body-too-large"), "{head}{body}");
    assert_eq!(proxy.wecom.executed_count(ECHO), 1);

    let mut client = TestClient::connect_http2(proxy.address()).await;
    client.request(Request::post(format!("/hr{ECHO}")), vec![1; 1001]).await.assert_proxy_error(
        "body-too-large",
        413,
        45001,
    );
    client.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn client_sending_a_refused_body_still_gets_the_response() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for request in [
        Request::post(ECHO),
        Request::post("/nowhere").header("x-api-key", client_key("crm")),
        Request::post("/cgi-bin/tag/list").header("x-api-key", client_key("narrow")),
    ] {
        let response = proxy.request(request, vec![1; 20_000_000]).await;
        assert!(response.status.is_client_error(), "{response:?}");
        assert!(!response.header("x-wecom-proxy-error").is_empty());
    }
    let mut connection = RawConnection::connect(proxy.address()).await;
    let head = "Host: x\r\nContent-Length: 20000000\r\nConnection: keep-alive\r\n\r\n";
    connection.send(format!("POST {ECHO} HTTP/1.1\r\n{head}")).await.expect("sent");
    connection.send(vec![1; 20_000_000]).await.expect("sent to its end");
    let (head, _) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
}

#[tokio::test]
async fn stopped_upstream_returns_upstream_unreachable() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.stop().await;
    let response = proxy.get(USER_GET).await;
    response.assert_proxy_error("upstream-unreachable", 502, -1);
    let response = proxy.request(Request::post("/cgi-bin/webhook/send?key=hush"), "{}").await;
    assert!(!response.assert_proxy_error("upstream-unreachable", 502, -1).text().contains("hush"));
}

#[tokio::test]
async fn request_beyond_the_queue_timeout_gets_retry_after() {
    let bounds = "max_in_flight = 1\nqueue_timeout = \"2s\"\n[admin]";
    let proxy = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", bounds)).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let busy = async {
        proxy.get(ECHO).await.assert_ok();
    };
    let second = async {
        proxy
            .wecom
            .wait_until(|observed| observed.received_count(ECHO) == 1)
            .await
            .expect("the request arrives");
        let response = proxy.get(USER_GET).await;
        assert!(
            response
                .assert_proxy_error("overloaded", 503, -1)
                .header("retry-after")
                .parse::<u32>()
                .expect("a number")
                >= 1
        );
        proxy.wecom.release_held();
    };
    tokio::join!(busy, second);
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn queued_requests_are_served_within_max_in_flight() {
    let proxy =
        TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "max_in_flight = 2\n[admin]")).await;
    let proxy = std::sync::Arc::new(proxy);
    for response in crate::harness::get_concurrently(&proxy, 50, USER_GET).await {
        response.assert_ok();
    }
    assert!(proxy.wecom.observe(|observed| observed.max_in_flight()) <= 2);
}
