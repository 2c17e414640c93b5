//! `Idempotency-Key`: a request is carried out once, whatever happens to its response.

use std::{sync::Arc, time::Duration};

use http::Request;
use serde_json::json;
use wecom_proxy::simulator::{DropPoint, Fault};

use crate::{
    disconnect::wait_for_waiters,
    gettoken::{gettoken_target, pass_from_response},
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestProxy, TestResponse, client_key, closed_port,
        start_simulator_with_config, wait_for,
    },
    process::Process,
    raw_http::{ManualUpstream, RawConnection},
};

pub(crate) const SEND: &str = "/cgi-bin/message/send";
const STATE: &str =
    "\n[state]\npath = \"{dir}/state.db\"\nkey = \"a-key-of-the-state-with-40-characters-000\"\n";

pub(crate) fn with_state(toml: &str) -> String {
    format!("{toml}{STATE}")
}

pub(crate) fn message(content: &str) -> String {
    json!({ "touser": "zhangsan", "msgtype": "text", "agentid": 1_000_002, "text": { "content": content } })
        .to_string()
}

pub(crate) fn keyed(path: &str, key: &str) -> http::request::Builder {
    Request::post(format!("/hr{path}"))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
}

/// Sends a message through the agent `hr`.
pub(crate) async fn send(proxy: &TestProxy, key: &str, content: &str) -> TestResponse {
    proxy.request(keyed(SEND, key), message(content)).await
}

pub(crate) async fn send_again(proxy: &TestProxy, key: &str, content: &str) -> TestResponse {
    let request = keyed(SEND, key).header("idempotency-key-retry", "send-again");
    proxy.request(request, message(content)).await
}

fn executed(proxy: &TestProxy) -> u64 {
    proxy.wecom.executed_count(SEND)
}

#[track_caller]
pub(crate) fn assert_replayed(response: &TestResponse, first: &TestResponse) {
    assert_eq!(response.header("idempotency-replayed"), "true", "{}", response.text());
    assert_eq!((response.status, &response.body), (first.status, &first.body));
    assert_eq!(response.header("content-type"), first.header("content-type"));
    assert_ne!(response.header("x-request-id"), first.header("x-request-id"));
}

#[tokio::test]
async fn repeat_gets_the_stored_response() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    let first = send(&proxy, "key-1", "hello").await;
    assert_eq!(first.assert_ok().header("idempotency-replayed"), "");
    for key in ["key-1", "\"key-1\""] {
        assert_replayed(&send(&proxy, key, "hello").await, &first);
    }
    assert_eq!(executed(&proxy), 1);
    let forwarded = proxy.last_request(SEND);
    assert!(forwarded.header_values("idempotency-key").is_empty());
    // A token beside it is none of the request.
    let request = keyed(&format!("{SEND}?access_token="), "key-1");
    assert_replayed(&proxy.request(request, message("hello")).await, &first);
    send(&proxy, "key-2", "hello").await.assert_ok();
    assert_eq!(executed(&proxy), 2);
}

#[tokio::test]
async fn key_of_another_request_is_a_mismatch() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    send(&proxy, "key-1", "hello").await.assert_ok();
    send(&proxy, "key-1", "other").await.assert_proxy_error("idempotency-mismatch", 422, 40035);
    let query = proxy.request(keyed(&format!("{SEND}?debug=1"), "key-1"), message("hello")).await;
    query.assert_proxy_error("idempotency-mismatch", 422, 40035);
    assert_eq!(executed(&proxy), 1);
}

#[tokio::test]
async fn key_belongs_to_client_agent_and_path() {
    let proxy = TestProxy::start_with_config(&with_state(CONFIG_WITH_CLIENTS)).await;
    for (client, agent) in [("billing", "hr"), ("crm", "hr"), ("crm", "ops")] {
        for path in [ECHO, "/cgi-bin/simulator/echo/other"] {
            let request = Request::post(format!("/{agent}{path}")).header("idempotency-key", "shared");
            let response = proxy.request(request.header("x-api-key", client_key(client)), "{}").await;
            assert_eq!(response.header("idempotency-replayed"), "", "{client} {agent} {path}");
        }
    }
}

