//! Forwarding (contract §5): the request reaches WeCom unchanged, except for removed credentials and the added token.

use http::Request;
use wecom_proxy::simulator::{Fault, Settings, generated_bytes};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, agent_section, client_key,
        parse_method,
    },
    raw_http::RawConnection,
};

/// A raw HTTP/1 request with this request line, these headers and this body.
fn raw_request(request_line: &str, headers: &str, body: &str) -> String {
    format!("{request_line}\r\nHost: proxy.test\r\nConnection: close\r\n{headers}\r\n{body}")
}

#[tokio::test]
async fn allowed_methods_are_forwarded() {
    let proxy = TestProxy::start_open().await;
    for name in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let request = Request::builder().method(parse_method(name)).uri(format!("/hr{ECHO}"));
        let response = proxy.request(request, "").await;
        assert_eq!(response.status, 200, "{name}");
        assert_eq!(proxy.last_request(ECHO).method, name);
    }
}

/// Methods are case-sensitive (RFC 9110 §9.1); a lenient upstream that reads `trace` as TRACE would reflect the token.
#[tokio::test]
async fn method_in_other_case_is_refused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let gettoken =
        format!("/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={}", client_key("billing"));
    let paths = [
        USER_GET,
        ECHO,
        &gettoken,
        "/cgi-bin/get_jsapi_ticket",
        "/cgi-bin/webhook/send?key=00000000-1111",
        "/cgi-bin/service/get_login_info",
    ];
    for http2 in [false, true] {
        for name in ["trace", "Trace", "TRACE", "TRACK", "connect", "get", "Post", "PROPFIND", "QUERY", "X"] {
            for path in paths {
                let mut client = match http2 {
                    false => TestClient::connect_http1(proxy.address()).await,
                    true => TestClient::connect_http2(proxy.address()).await,
                };
                let request = Request::builder().method(parse_method(name)).uri(format!("/hr{path}"));
                let request = request.header("x-api-key", client_key("billing"));
                let response = client.request(request, "").await;
                assert!(
                    response.assert_proxy_error("bad-request", 400, 40035).text().contains("method"),
                    "{name} {path}"
                );
            }
        }
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn query_is_forwarded_byte_for_byte() {
    let proxy = TestProxy::start_open().await;
    for (given, received) in [
        ("", "?access_token=token#1"),
        ("?", "?access_token=token#1"),
        ("?&a=1", "?&a=1&access_token=token#1"),
        ("?a=1&&b=2", "?a=1&&b=2&access_token=token#1"),
        ("?b=2&a=1&a=0", "?b=2&a=1&a=0&access_token=token#1"),
        ("?a=%E5%bc%A0+%20~!*'()", "?a=%E5%bc%A0+%20~!*'()&access_token=token#1"),
        ("?a=/x//../y?z=1:@", "?a=/x//../y?z=1:@&access_token=token#1"),
        ("?a&b=&=c&=", "?a&b=&=c&=&access_token=token#1"),
        ("?a={'b':[1,2]}|^`\\", "?a={'b':[1,2]}|^`\\&access_token=token#1"),
        ("?a=%&b=%zz&c=%2", "?a=%&b=%zz&c=%2&access_token=token#1"),
        ("?a=1;b=2", "?a=1;b=2&access_token=token#1"),
        ("?media_id=1&debug=1&access_token=", "?media_id=1&debug=1&access_token=token#1"),
        ("?a=\u{5f20}", "?a=\u{5f20}&access_token=token#1"),
    ] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let request = raw_request(&format!("GET /hr{ECHO}{given} HTTP/1.1"), "", "");
        connection.send(request).await.expect("sent");
        let (head, _) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{given}: {head}");
        assert_eq!(format!("?{}", proxy.last_request(ECHO).query), received, "{given}");
    }
}

