//! WeCom's quotas: reported, and kept where `quotas.mode` is `shape`.

use std::time::{Duration, Instant};

use http::Request;
use serde_json::{Value, json};
use wecom_proxy::simulator::Fault;

use crate::{
    browser::Browser,
    harness::{OPEN_CONFIG, TestProxy, TestResponse, USER_GET, admin_get},
    raw_http::RawConnection,
};

const SEND: &str = "/cgi-bin/message/send";

pub(crate) fn config(mode: &str, rows: &[(&str, &str, &str)]) -> String {
    let rows = rows.iter().map(|(path, per, limit)| {
        format!("[[quotas.limit]]\npath = \"{path}\"\nper = \"{per}\"\nlimit = \"{limit}\"\n")
    });
    let rows: String = rows.collect();
    let toml = OPEN_CONFIG.replace("[upstream]", "[upstream]\nqueue_timeout = \"300ms\"");
    format!("{toml}[quotas]\nmode = \"{mode}\"\n{rows}")
}

pub(crate) async fn reported(proxy: &TestProxy) -> Vec<Value> {
    let response = admin_get(proxy, "/api/quotas").await;
    response.json()["quotas"].as_array().expect("a list").clone()
}

async fn send_to(proxy: &TestProxy, touser: &str) -> TestResponse {
    let body =
        json!({ "touser": touser, "msgtype": "text", "agentid": 1_000_002, "text": { "content": "hello" } });
    let request = Request::post(format!("/hr{SEND}")).header("content-type", "application/json");
    proxy.request(request, body.to_string()).await
}

/// The same for a client that asks for hints.
async fn debug_send(proxy: &TestProxy, touser: &str) -> TestResponse {
    let body =
        json!({ "touser": touser, "msgtype": "text", "agentid": 1_000_002, "text": { "content": "hello" } });
    proxy.request(Request::post(format!("/hr{SEND}")).header("x-wecom-debug", "1"), body.to_string()).await
}

#[tokio::test]
async fn usage_above_half_is_reported_with_the_time_left() {
    let rows = [("/cgi-bin/user/get", "corp", "10/m"), ("/cgi-bin/user/*", "agent", "100/m")];
    let proxy = TestProxy::start_with_config(&config("observe", &rows)).await;
    let name = "wecom_proxy_quota_used_ratio";
    for _ in 0..4 {
        proxy.get(USER_GET).await.assert_ok();
    }
    assert_eq!(reported(&proxy).await, [] as [Value; 0]);
    assert!(!admin_get(&proxy, "/metrics").await.text().contains(&format!("{name}{{")));
    // Another agent of the same company counts too.
    for _ in 0..4 {
        proxy.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    }
    let quotas = reported(&proxy).await;
    assert_eq!(quotas.len(), 1, "{quotas:?}");
    let expected = json!({ "quota": "corp 10/m /cgi-bin/user/get", "agent": "hr", "path": "/cgi-bin/user/get", "per": "corp", "limit": 10, "window_seconds": 60, "used": 8, "ratio": 0.8, "held_seconds": null });
    let mut shown = quotas[0].clone();
    let spent_in =
        shown.as_object_mut().expect("an object").remove("spent_in_seconds").expect("the time left");
    assert_eq!(shown, expected);
    assert!(spent_in.as_u64().is_some_and(|seconds| seconds < 60), "{spent_in}");
    let sample = format!("{name}{{agent=\"hr\",quota=\"corp 10/m /cgi-bin/user/get\"}} 0.8");
    assert!(admin_get(&proxy, "/metrics").await.text().contains(&sample));
    // Observed only.
    for _ in 0..4 {
        proxy.get(USER_GET).await.assert_ok();
    }
    assert_eq!(reported(&proxy).await[0]["spent_in_seconds"], 0);
}

#[tokio::test]
async fn off_counts_nothing() {
    let proxy = TestProxy::start_with_config(&config("off", &[("/cgi-bin/user/get", "corp", "2/m")])).await;
    for _ in 0..3 {
        proxy.get(USER_GET).await.assert_ok();
    }
    assert_eq!(reported(&proxy).await, [] as [Value; 0]);
}

