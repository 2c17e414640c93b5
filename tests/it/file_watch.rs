//! §16: `server.reload = "watch"`.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use http::Request;
use tempfile::TempDir;

use crate::{
    certificates::Authority,
    gettoken::{CORPID, HR_SECRET},
    harness::{
        OPEN_CONFIG, TestClient, TestProxy, USER_GET, admin_get, start_simulator_with_config, wait_for,
        with_timeout,
    },
    process::Process,
};

const INTERVAL: Duration = Duration::from_millis(50);
const NEW_SECRET: &str = "not-a-secret-hr-1111111111111111111111111111";

fn watching(toml: &str) -> String {
    toml.replacen("[server]", "[server]\nreload = \"watch\"", 1)
}

fn agent(name: &str, secret: &str) -> String {
    format!("[agents.{name}]\ncorpid = \"{CORPID}\"\nsecret = {secret}\n")
}

/// Writes a version of a Kubernetes volume, and points `..data` at it in one step.
fn mount(dir: &Path, version: &str, secret: &str) {
    fs::create_dir(dir.join(version)).expect("a directory");
    fs::write(dir.join(version).join("secret"), secret).expect("a secret");
    symlink(version, dir.join("..tmp")).expect("a link");
    fs::rename(dir.join("..tmp"), dir.join("..data")).expect("replaced");
}

#[tokio::test]
async fn swapped_secret_of_a_mounted_volume_is_taken_up() {
    let dir = TempDir::new().expect("a directory");
    mount(dir.path(), "..v1", HR_SECRET);
    symlink("..data/secret", dir.path().join("secret")).expect("a link");
    let toml = watching(OPEN_CONFIG).replace("{agents}", &agent("hr", "{ file = \"secret\" }"));
    let proxy = TestProxy::start_watching(dir, &toml, INTERVAL).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.reset_secret("hr", NEW_SECRET).expect("an agent");
    mount(proxy.dir.path(), "..v2", NEW_SECRET);
    // The changed secret has no token yet.
    wait_for("the changed secret", async || {
        admin_get(&proxy, "/api/agents").await.text().contains("\"state\":\"none\"")
    })
    .await;
    proxy.get(USER_GET).await.assert_ok();
    let wrong = proxy.wecom.requests().iter().filter(|request| request.errcode == Some(40001)).count();
    assert_eq!(wrong, 0, "the old secret was tried again");
}

#[tokio::test]
async fn agents_follow_the_files_that_include_matches() {
    let dir = TempDir::new().expect("a directory");
    let agents = dir.path().join("agents.d");
    fs::create_dir(&agents).expect("a directory");
    let secret = format!("\"{HR_SECRET}\"");
    fs::write(agents.join("hr.toml"), agent("hr", &secret)).expect("a file");
    let toml = watching(OPEN_CONFIG).replace("{agents}", "");
    let toml = format!("include = [\"agents.d/*.toml\"]\n{toml}");
    let proxy = TestProxy::start_watching(dir, &toml, INTERVAL).await;
    proxy.get(USER_GET).await.assert_ok();
    let status = async || proxy.request(Request::get(format!("/it{USER_GET}")), "").await.status;
    assert_eq!(status().await, 404);
    fs::write(agents.join("it.toml"), agent("it", &secret)).expect("a file");
    wait_for("the new agent", async || status().await == 200).await;
    fs::remove_file(agents.join("it.toml")).expect("removed");
    wait_for("its removal", async || status().await == 404).await;
    // The only file is away: that is no reload, or one that fails.
    fs::remove_file(agents.join("hr.toml")).expect("removed");
    tokio::time::sleep(INTERVAL * 6).await;
    proxy.get(USER_GET).await.assert_ok();
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1, "tokens are kept");
}

#[tokio::test]
async fn new_certificate_is_taken_up() {
    let (old, new) = (Authority::new(), Authority::new());
    let dir = TempDir::new().expect("a directory");
    let (cert, key) = (dir.path().join("server.pem"), dir.path().join("server.key"));
    let write = |authority: &Authority| {
        let [new_cert, new_key] = authority.server_files("localhost");
        fs::copy(new_cert, &cert).expect("copied");
        fs::copy(new_key, &key).expect("copied");
    };
    write(&old);
    let toml = OPEN_CONFIG
        .replace("[upstream]", "tls = { cert = \"server.pem\", key = \"server.key\" }\n[upstream]");
    let proxy = TestProxy::start_watching(dir, &watching(&toml), INTERVAL).await;
    drop(old.connect_tls(proxy.address(), &[], None).await.expect("the old certificate"));
    write(&new);
    wait_for("the new certificate", async || new.connect_tls(proxy.address(), &[], None).await.is_ok()).await;
}

/// With the interval of five seconds.
#[tokio::test]
async fn program_takes_up_a_change_and_logs_a_mistake() {
    let (wecom, dir, path) = start_simulator_with_config(&watching(OPEN_CONFIG)).await;
    let proxy = Process::serve(&path).await;
    let text = fs::read_to_string(&path).expect("the file");
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    client.get(USER_GET).await.assert_ok();
    fs::write(&path, text.replace("listen", "lissten")).expect("written");
    let line = with_timeout(proxy.err.wait_for_line("ERROR")).await;
    assert!(line.contains("configuration was not reloaded") && line.contains("lissten"), "{line}");
    client.get(USER_GET).await.assert_ok();
    fs::write(&path, format!("{text}\n{}", agent("it", "\"not-a-secret-it-0000000000\""))).expect("written");
    with_timeout(proxy.err.wait_for_line("configuration reloaded")).await;
    assert_eq!(proxy.err.text().matches("configuration was not reloaded").count(), 1);
    assert_eq!(proxy.stop().await.status, 0);
    drop((wecom, dir));
}
