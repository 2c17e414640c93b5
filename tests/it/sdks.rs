//! Unmodified third-party programs and SDKs: they use a client key as their secret, the proxy responds to gettoken, and a
//! token revoked in the middle of their work is refreshed unnoticed.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use serde_json::{Value, json};
use wecom_proxy::simulator::Settings;

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

/// A command without the environment's forward proxies.
fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

fn control_url(proxy: &TestProxy) -> String {
    format!("http://{}", proxy.wecom.control_addr())
}

/// Asserts that WeCom never received the key, and refused only requests with a revoked token: a forwarded pass would be
/// refused too.
#[track_caller]
fn assert_key_hidden_and_refreshed(proxy: &TestProxy, retried: usize) {
    let records = proxy.wecom.requests();
    for record in &records {
        for text in [&record.query].into_iter().chain(record.headers.iter().map(|(_, value)| value)) {
            assert!(!text.contains(KEY), "{text}");
        }
    }
    let refused = records.iter().filter(|record| [Some(40014), Some(42001)].contains(&record.errcode));
    assert_eq!(refused.count(), retried, "refused by WeCom");
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), retried as u64 + 1);
}

/// The texts of the messages that WeCom received.
fn message_texts(proxy: &TestProxy, kind: &str) -> Vec<String> {
    let messages = proxy.wecom.messages().into_iter().filter(|message| message.body["msgtype"] == kind);
    messages.map(|message| message.body[kind]["content"].as_str().unwrap_or("").to_owned()).collect()
}

#[tokio::test]
async fn wechatpy_with_another_base_url_works() {
    for prefix in ["", "/hr"] {
        let proxy = start_proxy().await;
        let mut command = command(python());
        let url = format!("http://{}{prefix}", proxy.address());
        command.args([&program_path("wechatpy_work.py"), "base", CORPID, KEY, &control_url(&proxy), &url]);
        assert_wechatpy_ok(&proxy, command).await;
    }
}

#[tokio::test]
async fn wechatpy_with_its_default_host_works() {
    let authority = Authority::new();
    let proxy = TestProxy::start_with_config(
        &CONFIG.replace("{tls}", &authority.tls_config_line("qyapi.weixin.qq.com")),
    )
    .await;
    let mut command = command(python());
    let address = proxy.address().to_string();
    command.args([&program_path("wechatpy_work.py"), "fixed", CORPID, KEY, &control_url(&proxy), &address]);
    command.env("REQUESTS_CA_BUNDLE", authority.ca_file());
    assert_wechatpy_ok(&proxy, command).await;
}

async fn assert_wechatpy_ok(proxy: &TestProxy, command: Command) {
    let output = run(command).await;
    assert_eq!((output.status, output.out.trim()), (0, "wechatpy: fine"), "{}", output.err);
    assert_eq!(message_texts(proxy, "text"), ["你好，世界 😀"]);
    assert_eq!(message_texts(proxy, "markdown"), ["**上线**"]);
    assert_key_hidden_and_refreshed(proxy, 7);
}

#[tokio::test]
async fn node_easywechat_works() {
    // The SDK's paths are relative, so it keeps a prefix of the base URL.
    for prefix in ["", "/hr"] {
        let proxy = start_proxy().await;
        let mut command = command(tool("node"));
        let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/node_modules");
        let is_installed = Path::new(modules).join("node-easywechat").exists();
        assert!(is_installed, "{modules} has no node-easywechat; `sh tests/run.sh` installs it");
        let (url, dir) = (format!("http://{}{prefix}", proxy.address()), proxy.dir.path().join("cache"));
        fs::create_dir(&dir).expect("a directory");
        command.args([&program_path("easywechat.js"), CORPID, KEY, &control_url(&proxy), &url]).arg(&dir);
        command.env("NODE_PATH", modules);
        let output = run(command).await;
        assert_eq!((output.status, output.out.trim()), (0, "easywechat: fine"), "{}", output.err);
        assert_eq!(message_texts(&proxy, "text"), ["hello", "你好，世界 😀"]);
        assert_key_hidden_and_refreshed(&proxy, 7);
    }
}

/// As Uptime Kuma sends (axios, which shows the key at once), and as programs of Java do, which show it when asked.
#[tokio::test]
async fn webhook_url_with_a_key_works() {
    let proxy = start_proxy().await;
    let url = format!(
        "http://legacy:{KEY}@{}/cgi-bin/webhook/send?key={}",
        proxy.address(),
        Settings::default().webhook_keys[0]
    );
    let mut axios = command(tool("node"));
    axios.arg(program_path("webhook.js")).arg(&url);
    axios.env("NODE_PATH", concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/node_modules"));
    let output = run(axios).await;
    assert_eq!((output.status, output.err.as_str()), (0, ""));
    assert!(output.out.contains("\"errcode\":0"), "{}", output.out);
    let body = r#"{"msgtype":"text","text":{"content":"built"}}"#;
    let response = curl(&["--anyauth", "-H", "Content-Type: application/json", "-d", body, &url]).await;
    assert!(response.contains("\"errcode\":0"), "{response}");
    assert_eq!(message_texts(&proxy, "text"), ["up", "built"]);
    assert!(proxy.wecom.requests().iter().all(|record| !format!("{record:?}").contains(KEY)));
}

#[tokio::test]
async fn alertmanager_delivers_its_alerts() {
    for prefix in ["", "/hr"] {
        let proxy = start_proxy().await;
        let alertmanager =
            start_alertmanager(&proxy, &format!("http://{}{prefix}/cgi-bin/", proxy.address()));
        let line = alertmanager.err.wait_for_line("Listening on").await;
        let address = line.trim().rsplit_once("address=").expect("an address").1.to_owned();
        for (count, alert) in ["DiskFull", "HostDown", "TooHot"].into_iter().enumerate() {
            if count > 0 {
                proxy.wecom.revoke_tokens("hr").expect("an agent");
            }
            fire_alert(&address, alert).await;
            let delivered = proxy.wecom.wait_until(|observed| observed.messages().count() == count + 1).await;
            delivered.unwrap_or_else(|error| panic!("{error}\n{}", alertmanager.err.text()));
            let message: Value = proxy.wecom.messages().pop().expect("a message").body;
            let text = message["text"]["content"].as_str().expect("a text");
            assert!(text.contains(alert), "{text}");
            // Debian's version sends `agentid` as a string.
            assert_eq!((&message["touser"], &message["agentid"]), (&json!("zhangsan"), &json!("1000002")));
        }
        assert_key_hidden_and_refreshed(&proxy, 2);
        let output = alertmanager.stop().await;
        assert!(!output.err.contains("level=error") && !output.err.contains("level=warn"), "{}", output.err);
    }
}

fn start_alertmanager(proxy: &TestProxy, api_url: &str) -> Process {
    let (config, data) = (proxy.dir.path().join("alertmanager.yml"), proxy.dir.path().join("data"));
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

/// Posts an alert to Alertmanager, as Prometheus does.
async fn fire_alert(alertmanager: &str, alert: &str) {
    let alerts = json!([{ "labels": { "alertname": alert }, "annotations": { "summary": "出事了" } }]);
    let url = format!("http://{alertmanager}/api/v2/alerts");
    let arguments = ["-H", "Content-Type: application/json", "-d", &alerts.to_string(), &url];
    curl(&[&["--fail"], &arguments[..]].concat()).await;
}