#[tokio::test]
async fn shape_refuses_after_a_wait_what_would_spend_a_quota() {
    let rows = [("/cgi-bin/user/get", "corp", "10/m")];
    let proxy = TestProxy::start_with_config(&config("shape", &rows)).await;
    for _ in 0..9 {
        proxy.get(USER_GET).await.assert_ok();
    }
    let (before, start) = (proxy.forwarded_count(), Instant::now());
    let refused = proxy.get(USER_GET).await;
    refused.assert_proxy_error("rate-limited", 429, 45009);
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    assert!(refused.text().contains("corp 10/m /cgi-bin/user/get"), "{}", refused.text());
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=61).contains(&wait), "{wait}");
    assert_eq!(proxy.forwarded_count(), before);
    proxy.get("/cgi-bin/department/list").await.assert_ok();
}

#[tokio::test]
async fn shape_delays_a_request_until_the_window_has_room() {
    let toml = config("shape", &[("/cgi-bin/user/get", "agent", "20/s")]).replace("300ms", "20s");
    let proxy = TestProxy::start_with_config(&toml).await;
    let start = Instant::now();
    for _ in 0..40 {
        proxy.get(USER_GET).await.assert_ok();
    }
    // 18 a second at most, so the 37th comes two seconds after the first.
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn call_that_wecom_blocks_is_held_for_its_window() {
    let rows = [("/cgi-bin/user/get", "corp", "100/m")];
    let proxy = TestProxy::start_with_config(&config("shape", &rows)).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(45009).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    let first = proxy.get(USER_GET).await;
    assert_eq!(
        (first.status.as_u16(), first.errcode(), first.header("x-wecom-proxy-error")),
        (200, 45009, "")
    );
    let before = proxy.forwarded_count();
    let held = proxy.get(USER_GET).await;
    held.assert_proxy_error("rate-limited", 429, 45009);
    let wait: u64 = held.header("retry-after").parse().expect("seconds");
    assert!((50..=60).contains(&wait), "{wait}");
    assert_eq!(proxy.forwarded_count(), before);
    let report = reported(&proxy).await;
    assert!(report[0]["held_seconds"].as_u64().is_some_and(|seconds| seconds > 40), "{report:?}");
    // One call was counted, but WeCom says that all are spent.
    assert_eq!((&report[0]["used"], &report[0]["ratio"]), (&json!(2), &json!(1.0)));
    let sample = "wecom_proxy_quota_used_ratio{agent=\"hr\",quota=\"corp 100/m /cgi-bin/user/get\"} 1\n";
    assert!(admin_get(&proxy, "/metrics").await.text().contains(sample));
    proxy.get("/cgi-bin/department/list").await.assert_ok();
}

#[tokio::test]
async fn message_that_wecom_would_drop_gets_a_hint() {
    let proxy = TestProxy::start_with_config(&config("observe", &[(SEND, "member", "3/m")])).await;
    for _ in 0..3 {
        assert_eq!(debug_send(&proxy, "zhangsan|lisi").await.assert_ok().header("x-wecom-hint"), "");
    }
    assert_eq!(debug_send(&proxy, "wangwu").await.assert_ok().header("x-wecom-hint"), "");
    let dropped = debug_send(&proxy, "wangwu|lisi").await;
    let hint = dropped.assert_ok().header("x-wecom-hint");
    assert!(
        hint.contains("1 member") && hint.contains("lisi") && hint.contains("3 messages a minute"),
        "{hint}"
    );
    assert_eq!(debug_send(&proxy, "@all").await.header("x-wecom-hint"), "");
    // Only who asks gets a hint.
    assert_eq!(send_to(&proxy, "lisi").await.assert_ok().header("x-wecom-hint"), "");
    let report = reported(&proxy).await;
    assert_eq!(report.len(), 1, "{report:?}");
    assert_eq!((&report[0]["quota"], &report[0]["used"]), (&json!(format!("member 3/m {SEND}")), &json!(5)));
    assert!(!report[0].to_string().contains("lisi"));
    let sample = format!("wecom_proxy_quota_used_ratio{{agent=\"hr\",quota=\"member 3/m {SEND}\"}} 1.667");
    assert!(admin_get(&proxy, "/metrics").await.text().contains(&sample));
}

#[tokio::test]
async fn shape_refuses_a_message_that_wecom_would_drop() {
    let proxy = TestProxy::start_with_config(&config("shape", &[(SEND, "member", "3/m")])).await;
    for _ in 0..3 {
        send_to(&proxy, "zhangsan|lisi").await.assert_ok();
    }
    let refused = send_to(&proxy, "wangwu|lisi").await;
    refused.assert_proxy_error("rate-limited", 429, 45009);
    assert!(refused.text().contains("member 3/m"), "{}", refused.text());
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=61).contains(&wait), "{wait}");
    for _ in 0..3 {
        send_to(&proxy, "wangwu").await.assert_ok();
    }
    assert_eq!(proxy.wecom.executed_count(SEND), 6);
    // A body that does not begin with its members, and arrives in pieces.
    let body =
        json!({ "msgtype": "text", "text": { "content": "x".repeat(20_000) }, "touser": "lisi" }).to_string();
    let mut client = RawConnection::connect(proxy.address()).await;
    let head = format!(
        "POST /hr{SEND} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head + &body[..10_000]).await.expect("sent");
    client.send(&body[10_000..]).await.expect("sent");
    let (received, _) = client.read_to_end().await;
    let text = String::from_utf8_lossy(&received);
    assert!(text.starts_with("HTTP/1.1 429") && text.contains("member 3/m"), "{text}");
    assert_eq!(proxy.wecom.executed_count(SEND), 6);
}

