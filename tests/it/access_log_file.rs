//! `log.access` by outcome, and the access log in a file of its own.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    harness::{OPEN_CONFIG, TestClient, USER_GET, wait_for, write_config},
    leak_detector::start_simulator,
    process::{Process, run_wecom_proxy},
};

async fn get(client: &mut TestClient, request_id: &str) {
    let request = Request::get(format!("/hr{USER_GET}")).header("x-request-id", request_id);
    assert_eq!(client.request(request, "").await.status, 200);
}

async fn wait_for_text(path: &Path, text: &str) -> String {
    wait_for(text, async || fs::read_to_string(path).unwrap_or_default().contains(text)).await;
    fs::read_to_string(path).expect("the log")
}

#[tokio::test]
async fn access_log_goes_to_its_file_and_follows_a_rotation() {
    let (wecom, dir) = (start_simulator(Settings::default()).await, TempDir::new().expect("a directory"));
    let toml = format!("{OPEN_CONFIG}[log]\naccess_file = \"access.log\"\n");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let (log, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let proxy = Process::serve(&config).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    get(&mut client, "request-before").await;
    let line = wait_for_text(&log, "request-before").await;
    assert!(line.contains("INFO access: request") && line.contains("agent=\"hr\""), "{line}");
    assert_eq!(fs::metadata(&log).expect("the log").permissions().mode() & 0o137, 0, "for owner and group");
    for (signal, before, after) in
        [("USR1", "request-before", "request-after-1"), ("HUP", "request-after-1", "request-after-2")]
    {
        fs::rename(&log, &rotated).expect("renamed");
        proxy.signal(signal);
        // The file appears with the first line after the signal.
        wait_for(signal, async || {
            get(&mut client, after).await;
            log.exists()
        })
        .await;
        wait_for_text(&log, after).await;
        assert!(fs::read_to_string(&rotated).expect("the old log").contains(before));
    }
    let output = proxy.stop().await;
    assert!(!output.err.contains("access: request"), "{}", output.err);
}

#[tokio::test]
async fn failed_requests_alone_are_logged() {
    let (wecom, dir) = (start_simulator(Settings::default()).await, TempDir::new().expect("a directory"));
    let config = write_config(
        &dir,
        wecom.api_addr(),
        &Settings::default(),
        &format!("{OPEN_CONFIG}[log]\naccess = \"failed\"\n"),
    );
    let proxy = Process::serve(&config).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    get(&mut client, "request-ok").await;
    wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    get(&mut client, "request-60020").await;
    let missing = Request::get("/nil/cgi-bin/user/get").header("x-request-id", "request-404");
    client.request(missing, "").await.assert_proxy_error("unknown-agent", 404, 40035);
    let output = proxy.stop().await;
    let logged = ["request-ok", "request-60020", "request-404"].map(|id| output.err.contains(id));
    assert_eq!(logged, [false, true, true], "{}", output.err);
}

#[tokio::test]
async fn unusable_access_log_file_is_an_error_at_start() {
    let (wecom, dir) = (start_simulator(Settings::default()).await, TempDir::new().expect("a directory"));
    let toml = format!("{OPEN_CONFIG}[log]\naccess_file = \"missing/access.log\"\n");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let output = run_wecom_proxy(&["--config", config.to_str().expect("UTF-8")]).await;
    assert_eq!(output.status, 1, "{}", output.err);
    assert!(
        output.err.contains("log.access_file") && output.err.contains("missing/access.log"),
        "{}",
        output.err
    );
}
