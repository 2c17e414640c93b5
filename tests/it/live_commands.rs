//! Commands that talk to the running proxy: status, agents, tail, refresh, reload, inspect, diag.

use std::{collections::BTreeMap, path::Path, process::Command};

use http::Request;
use serde_json::Value;
use tempfile::TempDir;
use wecom_proxy::simulator::Settings;

use crate::{
    certificates::Authority,
    harness::{
        OPEN_CONFIG, TestProxy, USER_GET,
        callback_target::{CallbackTarget, TargetResponse},
        sha256,
    },
    leak_detector,
    process::{ExitOutput, Process, run, run_wecom_proxy, tool, wecom_proxy},
};

const KEY: &str = "the-key-of-the-operator-0123456789";

fn admin_url(proxy: &TestProxy) -> String {
    format!("http://{}", proxy.admin_address())
}

/// Runs a command against the proxy.
async fn command(proxy: &TestProxy, arguments: &[&str]) -> ExitOutput {
    let url = admin_url(proxy);
    run_wecom_proxy(&[arguments, &["--admin", &url]].concat()).await
}

#[track_caller]
fn assert_prints(output: &ExitOutput, expected: &[&str]) {
    assert_eq!(output.status, 0, "{output:?}");
    for text in expected {
        assert!(output.out.contains(text), "no {text:?} in {}", output.out);
    }
}

#[track_caller]
fn assert_fails(output: &ExitOutput, status: i32, expected: &[&str]) {
    assert_eq!(output.status, status, "{output:?}");
    for text in expected {
        assert!(output.err.contains(text), "no {text:?} in {}", output.err);
    }
}

#[tokio::test]
async fn status_and_agents_show_what_fails() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    assert_prints(&command(&proxy, &["agents", "--trouble"]).await, &["no agent is in trouble"]);
    proxy.wecom.reset_secret("ops", "another-secret-of-ops").expect("an agent");
    let refused = proxy.request(Request::get(format!("/ops{USER_GET}")), "").await;
    refused.assert_proxy_error("token-unavailable", 502, 40001);

    let status = command(&proxy, &["status"]).await;
    let listener = proxy.address().to_string();
    assert_prints(&status, &["some agents fail", &listener, "2, failing 1", "memory, ok", "ops: ", "40001"]);
    let json: Value = serde_json::from_str(&command(&proxy, &["status", "--json"]).await.out).expect("JSON");
    assert_eq!(json["ready"]["agents"]["total"], 2, "{json}");

    let agents = command(&proxy, &["agents"]).await;
    assert_prints(&agents, &["AGENT", "hr", "valid", "ops", "40001"]);
    let trouble = command(&proxy, &["agents", "--trouble", "--json"]).await;
    let lines: Vec<Value> =
        trouble.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((lines.len(), &lines[0]["name"]), (1, &"ops".into()), "{}", trouble.out);
}

#[tokio::test]
async fn status_fails_while_the_proxy_is_not_ready() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.reset_secret("hr", "another-secret").expect("an agent");
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let status = command(&proxy, &["status"]).await;
    assert_fails(&status, 1, &["not ready (503)"]);
    assert!(status.out.contains("no agent has a valid token"), "{}", status.out);
}

