//! OTLP traces, checked by a receiver that decodes them with OpenTelemetry's own library.

use std::{net::SocketAddr, time::Duration};

use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::Instant};
use wecom_proxy::simulator::{DropPoint, Fault, Settings, Simulator};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, client_key, wait_for,
    },
    otlp_receiver::OtlpReceiver,
    process::{Process, log_field},
    raw_http::{RawConnection, raw_get},
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_SPAN_ID: &str = "00f067aa0ba902b7";
pub(super) const GETTOKEN: &str = "GET /cgi-bin/gettoken";
const TOKEN: &str = "first-token-that-the-test-knows_0123456789";

/// The configuration with traces exported to `url`.
pub(super) fn config_with_otlp(toml: &str, url: &str) -> String {
    toml.replace("[admin]", &format!("[admin]\notlp = \"{url}\""))
}

async fn dropped_spans(proxy: &TestProxy) -> u64 {
    let metrics =
        TestClient::connect_http1(proxy.admin_address()).await.request(Request::get("/metrics"), "").await;
    let mut lines = metrics.text().lines();
    let value = lines.find_map(|line| line.strip_prefix("wecom_proxy_spans_dropped_total "));
    value.expect("the metric").parse().expect("a number")
}

pub(super) fn spans_of_kind<'a>(spans: &'a [Value], kind: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["kind"] == kind).collect()
}

pub(super) fn spans_named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

fn nanos(span: &Value, field: &str) -> u64 {
    span[field].as_u64().expect("a time")
}

/// Sends a request that is retried once, and returns its spans.
async fn retried_request_spans(proxy: &TestProxy, receiver: &OtlpReceiver) -> Vec<Value> {
    // The first token is known to the test and invalid at WeCom.
    let grant = json!({ "errcode": 0, "errmsg": "ok", "access_token": TOKEN, "expires_in": 7200 });
    let grant =
        Fault::response(200, "application/json", grant.to_string()).on_path("/cgi-bin/gettoken").times(1);
    proxy.wecom.inject(grant).expect("a fault");
    let request = Request::post(format!("/hr{ECHO}?access_token=hush-hush&x=query-of-it"))
        .header("x-api-key", client_key("billing"))
        .header("x-request-id", "night-shift-7")
        .header("host", "proxy.example:8443")
        .header("user-agent", "tests/1")
        .header("traceparent", format!("00-{TRACE_ID}-{PARENT_SPAN_ID}-01"))
        .header("Tracestate", "vendor=state-of-it")
        .header("baggage", "user=baggage-of-it");
    assert_eq!(proxy.request(request, "{}").await.header("x-wecom-retried"), "40014");
    receiver.wait_for_spans(7).await
}

async fn assert_retry_spans(grpc: bool) {
    let receiver = OtlpReceiver::start(&[]).await;
    let proxy = TestProxy::start_with_config(&config_with_otlp(
        CONFIG_WITH_CLIENTS,
        if grpc { &receiver.grpc } else { &receiver.http },
    ))
    .await;
    let spans = &retried_request_spans(&proxy, &receiver).await[..];
    let [request] = spans_of_kind(spans, "SPAN_KIND_SERVER")[..] else { panic!("{spans:#?}") };
    for span in spans {
        assert_span_within_request(span, request);
    }
    assert_request_span(request);
    assert_attempt_spans(spans, proxy.wecom.api_addr());
    assert_no_secret_in_traces(&receiver.process.out.text());
    for record in proxy.wecom.requests() {
        for (name, _) in record.headers {
            assert!(!["traceparent", "tracestate", "baggage"].contains(&&*name.to_lowercase()), "{name}");
        }
    }
    let delivery = &receiver.deliveries()[0];
    assert_eq!(delivery["by"], if grpc { "grpc" } else { "http" });
    if !grpc {
        let headers = &delivery["headers"];
        assert_eq!(
            (&headers[":path"], &headers["content-type"]),
            (&json!("/v1/traces"), &json!("application/x-protobuf"))
        );
    }
    assert_eq!(dropped_spans(&proxy).await, 0);
}

