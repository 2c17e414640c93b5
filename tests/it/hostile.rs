//! Malformed and ambiguous requests. The upstream receives nothing of them, or exactly one canonical request.

mod canonical_request;
mod cases;
mod chunked_bodies;
mod header_lines;
mod http2;
mod http2_floods;
mod http2_streams;
mod known_failures;
mod load;
mod message_framing;
mod pipelining;
mod recorder;
mod request_targets;
mod small_frames;
mod unauthenticated;

use wecom_proxy::simulator::Fault;

use crate::{
    harness::{CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestProxy, USER_GET, http2_frames, wait_for},
    raw_http::RawConnection,
};

/// Sends these bytes; returns the status, the error kind and the body of the first response.
async fn first_response(proxy: &TestProxy, bytes: impl AsRef<[u8]>) -> (String, String, String) {
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(bytes).await.expect("sent");
    let (head, body) = connection.read_response().await;
    let head = head.to_ascii_lowercase();
    let status = head.get(9..12).unwrap_or_default().to_owned();
    let kind =
        head.lines().find_map(|line| line.strip_prefix("x-wecom-proxy-error: ").map(ToOwned::to_owned));
    (status, kind.unwrap_or_default(), body)
}

/// A GET of this target, with a Host and these header lines.
fn get_request(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n{lines}\r\n")
}

