//! Programs and SDKs that nobody wrote for this proxy: where their secret was they have a client's key, gettoken is
//! answered by the proxy, and of a token that is voided in the middle of their work they learn nothing.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    certificates::Authority,
    harness::TestProxy,
    process::{Process, curl, python, run, tool},
};

const CORPID: &str = "ww1234567890abcdef";
const KEY: &str = "the-key-of-legacy-0123456789abcdef";

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
{tls}
[upstream]
url = "http://{api}"
{agents}
[clients.legacy]
key = "the-key-of-legacy-0123456789abcdef"
agents = ["hr"]
"#;

async fn start_proxy() -> TestProxy {
    TestProxy::start_with_config(&CONFIG.replace("{tls}", "")).await
}

fn program_path(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A command that ignores the surroundings' forward proxies.
fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

fn control_url(stage: &TestProxy) -> String {
    format!("http://{}", stage.wecom.control_addr())
}

/// WeCom never saw the key, and refused only what carried a voided token: it would have refused a pass too.
#[track_caller]
fn assert_key_hidden_and_refreshed(stage: &TestProxy, retried: usize) {
    let records = stage.wecom.requests();
    for record in &records {
        for text in [&record.query].into_iter().chain(record.headers.iter().map(|(_, value)| value)) {
            assert!(!text.contains(KEY), "{text}");
        }
    }
    let refused = records.iter().filter(|record| [Some(40014), Some(42001)].contains(&record.errcode));
    assert_eq!(refused.count(), retried, "refused by WeCom");
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), retried as u64 + 1);
}

/// What was said to whom.
fn message_texts(stage: &TestProxy, kind: &str) -> Vec<String> {
    let messages = stage.wecom.messages().into_iter().filter(|message| message.body["msgtype"] == kind);
    messages.map(|message| message.body[kind]["content"].as_str().unwrap_or("").to_owned()).collect()
}

#[tokio::test]
async fn wechatpy_with_another_base_url_works() {
    for prefix in ["", "/hr"] {
        let stage = start_proxy().await;
        let mut command = command(python());
        let url = format!("http://{}{prefix}", stage.address());
        command.args([&program_path("wechatpy_work.py"), "base", CORPID, KEY, &control_url(&stage), &url]);
        assert_wechatpy_ok(&stage, command).await;
    }
}

#[tokio::test]
async fn wechatpy_with_its_default_host_works() {
    let authority = Authority::new();
    let stage = TestProxy::start_with_config(
        &CONFIG.replace("{tls}", &authority.tls_config_line("qyapi.weixin.qq.com")),
    )
    .await;
    let mut command = command(python());
    let proxy = stage.address().to_string();
    command.args([&program_path("wechatpy_work.py"), "fixed", CORPID, KEY, &control_url(&stage), &proxy]);
    command.env("REQUESTS_CA_BUNDLE", authority.ca_file());
    assert_wechatpy_ok(&stage, command).await;
}

async fn assert_wechatpy_ok(stage: &TestProxy, command: Command) {
    let ended = run(command).await;
    assert_eq!((ended.status, ended.out.trim()), (0, "wechatpy: fine"), "{}", ended.err);
    assert_eq!(message_texts(stage, "text"), ["你好，世界 😀"]);
    assert_eq!(message_texts(stage, "markdown"), ["**上线**"]);
    assert_key_hidden_and_refreshed(stage, 7);
}

#[tokio::test]
async fn node_easywechat_works() {
    // Its paths are relative, so a prefix of the base URL stays.
    for prefix in ["", "/hr"] {
        let stage = start_proxy().await;
        let mut command = command(tool("node"));
        let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/node_modules");
        let there = Path::new(modules).join("node-easywechat").exists();
        assert!(there, "{modules} has no node-easywechat; `sh tests/run.sh` makes it");
        let (url, dir) = (format!("http://{}{prefix}", stage.address()), stage.dir.path().join("cache"));
        fs::create_dir(&dir).expect("a directory");
        command.args([&program_path("easywechat.js"), CORPID, KEY, &control_url(&stage), &url]).arg(&dir);
        command.env("NODE_PATH", modules);
        let ended = run(command).await;
        assert_eq!((ended.status, ended.out.trim()), (0, "easywechat: fine"), "{}", ended.err);
        assert_eq!(message_texts(&stage, "text"), ["hello", "你好，世界 😀"]);
        assert_key_hidden_and_refreshed(&stage, 7);
    }
}

#[tokio::test]
async fn alertmanager_delivers_its_alerts() {
    for prefix in ["", "/hr"] {
        let stage = start_proxy().await;
        let alertmanager =
            start_alertmanager(&stage, &format!("http://{}{prefix}/cgi-bin/", stage.address()));
        let line = alertmanager.err.wait_for_line("Listening on").await;
        let address = line.trim().rsplit_once("address=").expect("an address").1.to_owned();
        for (count, alert) in ["DiskFull", "HostDown", "TooHot"].into_iter().enumerate() {
            if count > 0 {
                stage.wecom.revoke_tokens("hr").expect("an agent");
            }
            fire_alert(&address, alert).await;
            let sent = stage.wecom.wait_until(|seen| seen.messages().count() == count + 1).await;
            sent.unwrap_or_else(|error| panic!("{error}\n{}", alertmanager.err.text()));
            let message: Value = stage.wecom.messages().pop().expect("a message").body;
            let text = message["text"]["content"].as_str().expect("a text");
            assert!(text.contains(alert), "{text}");
            // Debian's version writes the number as text.
            assert_eq!((&message["touser"], &message["agentid"]), (&json!("zhangsan"), &json!("1000002")));
        }
        assert_key_hidden_and_refreshed(&stage, 2);
        let ended = alertmanager.stop().await;
        assert!(!ended.err.contains("level=error") && !ended.err.contains("level=warn"), "{}", ended.err);
    }
}

fn start_alertmanager(stage: &TestProxy, api_url: &str) -> Process {
    let (config, data) = (stage.dir.path().join("alertmanager.yml"), stage.dir.path().join("data"));
    let text = format!(
        "route: {{ receiver: wecom, group_by: [alertname], group_wait: 10ms, group_interval: 1h }}
receivers:
  - name: wecom
    wechat_configs:
      - api_url: {api_url}
        corp_id: {CORPID}
        api_secret: {KEY}
        agent_id: '1000002'
        to_user: zhangsan
"
    );
    fs::write(&config, text).expect("a file");
    let mut command = command(tool("prometheus-alertmanager"));
    command.arg("--web.listen-address=127.0.0.1:0").arg("--cluster.listen-address=");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.path={}", data.display()));
    Process::start(command)
}

/// Tells Alertmanager, as Prometheus does, that something is wrong.
async fn fire_alert(alertmanager: &str, alert: &str) {
    let alerts = json!([{ "labels": { "alertname": alert }, "annotations": { "summary": "出事了" } }]);
    let url = format!("http://{alertmanager}/api/v2/alerts");
    let json = ["-H", "Content-Type: application/json", "-d", &alerts.to_string(), &url];
    curl(&[&["--fail"], &json[..]].concat()).await;
}
