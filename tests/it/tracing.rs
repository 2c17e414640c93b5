//! Traces as OpenTelemetry's own messages have them, at a receiver that reads them with its own library.

use std::{net::SocketAddr, process::Command, time::Duration};

use http::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::Instant};
use wecom_proxy::simulator::{DropPoint, Fault, Settings, Simulator};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, client_key, wait_for,
        write_config,
    },
    process::{Process, log_field, python},
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_SPAN_ID: &str = "00f067aa0ba902b7";
const TOKEN: &str = "first-token-that-the-test-knows_0123456789";
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The receiver, in a process of its own.
struct OtlpReceiver {
    process: Process,
    http: String,
    grpc: String,
}

impl OtlpReceiver {
    async fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(python());
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/otlp_receiver.py")).args(arguments);
        let process = Process::start(command);
        let ready = process.out.wait_for_line("ready").await;
        let [http, grpc] =
            ["http", "grpc"].map(|kind| format!("http://127.0.0.1:{}", log_field(&ready, kind)));
        Self { process, http, grpc: grpc + GRPC_PATH }
    }

    fn deliveries(&self) -> Vec<Value> {
        let out = self.process.out.text();
        let lines = out.split_inclusive('\n').filter(|line| line.starts_with('{') && line.ends_with('\n'));
        lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn results(&self) -> Vec<String> {
        self.deliveries().iter().map(|one| one["answer"].as_str().expect("one").to_owned()).collect()
    }

    /// Waits until so many spans were taken.
    async fn wait_for_spans(&self, count: usize) -> Vec<Value> {
        let mut spans = Vec::new();
        wait_for("spans", async || {
            let taken = self.deliveries();
            spans = taken.iter().filter_map(|one| one["spans"].as_array()).flatten().cloned().collect();
            spans.len() >= count
        })
        .await;
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    async fn wait_for_result(&self, answer: &str) {
        wait_for(answer, async || self.results().iter().any(|one| one == answer)).await;
    }
}

/// A configuration whose traces go there.
fn config_with_otlp(toml: &str, url: &str) -> String {
    toml.replace("[admin]", &format!("[admin]\notlp = \"{url}\""))
}

async fn dropped_spans(stage: &TestProxy) -> u64 {
    let text =
        TestClient::connect_http1(stage.admin_address()).await.request(Request::get("/metrics"), "").await;
    let mut lines = text.text().lines();
    let value = lines.find_map(|line| line.strip_prefix("wecom_proxy_spans_dropped_total "));
    value.expect("the metric").parse().expect("a number")
}

fn spans_of_kind<'a>(spans: &'a [Value], kind: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["kind"] == kind).collect()
}

fn spans_named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

fn nanos(span: &Value, edge: &str) -> u64 {
    span[edge].as_u64().expect("a time")
}

