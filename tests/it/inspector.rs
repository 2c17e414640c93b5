//! The last exchanges: looked into afterwards, and followed as they come.

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
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, client_key,
        wait_for, with_timeout,
    },
    leak_detector,
    raw_http::RawConnection,
};

async fn admin_get(stage: &TestProxy, path: &str) -> TestResponse {
    TestClient::connect_http1(stage.admin_address()).await.request(Request::get(path), "").await
}

/// What is kept that passes this filter, once there are so many.
async fn wait_for_exchanges(stage: &TestProxy, query: &str, many: usize) -> Vec<Value> {
    let mut found = Vec::new();
    wait_for(query, async || {
        let reply = admin_get(stage, &format!("/api/requests?{query}")).await.json();
        found = reply["requests"].as_array().unwrap_or_else(|| panic!("{reply}")).clone();
        found.len() == many
    })
    .await;
    found
}

async fn get_as_client(stage: &TestProxy, client: &str, path: &str) -> TestResponse {
    let request = Request::get(path).header("authorization", format!("Bearer {}", client_key(client)));
    stage.request(request, "").await
}

/// Somebody who follows the stream.
struct StreamFollower {
    body: Incoming,
    text: String,
}

impl StreamFollower {
    async fn start(stage: &TestProxy, query: &str) -> Self {
        let stream = TcpStream::connect(stage.admin_address()).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        let request = Request::get(format!("/api/requests/stream{query}")).header("host", "localhost");
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new()).expect("a request"))
            .await
            .expect("an answer");
        assert_eq!(
            (response.status(), &response.headers()["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().expect("a value"))
        );
        let mut follower = Self { body: response.into_body(), text: String::new() };
        // From the first words on, it is told of all that comes.
        assert!(follower.next_event().await.expect("words").starts_with(": "));
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

#[tokio::test]
async fn exchange_is_recorded_with_the_access_log_fields() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    get_as_client(&stage, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    stage.wecom.revoke_tokens("hr").expect("an agent");
    get_as_client(&stage, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    stage.request(Request::get(format!("/hr{USER_GET}")).header("x-request-id", "mine-1"), "").await;
    let all = wait_for_exchanges(&stage, "", 3).await;
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
    assert!(refused["reason"].as_str().is_some_and(|words| words.contains("send your key")), "{refused}");
    assert_eq!((&refused["client"], &refused["agent"]), (&Value::Null, &Value::Null));
    let text = Value::from(all.clone()).to_string();
    assert!(
        !text.contains("userid") && !text.contains("access_token=") && !text.contains("key-of"),
        "{text}"
    );
}

#[tokio::test]
async fn exchange_filters_and_limit_apply() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    get_as_client(&stage, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    get_as_client(&stage, "crm", &format!("/ops{USER_GET}")).await.assert_ok();
    stage.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/department/list")).expect("a fault");
    get_as_client(&stage, "crm", "/ops/cgi-bin/department/list").await;
    stage.get(USER_GET).await;
    assert_eq!(wait_for_exchanges(&stage, "", 4).await[0]["status"], 401, "the newest comes first");
    for (query, many) in [
        ("agent=hr", 1),
        ("agent=ops", 2),
        ("agent=", 1),
        ("client=crm", 2),
        ("client=nobody", 0),
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
        wait_for_exchanges(&stage, query, many).await;
    }
    for wrong in ["status=abc", "limit=-1", "errcode=", "who=me"] {
        let reply = admin_get(&stage, &format!("/api/requests?{wrong}")).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn exchanges_are_bounded_by_admin_recent() {
    let stage = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "[admin]\nrecent = 3")).await;
    for nth in 0..8 {
        stage.get(&format!("/cgi-bin/simulator/echo/{nth}")).await;
    }
    wait_for("the last one", async || {
        let newest = admin_get(&stage, "/api/requests").await.json()["requests"][0]["path"].clone();
        newest == "/hr/cgi-bin/simulator/echo/7"
    })
    .await;
    let paths: Vec<_> =
        wait_for_exchanges(&stage, "", 3).await.iter().map(|it| it["path"].to_string()).collect();
    assert!(paths[2].ends_with("/5\""), "{paths:?}");

    let stage = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "[admin]\nrecent = 0")).await;
    stage.get(USER_GET).await.assert_ok();
    assert_eq!(wait_for_exchanges(&stage, "", 0).await.len(), 0);
}

#[tokio::test]
async fn stream_follower_gets_matching_exchanges_live() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    wait_for_exchanges(&stage, "", 1).await;
    let (mut all, mut of_ops) =
        (StreamFollower::start(&stage, "").await, StreamFollower::start(&stage, "?agent=ops").await);
    stage.get("/cgi-bin/user/get?userid=first").await;
    assert_eq!(all.next_exchange().await["agent"], "hr", "what was there before is not told");
    stage.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    assert_eq!(all.next_exchange().await["agent"], "ops");
    assert_eq!(of_ops.next_exchange().await["agent"], "ops");
    assert_eq!(admin_get(&stage, "/api/requests/stream?limit=3").await.status, StatusCode::BAD_REQUEST);
    let head = TestClient::connect_http1(stage.admin_address())
        .await
        .request(Request::head("/api/requests/stream"), "")
        .await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn slow_stream_follower_gets_the_lost_count() {
    let stage = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", "[admin]\nrecent = 2")).await;
    let mut follower = StreamFollower::start(&stage, "").await;
    // Far more than is kept, and faster than anybody is told.
    let mut caller = RawConnection::connect(stage.address()).await;
    let many = 400;
    let request = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n");
    caller.send(request.repeat(many)).await.expect("the proxy reads");
    let (mut told, mut lost) = (0, 0);
    while told + lost < many as u64 {
        let event = follower.next_event().await.expect("an event");
        match event.strip_prefix("event: lost\ndata: ") {
            Some(data) => {
                let data: Value = serde_json::from_str(data).expect("JSON");
                lost += data["lost"].as_u64().expect("a number");
            }
            None => {
                assert!(event.starts_with("data: "), "{event:?} after {told} told and {lost} lost");
                told += 1;
            }
        }
    }
    assert!(lost > 0 && told > 0 && told + lost == many as u64, "{told} told, {lost} lost");
}

#[tokio::test]
async fn stream_followers_are_bounded_and_slots_are_released() {
    let stage = TestProxy::start_open().await;
    let mut followers = Vec::new();
    for _ in 0..32 {
        followers.push(StreamFollower::start(&stage, "").await);
    }
    let status = async || admin_get(&stage, "/api/requests/stream?errcode=1").await.status;
    assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
    followers.truncate(31);
    wait_for("a place", async || {
        let head = TestClient::connect_http1(stage.admin_address())
            .await
            .request(Request::head("/api/requests/stream"), "")
            .await;
        head.status == StatusCode::OK
    })
    .await;
    StreamFollower::start(&stage, "").await;
}

#[tokio::test]
async fn exchange_stream_ends_at_shutdown() {
    let stage = TestProxy::start_open().await;
    let mut follower = StreamFollower::start(&stage, "").await;
    let TestProxy { app, .. } = stage;
    let (drained, end) = tokio::join!(with_timeout(app.shutdown()), follower.next_event());
    assert!(drained);
    assert_eq!(end, None);
}

#[tokio::test]
async fn aborted_exchange_is_recorded() {
    let stage = TestProxy::start_open().await;
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("the proxy reads");
    stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
    drop(line);
    let left = &wait_for_exchanges(&stage, "status=0", 1).await[0];
    assert_eq!((&left["whole"], &left["bytes"]), (&false.into(), &0.into()), "{left}");
    assert!(Duration::from_secs_f64(left["total_ms"].as_f64().expect("a number") / 1000.0) > Duration::ZERO);
    stage.wecom.release_held();
}

#[tokio::test]
async fn exchange_detail_is_captured_only_while_inspecting() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let inspect = async |how_long: &str| {
        let order = Request::post(format!("/api/agents/hr/inspect?for={how_long}"));
        let order = order.header("content-type", "application/json");
        assert_eq!(
            TestClient::connect_http1(stage.admin_address()).await.request(order, "").await.status,
            StatusCode::OK
        );
    };
    let send = async |id: &str, body: String| {
        let request = Request::post("/hr/cgi-bin/simulator/echo").header("x-request-id", id);
        let request = request.header("authorization", format!("Bearer {}", client_key("crm")));
        stage.request(request.header("content-type", "text/plain"), body).await.assert_ok();
        wait_for_exchanges(&stage, &format!("id={id}"), 1).await.remove(0)["detail"].clone()
    };
    assert_eq!(send("before", "a body".to_owned()).await, Value::Null);
    inspect("10m").await;
    let seen = send("during", "a body".to_owned()).await;
    assert_eq!(
        (&seen["request"]["body"], &seen["request"]["cut"]),
        (&"a body".into(), &false.into()),
        "{seen}"
    );
    assert!(seen["answer"]["body"].as_str().is_some_and(|body| body.contains("body_bytes")), "{seen}");
    assert_eq!(seen["tries"].as_array().map(Vec::len), Some(1));

    // A key across the place where the body is cut shows nothing of itself, and what is long comes in pieces.
    let long = format!("{} {} {}", "x".repeat(4090), client_key("billing"), "y ".repeat(200_000));
    let seen = send("long", long).await;
    let body = seen["request"]["body"].as_str().expect("a text");
    assert!(body.ends_with("x [masked]") && body.len() < 4200, "{}", &body[4000..]);
    assert_eq!(seen["request"]["cut"], true);

    inspect("0s").await;
    assert_eq!(send("after", "a body".to_owned()).await, Value::Null);
}

