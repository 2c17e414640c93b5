//! The receiver URL: verification, messages, refusals.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{Request, StatusCode};
use wecom_proxy::simulator::SimulatedCallback;

use super::{config, console, event, metric, push, push_raw, target};
use crate::{
    dashboard_callbacks::SUITE,
    harness::{
        TestClient, TestProxy, USER_GET,
        callback_target::{CallbackTarget, TargetResponse},
    },
    raw_http::RawConnection,
};

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[tokio::test]
async fn url_verification_returns_the_echo_alone() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    let query = console(&proxy).verification_query("1616140317555161061");
    for query in [query.clone(), query.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")] {
        let target = format!("/callbacks/hr?{query}");
        let response = proxy.request(Request::get(&target), "").await;
        assert_eq!((response.status, response.text()), (StatusCode::OK, "1616140317555161061"), "{target}");
        let mut http2 = TestClient::connect_http2(proxy.address()).await;
        assert_eq!(http2.request(Request::get(&target), "").await.text(), "1616140317555161061");
    }
    assert_eq!(metric(&proxy, "wecom_proxy_callbacks_total{callback=\"hr\",result=\"verified\"}").await, 4);
}

#[tokio::test]
async fn message_is_answered_with_the_configured_text() {
    for (line, expected) in [("", ""), ("answer = \"success\"", "success")] {
        let proxy = TestProxy::start_with_config(&config(line)).await;
        let response = push(&proxy, &event("change_contact", 1)).await;
        assert_eq!((response.status, response.text()), (StatusCode::OK, expected));
        assert!(!response.header("x-request-id").is_empty());
        let (query, body) = console(&proxy).encrypted_push(br#"{"msgid":"1","msgtype":"text"}"#, true);
        let response = push_raw(&proxy, &query, body).await;
        assert_eq!((response.status, response.text()), (StatusCode::OK, expected), "JSON");
    }
}

/// Each refusal with 403, and the reason by which it is counted.
fn forgeries(console: &SimulatedCallback) -> Vec<(&'static str, String, String)> {
    let message = event("change_contact", 1);
    let (query, body) = console.encrypted_push(message.as_bytes(), false);
    let pushed = |callback: &SimulatedCallback| callback.encrypted_push(message.as_bytes(), false);
    let with = |change: &dyn Fn(&mut SimulatedCallback)| {
        let mut callback = console.clone();
        change(&mut callback);
        pushed(&callback)
    };
    let signed = |encrypted: &str| {
        let now = unix_now().to_string();
        let signature = console.signature(&now, "1", encrypted);
        let query = format!("msg_signature={signature}&timestamp={now}&nonce=1");
        (query, format!("<xml><Encrypt>{encrypted}</Encrypt></xml>"))
    };
    let mut cases = vec![
        ("signature", query.replace("msg_signature=", "msg_signature=0"), body.clone()),
        ("signature", query.replace("nonce=", "nonce=1"), body.clone()),
        ("signature", query.replace("timestamp=", "timestamp=1"), body.clone()),
        ("signature", String::new(), body.clone()),
        ("signature", format!("{query}&nonce=1"), body.clone()),
    ];
    let mut add = |reason, (query, body): (String, String)| cases.push((reason, query, body));
    add("signature", with(&|callback| callback.token = "another-token".to_owned()));
    // Fixed bytes: under a wrong key, one message in 256 has a padding that could be right.
    add("padding", signed(&format!("{}==", "A".repeat(86))));
    add("receiveid", with(&|callback| callback.receive_id = "wwother".to_owned()));
    add("receiveid", with(&|callback| callback.receive_id = String::new()));
    add("encoding", signed("AAAA"));
    add("encoding", signed("%%%%"));
    add("stale", console.encrypted_push_at(message.as_bytes(), false, unix_now() - 700));
    add("stale", console.encrypted_push_at(message.as_bytes(), false, unix_now() + 700));
    cases
}

#[tokio::test]
async fn refusals_are_alike_and_counted_by_reason() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    let console = console(&proxy);
    let mut seen: Option<(String, String, String)> = None;
    let cases = forgeries(&console);
    for (reason, query, body) in &cases {
        let response = push_raw(&proxy, query, body.clone()).await;
        response.assert_proxy_error("forbidden", 403, 48002);
        assert!(!response.text().contains(response.header("x-request-id")), "{reason}");
        let shown = (
            response.text().to_owned(),
            response.header("content-type").to_owned(),
            response.header("x-wecom-proxy-error").to_owned(),
        );
        assert_eq!(*seen.get_or_insert_with(|| shown.clone()), shown, "{reason}");
    }
    for reason in ["signature", "padding", "receiveid", "encoding", "stale"] {
        let sample = format!("wecom_proxy_callbacks_total{{callback=\"hr\",result=\"{reason}\"}}");
        let expected = cases.iter().filter(|(counted, ..)| *counted == reason).count();
        assert_eq!(metric(&proxy, &sample).await, expected as u64, "{reason}");
    }
    let get =
        proxy.request(Request::get("/callbacks/hr?msg_signature=0&timestamp=1&nonce=1&echostr=AA"), "").await;
    get.assert_proxy_error("forbidden", 403, 48002);
    assert_eq!(seen.expect("refusals").0, get.text());
}