#[tokio::test]
async fn robots_have_keys_of_their_own() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    let path = "/cgi-bin/webhook/send?key=";
    for (robot, replayed) in [("one", ""), ("two", ""), ("one", "true"), ("two", "true")] {
        let body = r#"{"msgtype":"text","text":{"content":"hello"}}"#;
        let response = proxy.request(keyed(&format!("{path}{robot}"), "key-1"), body).await;
        assert_eq!(response.header("idempotency-replayed"), replayed, "{robot}: {}", response.text());
    }
}

#[tokio::test]
async fn invalid_key_and_missing_state_are_bad_requests() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    for key in ["a b", "\"", &"k".repeat(256)] {
        send(&proxy, key, "hello").await.assert_proxy_error("bad-request", 400, 40035);
    }
    let twice = keyed(SEND, "a").header("idempotency-key", "b");
    proxy.request(twice, message("hello")).await.assert_proxy_error("bad-request", 400, 40035);
    let retry = keyed(SEND, "a").header("idempotency-key-retry", "yes");
    proxy.request(retry, message("hello")).await.assert_proxy_error("bad-request", 400, 40035);
    assert_eq!(executed(&proxy), 0);
    let stateless = TestProxy::start_open().await;
    let refused = send(&stateless, "key-1", "hello").await;
    refused.assert_proxy_error("bad-request", 400, 40035);
    assert!(refused.text().contains("[state]"), "{}", refused.text());
    assert_eq!(stateless.forwarded_count(), 0);
    // A gettoken and a GET are never carried out twice.
    let get = Request::get(format!("/hr{ECHO}")).header("idempotency-key", "a");
    assert_eq!(stateless.request(get, "").await.status, 200);
}

#[tokio::test]
async fn gettoken_ignores_the_key() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let request = Request::post(gettoken_target(&client_key("billing"))).header("idempotency-key", "a");
    pass_from_response(&proxy.request(request, "").await);
}

#[tokio::test]
async fn concurrent_duplicates_are_carried_out_once() {
    let proxy = Arc::new(TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await);
    proxy.wecom.inject(Fault::hold().on_path(SEND)).expect("a fault");
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { send(&proxy, "key-1", "hello").await })
        })
        .collect();
    proxy.wecom.wait_until(|observed| observed.received_count(SEND) == 1).await.expect("the first");
    proxy.wecom.release_held();
    let mut replayed = 0;
    for call in calls {
        let response = call.await.expect("no panic");
        response.assert_ok();
        replayed += usize::from(response.header("idempotency-replayed") == "true");
    }
    assert_eq!((replayed, executed(&proxy)), (7, 1));
}

/// Sends a response whose body a test continues.
async fn start_response(upstream: &mut ManualUpstream, length: usize) -> RawConnection {
    let mut call = upstream.next_call().await;
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    call.connection.send(head).await.expect("sent");
    call.connection
}

#[tokio::test]
async fn repeat_waits_for_the_first_and_then_conflicts() {
    let mut upstream = ManualUpstream::new().await;
    let toml = with_state(&OPEN_CONFIG.replace("[upstream]", "[upstream]\nresponse_timeout = \"500ms\""));
    let proxy = Arc::new(TestProxy::start_with_upstream(upstream.address, &toml).await);
    let first = {
        let proxy = proxy.clone();
        tokio::spawn(async move { send(&proxy, "key-1", "hello").await })
    };
    let body = r#"{"errcode":0,"errmsg":"ok"}"#;
    let mut connection = start_response(&mut upstream, body.len()).await;
    send(&proxy, "key-1", "hello").await.assert_proxy_error("idempotency-conflict", 409, 40035);
    connection.send(body).await.expect("sent");
    let first = first.await.expect("no panic");
    assert_replayed(&send(&proxy, "key-1", "hello").await, first.assert_ok());
}

#[tokio::test]
async fn response_beyond_256_kib_is_not_kept() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = Arc::new(TestProxy::start_with_upstream(upstream.address, &with_state(OPEN_CONFIG)).await);
    let first = {
        let proxy = proxy.clone();
        tokio::spawn(async move { send(&proxy, "key-1", "hello").await })
    };
    let body = format!(r#"{{"errcode":0,"text":"{}"}}"#, "x".repeat(300 * 1024));
    let mut connection = start_response(&mut upstream, body.len()).await;
    connection.send(&body).await.expect("sent");
    assert_eq!(first.await.expect("no panic").text(), body);
    let repeat = send(&proxy, "key-1", "hello").await;
    repeat.assert_proxy_error("idempotency-conflict", 409, 40035);
    assert!(repeat.text().contains("carried out"), "{}", repeat.text());
}