#[tokio::test]
async fn tail_follows_filters_and_shows_one_exchange() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    let url = admin_url(&proxy);
    let follow =
        |arguments: &[&str]| Process::start(wecom_proxy(&[&["tail", "--admin", &url], arguments].concat()));
    let (all, failed, ops) = (follow(&[]), follow(&["--failed", "--json"]), follow(&["--agent", "ops"]));
    let first = all.out.wait_for_line("/cgi-bin/user/get").await;
    assert!(first.contains("hr - GET /hr/cgi-bin/user/get 200") && first.contains(" ms id="), "{first}");
    // The stream is open when a recent exchange has been printed; the others need one of their own.
    let refused = proxy.get("/cgi-bin/user/get?userid=not-there").await;
    let line = failed.out.wait_for_line("60111").await;
    let exchange: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(exchange["request_id"], refused.header("x-request-id"), "{exchange}");
    proxy.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    ops.out.wait_for_line(" ops - GET").await;
    all.out.wait_for_line(" ops - GET").await;
    let id = refused.header("x-request-id");
    let shown = command(&proxy, &["tail", "--id", id]).await;
    assert_prints(&shown, &[id, "\"errcode\": 60111"]);
    assert_fails(&command(&proxy, &["tail", "--id", "not-there"]).await, 1, &["admin.recent"]);
    let once = command(&proxy, &["tail", "--once", "--failed"]).await;
    assert_prints(&once, &["errcode=60111"]);
    assert_eq!(once.out.lines().count(), 1, "{}", once.out);

    for process in [all, failed, ops] {
        let printed = process.out.clone();
        assert_eq!(process.stop().await.status, 0);
        let mut ids: Vec<_> =
            printed.text().lines().filter_map(|line| line.split("id=").nth(1).map(str::to_owned)).collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count, "an exchange is printed once");
        assert!(!printed.text().contains("not-a-secret"));
    }
}

#[tokio::test]
async fn tail_shows_a_new_exchange_that_uses_an_id_again() {
    let proxy = TestProxy::start_open().await;
    let send = async |agent: &str| {
        let request = Request::get(format!("/{agent}{USER_GET}")).header("x-request-id", "again");
        proxy.request(request, "").await.assert_ok();
    };
    send("hr").await;
    let all = Process::start(wecom_proxy(&["tail", "--admin", &admin_url(&proxy)]));
    all.out.wait_for_line(" hr - GET").await;
    send("ops").await;
    all.out.wait_for_line(" ops - GET").await;
    assert_eq!(all.stop().await.status, 0);
}

#[tokio::test]
async fn refresh_and_inspect_act_on_one_agent() {
    let proxy = TestProxy::start_open().await;
    assert_prints(&command(&proxy, &["refresh", "hr"]).await, &["hr: a new token; it expires at 20"]);
    assert_prints(&command(&proxy, &["refresh", "hr"]).await, &["same token"]);
    assert_fails(&command(&proxy, &["refresh", "no/such"]).await, 2, &["there is no agent no/such"]);
    assert_fails(&command(&proxy, &["inspect", "missing"]).await, 2, &["there is no agent missing"]);
    assert_fails(&command(&proxy, &["tail", "--agent", "missing"]).await, 2, &["there is no agent missing"]);
    proxy.wecom.reset_secret("ops", "another-secret-of-ops").expect("an agent");
    assert_fails(&command(&proxy, &["refresh", "ops"]).await, 1, &["40001", "tries again in"]);

    assert_prints(
        &command(&proxy, &["inspect", "hr"]).await,
        &["hr: headers and bodies are captured until 20"],
    );
    let id = proxy.get(USER_GET).await.header("x-request-id").to_owned();
    assert_prints(&command(&proxy, &["tail", "--id", &id]).await, &["\"detail\": {", "zhangsan"]);
    assert_prints(&command(&proxy, &["inspect", "hr", "--for", "0s"]).await, &["capture ended"]);
    assert_fails(&command(&proxy, &["inspect", "hr", "--for", "2h"]).await, 2, &["at most 1h"]);
}

#[tokio::test]
async fn reload_reports_counts_and_mistakes() {
    let (_wecom, dir, proxy) = Process::serve_with_simulator(OPEN_CONFIG).await;
    let url = format!("http://{}", proxy.admin_address().await);
    let reload = async || run_wecom_proxy(&["reload", "--admin", &url]).await;
    assert_prints(&reload().await, &["reloaded: 2 agents, 0 clients"]);
    let path = dir.path().join("proxy.toml");
    let mut text = std::fs::read_to_string(&path).expect("the file");
    text += "[replay]\nmemory = \"2MiB\"\n";
    std::fs::write(&path, &text).expect("a file");
    assert_prints(&reload().await, &["[replay] has changed and needs a restart"]);
    std::fs::write(&path, text + "[agents.it]\n").expect("a file");
    let refused = reload().await;
    assert_fails(&refused, 2, &["agents.it.corpid", "(422)"]);
    assert_eq!(refused.err.lines().count(), 2, "a line for each mistake: {}", refused.err);
}

