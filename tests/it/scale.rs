//! Very many agents and clients.

#![cfg(target_os = "linux")]

use std::{fmt::Write, fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use http::Request;
use tempfile::TempDir;
use wecom_proxy::config::KeyHash;

use crate::{harness::TestClient, process::Process};

/// So many agents and a tenth as many clients; what a configuration can say of them is said.
fn write_config(dir: &TempDir, agents: usize) -> PathBuf {
    let mut toml =
        String::from("[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://127.0.0.1:9\"\n");
    let secret = dir.path().join("secret");
    fs::write(&secret, "a-secret-of-all").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("its owner's");
    for nth in 0..agents {
        // A few with their secret in plain text, for each of these has a warning.
        let secret = if nth % 20 == 0 { "\"a-plain-secret\"" } else { "{ file = \"secret\" }" };
        let company = nth / 50;
        write!(
            toml,
            "[agents.agent-{nth}]\ncorpid = \"ww{company}\"\nsecret = {secret}\nagentid = {nth}\nlimit = \"600/m\"\n"
        )
        .expect("text");
    }
    for nth in 0..agents / 10 {
        let key: String =
            KeyHash::of(&client_key(nth)).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        write!(
            toml,
            "[clients.client-{nth}]\nkey_sha256 = \"{key}\"\nagents = [\"agent-{nth}\", \"agent-{}\"]\n",
            agents - 1
        )
        .expect("text");
    }
    let path = dir.path().join("proxy.toml");
    fs::write(&path, toml).expect("a file");
    path
}

fn client_key(nth: usize) -> String {
    format!("the-key-of-client-{nth}-0123456789abcdef")
}

/// What starting and one reload cost with so many agents; the cheapest of a few times, for the machine has other work.
async fn startup_and_reload_cpu_time(agents: usize) -> Duration {
    let dir = TempDir::new().expect("a directory");
    let path = write_config(&dir, agents);
    let mut least = Duration::MAX;
    for _ in 0..2 {
        let proxy = Process::serve(&path).await;
        proxy.signal("HUP");
        proxy.err.wait_for_line("configuration reloaded").await;
        least = least.min(proxy.cpu_time());
        let mut caller = TestClient::connect_http1(proxy.address().await).await;
        let last = agents - 1;
        let ask = |agent: usize, key: String| {
            Request::get(format!("/agent-{agent}/cgi-bin/gettoken?corpid=ww{}&corpsecret={key}", agent / 50))
        };
        for client in [0, agents / 10 - 1] {
            for agent in [client, last] {
                let reply = caller.request(ask(agent, client_key(client)), "").await;
                assert_eq!(reply.assert_ok().json()["errcode"], 0, "client-{client}, agent-{agent}");
            }
        }
        caller.request(ask(2, client_key(0)), "").await.assert_proxy_error("unknown-agent", 404, 40035);
        assert_eq!(proxy.stop().await.status, 0);
    }
    least
}

#[tokio::test]
async fn startup_cost_grows_linearly_with_agents() {
    let (mut few, mut many) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        few = few.min(startup_and_reload_cpu_time(5_000).await);
        many = many.min(startup_and_reload_cpu_time(20_000).await);
        eprintln!("5,000 agents: {few:?}, 20,000 agents: {many:?} of processor time");
        if many < 6 * few {
            return;
        }
    }
    panic!("5,000 agents cost {few:?}, 20,000 cost {many:?}");
}
