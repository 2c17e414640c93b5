//! Tickets: fetched once however many ask, and kept.

use std::{fs, sync::Arc, time::Duration};

use http::Request;
use tokio::task::JoinHandle;
use wecom_proxy::simulator::{DropPoint, Fault};

use crate::{
    gettoken::{HR_SECRET, fetch_pass},
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, TestResponse, get_concurrently, wait_for,
    },
    raw_http::ManualUpstream,
};

const JSAPI: &str = "/cgi-bin/get_jsapi_ticket";
const AGENT_CONFIG: &str = "/cgi-bin/ticket/get?type=agent_config";
const BOTH: [&str; 2] = [JSAPI, AGENT_CONFIG];

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

/// How often WeCom was asked for this ticket.
fn fetch_count(stage: &TestProxy, target: &str) -> usize {
    stage.wecom.observe(|seen| seen.received_count(path_of(target)))
}

#[track_caller]
fn ticket_from_response(reply: &TestResponse) -> String {
    reply.assert_ok();
    let ticket = reply.json()["ticket"].as_str().unwrap_or_default().to_owned();
    assert!(!ticket.is_empty(), "{}", reply.text());
    ticket
}

#[tokio::test]
async fn tickets_are_cached_per_agent() {
    let stage = TestProxy::start_open().await;
    let mut tickets = Vec::new();
    for target in BOTH {
        for agent in ["hr", "ops"] {
            let ask = || stage.request(Request::get(format!("/{agent}{target}")), "");
            let first = ticket_from_response(&ask().await);
            assert_eq!(ticket_from_response(&ask().await), first);
            tickets.push(first);
        }
        assert_eq!(fetch_count(&stage, target), 2);
    }
    tickets.sort();
    tickets.dedup();
    assert_eq!(tickets.len(), 4);
}

#[tokio::test]
async fn two_hundred_clients_cause_one_fetch_per_ticket() {
    let stage = Arc::new(TestProxy::start_open().await);
    for target in BOTH {
        stage
            .wecom
            .inject(Fault::delay(Duration::from_millis(200)).on_path(path_of(target)))
            .expect("a fault");
        let mut tickets: Vec<_> =
            get_concurrently(&stage, 200, target).await.iter().map(ticket_from_response).collect();
        tickets.dedup();
        assert_eq!((tickets.len(), fetch_count(&stage, target)), (1, 1));
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn cached_ticket_returns_its_remaining_lifetime() {
    let stage = TestProxy::start_open().await;
    let first = ticket_from_response(&stage.get(JSAPI).await);
    let mut left = 7200;
    wait_for("a second to pass", async || {
        let reply = stage.get(JSAPI).await;
        let seconds = reply.json()["expires_in"].as_u64().expect("a number");
        let text = format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{first}","expires_in":{seconds}}}"#);
        assert_eq!(reply.text(), text);
        assert_eq!(reply.header("content-type"), "application/json; charset=UTF-8");
        assert!(seconds <= left && seconds >= 7180, "{seconds} after {left}");
        left = seconds;
        seconds < 7199
    })
    .await;
    assert_eq!(fetch_count(&stage, JSAPI), 1);
}

/// So many calls for a ticket on one connection, all of which the proxy has begun on.
async fn start_waiting_calls(stage: &TestProxy, count: usize) -> Vec<JoinHandle<TestResponse>> {
    let TestClient::Http2(connection) = TestClient::connect_http2(stage.address()).await else {
        unreachable!("it is HTTP/2")
    };
    let call = |path: &'static str| {
        let mut caller = TestClient::Http2(connection.clone());
        tokio::spawn(async move { caller.get(path).await })
    };
    let calls = (0..count).map(|_| call(JSAPI)).collect();
    // Its answer says that those before it on the connection were begun.
    call("/cgi-bin/user/get?userid=zhangsan").await.expect("no panic").assert_ok();
    calls
}

#[tokio::test]
async fn failed_ticket_is_shared_by_waiters_and_not_cached() {
    let stage = TestProxy::start_open().await;
    stage.wecom.inject(Fault::errcode(45009).on_path(JSAPI)).expect("a fault");
    stage.wecom.inject(Fault::hold().on_path(JSAPI)).expect("a fault");
    let callers = start_waiting_calls(&stage, 50).await;
    stage.wecom.wait_until(|seen| seen.received_count(JSAPI) == 1).await.expect("a fetch");
    stage.wecom.release_held();
    for caller in callers {
        let reply = caller.await.expect("no panic");
        assert_eq!((reply.status.as_u16(), reply.errcode()), (200, 45009), "{}", reply.text());
    }
    assert_eq!(fetch_count(&stage, JSAPI), 1);
    stage.wecom.reset();
    ticket_from_response(&stage.get(JSAPI).await);
}

#[tokio::test]
async fn aborted_ticket_fetch_fails_all_waiters_and_is_not_cached() {
    let stage = TestProxy::start_open().await;
    stage.wecom.inject(Fault::hold().on_path(JSAPI)).expect("a fault");
    stage.wecom.inject(Fault::drop(DropPoint::MidBody).on_path(JSAPI)).expect("a fault");
    let callers = start_waiting_calls(&stage, 20).await;
    stage.wecom.wait_until(|seen| seen.received_count(JSAPI) == 1).await.expect("a fetch");
    stage.wecom.release_held();
    for caller in callers {
        caller.await.expect("no panic").assert_proxy_error("upstream-broke", 502, -1);
    }
    assert_eq!(fetch_count(&stage, JSAPI), 1);
    ticket_from_response(&stage.get(JSAPI).await);
}

#[tokio::test]
async fn slow_ticket_response_times_out_for_all_waiters() {
    let mut puppet = ManualUpstream::new().await;
    let bounds = "connect_timeout = \"200ms\"\nresponse_timeout = \"200ms\"\nbody_timeout = \"200ms\"";
    let toml = OPEN_CONFIG.replace("[upstream]", &format!("[upstream]\n{bounds}"));
    let stage = TestProxy::start_with_upstream(puppet.address, &toml).await;
    let drip = async {
        let mut call = puppet.next_call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{";
        call.connection.send(head).await.expect("it is taken");
        // Never silent for long, and never done.
        let mut drips = tokio::time::interval(Duration::from_millis(50));
        while call.connection.send(" ").await.is_ok() {
            drips.tick().await;
        }
    };
    let (one, other, ()) = tokio::join!(stage.get(JSAPI), stage.get(JSAPI), drip);
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [502, 504], "one has waited for the other");
}

#[tokio::test]
async fn aborting_client_does_not_fail_other_ticket_waiters() {
    let stage = Arc::new(TestProxy::start_open().await);
    stage.wecom.inject(Fault::hold().on_path(JSAPI).times(1)).expect("a fault");
    let first = tokio::spawn({
        let stage = stage.clone();
        async move { stage.get(JSAPI).await }
    });
    stage.wecom.wait_until(|seen| seen.received_count(JSAPI) == 1).await.expect("a fetch");
    let others = start_waiting_calls(&stage, 20).await;
    first.abort();
    let mut tickets: Vec<_> = Vec::new();
    for other in others {
        tickets.push(ticket_from_response(&other.await.expect("no panic")));
    }
    tickets.dedup();
    assert_eq!(tickets.len(), 1);
    assert_eq!(fetch_count(&stage, JSAPI), 2);
}

#[tokio::test]
async fn ticket_without_a_token_returns_the_token_error() {
    let stage = Arc::new(TestProxy::start_open().await);
    stage.wecom.reset_secret("hr", "another").expect("an agent");
    for reply in get_concurrently(&stage, 30, JSAPI).await {
        reply.assert_proxy_error("token-unavailable", 502, 40001);
    }
    assert_eq!(fetch_count(&stage, JSAPI), 0);
    assert_eq!(stage.wecom.observe(|seen| seen.gettoken_count()), 1);
}

#[tokio::test]
async fn refused_token_is_refreshed_for_a_ticket() {
    let stage = TestProxy::start_open().await;
    stage.get("/cgi-bin/user/get?userid=zhangsan").await.assert_ok();
    stage.wecom.revoke_tokens("hr").expect("an agent");
    let reply = stage.get(JSAPI).await;
    ticket_from_response(&reply);
    assert_eq!(reply.header("x-wecom-retried"), "40014");
}

#[tokio::test]
async fn tickets_are_dropped_only_when_the_secret_changes() {
    let stage = TestProxy::start_open().await;
    let before =
        [ticket_from_response(&stage.get(JSAPI).await), ticket_from_response(&stage.get(AGENT_CONFIG).await)];
    stage.app.reload().expect("a reload");
    assert_eq!(
        [ticket_from_response(&stage.get(JSAPI).await), ticket_from_response(&stage.get(AGENT_CONFIG).await)],
        before
    );
    assert_eq!(fetch_count(&stage, JSAPI), 1);
    let secret = "not-a-secret-hr-1111111111111111111111111111";
    stage.wecom.reset_secret("hr", secret).expect("an agent");
    let path = stage.rewrite_config(OPEN_CONFIG);
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, text.replace(HR_SECRET, secret)).expect("a file");
    stage.app.reload().expect("a reload");
    let after =
        [ticket_from_response(&stage.get(JSAPI).await), ticket_from_response(&stage.get(AGENT_CONFIG).await)];
    assert!(after[0] != before[0] && after[1] != before[1]);
    assert_eq!(fetch_count(&stage, JSAPI), 2);
}

