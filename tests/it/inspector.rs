//! The recent exchanges: listed, filtered, streamed live, and captured in detail.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, admin_get, client_key,
        get_as_client, wait_for, with_timeout,
    },
    leak_detector,
    raw_http::{RawConnection, raw_get},
};

/// The recorded exchanges that match this filter, once there are `count`.
pub(crate) async fn wait_for_exchanges(proxy: &TestProxy, query: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    wait_for(query, async || {
        let response = admin_get(proxy, &format!("/api/requests?{query}")).await.json();
        found = response["requests"].as_array().unwrap_or_else(|| panic!("{response}")).clone();
        found.len() == count
    })
    .await;
    found
}

/// A client of the exchange stream.
struct StreamFollower {
    body: Incoming,
    text: String,
}

impl StreamFollower {
    async fn start(proxy: &TestProxy, query: &str) -> Self {
        let stream = TcpStream::connect(proxy.admin_address()).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        let request = Request::get(format!("/api/requests/stream{query}")).header("host", "localhost");
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new()).expect("a request"))
            .await
            .expect("a response");
        assert_eq!(
            (response.status(), &response.headers()["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().expect("a value"))
        );
        let mut follower = Self { body: response.into_body(), text: String::new() };
        // After the first comment, every new exchange is delivered.
        assert!(follower.next_event().await.expect("a comment").starts_with(": "));
        follower
    }

    /// The next event, up to its empty line; `None` at the end.
    async fn next_event(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(event);
            }
            let frame = with_timeout(self.body.frame()).await?.expect("a whole body");
            self.text.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("UTF-8"));
        }
    }

    async fn next_exchange(&mut self) -> Value {
        let event = self.next_event().await.expect("an event");
        serde_json::from_str(event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event}"))).expect("JSON")
    }
}

