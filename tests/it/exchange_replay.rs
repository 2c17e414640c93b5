//! Recorded requests are sent again, through the proxy and in the name of their client.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::harness::{
    CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, client_key, send_raw,
    sha256, wait_for,
};
use crate::raw_http::RawConnection;

const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789";
const MESSAGE: &str =
    r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hello"}}"#;

/// The configuration with an operator's key.
fn with_admin_key(config: &str) -> String {
    config.replace("[admin]\n", &format!("[admin]\nkey_sha256 = \"{}\"\n", sha256(ADMIN_KEY)))
}

async fn call_admin(proxy: &TestProxy, method: Method, path: &str) -> TestResponse {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
    TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await
}

async fn capture(proxy: &TestProxy) {
    let response = call_admin(proxy, Method::POST, "/api/agents/hr/inspect?for=10m").await;
    assert_eq!(response.status, StatusCode::OK);
}

/// The recorded exchanges of this id, newest first.
async fn recorded(proxy: &TestProxy, id: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    wait_for(id, async || {
        let response = call_admin(proxy, Method::GET, &format!("/api/requests?id={id}")).await.json();
        found = response["requests"].as_array().unwrap_or_else(|| panic!("{response}")).clone();
        found.len() >= count
    })
    .await;
    found
}

async fn send(proxy: &TestProxy, method: &str, id: &str, path: &str, body: &'static str) -> TestResponse {
    let request = Request::builder().method(method).uri(path).header("x-request-id", id);
    let request = request.header("content-type", "application/json");
    proxy.request(request.header("authorization", format!("Bearer {}", client_key("crm"))), body).await
}

fn replay_path(exchange: &Value) -> String {
    let id = exchange["request_id"].as_str().expect("an id");
    format!("/api/requests/replay?id={id}&at={}", exchange["at"])
}

/// Sends the only exchange of this id again.
async fn replay(proxy: &TestProxy, id: &str) -> TestResponse {
    let [exchange] = &recorded(proxy, id, 1).await[..] else { panic!("one of {id}") };
    call_admin(proxy, Method::POST, &replay_path(exchange)).await
}

#[track_caller]
fn assert_refused(response: &TestResponse, status: u16, message: &str) {
    assert_eq!(response.status.as_u16(), status, "{}", response.text());
    let error = response.json()["error"].clone();
    assert!(error.as_str().is_some_and(|text| text.contains(message)), "{error}");
}

#[track_caller]
fn assert_sent(response: &TestResponse) {
    let status = &response.json()["status"];
    assert_eq!((response.status, status), (StatusCode::OK, &json!(200)), "{}", response.text());
}

#[tokio::test]
async fn captured_request_is_sent_again_as_it_was() {
    let proxy = TestProxy::start_with_config(&with_admin_key(CONFIG_WITH_CLIENTS)).await;
    capture(&proxy).await;
    send(&proxy, "GET", "first", &format!("/hr{USER_GET}"), "").await;
    send(&proxy, "POST", "second", "/hr/cgi-bin/message/send?debug=1", MESSAGE).await;
    for (id, path) in [("first", "/cgi-bin/user/get"), ("second", "/cgi-bin/message/send")] {
        let before = proxy.last_request(path);
        let replayed = replay(&proxy, id).await;
        assert_sent(&replayed);
        let after = proxy.last_request(path);
        assert!(after.seq > before.seq, "{path} was sent again");
        assert_eq!(
            (&after.method, &after.query, &after.body_sha256),
            (&before.method, &before.query, &before.body_sha256)
        );
        let new_id = replayed.json()["request_id"].as_str().expect("an id").to_owned();
        let [exchange] = &recorded(&proxy, &new_id, 1).await[..] else { panic!("one") };
        assert_eq!((&exchange["client"], &exchange["agent"]), (&json!("crm"), &json!("hr")));
    }
}

