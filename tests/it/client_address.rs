//! `server.trusted_proxies`: the client's address behind a proxy in front, by header or by the PROXY protocol.

use http::Request;
use serde_json::Value;

use crate::harness::{TestClient, TestProxy, USER_GET, wait_for};

/// A proxy with these lines in `[server]`.
async fn start(lines: &str) -> TestProxy {
    TestProxy::start_with_config(&config(lines)).await
}

fn config(lines: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{lines}\n[upstream]\nurl = \"http://{{api}}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{{agents}}"
    )
}

/// The addresses of the latest exchanges, newest first.
async fn logged_peers(proxy: &TestProxy, count: usize) -> Vec<String> {
    let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
    let mut peers = Vec::new();
    wait_for("the exchanges", async || {
        let json = admin.request(Request::get("/api/requests"), "").await.json();
        let requests = json["requests"].as_array().cloned().unwrap_or_default();
        peers = requests
            .iter()
            .map(|request| request["peer"].as_str().map_or("none", |peer| peer).to_owned())
            .collect();
        peers.len() >= count
    })
    .await;
    peers
}

fn request(name: &str, value: &str) -> http::request::Builder {
    Request::get(format!("/hr{USER_GET}")).header(name, value)
}

#[tokio::test]
async fn address_from_a_trusted_proxy_is_logged_and_not_forwarded() {
    let proxy = start("trusted_proxies = [\"127.0.0.0/8\"]").await;
    proxy.request(request("x-forwarded-for", "6.6.6.6, 192.0.2.1, 127.0.0.2"), "").await.assert_ok();
    proxy.request(request("forwarded", "for=6.6.6.6"), "").await.assert_ok();
    let mut http2 = TestClient::connect_http2(proxy.address()).await;
    http2.request(request("x-forwarded-for", "2001:db8::7"), "").await.assert_ok();
    assert_eq!(logged_peers(&proxy, 3).await, ["2001:db8::7", "127.0.0.1", "192.0.2.1"]);
    for record in proxy.wecom.requests() {
        for name in ["x-forwarded-for", "forwarded"] {
            assert_eq!(record.header_values(name), Vec::<&str>::new());
        }
    }
}

#[tokio::test]
async fn address_from_other_peers_is_ignored() {
    for lines in ["", "trusted_proxies = [\"192.0.2.0/24\", \"unix\"]"] {
        let proxy = start(lines).await;
        proxy.request(request("x-forwarded-for", "6.6.6.6"), "").await.assert_ok();
        assert_eq!(logged_peers(&proxy, 1).await, ["127.0.0.1"], "{lines}");
    }
}

#[tokio::test]
async fn forwarded_is_read_where_it_is_configured() {
    let proxy = start("trusted_proxies = [\"127.0.0.1\"]\nclient_address = \"forwarded\"").await;
    let request =
        request("forwarded", "for=\"[2001:db8::7]:80\";proto=https").header("x-forwarded-for", "6.6.6.6");
    proxy.request(request, "").await.assert_ok();
    assert_eq!(logged_peers(&proxy, 1).await, ["2001:db8::7"]);
}

#[tokio::test]
async fn trusted_proxies_are_reloaded_for_open_connections() {
    let proxy = start("").await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.request(request("x-forwarded-for", "192.0.2.1"), "").await.assert_ok();
    proxy.rewrite_config(&config("trusted_proxies = [\"127.0.0.1\"]"));
    let report = proxy.app.reload().expect("a reload");
    assert!(report.needs_restart.is_empty(), "{:?}", report.needs_restart);
    client.request(request("x-forwarded-for", "192.0.2.1"), "").await.assert_ok();
    assert_eq!(logged_peers(&proxy, 2).await, ["192.0.2.1", "127.0.0.1"]);
}

#[tokio::test]
async fn proxy_protocol_names_the_client() {
    let proxy = start("trusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = true").await;
    let http = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let version2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..],
        &[192, 0, 2, 2, 10, 0, 0, 1, 1, 1, 0, 80],
        http.as_bytes(),
    ]
    .concat();
    for bytes in [format!("PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n{http}").into_bytes(), version2] {
        let response = proxy.send_raw(bytes).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    assert_eq!(logged_peers(&proxy, 2).await, ["192.0.2.2", "192.0.2.1"]);
    assert_eq!(proxy.send_raw(http).await, "", "without the header");
    let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
    let requests: Value = admin.request(Request::get("/api/requests"), "").await.json();
    assert_eq!(requests["requests"].as_array().map(Vec::len), Some(2));
}

/// A load balancer that passes on bytes and names no client lets anyone write the headers.
#[tokio::test]
async fn header_behind_a_nameless_proxy_header_is_not_believed() {
    let proxy = start("trusted_proxies = [\"127.0.0.1\", \"192.0.2.1\"]\nproxy_protocol = true").await;
    let http = format!(
        "GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n"
    );
    let local = [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"[..], http.as_bytes()].concat();
    let unix = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8"[..], &[0; 216], http.as_bytes()].concat();
    let unknown = format!("PROXY UNKNOWN\r\n{http}").into_bytes();
    let named = format!("PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n{http}").into_bytes();
    for bytes in [local, unix, unknown, named] {
        let response = proxy.send_raw(bytes).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    let expected = ["6.6.6.6", "127.0.0.1", "127.0.0.1", "127.0.0.1"];
    assert_eq!(logged_peers(&proxy, 4).await, expected, "only a named proxy's header counts");
}

#[tokio::test]
async fn proxy_protocol_of_other_peers_is_no_request() {
    let proxy = start("trusted_proxies = [\"192.0.2.0/24\"]\nproxy_protocol = true").await;
    let http = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let response = proxy.send_raw(format!("PROXY TCP4 6.6.6.6 10.0.0.1 4711 80\r\n{http}")).await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    assert!(proxy.send_raw(http).await.starts_with("HTTP/1.1 200 "));
}