#[tokio::test]
async fn client_access_token_is_removed_under_any_encoding() {
    let proxy = TestProxy::start_open().await;
    for parameter in [
        "access_token=theirs",
        "%61ccess_token=theirs",
        "access%5Ftoken=theirs",
        "access%5ftoken=theirs",
        "%61%63%63%65%73%73%5f%74%6f%6b%65%6e=theirs",
        "access_token",
        "access_token=",
        "access_token=theirs=theirs",
        "access_token=a&%61ccess_token=b&access%5Ftoken",
    ] {
        for (given, kept) in [
            (parameter.to_owned(), ""),
            (format!("{parameter}&a=1"), "a=1&"),
            (format!("a=1&{parameter}"), "a=1&"),
        ] {
            proxy.get(&format!("{ECHO}?{given}")).await.assert_ok();
            assert_eq!(proxy.last_request(ECHO).query, format!("{kept}access_token=token#1"), "{given}");
        }
    }
}

#[tokio::test]
async fn unusual_valid_paths_are_forwarded_unchanged() {
    let proxy = TestProxy::start_open().await;
    for path in [
        "/cgi-bin/oa/meetingroom//book_by_meeting",
        "/cgi-bin/user/%67et",
        "/cgi-bin/user/get/",
        "/cgi-bin/user/get;v=1",
        "/cgi-bin/%E5%BC%A0",
        "/cgi-bin/a.b/c..d/...",
        "/cgi-bin/a:b@c!$&'()*+,=~",
    ] {
        let response = proxy.get(path).await;
        assert_eq!((response.status.as_u16(), response.text()), (404, ""), "{path}");
        assert_eq!(response.header("x-wecom-proxy-error"), "");
        assert_eq!(proxy.last_request(path).query, "access_token=token#1");
    }
}

#[tokio::test]
async fn post_without_body_sends_content_length_zero() {
    let proxy = TestProxy::start_open().await;
    for headers in ["", "Content-Length: 0\r\n"] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(raw_request(&format!("POST /hr{ECHO} HTTP/1.1"), headers, "")).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
        let record = proxy.last_request(ECHO);
        assert_eq!(record.header_values("content-length"), ["0"]);
        assert!(record.header_values("transfer-encoding").is_empty());
    }
    proxy.get(ECHO).await.assert_ok();
    assert!(proxy.last_request(ECHO).header_values("content-length").is_empty());
}

#[tokio::test]
async fn body_keeps_its_bytes_and_gets_a_length() {
    let proxy = TestProxy::start_open().await;
    let sum = |proxy: &TestProxy| proxy.last_request(ECHO).body_sha256;
    proxy.post(ECHO, "twelve bytes").await.assert_ok();
    assert_eq!(proxy.last_request(ECHO).header_values("content-length"), ["12"]);
    let known = sum(&proxy);

    let mut connection = RawConnection::connect(proxy.address()).await;
    let chunks = "6;ext=1\r\ntwelve\r\n6\r\n bytes\r\n0\r\nTrailing: 1\r\n\r\n";
    let request = raw_request(&format!("POST /hr{ECHO} HTTP/1.1"), "Transfer-Encoding: Chunked\r\n", chunks);
    connection.send(request).await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
    let record = proxy.last_request(ECHO);
    assert_eq!(record.header_values("content-length"), ["12"]);
    assert!(
        record.header_values("transfer-encoding").is_empty() && record.header_values("trailing").is_empty()
    );
    assert_eq!(sum(&proxy), known);

    TestClient::connect_http2(proxy.address())
        .await
        .request(Request::post(format!("/hr{ECHO}")), "twelve bytes")
        .await
        .assert_ok();
    assert_eq!(proxy.last_request(ECHO).header_values("content-length"), ["12"]);
    assert_eq!(sum(&proxy), known);
}

#[tokio::test]
async fn expect_continue_is_answered_by_the_proxy() {
    let proxy = TestProxy::start_open().await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    let headers = "Expect: 100-continue\r\nContent-Length: 4\r\n";
    connection.send(raw_request(&format!("POST /hr{ECHO} HTTP/1.1"), headers, "")).await.expect("sent");
    assert!(connection.read_head().await.starts_with("HTTP/1.1 100 "));
    connection.send("body").await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
    let record = proxy.last_request(ECHO);
    assert_eq!(record.body_bytes, 4);
    assert!(record.header_values("expect").is_empty());
}