/// An attempt that fails counts as WeCom's time in log, header, metric and page; so does one that the client leaves.
#[tokio::test]
async fn failed_attempt_is_timed_and_observed() {
    let config = OPEN_CONFIG.replace("[admin]", "response_timeout = \"1s\"\n[admin]");
    let proxy = TestProxy::start_with_config(&config).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let timed_out = proxy.get(ECHO).await;
    timed_out.assert_proxy_error("upstream-timeout", 504, -1);
    let header = timed_out.header("server-timing");
    let in_header: f64 =
        header.rsplit_once("upstream;dur=").map_or("", |(_, time)| time).parse().expect("a number");
    assert!(in_header >= 1000.0, "{header}");

    let mut leaving = RawConnection::connect(proxy.address()).await;
    leaving.send(format!("GET /hr{ECHO} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("sent");
    wait_for("the second call", async || {
        proxy.wecom.observe(|observed| observed.requests().filter(|record| record.path == ECHO).count() == 2)
    })
    .await;
    leaving.reset();

    let exchanges = wait_for_exchanges(&proxy, "", 3).await;
    for failed in &exchanges[..2] {
        let [upstream, total] = ["upstream_ms", "total_ms"].map(|field| failed[field].as_f64());
        assert!(upstream > Some(0.0) && upstream.map(|time| time + 500.0) > total, "{failed}");
    }
    let metrics = admin_get(&proxy, "/metrics").await;
    let count = "wecom_proxy_upstream_duration_seconds_count{agent=\"hr\"} 3\n";
    assert!(metrics.text().contains(count), "{}", metrics.text());
}

#[tokio::test]
async fn exchange_is_recorded_with_the_access_log_fields() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    proxy.request(Request::get(format!("/hr{USER_GET}")).header("x-request-id", "mine-1"), "").await;
    let all = wait_for_exchanges(&proxy, "", 3).await;
    let [refused, retried, first] = &all[..] else { panic!("{all:?}") };
    for (name, expected) in [
        ("method", "GET".into()),
        ("path", "/hr/cgi-bin/user/get".into()),
        ("agent", "hr".into()),
        ("client", "billing".into()),
        ("status", 200.into()),
        ("errcode", 0.into()),
        ("hint", Value::Null),
        ("retried", 40014.into()),
        ("error", Value::Null),
        ("reason", Value::Null),
        ("peer", "127.0.0.1".into()),
        ("whole", true.into()),
    ] {
        assert_eq!(retried[name], expected, "{name}: {retried}");
    }
    assert_eq!(first["retried"], Value::Null);
    assert!(first["bytes"].as_u64() > Some(10) && first["upstream_ms"].as_f64() > Some(0.0), "{first}");
    assert!(
        first["token_ms"].as_f64() > Some(0.0) && first["total_ms"].as_f64() > first["upstream_ms"].as_f64()
    );
    assert_eq!(refused["request_id"], "mine-1");
    assert_eq!((&refused["status"], &refused["error"]), (&401.into(), &"unauthenticated".into()));
    assert!(refused["reason"].as_str().is_some_and(|text| text.contains("send your key")), "{refused}");
    assert_eq!((&refused["client"], &refused["agent"]), (&Value::Null, &Value::Null));
    let text = Value::from(all.clone()).to_string();
    assert!(
        !text.contains("userid") && !text.contains("access_token=") && !text.contains("key-of"),
        "{text}"
    );
}

#[tokio::test]
async fn exchange_filters_and_limit_apply() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    get_as_client(&proxy, "crm", &format!("/ops{USER_GET}")).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/department/list")).expect("a fault");
    get_as_client(&proxy, "crm", "/ops/cgi-bin/department/list").await;
    proxy.get(USER_GET).await;
    assert_eq!(wait_for_exchanges(&proxy, "", 4).await[0]["status"], 401, "the newest comes first");
    for (query, count) in [
        ("agent=hr", 1),
        ("agent=ops", 2),
        ("agent=", 1),
        ("client=crm", 2),
        ("client=unknown", 0),
        ("errcode=0", 2),
        ("errcode=60020", 1),
        ("status=4xx", 1),
        ("status=200", 3),
        ("path=department%2Flist", 1),
        ("agent=ops&errcode=0", 1),
        ("limit=3", 3),
        ("limit=0", 0),
        ("limit=1000000", 4),
    ] {
        wait_for_exchanges(&proxy, query, count).await;
    }
    for invalid in ["status=abc", "limit=-1", "errcode=", "who=me"] {
        let response = admin_get(&proxy, &format!("/api/requests?{invalid}")).await;
        assert_eq!(response.status, StatusCode::BAD_REQUEST, "{invalid}");
    }
}

#[tokio::test]
async fn exchanges_are_bounded_by_admin_recent() {
    let proxy = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "[admin]\nrecent = 3")).await;
    for nth in 0..8 {
        proxy.get(&format!("/cgi-bin/simulator/echo/{nth}")).await;
    }
    wait_for("the last one", async || {
        let newest = admin_get(&proxy, "/api/requests").await.json()["requests"][0]["path"].clone();
        newest == "/hr/cgi-bin/simulator/echo/7"
    })
    .await;
    let paths: Vec<_> =
        wait_for_exchanges(&proxy, "", 3).await.iter().map(|exchange| exchange["path"].to_string()).collect();
    assert!(paths[2].ends_with("/5\""), "{paths:?}");

    let proxy = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "[admin]\nrecent = 0")).await;
    proxy.get(USER_GET).await.assert_ok();
    assert_eq!(wait_for_exchanges(&proxy, "", 0).await.len(), 0);
}

#[tokio::test]
async fn stream_follower_gets_matching_exchanges_live() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    wait_for_exchanges(&proxy, "", 1).await;
    let (mut all, mut of_ops) =
        (StreamFollower::start(&proxy, "").await, StreamFollower::start(&proxy, "?agent=ops").await);
    proxy.get("/cgi-bin/user/get?userid=first").await;
    assert_eq!(all.next_exchange().await["agent"], "hr", "earlier exchanges are not streamed");
    proxy.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    assert_eq!(all.next_exchange().await["agent"], "ops");
    assert_eq!(of_ops.next_exchange().await["agent"], "ops");
    assert_eq!(admin_get(&proxy, "/api/requests/stream?limit=3").await.status, StatusCode::BAD_REQUEST);
    let head = TestClient::connect_http1(proxy.admin_address())
        .await
        .request(Request::head("/api/requests/stream"), "")
        .await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn stream_outlives_a_flood_of_idle_admin_connections() {
    let proxy = TestProxy::start_open().await;
    let mut follower = StreamFollower::start(&proxy, "").await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(proxy.admin_address()).await.expect("a connection"));
    }
    assert_eq!(admin_get(&proxy, "/healthz").await.status, StatusCode::OK);
    proxy.get(USER_GET).await.assert_ok();
    assert_eq!(follower.next_exchange().await["agent"], "hr");
}

