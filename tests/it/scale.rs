//! Startup and reload time with thousands of agents and clients.

#![cfg(target_os = "linux")]

use std::{fmt::Write, fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use http::Request;
use tempfile::TempDir;
use wecom_proxy::config::KeyHash;

use crate::{harness::TestClient, process::Process};

/// Writes a configuration with `agents` agents and a tenth as many clients, with most of their settings.
fn write_config(dir: &TempDir, agents: usize) -> PathBuf {
    let mut toml =
        String::from("[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://127.0.0.1:9\"\n");
    let secret = dir.path().join("secret");
    fs::write(&secret, "a-secret-of-all").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a file mode");
    for nth in 0..agents {
        // Only 1 of 20 agents has a plain secret, because each of those is logged as a warning.
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

/// CPU time of a start and one reload with this many agents: the minimum of two runs, because the machine has other load.
async fn startup_and_reload_cpu_time(agents: usize) -> Duration {
    let dir = TempDir::new().expect("a directory");
    let path = write_config(&dir, agents);
    let mut minimum = Duration::MAX;
    for _ in 0..2 {
        let proxy = Process::serve(&path).await;
        proxy.signal("HUP");
        proxy.err.wait_for_line("configuration reloaded").await;
        minimum = minimum.min(proxy.cpu_time());
        let mut connection = TestClient::connect_http1(proxy.address().await).await;
        let last = agents - 1;
        let gettoken = |agent: usize, key: String| {
            Request::get(format!("/agent-{agent}/cgi-bin/gettoken?corpid=ww{}&corpsecret={key}", agent / 50))
        };
        for client in [0, agents / 10 - 1] {
            for agent in [client, last] {
                let response = connection.request(gettoken(agent, client_key(client)), "").await;
                assert_eq!(response.assert_ok().json()["errcode"], 0, "client-{client}, agent-{agent}");
            }
        }
        connection.request(gettoken(2, client_key(0)), "").await.assert_proxy_error(
            "unknown-agent",
            404,
            40035,
        );
        assert_eq!(proxy.stop().await.status, 0);
    }
    minimum
}

#[tokio::test]
async fn startup_cost_grows_linearly_with_agents() {
    let (mut small, mut large) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        small = small.min(startup_and_reload_cpu_time(5_000).await);
        large = large.min(startup_and_reload_cpu_time(20_000).await);
        eprintln!("5,000 agents: {small:?}, 20,000 agents: {large:?} of CPU time");
        if large < 6 * small {
            return;
        }
    }
    panic!("5,000 agents cost {small:?}, 20,000 cost {large:?}");
}