#[tokio::test]
async fn missing_content_type_is_not_added() {
    let proxy = TestProxy::start_open().await;
    let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hi"}}"#;
    proxy.post("/cgi-bin/message/send", message).await.assert_ok();
    assert!(proxy.last_request("/cgi-bin/message/send").header_values("content-type").is_empty());
    assert_eq!(proxy.wecom.messages()[0].body["text"]["content"], "hi");
}

#[tokio::test]
async fn passthrough_request_is_forwarded_unchanged() {
    let proxy = TestProxy::start_open().await;
    for (path, query) in [
        ("/cgi-bin/service/echo", "?provider_access_token=P&x=%20+"),
        ("/cgi-bin/service/echo", "?access_token=theirs"),
        ("/cgi-bin/license/echo", "?&suite_access_token=S&%61ccess_token=theirs&access_token"),
        ("/cgi-bin/license/echo", ""),
        ("/cgi-bin/service/echo", "?"),
        ("/cgi-bin/webhook/send", "?key=not-a-key"),
    ] {
        for prefix in ["", "/hr"] {
            proxy.request(Request::post(format!("{prefix}{path}{query}")), "{}").await;
            let received = proxy.last_request(path).query;
            // The simulator records no token.
            let expected = ["theirs", "P", "S"].iter().fold(query.to_owned(), |query, token| {
                query.replace(&format!("_token={token}"), "_token=token#?")
            });
            assert_eq!(received, expected.trim_start_matches('?'), "{prefix}{path}{query}");
        }
    }
    assert_eq!(proxy.wecom.observe(|observed| observed.gettoken_count()), 0);
}