async fn assert_retry_spans(grpc: bool) {
    let receiver = OtlpReceiver::start(&[]).await;
    let stage = TestProxy::start_with_config(&config_with_otlp(
        CONFIG_WITH_CLIENTS,
        if grpc { &receiver.grpc } else { &receiver.http },
    ))
    .await;
    // The first token is known here, and not to WeCom.
    let grant = json!({ "errcode": 0, "errmsg": "ok", "access_token": TOKEN, "expires_in": 7200 });
    let grant =
        Fault::response(200, "application/json", grant.to_string()).on_path("/cgi-bin/gettoken").times(1);
    stage.wecom.inject(grant).expect("a fault");
    let call = Request::post(format!("/hr{ECHO}?access_token=hush-hush&x=query-of-it"))
        .header("x-api-key", client_key("billing"))
        .header("x-request-id", "night-shift-7")
        .header("traceparent", format!("00-{TRACE_ID}-{PARENT_SPAN_ID}-01"))
        .header("Tracestate", "vendor=state-of-it")
        .header("baggage", "user=baggage-of-it");
    assert_eq!(stage.request(call, "{}").await.header("x-wecom-retried"), "40014");
    let spans = &receiver.wait_for_spans(5).await[..];
    let [request] = spans_of_kind(spans, "SPAN_KIND_SERVER")[..] else { panic!("{spans:#?}") };
    for span in spans {
        assert_eq!(span["trace_id"], TRACE_ID);
        let parent =
            if span == request { PARENT_SPAN_ID } else { request["span_id"].as_str().expect("an id") };
        assert_eq!(span["parent"], parent);
        assert_eq!(span["flags"], if span == request { 0x301 } else { 0x101 });
        assert!(nanos(request, "start") <= nanos(span, "start"), "{spans:#?}");
        assert!(nanos(span, "start") <= nanos(span, "end"), "{spans:#?}");
        assert!(nanos(span, "end") <= nanos(request, "end"), "{spans:#?}");
        let resource = &span["resource"];
        assert_eq!(resource["service.name"], "wecom-proxy");
        assert_eq!(span["scope"], json!(["wecom-proxy", env!("CARGO_PKG_VERSION")]));
    }
    assert_eq!(
        (&request["name"], &request["status"]),
        (&json!(format!("POST {ECHO}")), &json!("STATUS_CODE_UNSET"))
    );
    let mut attributes = request["attributes"].clone();
    let size = attributes.as_object_mut().expect("some").remove("http.response.body.size");
    assert!(size.expect("its size").as_u64().is_some_and(|size| size > 0));
    let expected = json!({
        "http.request.method": "POST", "http.response.status_code": 200, "http.route": ECHO,
        "url.scheme": "http", "url.path": format!("/hr{ECHO}"), "network.protocol.version": "1.1",
        "client.address": "127.0.0.1", "wecom.agent": "hr", "wecom.client": "billing",
        "wecom.retried": 40014, "wecom.request_id": "night-shift-7", "wecom.errcode": attributes["wecom.errcode"],
        "http.request.body.size": 2,
    });
    assert_eq!(attributes, expected);

    let [first, token] = spans_named(spans, "token")[..] else { panic!("{spans:#?}") };
    for token in [first, token] {
        assert_eq!(token["attributes"], json!({ "wecom.agent": "hr", "wecom.client": "billing" }));
    }
    let [refused, answered] = spans_of_kind(spans, "SPAN_KIND_CLIENT")[..] else { panic!("{spans:#?}") };
    assert!(nanos(first, "end") <= nanos(refused, "start"));
    assert!(
        nanos(refused, "end") <= nanos(token, "start") && nanos(token, "end") <= nanos(answered, "start")
    );
    let upstream = stage.wecom.api_addr();
    let expected = json!({
        "http.request.method": "POST", "http.response.status_code": 200, "url.full": format!("http://{upstream}{ECHO}"),
        "url.template": ECHO, "server.address": "127.0.0.1", "server.port": upstream.port(),
        "wecom.agent": "hr", "wecom.client": "billing", "wecom.errcode": 40014, "error.type": "40014",
    });
    assert_eq!((&refused["attributes"], &refused["status"]), (&expected, &json!("STATUS_CODE_ERROR")));
    assert_eq!(answered["attributes"]["http.request.resend_count"], 1);
    assert_eq!(
        (answered["attributes"].get("error.type"), &answered["status"]),
        (None, &json!("STATUS_CODE_UNSET"))
    );

    let text = receiver.process.out.text();
    let secret = Settings::default().agents[0].secret.clone();
    for secret in
        [&*client_key("billing"), "hush-hush", "query-of-it", "state-of-it", "baggage-of-it", TOKEN, &secret]
    {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    for record in stage.wecom.requests() {
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
    assert_eq!(dropped_spans(&stage).await, 0);
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
    let stage = TestProxy::start_with_config(&config_with_otlp(&toml, &receiver.http)).await;
    stage.get(USER_GET).await.assert_ok();
    let before = receiver.wait_for_spans(3 + 1).await;
    // The only place is never common property.
    assert_eq!(spans_named(&before, "queue").len(), 1);
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    let (mut first, mut second) =
        (TestClient::connect_http1(stage.address()).await, TestClient::connect_http1(stage.address()).await);
    let held = tokio::spawn(async move { first.get(USER_GET).await });
    stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
    let began = Instant::now();
    let waiting = tokio::spawn(async move { second.get(ECHO).await });
    let places = stage.app.concurrency_limit();
    wait_for("its turn in the row", async || places.queued() == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    stage.wecom.release_held();
    held.await.expect("no panic");
    waiting.await.expect("no panic");
    let most = began.elapsed().as_nanos() as u64;
    let spans = receiver.wait_for_spans(before.len() + 6).await;
    let waited =
        spans_named(&spans, "queue").into_iter().map(|span| nanos(span, "end") - nanos(span, "start"));
    let longest = waited.max().expect("one");
    assert!((50_000_000..most).contains(&longest), "{longest} of {most}");
}

#[tokio::test]
async fn failed_spans_have_their_error_type() {
    let receiver = OtlpReceiver::start(&[]).await;
    let stage = TestProxy::start_with_config(&config_with_otlp(OPEN_CONFIG, &receiver.http)).await;
    stage
        .wecom
        .inject(Fault::drop(DropPoint::BeforeResponse).on_path("/cgi-bin/message/send"))
        .expect("a fault");
    stage.post("/cgi-bin/message/send", "{}").await.assert_proxy_error("upstream-broke", 502, -1);
    let spans = receiver.wait_for_spans(3).await;
    for span in spans.iter().filter(|span| span["name"] == "POST /cgi-bin/message/send") {
        assert_eq!(
            (&span["attributes"]["error.type"], &span["status"]),
            (&json!("upstream-broke"), &json!("STATUS_CODE_ERROR"))
        );
    }
    let message = spans_of_kind(&spans, "SPAN_KIND_SERVER")[0]["message"].as_str().expect("words").to_owned();
    assert!(message.contains("closed the connection without an answer"), "{message}");

    // A caller's own mistake is no error of the proxy's, and what it invents is no name.
    stage.request(Request::builder().method("HUSH").uri("/nowhere"), "").await.assert_proxy_error(
        "bad-request",
        400,
        40035,
    );
    let spans = receiver.wait_for_spans(4).await;
    let (span, attributes) = (&spans[3], &spans[3]["attributes"]);
    assert_eq!(
        (&span["name"], &span["status"], &span["parent"]),
        (&json!("HTTP"), &json!("STATUS_CODE_UNSET"), &json!(""))
    );
    assert_eq!(
        (&attributes["http.request.method"], &attributes["error.type"]),
        (&json!("_OTHER"), &json!("bad-request"))
    );

    // A caller who leaves ends what was begun.
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let address = stage.address();
    let mut caller = TestClient::connect_http1(address).await;
    let call = tokio::spawn(async move { caller.get(USER_GET).await });
    stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
    call.abort();
    let spans = receiver.wait_for_spans(6).await;
    for span in &spans[4..] {
        assert_eq!(
            (&span["attributes"]["error.type"], &span["status"]),
            (&json!("caller-left"), &json!("STATUS_CODE_UNSET"))
        );
        assert_eq!(span["attributes"].get("http.response.status_code"), None);
    }
}

#[tokio::test]
async fn busy_collector_is_retried_and_a_refusal_is_not() {
    for (grpc, answers) in
        [(false, ["503", "429:1", "ok"]), (true, ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "ok"])]
    {
        let receiver = OtlpReceiver::start(&answers[..2]).await;
        let stage = TestProxy::start_with_config(&config_with_otlp(
            OPEN_CONFIG,
            if grpc { &receiver.grpc } else { &receiver.http },
        ))
        .await;
        let began = Instant::now();
        stage.get(USER_GET).await.assert_ok();
        receiver.wait_for_spans(3).await;
        assert_eq!(receiver.results(), answers);
        assert!(grpc || began.elapsed() >= Duration::from_millis(1400), "it wanted a second for itself");
        assert_eq!(dropped_spans(&stage).await, 0);
    }
    for (grpc, refusal) in [(false, "400"), (true, "INVALID_ARGUMENT")] {
        let receiver = OtlpReceiver::start(&[refusal, "part"]).await;
        let stage = TestProxy::start_with_config(&config_with_otlp(
            OPEN_CONFIG,
            if grpc { &receiver.grpc } else { &receiver.http },
        ))
        .await;
        stage.get(USER_GET).await.assert_ok();
        receiver.wait_for_result(refusal).await;
        wait_for("the count", async || dropped_spans(&stage).await == 3).await;
        stage.get(USER_GET).await.assert_ok();
        receiver.wait_for_spans(2).await;
        wait_for("the count", async || dropped_spans(&stage).await == 4).await;
    }
}

/// A proxy in a process of its own, whose traces go there.
async fn start_proxy(url: &str) -> (Simulator, Process, TestClient, TempDir) {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let toml =
        config_with_otlp(OPEN_CONFIG, url).replace("[upstream]", "shutdown_grace = \"1s\"\n[upstream]");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let caller = TestClient::connect_http1(proxy.address().await).await;
    (wecom, proxy, caller, dir)
}

async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address")
}

#[tokio::test]
async fn unreachable_collector_blocks_nothing_and_is_retried() {
    let address = free_port().await;
    let (_wecom, proxy, mut caller, _dir) = start_proxy(&format!("http://{address}")).await;
    caller.get(USER_GET).await.assert_ok();
    let line = proxy.err.wait_for_line("span export failed").await;
    assert!(
        line.contains(&format!("http://{address}/v1/traces")) && line.contains("cannot connect"),
        "{line}"
    );
    caller.get(USER_GET).await.assert_ok();
    let receiver = OtlpReceiver::start(&["--port", &address.port().to_string()]).await;
    receiver.wait_for_spans(5).await;
    proxy.err.wait_for_line("span export recovered").await;
    let ended = proxy.stop().await;
    assert_eq!(ended.err.matches("span export failed").count(), 1, "{}", ended.err);
    assert!(!ended.err.contains("spans lost at shutdown"), "{}", ended.err);
}

#[tokio::test]
async fn pending_spans_are_exported_at_exit() {
    let receiver = OtlpReceiver::start(&[]).await;
    let (_wecom, proxy, mut caller, _dir) = start_proxy(&receiver.http).await;
    caller.get(USER_GET).await.assert_ok();
    assert_eq!(proxy.stop().await.status, 0);
    receiver.wait_for_spans(3).await;
}

#[tokio::test]
async fn hanging_collector_blocks_neither_requests_nor_exit() {
    let receiver = OtlpReceiver::start(&["hang"]).await;
    let (_wecom, proxy, mut caller, _dir) = start_proxy(&receiver.http).await;
    caller.get(USER_GET).await.assert_ok();
    receiver.wait_for_result("hang").await;
    let began = Instant::now();
    caller.get(USER_GET).await.assert_ok();
    let ended = proxy.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(ended.status == 0 && ended.err.contains("spans lost at shutdown"), "{}", ended.err);
}

#[tokio::test]
async fn unsampled_trace_is_only_logged() {
    let receiver = OtlpReceiver::start(&[]).await;
    let (_wecom, proxy, mut caller, _dir) = start_proxy(&receiver.http).await;
    for (flags, id) in [("00", "night-shift-1"), ("01", "night-shift-2")] {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-request-id", id);
        caller
            .request(request.header("traceparent", format!("00-{TRACE_ID}-{PARENT_SPAN_ID}-{flags}")), "")
            .await
            .assert_ok();
        assert_eq!(log_field(&proxy.err.wait_for_line(id).await, "trace_id"), TRACE_ID);
    }
    let spans = receiver.wait_for_spans(2).await;
    assert_eq!(
        spans_of_kind(&spans, "SPAN_KIND_SERVER")[0]["attributes"]["wecom.request_id"],
        "night-shift-2"
    );
}