#[tokio::test]
async fn slow_stream_follower_gets_the_lost_count() {
    let proxy = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "[admin]\nrecent = 2")).await;
    let mut follower = StreamFollower::start(&proxy, "").await;
    // Many more exchanges than are kept, faster than they are streamed.
    let mut client = RawConnection::connect(proxy.address()).await;
    let count = 400;
    let request = raw_get(USER_GET);
    client.send(request.repeat(count)).await.expect("the proxy reads");
    let (mut delivered, mut lost) = (0, 0);
    while delivered + lost < count as u64 {
        let event = follower.next_event().await.expect("an event");
        match event.strip_prefix("event: lost\ndata: ") {
            Some(data) => {
                let data: Value = serde_json::from_str(data).expect("JSON");
                lost += data["lost"].as_u64().expect("a number");
            }
            None => {
                assert!(event.starts_with("data: "), "{event:?} after {delivered} delivered and {lost} lost");
                delivered += 1;
            }
        }
    }
    assert!(
        lost > 0 && delivered > 0 && delivered + lost == count as u64,
        "{delivered} delivered, {lost} lost"
    );
}

#[tokio::test]
async fn stream_followers_are_bounded_and_slots_are_released() {
    let proxy = TestProxy::start_open().await;
    let mut followers = Vec::new();
    for _ in 0..32 {
        followers.push(StreamFollower::start(&proxy, "").await);
    }
    let status = async || admin_get(&proxy, "/api/requests/stream?errcode=1").await.status;
    assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
    followers.truncate(31);
    wait_for("a free follower slot", async || {
        let head = TestClient::connect_http1(proxy.admin_address())
            .await
            .request(Request::head("/api/requests/stream"), "")
            .await;
        head.status == StatusCode::OK
    })
    .await;
    StreamFollower::start(&proxy, "").await;
}

#[tokio::test]
async fn exchange_stream_ends_at_shutdown() {
    let proxy = TestProxy::start_open().await;
    let mut follower = StreamFollower::start(&proxy, "").await;
    let TestProxy { app, .. } = proxy;
    let (drained, end) = tokio::join!(with_timeout(app.shutdown()), follower.next_event());
    assert!(drained);
    assert_eq!(end, None);
}

#[tokio::test]
async fn aborted_exchange_is_recorded() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(USER_GET)).await.expect("the proxy reads");
    proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
    connection.reset();
    let aborted = &wait_for_exchanges(&proxy, "status=0", 1).await[0];
    assert_eq!((&aborted["whole"], &aborted["bytes"]), (&false.into(), &0.into()), "{aborted}");
    assert!(
        Duration::from_secs_f64(aborted["total_ms"].as_f64().expect("a number") / 1000.0) > Duration::ZERO
    );
    proxy.wecom.release_held();
}