#[tokio::test]
async fn age_is_checked_by_max_age_and_for_messages_only() {
    let proxy = TestProxy::start_with_config(&config("max_age = \"0s\"")).await;
    let (query, body) = console(&proxy).encrypted_push_at(event("x", 1).as_bytes(), false, 1_409_659_589);
    assert_eq!(push_raw(&proxy, &query, body).await.status, StatusCode::OK);
}

#[tokio::test]
async fn malformed_and_oversized_bodies_are_refused() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    let (query, body) = console(&proxy).encrypted_push(event("x", 1).as_bytes(), false);
    let with_dtd = format!("<!DOCTYPE xml [<!ENTITY e \"x\">]>{body}");
    for malformed in [with_dtd.as_str(), "", "text", "<xml>", "{}", "<xml><Encrypt>"] {
        push_raw(&proxy, &query, malformed.to_owned()).await.assert_proxy_error("bad-request", 400, 40035);
    }
    for query in ["", "msg_signature=&timestamp=1&nonce=1", "msg_signature=0&timestamp=1&nonce=1"] {
        push_raw(&proxy, query, with_dtd.clone()).await.assert_proxy_error("bad-request", 400, 40035);
        push_raw(&proxy, query, body.clone()).await.assert_proxy_error("forbidden", 403, 48002);
    }
    // The document type may stand in the message, too.
    let (query, body) = console(&proxy).encrypted_push(b"<!DOCTYPE xml><xml/>", false);
    push_raw(&proxy, &query, body).await.assert_proxy_error("bad-request", 400, 40035);
    let large = vec![b'x'; 1024 * 1024 + 1];
    push_raw(&proxy, &query, large.clone()).await.assert_proxy_error("body-too-large", 413, 45001);
    let chunked = [
        b"POST /callbacks/hr HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\n",
        &large[..],
        b"\r\n0\r\n\r\n",
    ];
    assert!(proxy.send_raw(chunked.concat()).await.starts_with("HTTP/1.1 413 "));
    let request = Request::post(format!("/callbacks/unknown?{query}"));
    proxy.request(request, "").await.assert_proxy_error("no-route", 404, 40035);
    let request = Request::put(format!("/callbacks/hr?{query}"));
    proxy.request(request, "").await.assert_proxy_error("bad-request", 405, 40035);
}

#[tokio::test]
async fn message_of_one_mebibyte_is_accepted() {
    let receiver = CallbackTarget::start().await;
    let to = target("crm", format!("http://{}/", receiver.address), "");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    let message = format!("<xml><Event>x</Event><Content>{}</Content></xml>", "x".repeat(700 * 1024));
    // A disk that is busy with other tests may take longer than WeCom waits, which then sends it again.
    crate::harness::wait_for("the state", async || push(&proxy, &message).await.status == StatusCode::OK)
        .await;
    assert_eq!(receiver.wait_for(1).await[0].body, message.as_bytes());
}

