//! The spans of gettoken: below the request that caused it, or traces of their own.

use http::Request;
use serde_json::{Value, json};
use wecom_proxy::simulator::Fault;

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy, USER_GET},
    otlp_receiver::OtlpReceiver,
    tracing::{GETTOKEN, config_with_otlp, spans_named, spans_of_kind},
};

const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

async fn start() -> (OtlpReceiver, TestProxy) {
    let receiver = OtlpReceiver::start(&[]).await;
    let proxy = TestProxy::start_with_config(&config_with_otlp(OPEN_CONFIG, &receiver.http)).await;
    (receiver, proxy)
}

#[track_caller]
fn gettoken_span(spans: &[Value]) -> &Value {
    let [gettoken] = spans_named(spans, GETTOKEN)[..] else { panic!("{spans:#?}") };
    assert_eq!(gettoken["kind"], "SPAN_KIND_CLIENT");
    gettoken
}

#[tokio::test]
async fn gettoken_is_a_client_span_of_the_request_that_caused_it() {
    let (receiver, proxy) = start().await;
    proxy.get(USER_GET).await.assert_ok();
    let spans = receiver.wait_for_spans(4).await;
    let request = spans_of_kind(&spans, "SPAN_KIND_SERVER")[0];
    let gettoken = gettoken_span(&spans);
    assert_eq!((&gettoken["trace_id"], &gettoken["parent"]), (&request["trace_id"], &request["span_id"]));
    let upstream = proxy.wecom.api_addr();
    let expected = json!({
        "http.request.method": "GET", "url.full": format!("http://{upstream}/cgi-bin/gettoken"),
        "url.template": "/cgi-bin/gettoken", "server.address": "127.0.0.1", "server.port": upstream.port(),
        "wecom.refresh_reason": "first", "wecom.agent": "hr", "wecom.errcode": 0,
    });
    assert_eq!((&gettoken["attributes"], &gettoken["status"]), (&expected, &json!("STATUS_CODE_UNSET")));
}

#[tokio::test]
async fn refused_secret_shows_its_errcode_and_the_route_of_the_request() {
    let (receiver, proxy) = start().await;
    proxy.wecom.inject(Fault::errcode(40001).on_path("/cgi-bin/gettoken")).expect("a fault");
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let spans = receiver.wait_for_spans(3).await;
    let gettoken = gettoken_span(&spans);
    let attributes = &gettoken["attributes"];
    assert_eq!((&attributes["wecom.errcode"], &attributes["error.type"]), (&json!(40001), &json!("40001")));
    assert_eq!(gettoken["status"], "STATUS_CODE_ERROR");
    let request = spans_of_kind(&spans, "SPAN_KIND_SERVER")[0];
    assert_eq!(request["attributes"]["http.route"], "/cgi-bin/user/get");
    assert_eq!(request["name"], "GET /cgi-bin/user/get");
}

#[tokio::test]
async fn gettoken_without_a_request_is_a_trace_of_its_own() {
    let (receiver, proxy) = start().await;
    let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
    admin
        .request(Request::post("/api/agents/hr/refresh").header("content-type", "application/json"), "")
        .await;
    let spans = receiver.wait_for_spans(1).await;
    let gettoken = gettoken_span(&spans);
    assert_eq!((&gettoken["parent"], &gettoken["links"]), (&json!(""), &json!([])));
    assert_eq!(gettoken["attributes"]["wecom.refresh_reason"], "asked");
}

#[tokio::test]
async fn unsampled_cause_is_linked_and_kept_only_if_it_failed() {
    let (receiver, proxy) = start().await;
    let request = Request::get(format!("/hr{USER_GET}")).header("traceparent", UNSAMPLED);
    proxy.request(request, "").await.assert_ok();
    let spans = receiver.wait_for_spans(1).await;
    let gettoken = gettoken_span(&spans);
    assert_ne!(gettoken["trace_id"], &UNSAMPLED[3..35]);
    assert_eq!(gettoken["links"][0][0], &UNSAMPLED[3..35]);

    // WeCom refuses the call: its trace is exported, whatever its caller decided.
    proxy.wecom.inject(Fault::errcode(48002).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    proxy.request(Request::get(format!("/hr{USER_GET}")).header("traceparent", UNSAMPLED), "").await;
    let spans = receiver.wait_for_spans(3).await;
    let request = spans_of_kind(&spans, "SPAN_KIND_SERVER")[0];
    assert_eq!(
        (&request["trace_id"], &request["parent"]),
        (&json!(UNSAMPLED[3..35]), &json!(UNSAMPLED[36..52]))
    );
    assert_eq!(request["attributes"]["wecom.errcode"], 48002);
    // So is one that was retried, with the gettoken that its refusal caused below it.
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let retried =
        proxy.request(Request::get(format!("/hr{USER_GET}")).header("traceparent", UNSAMPLED), "").await;
    assert_eq!(retried.header("x-wecom-retried"), "40014");
    let spans = receiver.wait_for_spans(3 + 5).await;
    let requests = spans_of_kind(&spans, "SPAN_KIND_SERVER");
    let refused = spans_named(&spans, GETTOKEN)[1];
    assert_eq!(
        (&refused["trace_id"], &refused["parent"]),
        (&requests[1]["trace_id"], &requests[1]["span_id"])
    );
}