#[tokio::test]
async fn exchange_detail_is_captured_only_while_inspecting() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let inspect = async |duration: &str| {
        let request = Request::post(format!("/api/agents/hr/inspect?for={duration}"));
        let request = request.header("content-type", "application/json");
        assert_eq!(
            TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await.status,
            StatusCode::OK
        );
    };
    let send = async |id: &str, body: String| {
        let request = Request::post("/hr/cgi-bin/simulator/echo").header("x-request-id", id);
        let request = request.header("authorization", format!("Bearer {}", client_key("crm")));
        proxy.request(request.header("content-type", "text/plain"), body).await.assert_ok();
        wait_for_exchanges(&proxy, &format!("id={id}"), 1).await.remove(0)["detail"].clone()
    };
    assert_eq!(send("before", "a body".to_owned()).await, Value::Null);
    inspect("10m").await;
    let detail = send("during", "a body".to_owned()).await;
    assert_eq!(
        (&detail["request"]["body"], &detail["request"]["cut"]),
        (&"a body".into(), &false.into()),
        "{detail}"
    );
    assert!(detail["answer"]["body"].as_str().is_some_and(|body| body.contains("body_bytes")), "{detail}");
    assert_eq!(detail["tries"].as_array().map(Vec::len), Some(1));

    // A key at the truncation point is masked as a whole, also when the body arrives in several chunks.
    let long = format!("{} {} {}", "x".repeat(4090), client_key("billing"), "y ".repeat(200_000));
    let detail = send("long", long).await;
    let body = detail["request"]["body"].as_str().expect("a text");
    assert!(body.ends_with("x [masked]") && body.len() < 4200, "{}", &body[4000..]);
    assert_eq!(detail["request"]["cut"], true);

    inspect("0s").await;
    assert_eq!(send("after", "a body".to_owned()).await, Value::Null);
}

/// A secret as it is, and in the encodings in which a client may send it.
fn secret_encodings(secret: &str) -> Vec<String> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let percent = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let escaped: String = secret.chars().map(|char| format!("\\u{:04x}", u32::from(char))).collect();
    let entities: String = secret.chars().map(|char| format!("&#{};", u32::from(char))).collect();
    vec![
        secret.to_owned(),
        format!("glued{secret}glued"),
        percent(secret),
        percent(&percent(secret)),
        format!("https%3A%2F%2Fx%2F%3Fnote%3D{}", percent(&percent(secret))),
        escaped,
        entities,
        secret.to_uppercase(),
        format!("Basic {}", BASE64_STANDARD.encode(format!("someone:{secret}"))),
        BASE64_STANDARD.encode(format!("{{\"note\":\"{secret}\"}}")),
    ]
}

/// Sends a request with `note` in its query and `secret` in a header, its body and its response.
async fn send_secret(proxy: &TestProxy, id: &str, note: &str, secret: &str) {
    let form = format!("--b\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\n{secret}\r\n--b--\r\n");
    let echo = serde_json::json!({ "errcode": 0, "errmsg": secret, "nested": [{ "note": secret }] });
    let fault = Fault::response(200, "application/json", echo.to_string());
    proxy.wecom.inject(fault.on_path("/cgi-bin/simulator/echo").times(1)).expect("a fault");
    let in_query = percent_encoding::utf8_percent_encode(note, percent_encoding::NON_ALPHANUMERIC);
    let request =
        Request::post(format!("/hr/cgi-bin/simulator/echo?note={in_query}")).header("x-request-id", id);
    let request = request.header("authorization", format!("Bearer {}", client_key("crm")));
    let request = request.header("x-note", secret).header("content-type", "multipart/form-data; boundary=b");
    proxy.request(request, form).await.assert_ok();
}

