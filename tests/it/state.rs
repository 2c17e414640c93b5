//! `[state]` seen from outside: start, readiness, the commands, and files that cannot be used or written.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
};

use http::Request;
use tempfile::TempDir;
use wecom_proxy::{
    config::{StateConfig, StateFileConfig},
    secret::Masked,
    state::{Collection, State, Write},
};

use crate::{
    harness::{
        OPEN_CONFIG, TestClient, TestProxy, USER_GET, admin_get, start_simulator_with_config, wait_for,
    },
    process::{ExitOutput, Process, run, run_wecom_proxy, tool, wecom_proxy},
};

/// The key of the tests' states.
pub const STATE_KEY: &str = "state-key-of-the-tests-0123456789";
/// The user that a process runs as for which permissions count.
const USER_ID: u32 = 60123;

/// An open proxy with a state in its directory.
pub fn config_with_state() -> String {
    format!("{OPEN_CONFIG}\n[state]\npath = \"state.db\"\nkey = \"{STATE_KEY}\"\n")
}

/// The configuration of the state of [`config_with_state`].
pub fn state_config(directory: &Path) -> StateConfig {
    let path = directory.join("state.db");
    StateConfig::File(StateFileConfig { path, key: Masked::new(STATE_KEY), old_key: None })
}

/// Adds a record to the state of a directory, beside a program that may be running.
async fn write_record(directory: &Path, name: &str) {
    let state = State::open(&state_config(directory), Box::new(|_| {})).expect("a state");
    state.write(vec![Write::put(Collection::Idempotency, name, "value")]).await.expect("written");
    state.close().await;
}

async fn readyz(proxy: &TestProxy) -> serde_json::Value {
    let response = admin_get(proxy, "/readyz").await;
    assert_eq!(response.status, 200);
    serde_json::from_slice(&response.body).expect("JSON")
}

#[tokio::test]
async fn readyz_shows_the_state_where_there_is_one() {
    let proxy = TestProxy::start_open().await;
    assert_eq!(readyz(&proxy).await["state"], serde_json::Value::Null);
    let proxy = TestProxy::start_with_config(&config_with_state()).await;
    assert_eq!(readyz(&proxy).await["state"], serde_json::json!({ "kind": "sqlite", "ok": true }));
    proxy.get(USER_GET).await.assert_ok();
    assert!(proxy.dir.path().join("state.db").exists());
    proxy.app.shutdown().await;
    assert!(!proxy.dir.path().join("state.db-wal").exists(), "closed at shutdown");
}

#[tokio::test]
async fn changed_state_section_needs_a_restart() {
    let proxy = TestProxy::start_with_config(&config_with_state()).await;
    proxy.rewrite_config(&config_with_state().replace("state.db", "other.db"));
    let report = proxy.app.reload().expect("reloaded");
    assert_eq!(report.needs_restart, ["state"]);
    assert!(!proxy.dir.path().join("other.db").exists());
}

/// Runs the program with this configuration until it ends.
async fn start_and_fail(config: &Path) -> ExitOutput {
    run_wecom_proxy(&["serve", "--config", config.to_str().expect("UTF-8")]).await
}

#[tokio::test]
async fn unusable_state_ends_the_start_with_its_reason() {
    let (_wecom, dir, config) = start_simulator_with_config(&config_with_state()).await;
    write_record(dir.path(), "a").await;
    let path = dir.path().join("state.db");
    let whole = fs::read(&path).expect("readable");

    let text = fs::read_to_string(&config).expect("readable");
    fs::write(&config, text.replace(STATE_KEY, "another-key-of-the-tests-0123456789")).expect("written");
    let output = start_and_fail(&config).await;
    assert_eq!(output.status, 2, "{output:?}");
    assert!(output.err.contains("state.key: ") && output.err.contains("another key"), "{output:?}");
    fs::write(&config, text).expect("written");

    fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    let output = start_and_fail(&config).await;
    assert_eq!(output.status, 1, "{output:?}");
    assert!(output.err.contains("is damaged") && output.err.contains("state backup"), "{output:?}");
    assert!(fs::read(&path).expect("readable") == whole[..whole.len() / 2], "the file is as it was");

    let mut newer = whole;
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    fs::write(&path, newer).expect("written");
    let output = start_and_fail(&config).await;
    assert_eq!(output.status, 1, "{output:?}");
    assert!(output.err.contains("has schema version 99"), "{output:?}");
}

/// Runs `wecom-proxy state …`.
async fn state_command(config: &Path, arguments: &[&str]) -> ExitOutput {
    let config = ["--config", config.to_str().expect("UTF-8")];
    run_wecom_proxy(&[&["state"], arguments, &config].concat()).await
}