/// Asserts that a span is the request's span, or a child of it in its trace and within its time.
#[track_caller]
fn assert_span_within_request(span: &Value, request: &Value) {
    assert_eq!(span["trace_id"], TRACE_ID);
    let parent = if span == request { PARENT_SPAN_ID } else { request["span_id"].as_str().expect("an id") };
    assert_eq!(span["parent"], parent);
    assert_eq!(span["flags"], if span == request { 0x301 } else { 0x101 });
    assert!(nanos(request, "start") <= nanos(span, "start"), "{span:#?} in {request:#?}");
    assert!(nanos(span, "start") <= nanos(span, "end"), "{span:#?}");
    assert!(nanos(span, "end") <= nanos(request, "end"), "{span:#?} in {request:#?}");
    let resource = &span["resource"];
    assert_eq!(resource["service.name"], "wecom-proxy");
    assert_eq!(span["scope"], json!(["wecom-proxy", env!("CARGO_PKG_VERSION")]));
}

#[track_caller]
fn assert_request_span(request: &Value) {
    assert_eq!(
        (&request["name"], &request["status"]),
        (&json!(format!("POST {ECHO}")), &json!("STATUS_CODE_UNSET"))
    );
    let mut attributes = request["attributes"].clone();
    let size = attributes.as_object_mut().expect("attributes").remove("http.response.body.size");
    assert!(size.expect("a body size").as_u64().is_some_and(|size| size > 0));
    let expected = json!({
        "http.request.method": "POST", "http.response.status_code": 200, "http.route": ECHO,
        "url.scheme": "http", "url.path": format!("/hr{ECHO}"), "network.protocol.version": "1.1",
        "client.address": "127.0.0.1", "network.peer.address": "127.0.0.1", "user_agent.original": "tests/1",
        "server.address": "proxy.example", "server.port": 8443, "wecom.agent": "hr", "wecom.client": "billing",
        "wecom.retried": 40014, "wecom.request_id": "night-shift-7", "wecom.errcode": attributes["wecom.errcode"],
        "http.request.body.size": 2,
    });
    assert_eq!(attributes, expected);
}

/// Asserts the spans of both attempts, each after the span of its token.
#[track_caller]
fn assert_attempt_spans(spans: &[Value], upstream: SocketAddr) {
    let [first_token, second_token] = spans_named(spans, "token")[..] else { panic!("{spans:#?}") };
    for token in [first_token, second_token] {
        assert_eq!(token["attributes"], json!({ "wecom.agent": "hr", "wecom.client": "billing" }));
    }
    let attempts = spans_named(spans, &format!("POST {ECHO}"));
    let attempts: Vec<_> = attempts.into_iter().filter(|span| span["kind"] == "SPAN_KIND_CLIENT").collect();
    let [refused, retried] = attempts[..] else { panic!("{spans:#?}") };
    let [first, second] = spans_named(spans, GETTOKEN)[..] else { panic!("{spans:#?}") };
    assert_eq!(
        (&first["kind"], &first["attributes"]["wecom.refresh_reason"]),
        (&json!("SPAN_KIND_CLIENT"), &json!("first"))
    );
    assert_eq!(second["attributes"]["wecom.refresh_reason"], "refused");
    assert!(nanos(first_token, "end") <= nanos(refused, "start"));
    assert!(
        nanos(refused, "end") <= nanos(second_token, "start")
            && nanos(second_token, "end") <= nanos(retried, "start")
    );
    let expected = json!({
        "http.request.method": "POST", "http.response.status_code": 200, "url.full": format!("http://{upstream}{ECHO}"),
        "url.template": ECHO, "server.address": "127.0.0.1", "server.port": upstream.port(),
        "wecom.agent": "hr", "wecom.client": "billing", "wecom.errcode": 40014, "error.type": "40014",
    });
    assert_eq!((&refused["attributes"], &refused["status"]), (&expected, &json!("STATUS_CODE_ERROR")));
    assert_eq!(retried["attributes"]["http.request.resend_count"], 1);
    assert_eq!(
        (retried["attributes"].get("error.type"), &retried["status"]),
        (None, &json!("STATUS_CODE_UNSET"))
    );
}