#[tokio::test]
async fn captured_exchange_masks_secrets_in_any_encoding() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let inspect = Request::post("/api/agents/hr/inspect?for=10m").header("content-type", "application/json");
    assert_eq!(
        TestClient::connect_http1(proxy.admin_address()).await.request(inspect, "").await.status,
        StatusCode::OK
    );
    let crm = client_key("crm");
    for agent in ["hr", "ops"] {
        get_as_client(&proxy, "crm", &format!("/{agent}{USER_GET}")).await.assert_ok();
    }
    let ticket = get_as_client(&proxy, "crm", "/ops/cgi-bin/get_jsapi_ticket").await.json()["ticket"].clone();
    let gettoken = format!("/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={crm}");
    let pass = proxy.request(Request::get(gettoken), "").await.json()["access_token"].clone();
    let settings = Settings::default();
    let mut secrets: Vec<_> = settings.agents.iter().map(|agent| agent.secret.clone()).collect();
    secrets.extend([&ticket, &pass].map(|secret| secret.as_str().expect("a text").to_owned()));
    secrets.extend(proxy.wecom.issued_tokens().since(0));
    secrets.push(crm.clone());
    assert!(secrets.len() >= 7, "two secrets, two tokens, a ticket, a pass and a key");
    let known: Vec<_> = secrets.iter().map(String::as_str).collect();
    for (nth, secret) in secrets.iter().enumerate() {
        for (encoding, written) in secret_encodings(secret).into_iter().enumerate() {
            let id = format!("{nth}-{encoding}");
            // The request would be refused with the pass or the client's own key in its query.
            let is_credential = [pass.as_str(), Some(&*crm)].contains(&Some(&**secret));
            let note = if is_credential { "access_token=x" } else { &written };
            send_secret(&proxy, &id, note, &written).await;
            let exchange = wait_for_exchanges(&proxy, &format!("id={id}"), 1).await.remove(0);
            let detail = &exchange["detail"];
            for field in [&detail["query"], &detail["request"]["body"], &detail["answer"]["body"]] {
                assert!(field.as_str().is_some_and(|text| text.contains("[masked]")), "{written}: {detail}");
            }
            let json = exchange.to_string();
            let found = leak_detector::find_secret(&json, &known);
            assert!(found.is_none() && !json.contains(&written), "{written}: {json}");
            let json = json.to_lowercase();
            assert!(known.iter().all(|known| !json.contains(&known.to_lowercase())), "{written}: {json}");
        }
    }

    // A prefix of a secret, and a secret in a header name, are masked too.
    let half = &secrets[1][..30];
    let request =
        Request::post("/hr/cgi-bin/simulator/echo").header("x-request-id", "half").header(&crm, "1");
    let request = request.header("authorization", format!("Bearer {crm}"));
    proxy.request(request, format!("a=1&b={half}")).await.assert_ok();
    let detail = wait_for_exchanges(&proxy, "id=half", 1).await[0]["detail"].to_string();
    assert!(
        detail.contains("a=1&b=[masked]") && !detail.contains(&half[..12]) && !detail.contains(&crm),
        "{detail}"
    );
}

#[tokio::test]
async fn failed_exchanges_are_remembered_and_paged() {
    let config = OPEN_CONFIG
        .replace("[admin]", "[admin]\nrecent = 5\ntrace_url = \"https://traces.example/{trace_id}\"");
    let proxy = TestProxy::start_with_config(&config).await;
    proxy.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/user/get").times(3)).expect("a fault");
    for nth in 0..3 {
        proxy.get(&format!("{USER_GET}&nth={nth}&the-key-of-a-client-0123456789")).await;
    }
    for _ in 0..40 {
        proxy.get(USER_GET).await.assert_ok();
    }
    let ordinary = admin_get(&proxy, "/api/requests?errcode=0&limit=1000").await.json();
    let ordinary = ordinary["requests"].as_array().expect("a list").len();
    assert!((5..40).contains(&ordinary), "{ordinary} of 40");
    let failed = wait_for_exchanges(&proxy, "failed", 3).await;
    assert_eq!(failed[0]["failure"], "outage");
    let id = failed[0]["request_id"].as_str().expect("an id");
    let opened = admin_get(&proxy, &format!("/api/requests?id={id}")).await.json();
    assert_eq!(opened["requests"][0]["query_names"], serde_json::json!(["userid", "nth", "[masked]"]));
    for filter in ["errcode!=0", "failed=outage", "errcode=!0&method=get"] {
        assert_eq!(wait_for_exchanges(&proxy, filter, 3).await, failed, "{filter}");
    }
    for filter in [
        "failed=caller",
        "errcode!=60020&failed",
        "kind=overloaded",
        "slower_than=1h",
        "retried",
        "trace_id=x",
    ] {
        let found = admin_get(&proxy, &format!("/api/requests?{filter}")).await.json();
        assert_eq!((&found["requests"], &found["next"]), (&serde_json::json!([]), &Value::Null), "{filter}");
    }
    let first = admin_get(&proxy, "/api/requests?failed&limit=2").await.json();
    let next = first["next"].as_str().expect("a next page");
    let second = admin_get(&proxy, &format!("/api/requests?failed&limit=2&before={next}")).await.json();
    assert_eq!((&second["requests"][0], &second["next"]), (&failed[2], &Value::Null));
}
