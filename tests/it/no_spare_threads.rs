//! A process that may start no more threads, as under a service manager's limit of tasks, still serves, reloads and stops.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::Settings;

use crate::{
    harness::{OPEN_CONFIG, TestClient, USER_GET, write_config},
    leak_detector,
    process::{Process, tool, wecom_proxy},
};

/// The user that the process runs as: the limit does not apply to root.
const USER_ID: &str = "60123";

#[tokio::test]
async fn process_at_its_thread_limit_serves_and_reloads() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process of another user");
        return;
    }
    let wecom = leak_detector::start_simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), OPEN_CONFIG);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    // A copy, because the build directory may be closed to other users.
    let program = dir.path().join("wecom-proxy");
    fs::copy(wecom_proxy(&[]).get_program(), &program).expect("copied");
    let mut command = Command::new(tool("setpriv"));
    command.args(["--reuid", USER_ID, "--clear-groups"]).arg(&program).arg("--config").arg(&config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    client.get(USER_GET).await.assert_ok();
    let admin = proxy.admin_address().await;
    // As the same user, which needs no privilege.
    let mut limit = Command::new(tool("setpriv"));
    limit.args(["--reuid", USER_ID, "--clear-groups", "prlimit", "--nproc=1", "--pid"]);
    assert!(limit.arg(proxy.id().to_string()).status().expect("prlimit runs").success());

    proxy.signal("HUP");
    proxy.err.wait_for_line("configuration reloaded").await;
    for path in ["/metrics", "/api/requests", "/api/overview"] {
        let response = TestClient::connect_http1(admin).await.request(Request::get(path), "").await;
        assert_eq!(response.status, 200, "{path}");
    }
    wecom.close_connections();
    client.get(USER_GET).await.assert_ok();
    let output = proxy.stop().await;
    assert_eq!(output.status, 0);
    assert!(!output.err.contains("panicked"), "{}", output.err);
}