#[tokio::test]
async fn passthrough_request_is_never_retried() {
    let proxy = TestProxy::start_open().await;
    for errcode in [40014, 42001] {
        proxy.wecom.reset();
        let refusal = format!(r#"{{"errcode":{errcode},"errmsg":"theirs"}}"#);
        proxy.wecom.inject(Fault::response(200, "application/json", refusal)).expect("a fault");
        for path in ["/hr/cgi-bin/webhook/send?key=1", "/cgi-bin/service/echo", "/cgi-bin/license/echo"] {
            let response = proxy.request(Request::post(path), "{}").await;
            assert_eq!((response.errcode(), response.header("x-wecom-retried")), (errcode, ""));
        }
        assert_eq!(proxy.wecom.requests().len(), 3);
    }
}

#[tokio::test]
async fn configured_plain_paths_are_passed_through() {
    let hr = &Settings::default().agents[0];
    let toml = OPEN_CONFIG.replace("{agents}", &agent_section(hr, "plain = [\"/cgi-bin/simulator/*\"]"));
    let proxy = TestProxy::start_with_config(&toml).await;
    let response = proxy.get(&format!("{ECHO}?access_token=theirs&a=1")).await;
    assert_eq!(response.errcode(), 40014);
    assert_eq!(proxy.last_request(ECHO).query, "access_token=token#?&a=1");
    assert_eq!(proxy.forwarded_count(), 1);
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 0);
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn gettoken_is_never_forwarded() {
    let proxy = TestProxy::start_open().await;
    for path in [
        "/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=S",
        "/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=S",
        "/hr/cgi-bin//gettoken?corpsecret=S",
        "/hr/cgi-bin/%67ettoken?corpsecret=S",
        "/hr/cgi-bin/GetToken/?corpsecret=S",
        "/hr/cgi-bin/gettoken;x?corpsecret=S",
    ] {
        for name in ["GET", "POST"] {
            let response = proxy.request(Request::builder().method(parse_method(name)).uri(path), "").await;
            assert!(
                !response.text().contains("TOKEN") && !response.text().contains("corpsecret=S"),
                "{response:?}"
            );
        }
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn http10_response_is_never_chunked() {
    let proxy = TestProxy::start_open().await;
    let media = "/cgi-bin/media/get?media_id=generated-1000";
    for chunked in [false, true] {
        if chunked {
            proxy.wecom.inject(Fault::chunked(100).on_path("/cgi-bin/media/get")).expect("a fault");
        }
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(format!("GET /hr{media} HTTP/1.0\r\n\r\n")).await.expect("sent");
        let head = connection.read_head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.0 200 ") && !head.contains("transfer-encoding"), "{head}");
        let (body, end) = connection.read_to_end().await;
        end.expect("an orderly close");
        assert_eq!(body, generated_bytes(0, 1000));
    }
    assert_eq!(proxy.last_request("/cgi-bin/media/get").version, "HTTP/1.1");
}

#[tokio::test]
async fn http2_prior_knowledge_is_served() {
    let proxy = TestProxy::start_open().await;
    let mut client = TestClient::connect_http2(proxy.address()).await;
    client.get(USER_GET).await.assert_ok();
    client.request(Request::post(format!("/hr{ECHO}")), vec![7; 300_000]).await.assert_ok();
    assert_eq!(proxy.last_request(ECHO).body_bytes, 300_000);
    assert_eq!(proxy.last_request(ECHO).header_values("host"), [proxy.wecom.api_addr().to_string()]);
    proxy.wecom.inject(Fault::chunked(100).on_path("/cgi-bin/media/get")).expect("a fault");
    let response = client.get("/cgi-bin/media/get?media_id=generated-1000").await;
    assert_eq!(response.body, generated_bytes(0, 1000));
    assert_eq!(response.header("transfer-encoding"), "");
}

#[tokio::test]
async fn unix_socket_listener_serves_http1_and_http2() {
    let toml = OPEN_CONFIG.replacen(r#""127.0.0.1:0""#, r#"["127.0.0.1:0", "unix:{dir}/proxy.sock"]"#, 1);
    let proxy = TestProxy::start_with_config(&toml).await;
    let socket = proxy.dir.path().join("proxy.sock");
    let stream = tokio::net::UnixStream::connect(&socket).await.expect("a connection");
    TestClient::http1_over(stream).await.get(USER_GET).await.assert_ok();
    let stream = tokio::net::UnixStream::connect(&socket).await.expect("a connection");
    TestClient::http2_over(stream).await.get(USER_GET).await.assert_ok();
}

/// Repeated headers on one connection hit the header cache, while the bodies and their lengths vary.
#[tokio::test]
async fn repeated_headers_with_other_bodies_are_parsed_afresh() {
    let proxy = TestProxy::start_open().await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    let post = |headers: &str, body: &str| {
        let length = body.len();
        let head =
            format!("POST /hr{ECHO} HTTP/1.1\r\nHost: proxy.test\r\n{headers}Content-Length: {length}\r\n");
        format!("{head}X-Last: 1\r\n\r\n{body}")
    };
    for length in [3, 3, 3, 0, 1, 12, 3, 5000, 70_000, 3] {
        for headers in ["X-Mine: a\r\n", "X-Mine: b\r\n"] {
            let body = "x".repeat(length);
            connection.send(post(headers, &body)).await.expect("sent");
            let (head, _) = connection.read_response().await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{length}: {head}");
            let received = proxy.last_request(ECHO);
            assert_eq!(
                (received.body_bytes, received.header_values("x-mine")),
                (length as u64, vec![&headers[8..9]])
            );
            assert_eq!(received.header_values("x-last"), ["1"]);
        }
    }
    // Two pipelined requests, split at any byte.
    let two = post("X-Mine: a\r\n", "abc") + &post("X-Mine: a\r\n", "defg");
    for cut in (0..two.len()).step_by(7) {
        let before = proxy.wecom.requests().len();
        connection.send(&two[..cut]).await.expect("sent");
        connection.send(&two[cut..]).await.expect("sent");
        for _ in 0..2 {
            assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "), "cut at {cut}");
        }
        assert_eq!(proxy.wecom.requests().len(), before + 2);
        assert_eq!(proxy.last_request(ECHO).body_bytes, 4);
    }
}

/// HTTP/1.1 requires Host (RFC 9112 §3.2), even if the same headers were accepted in HTTP/1.0.
#[tokio::test]
async fn http11_without_host_is_refused_after_http10() {
    let proxy = TestProxy::start_open().await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    let get = |version: &str| format!("GET /hr{USER_GET} HTTP/{version}\r\nConnection: keep-alive\r\n\r\n");
    for _ in 0..4 {
        connection.send(get("1.0")).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.0 200 "));
    }
    connection.send(get("1.1")).await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 400 "));
}