#[tokio::test]
async fn ticket_request_with_extra_parameters_is_not_cached() {
    let stage = TestProxy::start_open().await;
    for target in [
        "/cgi-bin/get_jsapi_ticket?debug=1",
        "/cgi-bin/ticket/get?type=wx_card",
        "/cgi-bin/ticket/get?type=agent_config&debug=1",
        "/cgi-bin/ticket/get",
    ] {
        let before = fetch_count(&stage, target);
        for _ in 0..2 {
            assert_eq!(stage.get(target).await.status, 200);
        }
        assert_eq!(fetch_count(&stage, target), before + 2, "{target}");
    }
}

#[tokio::test]
async fn ticket_by_pass_forwards_no_client_headers() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&stage, "hr", "billing").await;
    let request = Request::get(format!("{JSAPI}?access_token={pass}")).header("x-of-the-caller", "1");
    ticket_from_response(&stage.request(request, "").await);
    let record = stage.last_request(JSAPI);
    assert_eq!(record.query, "access_token=token#1");
    assert!(record.header_values("x-of-the-caller").is_empty());
}

#[tokio::test]
async fn cached_ticket_is_returned_only_to_allowed_clients() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let ask = |client: &str, target: &str| {
        stage.request(
            Request::get(target.to_owned()).header("x-api-key", crate::harness::client_key(client)),
            "",
        )
    };
    ticket_from_response(&ask("crm", &format!("/hr{JSAPI}")).await);
    ticket_from_response(&ask("billing", JSAPI).await);
    ask("narrow", JSAPI).await.assert_proxy_error("forbidden", 403, 48002);
    stage.get(JSAPI).await.assert_proxy_error("unauthenticated", 401, 40001);
    ask("billing", &format!("/ops{JSAPI}")).await.assert_proxy_error("unknown-agent", 404, 40035);
    assert_eq!(fetch_count(&stage, JSAPI), 1);
}