/// A body that arrives in pieces is whole when its end has been seen, by its length or by the last chunk.
#[tokio::test]
async fn body_in_pieces_is_sent_again_when_it_ended() {
    let proxy = TestProxy::start_with_config(&with_admin_key(CONFIG_WITH_CLIENTS)).await;
    capture(&proxy).await;
    let (begin, end) = MESSAGE.split_at(40);
    let head = |id: &str, framing: &str| {
        format!(
            "POST /hr/cgi-bin/message/send HTTP/1.1\r\nHost: proxy\r\nX-Request-Id: {id}\r\nX-Api-Key: {}\r\n{framing}\r\n\r\n",
            client_key("crm")
        )
    };
    let sized = head("sized", &format!("Content-Length: {}", MESSAGE.len()));
    let chunked = head("chunked", "Transfer-Encoding: chunked");
    for (id, pieces) in [
        ("sized", [sized, begin.to_owned(), end.to_owned()]),
        (
            "chunked",
            [
                chunked,
                format!("{:x}\r\n{begin}\r\n", begin.len()),
                format!("{:x}\r\n{end}\r\n0\r\n\r\n", end.len()),
            ],
        ),
    ] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        for piece in pieces {
            connection.send(piece).await.expect("sent");
        }
        recorded(&proxy, id, 1).await;
        assert_sent(&replay(&proxy, id).await);
        assert_eq!(proxy.last_request("/cgi-bin/message/send").body_sha256, Some(sha256(MESSAGE)), "{id}");
    }
}

#[tokio::test]
async fn request_that_is_not_whole_is_not_sent_again() {
    let proxy = TestProxy::start_with_config(&with_admin_key(CONFIG_WITH_CLIENTS)).await;
    send(&proxy, "GET", "not-captured", &format!("/hr{USER_GET}"), "").await;
    capture(&proxy).await;
    send(&proxy, "GET", "masked", &format!("/hr{USER_GET}&secret=abcdefghi"), "").await;
    send(&proxy, "GET", "refused", "/unknown/cgi-bin/department/list", "").await;
    send(&proxy, "GET", "long", &format!("/hr/cgi-bin/{}", "a".repeat(1100)), "").await;
    let long_query = format!("/hr/cgi-bin/department/list?{}", "a=1&".repeat(2500));
    send(&proxy, "GET", "long-query", &long_query, "").await;
    let mut broken = RawConnection::connect(proxy.address()).await;
    let head = format!(
        "POST /hr/cgi-bin/message/send HTTP/1.1\r\nHost: proxy\r\nX-Request-Id: broken-off\r\nX-Api-Key: {}\r\nContent-Length: {}\r\n\r\n",
        client_key("crm"),
        MESSAGE.len()
    );
    broken.send(head + &MESSAGE[..40]).await.expect("sent");
    drop(broken);
    for (id, message) in [
        ("not-captured", "was not captured"),
        ("masked", "is masked"),
        ("refused", "agent"),
        ("long", "cut"),
        ("long-query", "was not captured"),
        ("broken-off", "was not captured"),
    ] {
        recorded(&proxy, id, 1).await;
        let sent = proxy.forwarded_count();
        assert_refused(&replay(&proxy, id).await, 409, message);
        assert_eq!(proxy.forwarded_count(), sent, "nothing was sent for {id}");
    }
    let leaked: Value = call_admin(&proxy, Method::GET, "/api/requests").await.json();
    assert!(!leaked.to_string().contains("wp1-"), "no pass is recorded");
}

#[tokio::test]
async fn body_that_was_refused_unread_is_not_sent_again_empty() {
    let config = with_admin_key(CONFIG_WITH_CLIENTS);
    let limited = config.replace("[clients.crm]", "[clients.crm]\nlimit = \"1/h\"");
    let proxy = TestProxy::start_with_config(&limited).await;
    send(&proxy, "GET", "allowed", "/hr/cgi-bin/department/list", "").await.assert_ok();
    let refused = send(&proxy, "POST", "not-captured", "/hr/cgi-bin/message/send", MESSAGE).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    capture(&proxy).await;
    send(&proxy, "POST", "captured", "/hr/cgi-bin/message/send", MESSAGE).await;
    for id in ["not-captured", "captured"] {
        assert_refused(&replay(&proxy, id).await, 409, "was not captured");
    }
    send(&proxy, "GET", "read", "/hr/cgi-bin/department/list", "").await;
    let replayed = replay(&proxy, "read").await;
    assert_eq!((replayed.status, &replayed.json()["status"]), (StatusCode::OK, &json!(429)));
}