/// Ways in which a program may write a secret into a request, beside writing it as it is.
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

#[tokio::test]
async fn captured_exchange_masks_secrets_in_any_encoding() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let order = Request::post("/api/agents/hr/inspect?for=10m").header("content-type", "application/json");
    assert_eq!(
        TestClient::connect_http1(stage.admin_address()).await.request(order, "").await.status,
        StatusCode::OK
    );
    let crm = client_key("crm");
    for agent in ["hr", "ops"] {
        get_as_client(&stage, "crm", &format!("/{agent}{USER_GET}")).await.assert_ok();
    }
    let ticket = get_as_client(&stage, "crm", "/ops/cgi-bin/get_jsapi_ticket").await.json()["ticket"].clone();
    let gettoken = format!("/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={crm}");
    let pass = stage.request(Request::get(gettoken), "").await.json()["access_token"].clone();
    let settings = Settings::default();
    let mut secrets: Vec<_> = settings.agents.iter().map(|agent| agent.secret.clone()).collect();
    secrets.extend([&ticket, &pass].map(|secret| secret.as_str().expect("a text").to_owned()));
    secrets.extend(stage.wecom.issued_tokens().since(0));
    secrets.push(crm.clone());
    assert!(secrets.len() >= 7, "two secrets, two tokens, a ticket, a pass and a key");
    let known: Vec<_> = secrets.iter().map(String::as_str).collect();
    for (nth, secret) in secrets.iter().enumerate() {
        for (way, written) in secret_encodings(secret).into_iter().enumerate() {
            let id = format!("{nth}-{way}");
            let form =
                format!("--b\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\n{written}\r\n--b--\r\n");
            let echo =
                serde_json::json!({ "errcode": 0, "errmsg": written, "nested": [{ "note": written }] });
            let answer = Fault::response(200, "application/json", echo.to_string());
            stage.wecom.inject(answer.on_path("/cgi-bin/simulator/echo").times(1)).expect("a fault");
            // A pass, or the key that the caller shows, is refused in the query, unless it is encoded as nothing else is.
            let is_shown = [pass.as_str(), Some(&*crm)].contains(&Some(&**secret));
            let note = if is_shown { "access_token=x" } else { &written };
            let in_query = percent_encoding::utf8_percent_encode(note, percent_encoding::NON_ALPHANUMERIC);
            let request = Request::post(format!("/hr/cgi-bin/simulator/echo?note={in_query}"))
                .header("x-request-id", &id);
            let request = request.header("authorization", format!("Bearer {crm}")).header("x-note", &written);
            stage
                .request(request.header("content-type", "multipart/form-data; boundary=b"), form)
                .await
                .assert_ok();
            let exchange = wait_for_exchanges(&stage, &format!("id={id}"), 1).await.remove(0);
            let detail = &exchange["detail"];
            for place in [&detail["query"], &detail["request"]["body"], &detail["answer"]["body"]] {
                assert!(place.as_str().is_some_and(|text| text.contains("[masked]")), "{written}: {detail}");
            }
            let told = exchange.to_string();
            let found = leak_detector::find_secret(&told, &known);
            assert!(found.is_none() && !told.contains(&written), "{written}: {told}");
            let told = told.to_lowercase();
            assert!(known.iter().all(|known| !told.contains(&known.to_lowercase())), "{written}: {told}");
        }
    }

    // Half of a secret is none that is told either, nor one in the name of a header line.
    let half = &secrets[1][..30];
    let request =
        Request::post("/hr/cgi-bin/simulator/echo").header("x-request-id", "half").header(&crm, "1");
    let request = request.header("authorization", format!("Bearer {crm}"));
    stage.request(request, format!("a=1&b={half}")).await.assert_ok();
    let told = wait_for_exchanges(&stage, "id=half", 1).await[0]["detail"].to_string();
    assert!(told.contains("a=1&b=[masked]") && !told.contains(&half[..12]) && !told.contains(&crm), "{told}");
}
