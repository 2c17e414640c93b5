//! Metrics in the Prometheus text format, and the overview of the last hour.

use std::{io::Write, process::Stdio};

use http::{Request, StatusCode};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use wecom_proxy::simulator::Fault;

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, USER_GET, admin_get, client_key,
        get_as_client, wait_for,
    },
    process::{Process, tool},
};

async fn scrape(proxy: &TestProxy) -> String {
    admin_get(proxy, "/metrics").await.text().to_owned()
}

/// The value of one series; `None` where the exposition lacks it.
fn series_value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().expect("a number"))
}

/// Waits until a series has this value: a request is counted only after its response was sent.
async fn wait_for_value(proxy: &TestProxy, series: &str, expected: f64) -> String {
    let mut text = String::new();
    wait_for(series, async || {
        text = scrape(proxy).await;
        series_value(&text, series) == Some(expected)
    })
    .await;
    text
}

#[tokio::test]
async fn metrics_count_what_their_names_say() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let hr = format!("/hr{USER_GET}");
    get_as_client(&proxy, "billing", &hr).await.assert_ok();
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    assert_eq!(get_as_client(&proxy, "billing", &hr).await.assert_ok().header("x-wecom-retried"), "40014");
    get_as_client(&proxy, "crm", &format!("/ops{USER_GET}")).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    get_as_client(&proxy, "crm", &hr).await;
    proxy.wecom.inject(Fault::status(500).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    get_as_client(&proxy, "crm", &hr).await;
    proxy.get(USER_GET).await.assert_proxy_error("unauthenticated", 401, 40001);

    wait_for_value(&proxy, r#"wecom_proxy_requests_total{agent="hr",client="crm",status="500"}"#, 1.0).await;
    let text =
        wait_for_value(&proxy, r#"wecom_proxy_requests_total{agent="",client="",status="401"}"#, 1.0).await;
    for (series, expected) in [
        (r#"wecom_proxy_requests_total{agent="hr",client="billing",status="200"}"#, 2.0),
        (r#"wecom_proxy_requests_total{agent="hr",client="crm",status="200"}"#, 1.0),
        (r#"wecom_proxy_requests_total{agent="ops",client="crm",status="200"}"#, 1.0),
        (r#"wecom_proxy_request_duration_seconds_count{agent="hr"}"#, 4.0),
        (r#"wecom_proxy_request_duration_seconds_bucket{agent="hr",le="+Inf"}"#, 4.0),
        (r#"wecom_proxy_upstream_duration_seconds_count{agent="hr"}"#, 4.0),
        (r#"wecom_proxy_upstream_duration_seconds_count{agent=""}"#, 0.0),
        (r#"wecom_proxy_errcodes_total{agent="hr",errcode="0"}"#, 2.0),
        (r#"wecom_proxy_errcodes_total{agent="hr",errcode="60020"}"#, 1.0),
        (r#"wecom_proxy_retries_total{agent="hr",errcode="40014"}"#, 1.0),
        (r#"wecom_proxy_token_refreshes_total{agent="hr",reason="first",result="ok"}"#, 1.0),
        (r#"wecom_proxy_token_refreshes_total{agent="hr",reason="refused",result="ok"}"#, 1.0),
        (r#"wecom_proxy_refusals_total{kind="unauthenticated"}"#, 1.0),
        (&format!("wecom_proxy_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0),
        (r#"wecom_proxy_agent_refusals_total{agent="",kind="unauthenticated"}"#, 1.0),
        (r#"wecom_proxy_gettoken_duration_seconds_count{agent="hr"}"#, 2.0),
        (r#"wecom_proxy_request_bytes_total{agent="hr"}"#, 0.0),
        (r#"wecom_proxy_upstream_in_flight_limit{upstream="default"}"#, 4096.0),
        (r#"wecom_proxy_upstream_queued{upstream="default"}"#, 0.0),
        ("wecom_proxy_connections_limit", 10_000.0),
        ("wecom_proxy_replay_memory_limit_bytes", 268_435_456.0),
        ("wecom_proxy_config_last_reload_successful", 1.0),
        ("wecom_proxy_in_flight", 0.0),
        ("wecom_proxy_token_waiters", 0.0),
        ("wecom_proxy_access_log_dropped_total", 0.0),
        ("wecom_proxy_replay_memory_bytes", 0.0),
        ("wecom_proxy_replay_disk_bytes", 0.0),
        ("wecom_proxy_replay_disk_limit_bytes", 4_294_967_296.0),
    ] {
        assert_eq!(series_value(&text, series), Some(expected), "{series} in\n{text}");
    }
    assert_times_and_process_metrics(&text);
    assert_promtool_accepts(&text);
}

/// Asserts the series whose values depend on the clock or on the process.
#[track_caller]
fn assert_times_and_process_metrics(text: &str) {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs_f64();
    let expiry =
        series_value(text, r#"wecom_proxy_token_expiry_timestamp_seconds{agent="hr"}"#).expect("a token");
    assert!((now..now + 7201.0).contains(&expiry), "{expiry}");
    let sum = series_value(text, r#"wecom_proxy_request_duration_seconds_sum{agent="hr"}"#).expect("a sum");
    assert!((0.000_01..60.0).contains(&sum), "{sum}");
    if cfg!(target_os = "linux") {
        let started = series_value(text, "process_start_time_seconds").expect("a time");
        assert!((now - 3600.0..now + 1.0).contains(&started), "{started}");
        assert!(
            series_value(text, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6),
            "{text}"
        );
        assert!(
            series_value(text, "process_cpu_seconds_total").is_some_and(|seconds| seconds > 0.0),
            "{text}"
        );
        let open = series_value(text, "process_open_fds").expect("a count");
        assert!(
            series_value(text, "process_max_fds").is_some_and(|limit| limit > open && open > 5.0),
            "{text}"
        );
    }
}

/// Asserts that `promtool check metrics` accepts the exposition without a warning.
fn assert_promtool_accepts(text: &str) {
    let mut command = std::process::Command::new(tool("promtool"));
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("sent");
    let output = child.wait_with_output().expect("an exit status");
    let report =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && report.trim().is_empty(), "{report}\n{text}");
}

#[tokio::test]
async fn metrics_response_is_valid_for_prometheus() {
    let proxy = TestProxy::start_open().await;
    let response = admin_get(&proxy, "/metrics").await;
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_promtool_accepts(response.text());
    let head_response =
        TestClient::connect_http1(proxy.admin_address()).await.request(Request::head("/metrics"), "").await;
    assert_eq!((head_response.status, head_response.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn client_input_never_becomes_a_label() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for nth in 0..50 {
        for (method, path) in
            [(format!("M{nth}"), "cgi-bin/x".to_owned()), ("GET".to_owned(), format!("agent{nth}/cgi-bin/x"))]
        {
            proxy.send_raw(format!("{method} /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n", client_key("crm"))).await;
        }
        proxy
            .send_raw(format!(
                "GET /{nth} HTTP/1.1\r\nHost: x\r\nX-Wecom-Agent: a{nth}\r\nConnection: close\r\n\r\n"
            ))
            .await;
    }
    wait_for_value(&proxy, r#"wecom_proxy_refusals_total{kind="no-route"}"#, 50.0).await;
    let text =
        wait_for_value(&proxy, r#"wecom_proxy_requests_total{agent="",client="crm",status="404"}"#, 50.0)
            .await;
    wait_for_value(&proxy, r#"wecom_proxy_requests_total{agent="",client="crm",status="400"}"#, 50.0).await;
    let series_count = text.lines().filter(|line| line.starts_with("wecom_proxy_requests_total{")).count();
    assert_eq!(series_count, 3, "{text}");
}

#[tokio::test]
async fn errcode_labels_are_bounded() {
    let proxy = TestProxy::start_open().await;
    for errcode in 1..=70 {
        proxy
            .wecom
            .inject(Fault::errcode(80_000 + errcode).on_path("/cgi-bin/user/get").times(1))
            .expect("a fault");
        proxy.get(USER_GET).await;
    }
    let series = r#"wecom_proxy_request_duration_seconds_count{agent="hr"}"#;
    let text = wait_for_value(&proxy, series, 70.0).await;
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("wecom_proxy_errcodes_total{")).collect();
    assert_eq!(lines.len(), 65, "{lines:?}");
    assert_eq!(series_value(&text, r#"wecom_proxy_errcodes_total{agent="hr",errcode="other"}"#), Some(6.0));
}

#[tokio::test]
async fn reload_keeps_counts_of_remaining_agents_only() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    get_as_client(&proxy, "crm", &format!("/hr{USER_GET}")).await.assert_ok();
    get_as_client(&proxy, "crm", &format!("/ops{USER_GET}")).await.assert_ok();
    let billing_series = r#"wecom_proxy_requests_total{agent="hr",client="billing",status="200"}"#;
    let ops_series = r#"wecom_proxy_requests_total{agent="ops",client="crm",status="200"}"#;
    wait_for_value(&proxy, billing_series, 1.0).await;
    wait_for_value(&proxy, ops_series, 1.0).await;

    // A changed limit replaces the agent object, and a changed secret replaces its token cache entry.
    let text = std::fs::read_to_string(proxy.rewrite_config(CONFIG_WITH_CLIENTS)).expect("the configuration");
    let (hr, rest) = text.split_once("[agents.ops]").expect("the second agent");
    let clients = &rest[rest.find("[clients.").expect("clients")..];
    let hr = hr.replace("[agents.hr]", "[agents.hr]\nlimit = \"1000/s\"");
    let hr = hr.replace("secret = \"", "secret = \"not-");
    std::fs::write(
        proxy.dir.path().join("proxy.toml"),
        format!("{hr}{}", clients.replace("[clients.crm]", "[clients.crm2]")),
    )
    .expect("a file");
    let reloaded = proxy.app.reload().expect("a reload");
    assert_eq!((reloaded.agents, reloaded.clients), (1, 4));
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_proxy_error(
        "token-unavailable",
        502,
        40001,
    );

    let failed_series = r#"wecom_proxy_requests_total{agent="hr",client="billing",status="502"}"#;
    let text = wait_for_value(&proxy, failed_series, 1.0).await;
    assert_eq!(series_value(&text, billing_series), Some(1.0), "{text}");
    assert_eq!(
        series_value(&text, r#"wecom_proxy_request_duration_seconds_count{agent="hr"}"#),
        Some(3.0),
        "{text}"
    );
    let refreshes = |result| {
        format!("wecom_proxy_token_refreshes_total{{agent=\"hr\",reason=\"first\",result=\"{result}\"}}")
    };
    assert_eq!(
        [series_value(&text, &refreshes("ok")), series_value(&text, &refreshes("failed"))],
        [Some(1.0); 2],
        "{text}"
    );
    assert!(!text.contains("\"ops\"") && !text.contains("\"crm\""), "{text}");
}

#[tokio::test]
async fn connection_and_in_flight_gauges_follow_the_load() {
    let proxy = TestProxy::start_open().await;
    wait_for_value(&proxy, "wecom_proxy_connections", 0.0).await;
    let idle_connections =
        [TcpStream::connect(proxy.address()).await, TcpStream::connect(proxy.address()).await];
    wait_for_value(&proxy, "wecom_proxy_connections", 2.0).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        wait_for_value(&proxy, "wecom_proxy_in_flight", 1.0).await;
        wait_for_value(&proxy, "wecom_proxy_connections", 3.0).await;
        proxy.wecom.release_held();
    };
    tokio::join!(proxy.get(USER_GET), during).0.assert_ok();
    drop(idle_connections);
    wait_for_value(&proxy, "wecom_proxy_connections", 0.0).await;
    wait_for_value(&proxy, "wecom_proxy_in_flight", 0.0).await;
}

#[tokio::test]
async fn overview_returns_the_last_hour() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    get_as_client(&proxy, "billing", &format!("/hr{USER_GET}")).await.assert_ok();
    get_as_client(&proxy, "crm", &format!("/ops{USER_GET}")).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    get_as_client(&proxy, "crm", &format!("/hr{USER_GET}")).await;
    proxy.get(USER_GET).await.assert_proxy_error("unauthenticated", 401, 40001);
    let mut overview = serde_json::Value::Null;
    let sum = |overview: &serde_json::Value, name: &str| -> u64 {
        let minutes = overview["minutes"].as_array().expect("a list");
        minutes.iter().map(|minute| minute[name].as_u64().expect("a number")).sum()
    };
    wait_for("four requests", async || {
        overview = admin_get(&proxy, "/api/overview").await.json();
        sum(&overview, "requests") == 4
    })
    .await;
    assert_eq!(sum(&overview, "failed"), 2, "{overview}");
    let busy = overview["minutes"].as_array().expect("a list").iter().find(|minute| minute["requests"] != 0);
    let minute = busy.expect("a minute");
    assert!(minute["p50_ms"].as_f64() > Some(0.0) && minute["p99_ms"].as_f64() >= minute["p50_ms"].as_f64());
    assert_eq!(minute["at"].as_u64().map(|at| at % 60), Some(0));
    let expected = serde_json::json!([
        { "name": null, "requests": 1, "failed": 1, "errcodes": {} },
        { "name": "hr", "requests": 2, "failed": 1, "errcodes": { "60020": 1 } },
        { "name": "ops", "requests": 1, "failed": 0, "errcodes": {} },
    ]);
    assert_eq!(overview["agents"], expected);
    let crm = overview["clients"].as_array().expect("a list").iter().find(|client| client["name"] == "crm");
    let expected_agents =
        serde_json::json!([{ "name": "hr", "requests": 1 }, { "name": "ops", "requests": 1 }]);
    assert_eq!(crm.expect("the client crm")["agents"], expected_agents);
    assert_eq!(overview["unlisted_requests"], 0);
}

#[tokio::test]
async fn http2_requests_are_counted() {
    let proxy = TestProxy::start_with_config(OPEN_CONFIG).await;
    let mut client = TestClient::connect_http2(proxy.address()).await;
    for _ in 0..20 {
        client.get(USER_GET).await.assert_ok();
    }
    wait_for_value(&proxy, r#"wecom_proxy_requests_total{agent="hr",client="",status="200"}"#, 20.0).await;
}

#[tokio::test]
async fn agents_beyond_the_limit_and_clients_share_series() {
    let toml =
        CONFIG_WITH_CLIENTS.replace("[admin]", "[admin]\nmetrics = { per_client = false, per_agent = 1 }");
    let proxy = TestProxy::start_with_config(&toml).await;
    for (client, agent) in [("billing", "hr"), ("crm", "hr"), ("crm", "ops")] {
        get_as_client(&proxy, client, &format!("/{agent}{USER_GET}")).await.assert_ok();
        let label = if agent == "hr" { "hr" } else { "_other" };
        wait_for(agent, async || {
            let text = scrape(&proxy).await;
            text.contains(&format!("wecom_proxy_errcodes_total{{agent=\"{label}\""))
        })
        .await;
    }
    let text =
        wait_for_value(&proxy, r#"wecom_proxy_requests_total{agent="hr",client="",status="200"}"#, 2.0).await;
    for series in [
        r#"wecom_proxy_requests_total{agent="_other",client="",status="200"}"#,
        r#"wecom_proxy_token_refreshes_total{agent="_other",reason="first",result="ok"}"#,
    ] {
        assert_eq!(series_value(&text, series), Some(1.0), "{text}");
    }
    assert!(text.contains(r#"wecom_proxy_token_expiry_timestamp_seconds{agent="_other"}"#), "{text}");
    assert!(!text.contains(r#"agent="ops""#) && !text.contains(r#"client="crm""#), "{text}");
}

#[tokio::test]
async fn refused_gettoken_and_bodies_are_counted_by_agent() {
    let proxy = TestProxy::start_open().await;
    proxy.request(Request::post("/hr/cgi-bin/simulator/echo"), "12345").await;
    proxy.wecom.reset_secret("ops", "another-secret-of-ops").expect("an agent");
    let refused = proxy.request(Request::get(format!("/ops{USER_GET}")), "").await;
    refused.assert_proxy_error("token-unavailable", 502, 40001);
    wait_for_value(&proxy, r#"wecom_proxy_request_bytes_total{agent="hr"}"#, 5.0).await;
    let series = r#"wecom_proxy_agent_refusals_total{agent="ops",kind="token-unavailable"}"#;
    let text = wait_for_value(&proxy, series, 1.0).await;
    let errcodes = r#"wecom_proxy_gettoken_errcodes_total{agent="ops",errcode="40001"}"#;
    assert_eq!(series_value(&text, errcodes), Some(1.0), "{text}");
    let received = series_value(&text, r#"wecom_proxy_response_bytes_total{agent="hr"}"#);
    assert!(received.is_some_and(|bytes| bytes > 5.0), "{text}");
    let time = series_value(&text, r#"wecom_proxy_gettoken_duration_seconds_sum{agent="ops"}"#);
    assert!(time.is_some_and(|seconds| seconds > 0.0 && seconds < 60.0), "{text}");
}

#[tokio::test]
async fn request_whose_caller_leaves_counts_as_aborted() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken")).expect("a fault");
    let mut stream = TcpStream::connect(proxy.address()).await.expect("a connection");
    let request = format!("GET /hr{USER_GET} HTTP/1.1\r\nhost: proxy\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    wait_for_value(&proxy, "wecom_proxy_token_waiters", 1.0).await;
    drop(stream);
    wait_for_value(&proxy, r#"wecom_proxy_requests_total{agent="hr",client="",status="aborted"}"#, 1.0).await;
}

#[tokio::test]
async fn failed_reload_shows_until_one_succeeds() {
    let (_wecom, dir, process) = Process::serve_with_simulator(OPEN_CONFIG).await;
    let admin = process.admin_address().await;
    let get = async |path: &str| TestClient::connect_http1(admin).await.request(Request::get(path), "").await;
    let path = dir.path().join("proxy.toml");
    let text = std::fs::read_to_string(&path).expect("the file");
    std::fs::write(&path, format!("{text}\n[agents.it]\n")).expect("a file");
    process.signal("HUP");
    process.err.wait_for_line("configuration was not reloaded").await;
    let failed = get("/metrics").await.text().to_owned();
    assert_eq!(series_value(&failed, "wecom_proxy_config_last_reload_successful"), Some(0.0), "{failed}");
    let ready = get("/readyz").await;
    assert_eq!(ready.status, StatusCode::OK);
    let failure = ready.json()["config"]["failure"].to_string();
    assert!(failure.contains("agents.it.corpid") && failure.contains("agents.it.secret"), "{failure}");
    std::fs::write(&path, text).expect("a file");
    process.signal("HUP");
    process.err.wait_for_line("configuration reloaded").await;
    // The message is written before the result is known as a whole.
    wait_for("the reload", async || {
        let text = get("/metrics").await.text().to_owned();
        series_value(&text, "wecom_proxy_config_last_reload_successful") == Some(1.0)
    })
    .await;
}
