//! What the log tells an operator about a request that went wrong.

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings, Simulator, When};

use crate::{
    process::Process,
    stage::{Caller, KEYED, key, write_config},
};

async fn logged() -> (Simulator, Process, Caller, TempDir) {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), KEYED)).await;
    let caller = Caller::http1(proxy.address().await).await;
    (wecom, proxy, caller, dir)
}

#[tokio::test]
async fn a_refusal_says_who_was_refused_and_why_on_one_line() {
    let (_wecom, proxy, mut caller, _dir) = logged().await;
    let request = Request::get("/nil/cgi-bin/user/get").header("x-api-key", key("crm"));
    caller.call(request.header("x-request-id", "night-shift-1"), "").await.is_own(
        "unknown-agent",
        404,
        40035,
    );
    let line = proxy.err.line("night-shift-1").await;
    for part in
        ["INFO access", "peer=127.0.0.1", "client=\"crm\"", "error=\"unknown-agent\"", "there is no agent"]
    {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[tokio::test]
async fn a_failure_of_the_upstream_is_a_warning_with_its_reason() {
    let (wecom, proxy, mut caller, _dir) = logged().await;
    wecom.inject(Fault::drop(When::Before).on("/cgi-bin/message/send")).expect("a fault");
    let request = Request::post("/hr/cgi-bin/message/send").header("x-api-key", key("crm"));
    let reply = caller.call(request.header("x-request-id", "night-shift-2"), "{}").await;
    reply.is_own("upstream-broke", 502, -1);
    let line = proxy.err.line("night-shift-2").await;
    for part in
        ["WARN access", "error=\"upstream-broke\"", "closed the connection without an answer", "agent=\"hr\""]
    {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[tokio::test]
async fn a_mistyped_query_leaves_no_secret_in_the_logged_path() {
    let (_wecom, proxy, mut caller, _dir) = logged().await;
    let request =
        Request::get("/hr/cgi-bin/gettoken&corpid=ww1&corpsecret=hush-hush").header("x-api-key", key("crm"));
    caller.call(request.header("x-request-id", "night-shift-3"), "").await;
    let line = proxy.err.line("night-shift-3").await;
    assert!(line.contains("path=\"/hr/cgi-bin/gettoken\""), "{line}");
    assert!(!proxy.err.now().contains("hush-hush"));
}
