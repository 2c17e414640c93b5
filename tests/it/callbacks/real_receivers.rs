//! Receivers of WeCom callbacks that others have written get raw and re-encrypted messages and are content.

use std::{path::Path, process::Command};

use serde_json::Value;

use super::{AES_KEY, CORPID, TOKEN, config, console, event, push, target};
use crate::{
    harness::{TestProxy, wait_for},
    process::{Process, python, tool},
};

/// The keys of a target of re-encrypted messages.
const OTHER: (&str, &str, &str) =
    ("token-of-the-target", "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG", "wwtarget");

fn program(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn start(mut command: Command, (token, aes_key, receive_id): (&str, &str, &str)) -> Process {
    command.args([token, aes_key, receive_id]);
    Process::start(command)
}

/// The first line of a program's output, its port.
async fn port(process: &Process) -> String {
    wait_for("the port", async || process.out.text().contains('\n')).await;
    process.out.text().lines().next().expect("a line").to_owned()
}

async fn messages(process: &Process, count: usize) -> Vec<Value> {
    wait_for("the messages", async || process.out.text().lines().count() > count).await;
    process.out.text().lines().skip(1).map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Pushes through the proxy to a receiver with WeCom's keys and one with its own.
async fn deliver_to(raw: &Process, reencrypted: &Process) -> TestProxy {
    let (token, aes_key, receive_id) = OTHER;
    let keys = format!(
        "form = \"reencrypt\"\ntoken = \"{token}\"\naes_key = \"{aes_key}\"\nreceive_id = \"{receive_id}\""
    );
    let to = target("raw", format!("http://127.0.0.1:{}/", port(raw).await), "form = \"raw\"\nreply = true")
        + &target("own-keys", format!("http://127.0.0.1:{}/", port(reencrypted).await), &keys);
    TestProxy::start_with_config(&config(&to)).await
}

#[tokio::test]
async fn wechatpy_accepts_raw_and_reencrypted_messages() {
    let command = || {
        let mut command = Command::new(python());
        command.arg(program("wechatpy_callback.py"));
        command
    };
    let raw = start(command(), (TOKEN, AES_KEY, CORPID));
    let reencrypted = start(command(), OTHER);
    let proxy = deliver_to(&raw, &reencrypted).await;
    let message = event("subscribe", 1_700_000_000);
    let reply = push(&proxy, &message).await;
    let encrypted = reply.text().split_once("<Encrypt><![CDATA[").expect("a reply").1;
    let encrypted = encrypted.split("]]>").next().expect("its end");
    let (text, receive_id) = console(&proxy).decrypt(encrypted).expect("decrypted");
    assert_eq!((&*text, &*receive_id), (&b"<xml><Content>reply</Content></xml>"[..], CORPID));
    for process in [&raw, &reencrypted] {
        let received = messages(process, 1).await;
        assert_eq!((&received[0]["xml"], &received[0]["source"]), (&message.as_str().into(), &"sys".into()));
    }
}

#[tokio::test]
async fn easywechat_accepts_raw_and_reencrypted_messages() {
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/node_modules");
    let is_installed = Path::new(modules).join("node-easywechat").exists();
    assert!(is_installed, "{modules} has no node-easywechat; `sh tests/run.sh` installs it");
    let command = || {
        let mut command = Command::new(tool("node"));
        command.arg(program("easywechat_callback.js")).env("NODE_PATH", modules);
        command
    };
    let raw = start(command(), (TOKEN, AES_KEY, CORPID));
    let reencrypted = start(command(), OTHER);
    let proxy = deliver_to(&raw, &reencrypted).await;
    push(&proxy, &event("subscribe", 1_700_000_000)).await;
    for process in [&raw, &reencrypted] {
        let received = messages(process, 1).await;
        assert_eq!(received[0]["Event"], "subscribe", "{}", received[0]);
    }
}
