//! Passes and client keys never reach WeCom, wherever a request carries them (contract §5, §10).

use http::Request;

use crate::{
    gettoken::{CORPID, config_with_hr_lines, fetch_pass, send_get},
    harness::{CONFIG_WITH_CLIENTS, ECHO, TestClient, TestProxy, TestResponse, client_key},
    raw_http::RawConnection,
};

fn percent_encode(text: &str, times: usize) -> String {
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    (1..times).fold(encoded, |text, _| text.replace('%', "%25"))
}

/// Sends a request over HTTP/1.1, with new and with cached headers, and over HTTP/2.
async fn request_over_http1_and_http2(
    proxy: &TestProxy,
    request: impl Fn() -> http::request::Builder,
) -> Vec<TestResponse> {
    let mut responses = Vec::new();
    let mut client = TestClient::connect_http1(proxy.address()).await;
    for _ in 0..3 {
        responses.push(client.request(request(), "").await);
    }
    responses.push(TestClient::connect_http2(proxy.address()).await.request(request(), "").await);
    responses
}

#[tokio::test]
async fn pass_outside_access_token_in_a_target_is_refused() {
    let proxy =
        TestProxy::start_with_config(&config_with_hr_lines("plain = [\"/cgi-bin/simulator/plain/*\"]")).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    let plain = "/cgi-bin/simulator/plain/x";
    for (target, kind, status, errcode) in [
        (format!("{ECHO}?token={pass}"), "pass-invalid", 200, 40014),
        (format!("{ECHO}?{pass}"), "pass-invalid", 200, 40014),
        (format!("{ECHO}?{pass}=1"), "pass-invalid", 200, 40014),
        (format!("{ECHO}?a=1&x={}", percent_encode(&pass, 1)), "pass-invalid", 200, 40014),
        (format!("{ECHO}?x={}", percent_encode(&pass, 3)), "pass-invalid", 200, 40014),
        (format!("{ECHO}?to=https%3A%2F%2Fx%2F%3Faccess_token%3D{pass}%23a"), "pass-invalid", 200, 40014),
        (format!("{ECHO}?a=%23{pass}"), "pass-invalid", 200, 40014),
        (format!("{ECHO}?access_token={pass}&suite_access_token={pass}"), "pass-invalid", 200, 40014),
        (format!("{plain}?x=glued{pass}"), "pass-invalid", 200, 40014),
        (format!("{plain}?access_token={}", percent_encode(&pass, 2)), "pass-invalid", 200, 40014),
        (format!("/cgi-bin/webhook/send?key=1&{pass}"), "pass-invalid", 200, 40014),
        (format!("{ECHO}/{pass}"), "bad-request", 400, 40035),
        (format!("{ECHO}/{}", percent_encode(&pass, 1)), "bad-request", 400, 40035),
        (format!("{ECHO};{pass}"), "bad-request", 400, 40035),
        (format!("{plain}/{pass}"), "bad-request", 400, 40035),
    ] {
        for prefix in ["", "/hr"] {
            let request =
                || Request::get(format!("{prefix}{target}")).header("x-api-key", client_key("billing"));
            for response in request_over_http1_and_http2(&proxy, request).await {
                response.assert_proxy_error(kind, status, errcode);
                assert!(!response.text().contains(&pass), "{}", response.text());
            }
        }
    }
    assert_eq!(proxy.forwarded_count(), 0);
    // The same with a pass as the only credential; a pass in `access_token` alone still works.
    let refused = send_get(&proxy, format!("{ECHO}?access_token={pass}&state={pass}")).await;
    refused.assert_proxy_error("pass-invalid", 200, 40014);
    send_get(&proxy, format!("{ECHO}?access_token={pass}")).await.assert_ok();
    assert_eq!(proxy.forwarded_count(), 1);
}

#[tokio::test]
async fn text_resembling_a_pass_is_forwarded() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let media_id = format!("{}wp1-{}", "q7".repeat(40), "Zk".repeat(40));
    for text in ["wp1-2", "wp1-junk-of-a-device", "wp1-AAAA", media_id.as_str()] {
        let request = || {
            let target = format!("{ECHO}/{text}?media_id={text}");
            Request::get(target).header("x-api-key", client_key("billing")).header("x-device", text)
        };
        for response in request_over_http1_and_http2(&proxy, request).await {
            assert_eq!(response.header("x-wecom-proxy-error"), "");
            let received = proxy.last_request(&format!("{ECHO}/{text}"));
            assert_eq!(received.header_values("x-device"), [text]);
            assert!(received.query.starts_with(&format!("media_id={text}&")));
        }
    }
}

