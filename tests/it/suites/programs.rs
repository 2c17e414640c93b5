//! An ISV program with an SDK from a registry, and the demo.

use std::{path::Path, process::Command};

use serde_json::Value;
use wecom_proxy::simulator::SuiteEvent;

use super::{PROVIDER_ID, SUITE_ID, SUITES, console, start_without_ticket};
use crate::{
    harness::{TestProxy, client_key, wait_for},
    process::{Process, curl, run, run_line, tool, wecom_proxy},
};

/// The keys of the program as a target of re-encrypted messages.
const KEYS: [&str; 2] = ["token-of-the-target", "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"];
const CORPID: &str = "wpAlpha_1";

/// The program, with its SDK's cache in this directory. `url` is the proxy's.
fn openwork(mode: &str, url: &str, directory: &Path) -> Command {
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/node_modules");
    let is_installed = Path::new(modules).join("node-easywechat").exists();
    assert!(is_installed, "{modules} has no node-easywechat; `sh tests/run.sh` installs it");
    let mut command = Command::new(tool("node"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/easywechat_openwork.js"));
    command.args([mode, PROVIDER_ID, SUITE_ID, &client_key("isv"), KEYS[0], KEYS[1], url]).arg(directory);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("NODE_PATH", modules);
    command
}

/// The messages that the program has received, when there are `count`.
async fn messages(process: &Process, count: usize) -> Vec<Value> {
    wait_for("the messages", async || process.out.text().lines().count() > count).await;
    process.out.text().lines().skip(1).map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A proxy whose suite `crm` has this program as a target.
async fn start_with_target(program: &Process) -> TestProxy {
    wait_for("the port", async || program.out.text().contains('\n')).await;
    let port = program.out.text().lines().next().expect("a port").to_owned();
    let [token, aes_key] = KEYS;
    let target = format!(
        "[[suites.crm.to]]\nname = \"app\"\nurl = \"http://127.0.0.1:{port}/\"\nform = \"reencrypt\"\ntoken = \"{token}\"\naes_key = \"{aes_key}\"\nreceive_id = \"{SUITE_ID}\"\n"
    );
    start_without_ticket(&format!("{SUITES}{target}")).await
}

#[tokio::test]
async fn easywechat_openwork_works_with_a_key() {
    let cache = tempfile::TempDir::new().expect("a directory");
    let receiver = Process::start(openwork("serve", "http://127.0.0.1:1", cache.path()));
    let proxy = start_with_target(&receiver).await;
    let callback = console(&proxy, "/callbacks/crm", SUITE_ID);
    proxy.wecom.push_suite_event(SuiteEvent::Ticket, &callback, None).await.expect("a response");
    let ticket = messages(&receiver, 1).await[0]["SuiteTicket"].as_str().expect("a ticket").to_owned();
    assert!(ticket.starts_with("wpt1-"), "the program gets a stand-in: {ticket}");
    let pushed = proxy.wecom.push_suite_event(SuiteEvent::CreateAuth, &callback, Some(CORPID)).await;
    assert_eq!(pushed.expect("a response").body, "success");
    let auth_code = messages(&receiver, 2).await[1]["AuthCode"].as_str().expect("an auth_code").to_owned();

    let url = format!("http://{}", proxy.address());
    let mut work = openwork("work", &url, cache.path());
    work.args([&format!("http://{}", proxy.wecom.control_addr()), &auth_code, CORPID]);
    let output = run(work).await;
    assert_eq!((output.status, output.out.trim()), (0, "openwork: fine"), "{}", output.err);
    let sent = proxy.wecom.messages().pop().expect("a message");
    assert_eq!(sent.body["text"]["content"], "来自服务商");
    // One token each, and one more after it was revoked; nothing that WeCom got is of the proxy's own.
    for name in ["crm", "acme", "crm:wpAlpha_1"] {
        assert_eq!(proxy.wecom.gettoken_count(name).expect("an agent"), 2, "{name}");
    }
    for record in proxy.wecom.requests() {
        let text = format!("{record:?}");
        assert!(!text.contains(&client_key("isv")) && !text.contains("wp1-") && !text.contains("wps1-"));
    }
}

#[tokio::test]
async fn suite_demo_prints_four_working_curl_commands() {
    let demo = Process::start(wecom_proxy(&["demo", "--suite", "--listen", "127.0.0.1:0"]));
    demo.out.wait_for_line("Ctrl-C").await;
    let stdout = demo.out.text();
    let lines: Vec<_> = stdout.lines().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(lines.len(), 4, "{stdout}");
    for line in &lines[..2] {
        let pushed: Value = serde_json::from_str(&run_line(line).await).expect("JSON");
        assert_eq!(
            (&pushed["ok"], &pushed["response"]["body"]),
            (&true.into(), &"success".into()),
            "{pushed}"
        );
    }
    demo.err.wait_for_line("corp authorised the suite").await;
    let called: Value = serde_json::from_str(&run_line(lines[2]).await).expect("JSON");
    assert_eq!((&called["errcode"], &called["userid"]), (&0.into(), &"zhangsan".into()), "{called}");
    let healed = run_line(lines[3]).await.to_lowercase();
    assert!(healed.contains("http/1.1 200") && healed.contains("x-wecom-retried: 40082"), "{healed}");
    let line = stdout.lines().find(|line| line.contains("/api/suites ")).expect("a line");
    let url = line.split("curl ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a URL");
    let suites: Value = serde_json::from_str(&curl(&[url]).await).expect("JSON");
    assert_eq!((&suites["suites"][0]["name"], &suites["suites"][0]["corps"]), (&"crm".into(), &1.into()));
    assert_eq!(demo.stop().await.status, 0);
}

#[tokio::test]
async fn simulator_with_a_suite_prints_its_configuration() {
    let arguments = ["simulator", "--suite", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    let simulator = Process::start(wecom_proxy(&arguments));
    simulator.out.wait_for_line("aes_key").await;
    let printed = simulator.out.text();
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().join("proxy.toml");
    let state = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[state]\npath = \"{}/state.db\"\nkey = \"a-key-of-the-state-0123456789-0123456789\"\n",
        dir.path().display()
    );
    std::fs::write(&path, format!("{state}{printed}")).expect("a file");
    let proxy = Process::serve(&path).await;
    let base = format!("http://{}", proxy.address().await);
    let called = curl(&["--json", "{}", &format!("{base}/acme/cgi-bin/license/list_order")]).await;
    assert!(called.contains("\"errcode\":0"), "{called}");
    let (_, control) = printed.split_once("curl http://").expect("a control address");
    let control = control.lines().next().expect("a line");
    let corps = curl(&["-X", "POST", &format!("http://{control}/corps?suite=crm&count=2")]).await;
    let corps: Value = serde_json::from_str(&corps).expect("JSON");
    assert_eq!(corps["corps"][1]["corpid"], "wpCorp2", "{corps}");
    assert_eq!((proxy.stop().await.status, simulator.stop().await.status), (0, 0));
}