#[tokio::test]
async fn admin_key_is_read_from_the_environment() {
    let config = format!("{OPEN_CONFIG}\n")
        .replace("[admin]\n", &format!("[admin]\nkey_sha256 = \"{}\"\n", sha256(KEY)));
    let proxy = TestProxy::start_with_config(&config).await;
    leak_detector::add_secret(KEY);
    let url = admin_url(&proxy);
    let agents = async |key: Option<&str>| {
        let mut command = wecom_proxy(&["agents", "--admin", &url]);
        command.env_remove("WECOM_PROXY_ADMIN_KEY").envs(key.map(|key| ("WECOM_PROXY_ADMIN_KEY", key)));
        run(command).await
    };
    assert_prints(&agents(Some(KEY)).await, &["hr", "ops"]);
    assert_fails(&agents(None).await, 2, &["set WECOM_PROXY_ADMIN_KEY"]);
    assert_fails(&agents(Some("another-key-of-the-operator-01")).await, 2, &["refuses the key", "(401)"]);
    // As a file or an env file has it.
    for line_break in ["\n", "\r\n"] {
        assert_prints(&agents(Some(&format!("{KEY}{line_break}"))).await, &["hr", "ops"]);
    }
    for key in [format!("{KEY}\n{KEY}"), format!(" {KEY}"), format!("{KEY} "), "\u{5bc6}\u{94a5}".to_owned()]
    {
        let refused = agents(Some(&key)).await;
        assert_fails(&refused, 2, &["WECOM_PROXY_ADMIN_KEY is not a key", "line break"]);
        assert!(!refused.err.contains(KEY), "{}", refused.err);
    }
}

#[tokio::test]
async fn location_comes_from_the_file_or_the_url() {
    let dir = TempDir::new().expect("a directory");
    let socket = dir.path().join("admin.sock");
    let config = OPEN_CONFIG.replacen(
        "[admin]\nlisten = \"127.0.0.1:0\"",
        &format!("[admin]\nlisten = \"unix:{}\"", socket.display()),
        1,
    );
    let (_wecom, config_dir, _proxy) = Process::serve_with_simulator(&config).await;
    let path = config_dir.path().join("proxy.toml");
    let path = path.to_str().expect("a path in UTF-8");
    assert_prints(&run_wecom_proxy(&["status", "--config", path]).await, &["unix:", ": ok"]);
    let url = format!("unix:{}", socket.display());
    assert_prints(&run_wecom_proxy(&["status", "--admin", &url]).await, &["unix:", ": ok"]);

    let with_key = run_wecom_proxy(&["status", "--admin", "http://op:key@127.0.0.1:1"]).await;
    assert_fails(&with_key, 2, &["WECOM_PROXY_ADMIN_KEY"]);
    let none = run_wecom_proxy(&["status", "--admin", "http://127.0.0.1:1"]).await;
    assert_fails(&none, 1, &["no response from 127.0.0.1:1", "refused"]);
    let missing = run_wecom_proxy(&["status", "--config", "/not/there.toml"]).await;
    assert_fails(&missing, 2, &["/not/there.toml"]);
}

