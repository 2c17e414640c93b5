//! Threads for work that no request waits for run only while no other thread wants their CPU.

use std::{collections::BTreeMap, fs};

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::Settings;

use crate::{
    harness::{OPEN_CONFIG, TestClient, USER_GET, wait_for, write_config},
    leak_detector,
    process::{Process, wecom_proxy},
};

/// Names of the threads of a process, and whether their scheduling policy is SCHED_IDLE.
fn threads(process: u32) -> BTreeMap<String, bool> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("a running process").flatten();
    // A thread may end meanwhile.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let of_stat = |stat: String| {
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
        Some((name.to_owned(), fields.split(' ').nth(38)? == "5"))
    };
    stats.filter_map(of_stat).collect()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn reloads_and_scrapes_have_the_lowest_priority() {
    let wecom = leak_detector::start_simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), OPEN_CONFIG);
    let mut command = wecom_proxy(&[]);
    command.arg("--config").arg(&config).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    TestClient::connect_http1(proxy.address().await).await.get(USER_GET).await.assert_ok();
    proxy.signal("HUP");
    proxy.err.wait_for_line("configuration reloaded").await;
    let mut admin = TestClient::connect_http1(proxy.admin_address().await).await;
    wait_for("a thread of the lowest priority", async || {
        assert_eq!(admin.request(Request::get("/metrics"), "").await.status, 200);
        threads(proxy.id()).get("background") == Some(&true)
    })
    .await;
    let threads = threads(proxy.id());
    for name in ["worker-0", "gettoken", "access-log", "log"] {
        assert_eq!(threads.get(name), Some(&false), "{name}: {threads:?}");
    }
    assert_eq!(proxy.stop().await.status, 0);
}