#[tokio::test]
async fn header_repeating_a_pass_or_key_is_not_forwarded() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let (pass, key) = (fetch_pass(&proxy, "hr", "billing").await, client_key("billing"));
    let values = |secret: &str| {
        [
            secret.to_owned(),
            format!("Bearer {secret}"),
            format!("https://x/?t={secret}&a=1"),
            percent_encode(secret, 2),
        ]
    };
    let request = |value: &str| {
        let request = Request::get(format!("/hr{ECHO}")).header("x-api-key", &key).header("x-kept", "1");
        let names =
            ["referer", "cookie", "origin", "x-token", "x-original-url", "user-agent", "x-request-id"];
        names.iter().fold(request, |request, name| request.header(*name, value))
    };
    for value in values(&pass).iter().chain(&values(&key)) {
        for response in request_over_http1_and_http2(&proxy, || request(value)).await {
            response.assert_ok();
            assert!(!format!("{:?}", response.headers).contains(value), "{:?}", response.headers);
            let received = proxy.last_request(ECHO);
            assert!(
                received.headers.iter().all(|(_, forwarded)| !forwarded.contains(&**value)),
                "{received:?}"
            );
            assert_eq!(received.header_values("x-kept"), ["1"]);
        }
    }
    // The Basic password, and the whole Basic value, in other headers.
    let basic = "Basic YmlsbGluZzprZXktb2YtYmlsbGluZy0wMDAwMDAwMDAw";
    let request = || {
        let request = Request::get(format!("/hr{ECHO}")).header("authorization", basic);
        request.header("x-key", &key).header("x-auth", basic).header("x-kept", "1")
    };
    for response in request_over_http1_and_http2(&proxy, request).await {
        response.assert_ok();
        let received = format!("{:?}", proxy.last_request(ECHO).headers);
        assert!(
            received.contains("x-kept") && !received.contains("x-key") && !received.contains("x-auth"),
            "{received}"
        );
    }
}

#[tokio::test]
async fn key_in_a_target_is_refused() {
    let proxy =
        TestProxy::start_with_config(&config_with_hr_lines("plain = [\"/cgi-bin/simulator/plain/*\"]")).await;
    let key = client_key("billing");
    let plain = "/cgi-bin/simulator/plain/x";
    for target in [
        format!("{ECHO}?key={key}"),
        format!("{ECHO}?{key}"),
        format!("{ECHO}?a=1&b={}", percent_encode(&key, 2)),
        format!("{ECHO}?to=https%3A%2F%2Fx%2F%3Fkey%3D{key}"),
        format!("{ECHO}/{key}"),
        format!("{ECHO}/{}", percent_encode(&key, 1)),
        format!("{plain}?access_token={key}"),
    ] {
        for (name, value) in [("x-api-key", key.clone()), ("authorization", format!("Bearer {key}"))] {
            let request = || Request::get(format!("/hr{target}")).header(name, &value);
            for response in request_over_http1_and_http2(&proxy, request).await {
                response.assert_proxy_error("bad-request", 400, 40035);
                assert!(!response.text().contains(&key), "{}", response.text());
            }
        }
    }
    assert_eq!(proxy.forwarded_count(), 0);
    // In `access_token` the key is removed, and gettoken is not forwarded.
    let by_key = |target: String| Request::get(target).header("x-api-key", &key);
    proxy.request(by_key(format!("/hr{ECHO}?a=1&access_token={key}")), "").await.assert_ok();
    assert_eq!(proxy.last_request(ECHO).query, "a=1&access_token=token#1");
    let gettoken = format!("/hr/cgi-bin/gettoken?corpid={CORPID}&corpsecret={key}");
    assert_eq!(proxy.request(by_key(gettoken), "").await.errcode(), 0);
}

#[tokio::test]
async fn client_address_headers_are_not_forwarded() {
    let proxy = TestProxy::start_open().await;
    let names = [
        "X-Real-IP",
        "X-Client-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Original-URL",
        "X-Original-Host",
        "X-Envoy-External-Address",
        "X-Scheme",
        "Referer",
        "Origin",
        "Idempotency-Key",
    ];
    let headers: String = names.iter().map(|name| format!("{name}: 192.0.2.1\r\n")).collect();
    // With new and with cached headers, and with names listed in Connection.
    for connection_header in ["", "", "", "Connection: X-Real-IP, Referer\r\n"] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let request =
            format!("GET /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{connection_header}{headers}X-Kept: 1\r\n\r\n");
        connection.send(request).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
        let received = proxy.last_request(ECHO);
        assert_eq!(received.header_values("x-kept"), ["1"]);
        assert!(received.headers.iter().all(|(_, value)| value != "192.0.2.1"), "{:?}", received.headers);
    }
}
