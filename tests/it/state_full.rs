//! A disk that is full while the program runs: writes fail with 507, nothing is half-written, and forwarding goes on.

use std::{fs, process::Command};

use http::Request;
use serde_json::{Value, json};

use crate::{
    harness::{
        OPEN_CONFIG, TestClient, TestResponse, USER_GET, sha256, start_simulator_with_config, wait_for,
    },
    process::{Process, tool, wecom_proxy},
    state::{STATE_KEY, state_directory},
};

const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789";

/// Mounts a small disk of the program's own with a file on it, which goes when a mark appears.
const SCRIPT: &str = r#"mount -t tmpfs -o size=900k none "$0" && head -c 400000 /dev/zero > "$0/filler" || exit 3
(for nth in $(seq 900); do [ -e "$3" ] && break; sleep 0.1; done; rm "$0/filler") > /dev/null 2>&1 &
exec "$1" --config "$2""#;

async fn call(process: &Process, method: &str, path: &str, body: Value) -> TestResponse {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
    let request = request.header("content-type", "application/json");
    let text = if body.is_null() { String::new() } else { body.to_string() };
    TestClient::connect_http1(process.admin_address().await).await.request(request, text).await
}

async fn put(process: &Process, nth: usize) -> TestResponse {
    let table =
        json!({ "corpid": format!("ww{nth}"), "secret": format!("secret-of-{nth}-{}", "x".repeat(900)) });
    call(process, "PUT", &format!("/api/agents/a{nth}"), table).await
}

#[tokio::test]
async fn full_disk_refuses_writes_until_there_is_room() {
    let (mount, marks) = (state_directory(), state_directory());
    let state = format!("\n[state]\npath = \"{}/state.db\"\nkey = \"{STATE_KEY}\"\n", mount.path().display());
    let admin = format!("[admin]\nkey_sha256 = \"{}\"", sha256(ADMIN_KEY));
    let toml = OPEN_CONFIG.replace("[admin]", &admin) + &state;
    let (_wecom, _dir, config) = start_simulator_with_config(&toml).await;
    let mark = marks.path().join("mark");
    let mut command = Command::new(tool("unshare"));
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(mount.path());
    command.arg(wecom_proxy(&[]).get_program()).args([&config, &mark]);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").env_remove("WECOM_PROXY_CONFIG");
    let process = Process::start(command);

    let mut refused = None;
    for nth in 0..1000 {
        let response = put(&process, nth).await;
        match response.status.as_u16() {
            201 => {}
            507 => {
                assert!(response.text().contains("no room is left"), "{}", response.text());
                refused = Some(nth);
                break;
            }
            other => panic!("{other}: {}", response.text()),
        }
    }
    let refused = refused.expect("a full disk");
    assert!(refused > 0, "there was room at first");
    assert_eq!(call(&process, "GET", &format!("/api/agents/a{refused}"), Value::Null).await.status, 404);
    let last = format!("/api/agents/a{}", refused - 1);
    assert_eq!(call(&process, "GET", &last, Value::Null).await.status, 200);
    TestClient::connect_http1(process.address().await).await.get(USER_GET).await.assert_ok();
    let readyz = call(&process, "GET", "/readyz", Value::Null).await;
    assert_eq!(readyz.status, 200);
    assert!(readyz.text().contains("\"ok, but the state fails\""), "{}", readyz.text());

    fs::write(&mark, "").expect("written");
    wait_for("room", async || put(&process, refused).await.status == 201).await;
    process.err.wait_for_line("state works again").await;
    assert_eq!(process.stop().await.status, 0);
}