#[tokio::test]
async fn what_wecom_did_not_do_is_sent_again() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    for errcode in [45009, 45033, 60020, 48002, 50003, 301_002] {
        let key = format!("key-{errcode}");
        let before = executed(&proxy);
        proxy.wecom.inject(Fault::errcode(errcode).on_path(SEND).times(1)).expect("a fault");
        assert_eq!(send(&proxy, &key, "hello").await.errcode(), errcode);
        assert_eq!(send(&proxy, &key, "hello").await.assert_ok().header("idempotency-replayed"), "");
        assert_eq!(executed(&proxy), before + 1);
    }
    // A refused token is renewed as for any request.
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    assert_eq!(send(&proxy, "key-token", "hello").await.assert_ok().header("x-wecom-retried"), "40014");
    let unreachable = TestProxy::start_with_upstream(closed_port(), &with_state(OPEN_CONFIG)).await;
    for _ in 0..2 {
        let response = send(&unreachable, "key-1", "hello").await;
        assert_eq!(response.status, 502, "{}", response.text());
        assert_ne!(response.header("x-wecom-proxy-error"), "in-doubt");
    }
}

#[tokio::test]
async fn connection_lost_at_any_point_never_sends_twice() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    proxy.get(ECHO).await;
    for (nth, point) in
        [DropPoint::OnArrival, DropPoint::BeforeResponse, DropPoint::AfterHead, DropPoint::MidBody]
            .into_iter()
            .enumerate()
    {
        let (key, before) = (format!("key-{nth}"), executed(&proxy));
        proxy.wecom.inject(Fault::drop(point).on_path(SEND).times(1)).expect("a fault");
        let lost = send(&proxy, &key, "hello").await;
        assert_eq!(lost.status, 502, "{nth}: {}", lost.text());
        for _ in 0..2 {
            let repeat = send(&proxy, &key, "hello").await;
            repeat.assert_proxy_error("in-doubt", 409, 40035);
            assert!(repeat.text().contains("send-again"), "{}", repeat.text());
        }
        assert_eq!(executed(&proxy), before + u64::from(nth > 0), "{nth}");
        let again = send_again(&proxy, &key, "hello").await;
        assert_replayed(&send_again(&proxy, &key, "hello").await, again.assert_ok());
        assert_eq!(executed(&proxy), before + u64::from(nth > 0) + 1, "{nth}");
    }
}

#[tokio::test]
async fn busy_timeout_and_gateway_errors_are_in_doubt() {
    let toml = OPEN_CONFIG.replace("[upstream]", "[upstream]\nresponse_timeout = \"1s\"");
    let proxy = TestProxy::start_with_config(&with_state(&toml)).await;
    for (nth, fault, status) in [
        (0, Fault::errcode(-1), 200),
        (1, Fault::status(504), 504),
        (2, Fault::delay(Duration::from_secs(5)), 504),
        (3, Fault::status(500), 500),
    ] {
        let key = format!("key-{nth}");
        proxy.wecom.inject(fault.on_path(SEND).times(1)).expect("a fault");
        assert_eq!(send(&proxy, &key, "hello").await.status, status, "{nth}");
        send(&proxy, &key, "hello").await.assert_proxy_error("in-doubt", 409, 40035);
        send_again(&proxy, &key, "hello").await.assert_ok();
    }
}

#[tokio::test]
async fn client_that_leaves_leaves_the_request_in_doubt() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    proxy.wecom.inject(Fault::hold().on_path(SEND).times(1)).expect("a fault");
    let body = message("hello");
    let mut client = RawConnection::connect(proxy.address()).await;
    let head = format!(
        "POST /hr{SEND} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: key-1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head + &body).await.expect("sent");
    proxy.wecom.wait_until(|observed| observed.received_count(SEND) == 1).await.expect("the first");
    client.reset();
    wait_for("the doubt", async || {
        send(&proxy, "key-1", "hello").await.header("x-wecom-proxy-error") == "in-doubt"
    })
    .await;
    assert_eq!(proxy.wecom.observe(|observed| observed.received_count(SEND)), 1);
}