#[tokio::test]
async fn exchange_is_named_by_its_id_and_time() {
    let proxy = TestProxy::start_with_config(&with_admin_key(CONFIG_WITH_CLIENTS)).await;
    send(&proxy, "GET", "again", "/hr/cgi-bin/department/list", "").await.assert_ok();
    let shown = recorded(&proxy, "again", 1).await.remove(0);
    let shown_at = shown["at"].as_f64().expect("seconds");
    wait_for("another millisecond", async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        now.as_secs_f64() > shown_at + 0.001
    })
    .await;
    send(&proxy, "GET", "again", "/hr/cgi-bin/agent/list", "").await;
    recorded(&proxy, "again", 2).await;
    assert_sent(&call_admin(&proxy, Method::POST, &replay_path(&shown)).await);
    assert_eq!(proxy.wecom.requests().last().expect("one").path, "/cgi-bin/department/list");
    let sent = proxy.forwarded_count();
    let unknown = "/api/requests/replay?id=again&at=1.5";
    assert_refused(&call_admin(&proxy, Method::POST, unknown).await, 404, "no exchange");
    for missing in ["", "?id=again", "?at=1.5", "?id=again&at=x", "?id=again&at=-1", "?id=again&at=inf"] {
        let path = format!("/api/requests/replay{missing}");
        assert_refused(&call_admin(&proxy, Method::POST, &path).await, 400, "say which");
    }
    assert_eq!(proxy.forwarded_count(), sent, "nothing was sent");
}

#[tokio::test]
async fn exchanges_of_one_id_and_time_are_not_told_apart() {
    let proxy = TestProxy::start_with_config(&with_admin_key(CONFIG_WITH_CLIENTS)).await;
    let request = "GET /unknown/cgi-bin/department/list HTTP/1.1\r\nHost: proxy\r\nX-Request-Id: twin\r\n";
    let pipelined = format!("{request}\r\n").repeat(19) + request + "Connection: close\r\n\r\n";
    let mut twin = None;
    wait_for("two of one time", async || {
        send_raw(proxy.address(), &pipelined).await;
        let found = recorded(&proxy, "twin", 20).await;
        twin = found.windows(2).find(|pair| pair[0]["at"] == pair[1]["at"]).map(|pair| pair[0].clone());
        twin.is_some()
    })
    .await;
    let path = replay_path(&twin.expect("a pair"));
    assert_refused(&call_admin(&proxy, Method::POST, &path).await, 409, "not clear which");
}

#[tokio::test]
async fn replay_needs_the_operators_key() {
    let proxy = TestProxy::start_with_config(&with_admin_key(OPEN_CONFIG)).await;
    send(&proxy, "GET", "open", "/hr/cgi-bin/department/list", "").await;
    let path = replay_path(&recorded(&proxy, "open", 1).await[0]);
    let bearer = format!("Bearer {ADMIN_KEY}");
    let basic = "Basic OnRoZS1rZXktb2YtdGhlLW9wZXJhdG9yLTAxMjM0NTY3ODk=";
    let post = async |proxy: &TestProxy, headers: &[(&str, &str)]| {
        let request =
            headers.iter().fold(Request::post(&path), |request, (name, value)| request.header(*name, *value));
        TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await
    };
    let json_type = ("content-type", "application/json");
    for (headers, status) in [
        (&[json_type][..], 401),
        (&[json_type, ("authorization", "Bearer wrong")], 401),
        (&[json_type, ("authorization", basic)], 401),
        (&[("authorization", &*bearer)], 403),
    ] {
        assert_eq!(post(&proxy, headers).await.status.as_u16(), status, "{headers:?}");
    }
    assert_eq!(proxy.forwarded_count(), 1, "nothing was sent");
    assert_sent(&post(&proxy, &[json_type, ("authorization", &bearer)]).await);
    assert_eq!(proxy.forwarded_count(), 2);
    let keyless = TestProxy::start_with_config(OPEN_CONFIG).await;
    assert_refused(&post(&keyless, &[json_type]).await, 403, "admin.key_sha256");
}

#[tokio::test]
async fn replay_goes_to_the_first_tcp_listener() {
    let listen = "listen = \"127.0.0.1:0\"\n[upstream]";
    let config = with_admin_key(OPEN_CONFIG);
    for (listeners, refusal) in [
        ("listen = [\"unix:{dir}/proxy.sock\", \"127.0.0.1:0\"]\n", None),
        (
            "listen = \"127.0.0.1:0\"\ntrusted_proxies = [\"10.0.0.0/8\"]\nproxy_protocol = true\n",
            Some("server.proxy_protocol"),
        ),
    ] {
        let config = config.replace(listen, &format!("{listeners}[upstream]"));
        let proxy = TestProxy::start_with_config(&config).await;
        send(&proxy, "GET", "open", "/hr/cgi-bin/department/list", "").await;
        let replayed = replay(&proxy, "open").await;
        match refusal {
            None => assert_sent(&replayed),
            Some(text) => assert_refused(&replayed, 409, text),
        }
    }
}