/// Asserts that exported traces contain no credential, query or baggage of the request.
#[track_caller]
fn assert_no_secret_in_traces(text: &str) {
    let secret = Settings::default().agents[0].secret.clone();
    for secret in
        [&*client_key("billing"), "hush-hush", "query-of-it", "state-of-it", "baggage-of-it", TOKEN, &secret]
    {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn retried_request_is_a_span_tree_under_its_parent() {
    assert_retry_spans(false).await;
}

#[tokio::test]
async fn span_tree_is_exported_over_grpc() {
    assert_retry_spans(true).await;
}

#[tokio::test]
async fn queued_request_has_a_queue_span() {
    let receiver = OtlpReceiver::start(&[]).await;
    let toml = OPEN_CONFIG.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]");
    let proxy = TestProxy::start_with_config(&config_with_otlp(&toml, &receiver.http)).await;
    proxy.get(USER_GET).await.assert_ok();
    let before = receiver.wait_for_spans(4 + 1).await;
    // With a single permit every request passes the queue.
    assert_eq!(spans_named(&before, "queue").len(), 1);
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    let (mut first, mut second) =
        (TestClient::connect_http1(proxy.address()).await, TestClient::connect_http1(proxy.address()).await);
    let in_flight = tokio::spawn(async move { first.get(USER_GET).await });
    proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
    let started = Instant::now();
    let waiting = tokio::spawn(async move { second.get(ECHO).await });
    let permits = proxy.app.concurrency_limit();
    wait_for("the queued request", async || permits.queued() == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.wecom.release_held();
    in_flight.await.expect("no panic");
    waiting.await.expect("no panic");
    let total_nanos = started.elapsed().as_nanos() as u64;
    let spans = receiver.wait_for_spans(before.len() + 6).await;
    let queue_nanos =
        spans_named(&spans, "queue").into_iter().map(|span| nanos(span, "end") - nanos(span, "start"));
    let longest_nanos = queue_nanos.max().expect("a queue span");
    assert!((50_000_000..total_nanos).contains(&longest_nanos), "{longest_nanos} of {total_nanos}");
}

#[tokio::test]
async fn failed_spans_have_their_error_type() {
    let receiver = OtlpReceiver::start(&[]).await;
    let proxy = TestProxy::start_with_config(&config_with_otlp(OPEN_CONFIG, &receiver.http)).await;
    proxy
        .wecom
        .inject(Fault::drop(DropPoint::BeforeResponse).on_path("/cgi-bin/message/send"))
        .expect("a fault");
    proxy.post("/cgi-bin/message/send", "{}").await.assert_proxy_error("upstream-broke", 502, -1);
    let spans = receiver.wait_for_spans(4).await;
    for span in spans.iter().filter(|span| span["name"] == "POST /cgi-bin/message/send") {
        assert_eq!(
            (&span["attributes"]["error.type"], &span["status"]),
            (&json!("upstream-broke"), &json!("STATUS_CODE_ERROR"))
        );
    }
    let message =
        spans_of_kind(&spans, "SPAN_KIND_SERVER")[0]["message"].as_str().expect("a message").to_owned();
    assert!(message.contains("connection closed before the response"), "{message}");

    // A client error does not set the span status, and an unknown method is not part of the span name.
    proxy.request(Request::builder().method("HUSH").uri("/nowhere"), "").await.assert_proxy_error(
        "bad-request",
        400,
        40035,
    );
    let spans = receiver.wait_for_spans(5).await;
    let (span, attributes) = (&spans[4], &spans[4]["attributes"]);
    assert_eq!(
        (&span["name"], &span["status"], &span["parent"]),
        (&json!("HTTP"), &json!("STATUS_CODE_UNSET"), &json!(""))
    );
    assert_eq!(
        (&attributes["http.request.method"], &attributes["error.type"]),
        (&json!("_OTHER"), &json!("bad-request"))
    );

    // A client that aborts ends its open spans.
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
    connection.reset();
    let spans = receiver.wait_for_spans(7).await;
    for span in &spans[5..] {
        assert_eq!(
            (&span["attributes"]["error.type"], &span["status"]),
            (&json!("caller-left"), &json!("STATUS_CODE_UNSET"))
        );
        assert_eq!(span["attributes"].get("http.response.status_code"), None);
    }
}

#[tokio::test]
async fn busy_collector_is_retried_and_a_refusal_is_not() {
    for (grpc, results) in
        [(false, ["503", "429:1", "ok"]), (true, ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "ok"])]
    {
        let receiver = OtlpReceiver::start(&results[..2]).await;
        let proxy = TestProxy::start_with_config(&config_with_otlp(
            OPEN_CONFIG,
            if grpc { &receiver.grpc } else { &receiver.http },
        ))
        .await;
        let started = Instant::now();
        proxy.get(USER_GET).await.assert_ok();
        receiver.wait_for_spans(4).await;
        assert_eq!(receiver.results(), results);
        assert!(
            grpc || started.elapsed() >= Duration::from_millis(1400),
            "the collector asked for a delay of 1 s"
        );
        assert_eq!(dropped_spans(&proxy).await, 0);
    }
    for (grpc, refusal) in [(false, "400"), (true, "INVALID_ARGUMENT")] {
        let receiver = OtlpReceiver::start(&[refusal, "part"]).await;
        let proxy = TestProxy::start_with_config(&config_with_otlp(
            OPEN_CONFIG,
            if grpc { &receiver.grpc } else { &receiver.http },
        ))
        .await;
        proxy.get(USER_GET).await.assert_ok();
        receiver.wait_for_result(refusal).await;
        wait_for("the count", async || dropped_spans(&proxy).await == 4).await;
        proxy.get(USER_GET).await.assert_ok();
        receiver.wait_for_spans(2).await;
        wait_for("the count", async || dropped_spans(&proxy).await == 5).await;
    }
}

/// A proxy in its own process, with traces exported to `url`.
async fn start_proxy(url: &str) -> (Simulator, Process, TestClient, TempDir) {
    let toml =
        config_with_otlp(OPEN_CONFIG, url).replace("[upstream]", "shutdown_grace = \"1s\"\n[upstream]");
    let (wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let client = TestClient::connect_http1(proxy.address().await).await;
    (wecom, proxy, client, dir)
}

pub(super) async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address")
}

#[tokio::test]
async fn unreachable_collector_blocks_nothing_and_is_retried() {
    let address = free_port().await;
    let (_wecom, proxy, mut client, _dir) = start_proxy(&format!("http://{address}")).await;
    client.get(USER_GET).await.assert_ok();
    let line = proxy.err.wait_for_line("span export failed").await;
    assert!(
        line.contains(&format!("http://{address}/v1/traces")) && line.contains("cannot connect"),
        "{line}"
    );
    client.get(USER_GET).await.assert_ok();
    let receiver = OtlpReceiver::start(&["--port", &address.port().to_string()]).await;
    receiver.wait_for_spans(6).await;
    proxy.err.wait_for_line("span export recovered").await;
    let output = proxy.stop().await;
    assert_eq!(output.err.matches("span export failed").count(), 1, "{}", output.err);
    assert!(!output.err.contains("spans lost at shutdown"), "{}", output.err);
}

#[tokio::test]
async fn pending_spans_are_exported_at_exit() {
    let receiver = OtlpReceiver::start(&[]).await;
    let (_wecom, proxy, mut client, _dir) = start_proxy(&receiver.http).await;
    client.get(USER_GET).await.assert_ok();
    assert_eq!(proxy.stop().await.status, 0);
    receiver.wait_for_spans(4).await;
}

#[tokio::test]
async fn hanging_collector_blocks_neither_requests_nor_exit() {
    let receiver = OtlpReceiver::start(&["hang"]).await;
    let (_wecom, proxy, mut client, _dir) = start_proxy(&receiver.http).await;
    client.get(USER_GET).await.assert_ok();
    receiver.wait_for_result("hang").await;
    let started = Instant::now();
    client.get(USER_GET).await.assert_ok();
    let output = proxy.stop().await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(output.status == 0 && output.err.contains("spans lost at shutdown"), "{}", output.err);
}

#[tokio::test]
async fn unsampled_trace_is_only_logged() {
    let receiver = OtlpReceiver::start(&[]).await;
    let (_wecom, proxy, mut client, _dir) = start_proxy(&receiver.http).await;
    for (flags, id) in [("00", "night-shift-1"), ("01", "night-shift-2")] {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-request-id", id);
        client
            .request(request.header("traceparent", format!("00-{TRACE_ID}-{PARENT_SPAN_ID}-{flags}")), "")
            .await
            .assert_ok();
        assert_eq!(log_field(&proxy.err.wait_for_line(id).await, "trace_id"), TRACE_ID);
    }
    // The gettoken is a trace of its own: its cause is not exported.
    let spans = receiver.wait_for_spans(3).await;
    assert_eq!(
        spans_of_kind(&spans, "SPAN_KIND_SERVER")[0]["attributes"]["wecom.request_id"],
        "night-shift-2"
    );
}

#[tokio::test]
async fn secret_in_host_or_user_agent_is_not_exported() {
    let receiver = OtlpReceiver::start(&[]).await;
    let proxy = TestProxy::start_with_config(&config_with_otlp(CONFIG_WITH_CLIENTS, &receiver.http)).await;
    let (key, other) = (client_key("billing"), "0f".repeat(32));
    for (host, user_agent) in [(&*key, &*key), ("user:hush-hush@proxy.example", &other)] {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", &*key);
        proxy.request(request.header("host", host).header("user-agent", user_agent), "").await;
    }
    receiver.wait_for_spans(5).await;
    let exported = receiver.process.out.text();
    assert_no_secret_in_traces(&exported);
    assert!(!exported.contains(&other), "{exported}");
}