#[tokio::test]
async fn ambiguous_request_heads_are_refused() {
    let proxy = TestProxy::start_open().await;
    let post = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n");
    let with_lines = |lines: &str| format!("{post}{lines}\r\n0\r\n\r\n");
    for bytes in [
        format!("GET /hr{USER_GET} HTTP/1.1\r\n\r\n"),
        get_request(&format!("/hr{USER_GET}"), "Host: x\r\n"),
        get_request(&format!("/hr{USER_GET}"), "Host: y\r\n"),
        "CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: 127.0.0.1:443\r\n\r\n".to_owned(),
        "CONNECT /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!("TRACE /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n"),
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        with_lines("Transfer-Encoding: x, chunked\r\n"),
        with_lines("Transfer-Encoding: chunked, chunked\r\n"),
        with_lines("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        with_lines("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
        with_lines("Transfer-Encoding: chunked, identity\r\n"),
        with_lines("Transfer-Encoding: identity\r\n"),
        with_lines("Transfer-Encoding: xchunked\r\n"),
        with_lines("Transfer-Encoding: \x0bchunked\r\n"),
        with_lines("Transfer-Encoding : chunked\r\n"),
        with_lines("Transfer-Encoding:\r\n chunked\r\n"),
        with_lines("Content-Length: 5\r\nContent-Length: 6\r\n"),
        with_lines("Content-Length: 5, 5\r\n"),
        with_lines("Content-Length: +5\r\n"),
        with_lines("Content-Length: -1\r\n"),
        with_lines("Content-Length: 0x5\r\n"),
        with_lines("Content-Length: \r\n"),
        with_lines("Content-Length: 18446744073709551616\r\n"),
        with_lines("X: a\0b\r\n"),
        with_lines("X: a\rb\r\n"),
        with_lines("X y: a\r\n"),
        with_lines(" X: a\r\n"),
        "GET  /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "GET /hr/cgi-bin/user/get HTTP/1.1 \r\nHost: x\r\n\r\n".to_owned(),
        "GET /hr/cgi-bin/user/get HTTP/3.0\r\nHost: x\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\r\n\r\n".to_owned(),
    ] {
        let (status, kind, body) = first_response(&proxy, &bytes).await;
        assert_eq!((status.as_str(), kind.as_str()), ("400", "bad-request"), "{bytes:?}: {body}");
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn content_length_beyond_the_limit_is_refused_with_413() {
    let proxy = TestProxy::start_open().await;
    for length in ["9223372036854775807", "9223372036854775808", "18446744073709551613", "67108865"] {
        let bytes = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let (status, kind, _) = first_response(&proxy, bytes).await;
        assert_eq!((status.as_str(), kind.as_str()), ("413", "body-too-large"), "{length}");
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn content_length_with_chunked_smuggles_no_request() {
    let proxy = TestProxy::start_open().await;
    let smuggled = get_request("/ops/cgi-bin/user/get?userid=hidden", "");
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        proxy.wecom.reset();
        let bytes = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{lines}\r\n0\r\n\r\n{smuggled}");
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(bytes).await.expect("sent");
        connection.read_response().await;
        // Refused or framed by its chunks: the bytes after it are a separate request or none, never a part of this one.
        for record in proxy.wecom.requests().iter().filter(|record| record.path == ECHO) {
            assert!(
                record.header_values("content-length").is_empty() && record.body_bytes == 0,
                "{record:?}"
            );
        }
    }
}

#[tokio::test]
async fn ambiguous_paths_are_refused() {
    let proxy = TestProxy::start_open().await;
    for path in [
        "/hr/cgi-bin/../user/get",
        "/hr/cgi-bin/user/..",
        "/hr/cgi-bin/./user",
        "/hr/cgi-bin/%2e%2e/x",
        "/hr/cgi-bin/%2E%2e/x",
        "/hr/cgi-bin/.%2e/x",
        "/hr/cgi-bin/%252e%252e/x",
        "/hr/cgi-bin/a%2fb",
        "/hr/cgi-bin/a%252Fb",
        "/hr/cgi-bin/a%5cb",
        "/hr/cgi-bin/a\\b",
        "/hr/cgi-bin/a%00",
        "/hr/cgi-bin/a%0d%0aX:y",
        "/hr/cgi-bin/a%7f",
        "/hr/cgi-bin/..;/x",
        "/hr/cgi-bin/%c0%ae%c0%ae/x",
        "/hr/cgi-bin/\u{5f20}",
        "/hr/../hr/cgi-bin/user/get",
        "/%2e%2e/cgi-bin/user/get",
        "/hr%2fcgi-bin/user/get",
        "/hr/cgi-bin%2fuser/get",
        "/hr/cgi-bin/a|b",
    ] {
        let (status, kind, body) = first_response(&proxy, get_request(path, "")).await;
        assert_eq!((status.as_str(), kind.as_str()), ("400", "bad-request"), "{path}: {body}");
    }
    for path in [
        "/",
        "/hr",
        "/hr/",
        "/hr/cgi-bin",
        "/cgi-bin/",
        "/hr/hr/cgi-bin/user/get",
        "/hr/CGI-BIN/x",
        "/x?/hr/cgi-bin/x",
    ] {
        let (status, kind, body) = first_response(&proxy, get_request(path, "")).await;
        assert_eq!((status.as_str(), kind.as_str()), ("404", "no-route"), "{path}: {body}");
    }
    for path in
        ["/hr/cgi-bin/a\tb", "/hr/cgi-bin/a\x7f", "/hr/cgi-bin/a?b\x01c", "hr/cgi-bin/a", "/hr/cgi-bin/a b"]
    {
        assert_eq!(first_response(&proxy, get_request(path, "")).await.0, "400", "{path:?}");
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn absolute_target_with_a_foreign_authority_is_refused() {
    let proxy = TestProxy::start_open().await;
    let (own, api) = (proxy.address(), proxy.wecom.api_addr());
    for authority in [
        "evil.test".to_owned(),
        "evil.test:80".into(),
        format!("x@{api}"),
        format!("{api}.evil.test"),
        "localhost".into(),
    ] {
        for scheme in ["http", "https"] {
            let target = format!("{scheme}://{authority}/hr{USER_GET}");
            for host in ["x".to_owned(), api.to_string()] {
                let bytes = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
                let (status, kind, _) = first_response(&proxy, bytes).await;
                assert_eq!((status.as_str(), kind.as_str()), ("400", "bad-request"), "{target}");
            }
        }
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
    for authority in [own.to_string(), api.to_string(), format!("localhost:{}", own.port())] {
        let (status, ..) =
            first_response(&proxy, get_request(&format!("http://{authority}/hr{USER_GET}"), "")).await;
        assert_eq!(status, "200", "{authority}");
        let record = proxy.last_request("/cgi-bin/user/get");
        assert_eq!(record.header_values("host"), [api.to_string()]);
    }
}

#[tokio::test]
async fn client_host_header_is_not_forwarded() {
    let proxy = TestProxy::start_open().await;
    for host in ["evil.test", "", "127.0.0.1:1", "[::1]:80", "under_score"] {
        let bytes = format!("GET /hr{ECHO} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil.test\r\n\r\n");
        assert_eq!(first_response(&proxy, bytes).await.0, "200", "{host}");
        assert_eq!(proxy.last_request(ECHO).header_values("host"), [proxy.wecom.api_addr().to_string()]);
    }
}

#[tokio::test]
async fn bytes_of_a_refused_body_are_not_parsed_as_a_request() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let smuggled = get_request(USER_GET, "X-Api-Key: key-of-billing-0000000000\r\n");
    let length = smuggled.len();
    for lines in [
        format!("Content-Length: {length}\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{smuggled}\r\n0\r\n\r\n"),
    ] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(format!("POST {ECHO} HTTP/1.1\r\nHost: x\r\n{lines}")).await.expect("sent");
        let (head, _) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
        // If the connection is still open, this is the next request on it.
        let _ = connection
            .send(get_request("/nowhere", "Connection: close\r\nX-Api-Key: key-of-billing-0000000000\r\n"))
            .await;
        let (rest, _) = connection.read_to_end().await;
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 404 "), "{rest}");
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let proxy = TestProxy::start_open().await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    let first = get_request(&format!("/hr{ECHO}?nth=1"), "");
    let second = format!("POST /hr{ECHO}?nth=2 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody");
    let third = get_request("/nowhere", "");
    connection.send(first + &second + &third).await.expect("sent");
    assert!(connection.read_response().await.1.contains("nth=1"));
    assert!(connection.read_response().await.1.contains("nth=2"));
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn oversized_request_head_is_refused() {
    let proxy = TestProxy::start_open().await;
    let long = "x".repeat(70_000);
    for bytes in [
        get_request(&format!("/hr{ECHO}"), &format!("X: {long}\r\n")),
        get_request(&format!("/hr{ECHO}?{long}"), ""),
    ] {
        let status = first_response(&proxy, bytes).await.0;
        assert!(["431", "414"].contains(&status.as_str()), "{status}");
    }
    let many = "X: y\r\n".repeat(200);
    assert_eq!(first_response(&proxy, get_request(&format!("/hr{ECHO}"), &many)).await.0, "431");
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn hostile_clients_do_not_affect_the_next_client() {
    let proxy =
        TestProxy::start_with_config(&OPEN_CONFIG.replace("[upstream]", "max_connections = 8\n[upstream]"))
            .await;
    for _ in 0..32 {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let _ = connection
            .send("POST /hr/cgi-bin/simulator/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            .await;
        connection.reset();
    }
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn invalid_host_is_refused() {
    let proxy = TestProxy::start_open().await;
    for host in ["a b", "a/b", "a?b", "a@b", "[::1", "a:b:c", "x\r\n\t folded"] {
        let bytes = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(first_response(&proxy, bytes).await.0, "400", "{host}");
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn ticket_client_that_aborts_does_not_fail_the_others() {
    const TICKET: &str = "/cgi-bin/get_jsapi_ticket";
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::hold().on_path(TICKET).times(1)).expect("a fault");
    let mut aborting = RawConnection::connect(proxy.address()).await;
    aborting.send(get_request(&format!("/hr{TICKET}"), "")).await.expect("sent");
    wait_for("the ticket call", async || {
        proxy.wecom.observe(|observed| observed.requests().any(|record| record.path == TICKET))
    })
    .await;
    let abort = async {
        // Long enough for the other client to wait for the same ticket.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        aborting.reset();
    };
    let (response, ()) = tokio::join!(proxy.get(TICKET), abort);
    response.assert_ok();
}