#[tokio::test]
async fn message_that_wecom_blocks_is_held_for_the_day() {
    let proxy = TestProxy::start_with_config(&config("shape", &[])).await;
    proxy.wecom.inject(Fault::errcode(45009).on_path(SEND).times(1)).expect("a fault");
    assert_eq!(send_to(&proxy, "lisi").await.errcode(), 45009);
    let (before, start) = (proxy.forwarded_count(), Instant::now());
    let held = send_to(&proxy, "wangwu").await;
    held.assert_proxy_error("rate-limited", 429, 45009);
    assert!(start.elapsed() < Duration::from_millis(290), "{:?}", start.elapsed());
    assert!(held.header("retry-after").parse::<u64>().is_ok_and(|wait| wait <= 86_400));
    assert_eq!(proxy.forwarded_count(), before);
    let other = Request::post(format!("/ops{SEND}")).header("content-type", "application/json");
    proxy
        .request(other, r#"{"touser":"lisi","msgtype":"text","agentid":1000003,"text":{"content":"x"}}"#)
        .await
        .assert_ok();
    let report = reported(&proxy).await;
    assert_eq!((&report[0]["limit"], &report[0]["ratio"]), (&json!(null), &json!(1.0)), "{report:?}");
}

#[tokio::test]
async fn reload_applies_quotas() {
    let proxy = TestProxy::start_with_config(&config("observe", &[])).await;
    for _ in 0..9 {
        proxy.get(USER_GET).await.assert_ok();
    }
    assert_eq!(reported(&proxy).await, [] as [Value; 0]);
    proxy.rewrite_config(&config("shape", &[("/cgi-bin/user/get", "corp", "10/m")]));
    assert_eq!(proxy.app.reload().expect("a reload").needs_restart, ["upstream"; 0]);
    assert_eq!(reported(&proxy).await[0]["used"], 9);
    proxy.get(USER_GET).await.assert_proxy_error("rate-limited", 429, 45009);
}

#[tokio::test]
async fn dashboard_lists_quotas_that_are_half_used() {
    let proxy =
        TestProxy::start_with_config(&config("observe", &[("/cgi-bin/user/get", "corp", "10/m")])).await;
    let mut browser = Browser::start().await;
    browser.open_dashboard(proxy.admin_address()).await;
    browser.wait_for("document.querySelector('#health').innerText").await;
    assert_eq!(browser.eval("document.querySelector('#quotas-section').hidden").await, true);
    for _ in 0..9 {
        proxy.get(USER_GET).await.assert_ok();
    }
    browser.open_dashboard(proxy.admin_address()).await;
    browser.wait_for("document.querySelectorAll('#quotas tbody tr').length === 1").await;
    let text = browser.text("#quotas").await;
    assert!(text.contains("corp 10/m /cgi-bin/user/get") && text.contains("90 %"), "{text}");
    browser.assert_no_errors();
}