#[tokio::test]
async fn commands_work_while_the_program_runs() {
    let (_wecom, dir, config) = start_simulator_with_config(&config_with_state()).await;
    let proxy = Process::serve(&config).await;
    write_record(dir.path(), "a").await;
    let output = state_command(&config, &["check"]).await;
    assert_eq!((output.status, &*output.err), (0, ""), "{output:?}");
    let (schema, counts) = output.out.split_once('\n').expect("two lines");
    assert!(schema.starts_with("schema version "), "{output:?}");
    assert_eq!(counts, "idempotency: 1 record\nevery record can be read\n");

    let copy = dir.path().join("copy.db");
    let copy_path = copy.to_str().expect("UTF-8");
    let output = state_command(&config, &["backup", copy_path]).await;
    assert_eq!((output.status, &*output.err), (0, ""), "{output:?}");
    assert_eq!(fs::metadata(&copy).expect("a file").permissions().mode() & 0o777, 0o600);
    let before = fs::read(&copy).expect("readable");
    let output = state_command(&config, &["backup", copy_path]).await;
    assert_eq!(output.status, 2, "{output:?}");
    assert!(output.err.contains("exists and was not changed"), "{output:?}");
    assert!(fs::read(&copy).expect("readable") == before);

    // A new key: the program is restarted with both, then the state is rewritten beside it.
    assert_eq!(proxy.stop().await.status, 0);
    let text = fs::read_to_string(&config).expect("readable");
    let both = format!("key = \"a-new-key-of-the-tests-0123456789-\"\nold_key = \"{STATE_KEY}\"");
    fs::write(&config, text.replace(&format!("key = \"{STATE_KEY}\""), &both)).expect("written");
    let proxy = Process::serve(&config).await;
    let output = state_command(&config, &["rekey"]).await;
    assert_eq!((output.status, &*output.err), (0, ""), "{output:?}");
    assert!(output.out.contains("now: 1 record, before: 0 records"), "{output:?}");
    assert_eq!(proxy.stop().await.status, 0);
    let text = fs::read_to_string(&config).expect("readable");
    fs::write(&config, text.replace(&format!("old_key = \"{STATE_KEY}\""), "")).expect("written");
    assert_eq!(state_command(&config, &["check"]).await.status, 0);
}

#[tokio::test]
async fn takeover_under_a_new_key_is_reported_by_the_process_before() {
    let proxy = TestProxy::start_with_config(&config_with_state()).await;
    let StateConfig::File(file) = state_config(proxy.dir.path()) else { unreachable!("it is a file") };
    let key = Masked::new("a-new-key-of-the-tests-0123456789-");
    let with_new_key = StateConfig::File(StateFileConfig { old_key: Some(file.key), key, ..file });
    let state = State::open(&with_new_key, Box::new(|_| {})).expect("a state");
    let record = Write::put(Collection::Agents, "it", "of the process after");
    state.write(vec![record]).await.expect("written");
    wait_for("the report", async || readyz(&proxy).await["state"]["ok"] == false).await;
    let body = readyz(&proxy).await;
    assert_eq!(
        (&body["status"], &body["state"]["unreadable"]),
        (&"ok, but the state fails".into(), &1.into())
    );
    let trouble = body["state"]["trouble"].as_str().expect("a text");
    assert!(trouble.contains("another process writes under a key that this one lacks"), "{trouble}");
    let metrics = admin_get(&proxy, "/metrics").await.text().to_owned();
    for line in ["wecom_proxy_state_up 1", "wecom_proxy_state_unreadable_records 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    state.write(vec![Write::delete(Collection::Agents, "it")]).await.expect("deleted");
    wait_for("the end of it", async || readyz(&proxy).await["state"]["ok"] == true).await;
    state.close().await;
}

#[tokio::test]
async fn check_says_whether_clients_of_the_state_close_the_proxy() {
    let (_wecom, dir, config) = start_simulator_with_config(&config_with_state()).await;
    let path = config.to_str().expect("UTF-8");
    let check =
        async |more: &[&str]| run_wecom_proxy(&[&["check", "--config", path], more].concat()).await.out;
    assert!(check(&[]).await.contains("No clients: the proxy is open"));
    assert!(!dir.path().join("state.db").exists(), "a check makes nothing");
    let state = State::open(&state_config(dir.path()), Box::new(|_| {})).expect("a state");
    for closes_before in [false, true] {
        let name = format!("client-{closes_before}");
        state.write(vec![Write::put(Collection::Clients, name, "value")]).await.expect("written");
        if closes_before {
            state.close().await;
        }
        let count = 1 + u8::from(closes_before);
        let text = check(&[]).await;
        assert!(text.contains(&format!("No clients in the files, {count} in the state")), "{text}");
        let json: serde_json::Value = serde_json::from_str(&check(&["--json"]).await).expect("JSON");
        assert_eq!(json["open"], false);
    }
    fs::write(dir.path().join("state.db"), "damaged").expect("written");
    let text = check(&[]).await;
    assert!(text.contains("the state cannot be read here"), "{text}");
}

#[tokio::test]
async fn start_on_a_full_disk_says_so_and_leaves_nothing() {
    let mount = state_directory();
    let on_mount =
        config_with_state().replace("state.db", &mount.path().join("state.db").display().to_string());
    let (_wecom, _dir, config) = start_simulator_with_config(&on_mount).await;
    let script = "mount -t tmpfs -o size=16k none \"$0\" && \"$1\" --config \"$2\"; status=$?; ls -A \"$0\"; exit $status";
    let mut command = Command::new(tool("unshare"));
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "sh", "-c", script]).arg(mount.path());
    command.arg(wecom_proxy(&[]).get_program()).arg(&config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").env_remove("WECOM_PROXY_CONFIG");
    let output = run(command).await;
    assert_eq!((output.status, &*output.out), (1, ""), "{output:?}");
    assert!(
        output.err.contains("state.db cannot be opened: ") && output.err.contains("no room is left"),
        "{output:?}"
    );
}