#[tokio::test]
async fn private_authority_is_trusted_where_it_is_named() {
    let (authority, other) = (Authority::new(), Authority::new());
    let listener = CallbackTarget::start_tls(authority.issue_server("127.0.0.1").server_config(&[])).await;
    listener.respond([TargetResponse::body(r#"{"agents":[]}"#)]);
    let url = format!("https://{}", listener.address);
    let agents =
        async |arguments: &[&str]| run_wecom_proxy(&[&["agents", "--admin", &url], arguments].concat()).await;
    assert_fails(&agents(&[]).await, 1, &["UnknownIssuer", "--admin-ca FILE"]);
    let [ca, other] = [authority.ca_file(), other.ca_file()].map(|path| path.display().to_string());
    assert_fails(&agents(&["--admin-ca", &other]).await, 1, &["must be in the file of --admin-ca"]);
    assert_fails(&agents(&["--admin-ca", "/not/there.pem"]).await, 2, &["--admin-ca: /not/there.pem: "]);
    assert_prints(&agents(&["--admin-ca", &ca]).await, &["no agents"]);

    let without_tls = run_wecom_proxy(&["agents", "--admin", &format!("http://{}", listener.address)]).await;
    assert_fails(&without_tls, 1, &["a listener with TLS needs https://"]);
}

#[tokio::test]
async fn address_of_another_listener_is_named_as_such() {
    let proxy = TestProxy::start_open().await;
    for url in [format!("http://{}", proxy.address()), format!("{}/sub", admin_url(&proxy))] {
        let output = run_wecom_proxy(&["agents", "--admin", &url]).await;
        assert_fails(&output, 2, &["it is not the admin listener", "check --admin"]);
    }
}

/// The files of a ZIP archive, read by another implementation.
fn unzip(path: &Path) -> BTreeMap<String, String> {
    let script = "import json, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
assert archive.testzip() is None
print(json.dumps({name: archive.read(name).decode() for name in archive.namelist()}))";
    let output = Command::new(tool("python3")).args(["-c", script]).arg(path).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn diag_holds_the_state_and_no_secret() {
    let config =
        format!("{OPEN_CONFIG}[clients.billing]\nkey = \"key-of-billing-0000000000\"\nagents = [\"hr\"]\n");
    let proxy = TestProxy::start_with_config(&config).await;
    let with_key = Request::get(USER_GET).header("authorization", "Bearer key-of-billing-0000000000");
    assert_prints(&command(&proxy, &["inspect", "hr"]).await, &["captured"]);
    proxy.request(with_key, "").await.assert_ok();
    proxy.get(&format!("{USER_GET}&access_token=a-token-of-a-caller-0123456789")).await;

    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("diag.zip");
    let (url, target) = (admin_url(&proxy), file.to_str().expect("a path in UTF-8"));
    let config_path = proxy.dir.path().join("proxy.toml");
    let config_path = config_path.to_str().expect("a path in UTF-8");
    let arguments = ["diag", target, "--admin", &url, "--config", config_path];
    assert_prints(&run_wecom_proxy(&arguments).await, &["readyz.json", "metrics.txt", "no secret"]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    assert_fails(&run_wecom_proxy(&arguments).await, 2, &["exists and was not changed"]);

    let files = unzip(&file);
    for (name, expected) in [
        ("version.txt", env!("CARGO_PKG_VERSION")),
        ("system.txt", "/proc/version"),
        ("configuration.txt", "billing"),
        ("agents.json", "\"state\":\"valid\""),
        ("readyz.json", "\"status\":\"ok\""),
        ("requests.json", "/cgi-bin/user/get"),
        ("metrics.txt", "wecom_proxy_requests_total"),
        ("clients.json", "billing"),
    ] {
        assert!(files[name].contains(expected), "{name}: {}", files[name]);
    }
    let issued = proxy.wecom.issued_tokens().since(0);
    let secrets: Vec<String> = Settings::default().agents.into_iter().map(|agent| agent.secret).collect();
    let mut known: Vec<_> = issued.iter().chain(&secrets).map(String::as_str).collect();
    known.extend(["key-of-billing-0000000000", "a-token-of-a-caller-0123456789"]);
    assert!(known.len() >= 5, "{known:?}");
    for (name, content) in &files {
        assert_eq!(leak_detector::find_secret(content, &known), None, "{name}");
        leak_detector::record_output("/api/diag", "", content.as_bytes());
    }
}

#[tokio::test]
async fn diag_of_a_stopped_proxy_says_so() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("diag.zip");
    let target = file.to_str().expect("a path in UTF-8");
    let output = run_wecom_proxy(&["diag", target, "--admin", "http://127.0.0.1:1"]).await;
    assert_prints(&output, &["version.txt", "proxy is missing from it: no response from 127.0.0.1:1"]);
    assert!(unzip(&file)["readyz.json"].contains("no response from 127.0.0.1:1"));
}