#[tokio::test]
async fn repeated_message_is_delivered_once() {
    let receiver = CallbackTarget::start().await;
    let to = target("crm", format!("http://{}/", receiver.address), "");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    let (query, body) = console(&proxy).encrypted_push(event("x", 1).as_bytes(), false);
    // The same bytes, and the same message encrypted anew.
    for _ in 0..2 {
        assert_eq!(push_raw(&proxy, &query, body.clone()).await.status, StatusCode::OK);
        assert_eq!(push(&proxy, &event("x", 1)).await.status, StatusCode::OK);
    }
    // Two events of the same second differ in their content.
    assert_eq!(push(&proxy, &event("y", 1)).await.status, StatusCode::OK);
    let mut events: Vec<_> = receiver
        .wait_for(2)
        .await
        .iter()
        .map(|delivery| delivery.header("x-wecom-event").to_owned())
        .collect();
    events.sort();
    assert_eq!(events, ["x", "y"]);
    let sample = "wecom_proxy_callbacks_total{callback=\"hr\",result=\"duplicate\"}";
    assert_eq!(metric(&proxy, sample).await, 3);
}

#[tokio::test]
async fn state_that_cannot_write_in_time_is_503() {
    let receiver = CallbackTarget::start().await;
    let to = target("crm", format!("http://{}/", receiver.address), "");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    let lock = rusqlite::Connection::open(proxy.dir.path().join("state.db")).expect("the state");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let before = std::time::Instant::now();
    let response = push(&proxy, &event("x", 1)).await;
    response.assert_proxy_error("overloaded", 503, -1);
    assert!(!response.header("retry-after").is_empty());
    assert!(before.elapsed().as_secs() < 5, "it does not wait as long as the state does");
    lock.execute_batch("ROLLBACK").expect("unlocked");
    crate::harness::wait_for("the state", async || push(&proxy, &event("x", 1)).await.status == 200).await;
    receiver.wait_for(1).await;
}

#[tokio::test]
async fn answer_does_not_wait_for_targets() {
    let receiver = CallbackTarget::start().await;
    receiver.respond([TargetResponse::Hang, TargetResponse::Hang]);
    let to = target("crm", format!("http://{}/", receiver.address), "");
    let closed = target("gone", format!("http://{}/", crate::harness::closed_port()), "");
    let proxy = TestProxy::start_with_config(&config(&(to + &closed))).await;
    for number in 0..5 {
        assert_eq!(push(&proxy, &event("x", number)).await.status, StatusCode::OK);
    }
}

/// A message, and the secret of a suite, are authorized only by the whole body. While that does not come, a client with a
/// key gets the place.
#[tokio::test]
async fn incomplete_bodies_block_no_authenticated_client() {
    for target in ["/callbacks/hr", "/cgi-bin/service/get_suite_token"] {
        let toml = config("").replacen("[server]", "[server]\nmax_connections = 4", 1) + SUITE;
        let proxy = TestProxy::start_with_config(&toml).await;
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n<");
        let mut incomplete = Vec::new();
        for _ in 0..4 {
            let mut connection = RawConnection::connect(proxy.address()).await;
            connection.send(&head).await.expect("sent");
            incomplete.push(connection);
        }
        let mut client = TestClient::connect_http1(proxy.address()).await;
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", "key-of-desktop-0000000000");
        client.request(request, "").await.assert_ok();
        // The first one was closed for it, instead of being answered once its time was up.
        let (received, _) = incomplete[0].read_to_end().await;
        assert_eq!(String::from_utf8_lossy(&received), "", "{target}");
    }
}

/// Who recorded a push, or its body alone, must not get it decrypted by a verification.
#[tokio::test]
async fn verification_decrypts_no_message() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    for message in [event("change_contact", 1), " {\"msgtype\":\"text\"}".to_owned()] {
        let query = console(&proxy).verification_query(&message);
        let response = proxy.request(Request::get(format!("/callbacks/hr?{query}")), "").await;
        assert_eq!(response.status, StatusCode::BAD_REQUEST);
        assert!(!response.text().contains("msgtype") && !response.text().contains("change_contact"));
    }
}