#[tokio::test]
async fn commands_explain_a_missing_state_or_key() {
    let (_wecom, _dir, config) = start_simulator_with_config(OPEN_CONFIG).await;
    let output = state_command(&config, &["check"]).await;
    assert_eq!(output.status, 2);
    assert!(output.err.contains("there is no [state]"), "{output:?}");
    let unset = config_with_state().replace(&format!("\"{STATE_KEY}\""), "{ env = \"UNSET_STATE_KEY\" }");
    let (_wecom, dir, config) = start_simulator_with_config(&unset).await;
    let output = state_command(&config, &["rekey"]).await;
    assert_eq!(output.status, 2);
    assert!(output.err.contains("state.key: its environment variable is not set here"), "{output:?}");
    assert!(!dir.path().join("state.db").exists());
}

/// A process of a user for which permissions count; as root, it is another one.
fn unprivileged(program: &Path) -> Command {
    match rustix::process::geteuid().is_root() {
        true => {
            let mut command = Command::new(tool("setpriv"));
            command.args(["--reuid", &USER_ID.to_string(), "--clear-groups"]).arg(program);
            command
        }
        false => Command::new(program),
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

#[tokio::test]
async fn read_only_directory_stops_writes_and_nothing_else() {
    let (_wecom, dir, config) = start_simulator_with_config(&config_with_state()).await;
    write_record(dir.path(), "a").await;
    let path = dir.path().join("state.db");
    let program = dir.path().join("wecom-proxy");
    fs::copy(wecom_proxy(&[]).get_program(), &program).expect("copied");
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(USER_ID), None).expect("it is ours");
    }
    set_mode(&config, 0o644);
    set_mode(dir.path(), 0o555);
    let mut command = unprivileged(&program);
    command.arg("--config").arg(&config).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    TestClient::connect_http1(proxy.address().await).await.get(USER_GET).await.assert_ok();
    proxy.err.wait_for_line("state failed, forwarding goes on").await;
    let admin = proxy.admin_address().await;
    let readyz = TestClient::connect_http1(admin).await.request(Request::get("/readyz"), "").await;
    assert_eq!(readyz.status, 200);
    assert!(readyz.text().contains("\"kind\":\"sqlite\",\"ok\":false"), "{}", readyz.text());
    set_mode(dir.path(), 0o777);
    proxy.err.wait_for_line("state works again").await;
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn two_processes_have_one_state_during_a_takeover() {
    let (_wecom, dir, config) = start_simulator_with_config(&config_with_state()).await;
    let first = Process::serve(&config).await;
    let second = Process::serve(&config).await;
    write_record(dir.path(), "a").await;
    assert_eq!(first.stop().await.status, 0);
    write_record(dir.path(), "b").await;
    assert_eq!(second.stop().await.status, 0);
    let output = state_command(&config, &["check"]).await;
    assert!(output.out.contains("idempotency: 2 records"), "{output:?}");
    let files: Vec<_> =
        fs::read_dir(&dir).expect("a directory").map(|entry| entry.expect("one").file_name()).collect();
    assert!(!files.iter().any(|name| name.to_string_lossy().starts_with("state.db-")), "{files:?}");
}

/// A directory for a state.
pub fn state_directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}