#[tokio::test]
async fn client_that_leaves_before_anything_is_sent_releases_its_key() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken")).expect("a fault");
    let mut client = RawConnection::connect(proxy.address()).await;
    let (path, body) = (format!("/hr{SEND}"), message("hello"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: key-1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head + &body).await.expect("sent");
    wait_for_waiters(&proxy, 1).await;
    client.reset();
    wait_for_waiters(&proxy, 0).await;
    proxy.wecom.release_held();
    let repeated = send(&proxy, "key-1", "hello").await;
    assert_eq!(repeated.assert_ok().header("idempotency-replayed"), "");
    assert_eq!(executed(&proxy), 1);
}

#[tokio::test]
async fn large_multipart_body_is_replayed_by_its_hash() {
    let toml = with_state(OPEN_CONFIG) + "[replay]\nmemory = \"1MiB\"\ndir = \"{dir}\"\n";
    let proxy = TestProxy::start_with_config(&toml).await;
    let upload = |filler: u8| {
        let head = "--b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n";
        let mut body = head.as_bytes().to_vec();
        body.extend(std::iter::repeat_n(filler, 6 << 20));
        body.extend(b"\r\n--b--\r\n");
        let request =
            Request::post("/hr/cgi-bin/media/upload?type=file").header("idempotency-key", "upload-1");
        proxy.request(request.header("content-type", "multipart/form-data; boundary=b"), body)
    };
    let first = upload(1).await;
    assert_replayed(&upload(1).await, first.assert_ok());
    upload(2).await.assert_proxy_error("idempotency-mismatch", 422, 40035);
    assert_eq!(proxy.wecom.executed_count("/cgi-bin/media/upload"), 1);
}

/// Sends a message over a connection of its own; `None` if the proxy goes away meanwhile.
async fn try_send(address: std::net::SocketAddr, key: &str) -> Option<(String, String)> {
    let body = message("hello");
    let mut client = RawConnection::connect(address).await;
    let head = format!(
        "POST /hr{SEND} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head + &body).await.ok()?;
    let (received, _) = client.read_to_end().await;
    let text = String::from_utf8(received).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

#[tokio::test]
async fn killed_proxy_keeps_responses_and_never_sends_twice() {
    let (wecom, _dir, config) = start_simulator_with_config(&with_state(OPEN_CONFIG)).await;
    let mut proxy = Process::serve(&config).await;
    let (_, done) = try_send(proxy.address().await, "done").await.expect("a response");
    for round in 0..4 {
        // Killed after the request has reached WeCom, and before its response.
        wecom.inject(Fault::hold().on_path(SEND).times(1)).expect("a fault");
        let (address, key) = (proxy.address().await, format!("key-{round}"));
        let before = wecom.observe(|observed| observed.received_count(SEND));
        let call = tokio::spawn({
            let key = key.clone();
            async move { try_send(address, &key).await }
        });
        wecom.wait_until(|observed| observed.received_count(SEND) == before + 1).await.expect("the request");
        proxy.signal("KILL");
        assert!(call.await.expect("no panic").is_none());
        wecom.release_held();
        drop(proxy);
        proxy = Process::serve(&config).await;
        let (head, body) = try_send(proxy.address().await, &key).await.expect("a response");
        assert!(head.starts_with("HTTP/1.1 409") && head.contains("in-doubt"), "{head}\n{body}");
        assert_eq!(wecom.observe(|observed| observed.received_count(SEND)), before + 1);
        let (head, body) = try_send(proxy.address().await, "done").await.expect("a response");
        assert!(head.to_ascii_lowercase().contains("idempotency-replayed: true"), "{head}");
        assert_eq!(body, done);
    }
}

#[tokio::test]
async fn request_is_not_sent_while_the_state_is_locked() {
    let proxy = TestProxy::start_with_config(&with_state(OPEN_CONFIG)).await;
    let lock = rusqlite::Connection::open(proxy.dir.path().join("state.db")).expect("the state");
    lock.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    let refused = send(&proxy, "key-1", "hello").await;
    refused.assert_proxy_error("overloaded", 503, -1);
    assert_eq!((executed(&proxy), refused.header("retry-after")), (0, "1"));
    proxy.request(Request::post(format!("/hr{SEND}")), message("hello")).await.assert_ok();
    lock.execute_batch("ROLLBACK").expect("released");
    assert_eq!(send(&proxy, "key-1", "hello").await.assert_ok().header("idempotency-replayed"), "");
}
