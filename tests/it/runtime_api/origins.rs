//! Entries of files beside those of the state, reloads and restarts, and a second process.

use std::time::Duration;

use tempfile::TempDir;
use wecom_proxy::{
    app::{App, PreparedConfig},
    config,
    state::{Collection, State, Write},
};

use super::*;
use crate::harness::{wait_for, with_timeout};

const HR: &str = "\n[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-hr-0000000000000000000000000000\"\n";

fn client_section(name: &str, key: &str) -> String {
    format!("\n[clients.{name}]\nkey_sha256 = \"{}\"\nagents = [\"*\"]\n", sha256(key))
}

impl Api {
    fn reload(&self, files: &str) -> Result<(), String> {
        self.proxy.rewrite_config(&config(files));
        self.proxy.app.reload().map(drop).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn entry_of_a_file_is_read_only_and_names_file_and_line() {
    let files = format!("{HR}{}", client_section("billing", &key_of("billing")));
    let api = Api::start_with_files(&files).await;
    for (path, body) in
        [("/api/agents/hr", agent(IT_SECRET)), ("/api/clients/billing", client(&key_of("other"), &["*"]))]
    {
        api.reload(&files).expect("a reload");
        let shown = api.call("GET", path, Value::Null).await;
        let origin = shown.assert_status(200).json()["origin"].as_str().expect("a text").to_owned();
        let (file, line) = origin.rsplit_once(':').expect("file and line");
        let text = std::fs::read_to_string(file).expect("the file is readable");
        let section = text.lines().nth(line.parse::<usize>().expect("a line") - 1).expect("a line");
        assert!(
            section.starts_with('[') && section.contains(path.rsplit('/').next().expect("a name")),
            "{section}"
        );
        let tag = shown.header("etag").to_owned();
        api.call_with("GET", path, &[("if-none-match", &*tag)], Value::Null).await.assert_status(304);
        for method in ["PUT", "PATCH", "DELETE"] {
            let body = if method == "DELETE" { Value::Null } else { body.clone() };
            // Without the condition it would be 409, so the condition does not count.
            let refused = api.call_with(method, path, &[("if-match", "\"x\"")], body).await;
            assert!(refused.assert_status(409).text().contains(&origin), "{}", refused.text());
        }
        // A reload that changes nothing changes no tag; a changed secret or key does.
        api.reload(&files).expect("a reload");
        assert_eq!(api.call("GET", path, Value::Null).await.header("etag"), tag);
        let changed = files
            .replace("not-a-secret-hr", "no-secret-at-hr")
            .replace(&sha256(key_of("billing")), &sha256("x"));
        api.reload(&changed).expect("a reload");
        assert_ne!(api.call("GET", path, Value::Null).await.header("etag"), tag);
    }
}

#[tokio::test]
async fn entry_in_both_is_the_one_of_the_file() {
    let api = Api::start().await;
    let mut of_state = agent("a-wrong-secret");
    of_state["agentid"] = json!(1);
    api.call("PUT", "/api/agents/hr", of_state).await.assert_status(201);
    api.call("PUT", "/api/clients/billing", client(&key_of("state"), &["*"])).await.assert_status(201);
    api.get_as("hr", &key_of("state")).await.assert_proxy_error("token-unavailable", 502, 40001);
    api.reload(&format!("{HR}{}", client_section("billing", &key_of("file")))).expect("a reload");
    api.get_as("hr", &key_of("file")).await.assert_ok();
    api.get_as("hr", &key_of("state")).await.assert_proxy_error("unauthenticated", 401, 40001);
    api.call("DELETE", "/api/agents/hr", Value::Null).await.assert_status(409);
    api.reload("").expect("a reload");
    let shown = api.call("GET", "/api/agents/hr", Value::Null).await.json();
    assert_eq!((&shown["origin"], &shown["agentid"]), (&json!("state"), &json!(1)));
    api.get_as("hr", &key_of("state")).await.assert_proxy_error("token-unavailable", 502, 40001);
    api.get_as("hr", &key_of("file")).await.assert_proxy_error("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn client_with_the_key_of_a_file_is_not_in_force() {
    let api = Api::start_with_files(HR).await;
    api.call("PUT", "/api/clients/one", client(&key_of("one"), &["*"])).await.assert_status(201);
    api.reload(&format!("{HR}{}", client_section("two", &key_of("one")))).expect("a reload");
    api.call("GET", "/api/clients/one", Value::Null).await.assert_status(404);
    api.call("GET", "/api/clients/two", Value::Null).await.assert_status(200);
    api.reload(HR).expect("a reload");
    api.call("GET", "/api/clients/one", Value::Null).await.assert_status(200);
    api.get_as("hr", &key_of("one")).await.assert_ok();
}

#[tokio::test]
async fn reload_keeps_entries_of_the_state_and_their_tokens() {
    let api = Api::start_with_files(HR).await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.call("PUT", "/api/clients/billing", client(&key_of("billing"), &["*"])).await.assert_status(201);
    api.get_as("it", &key_of("billing")).await.assert_ok();
    api.reload("").expect("a file without agents is valid");
    api.get_as("hr", &key_of("billing")).await.assert_proxy_error("unknown-agent", 404, 40035);
    api.get_as("it", &key_of("billing")).await.assert_ok();
    api.get_as("it", "").await.assert_proxy_error("unauthenticated", 401, 40001);
    assert_eq!(api.gettoken_count(), 1);
    let tag = api.call("GET", "/api/agents/it", Value::Null).await.header("etag").to_owned();
    api.reload(HR).expect("a reload");
    assert_eq!(api.call("GET", "/api/agents/it", Value::Null).await.header("etag"), tag);
}

#[tokio::test]
async fn client_of_a_file_may_name_an_agent_of_the_state() {
    let section = client_section("billing", &key_of("billing")).replace("[\"*\"]", "[\"it\"]");
    let api = Api::start_with_files(&section).await;
    api.get_as("it", &key_of("billing")).await.assert_proxy_error("unknown-agent", 404, 40035);
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.get_as("it", &key_of("billing")).await.assert_ok();
}

/// Another proxy with the same file.
struct Second(App);

impl Second {
    fn start(dir: &TempDir) -> Self {
        let config = config::load(&dir.path().join("proxy.toml")).expect("a configuration");
        Self(App::start(PreparedConfig::new(config).expect("usable files")).expect("a proxy"))
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> TestResponse {
        let request =
            headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        TestClient::connect_http1(tcp(&self.0.addresses()[0])).await.request(request, "").await
    }

    /// A request to the admin listener, with the key.
    async fn call(&self, method: &str, path: &str) -> TestResponse {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
        TestClient::connect_http1(tcp(&self.0.admin_addresses()[0])).await.request(request, "").await
    }
}

fn tcp(address: &config::Address) -> std::net::SocketAddr {
    match address {
        config::Address::Tcp(address) => *address,
        config::Address::Unix(_) => unreachable!("the configuration has TCP listeners"),
    }
}

#[tokio::test]
async fn two_processes_leave_one_client() {
    let api = Api::start().await;
    let second = Second::start(&api.proxy.dir);
    for round in 0..5 {
        for name in ["one", "two"] {
            api.call("PUT", &format!("/api/clients/{name}"), client(&key_of(name), &["*"])).await;
        }
        wait_for("both clients", async || {
            second.call("GET", "/api/clients/one").await.status == StatusCode::OK
                && second.call("GET", "/api/clients/two").await.status == StatusCode::OK
        })
        .await;
        let (one, two) = tokio::join!(
            api.call("DELETE", "/api/clients/one", Value::Null),
            second.call("DELETE", "/api/clients/two"),
        );
        let statuses = BTreeSet::from([one.status.as_u16(), two.status.as_u16()]);
        assert_eq!(statuses, BTreeSet::from([204, 409]), "round {round}");
    }
    second.0.shutdown().await;
}

#[tokio::test]
async fn client_of_a_newer_version_keeps_the_proxy_closed() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let config = config::load(&api.proxy.dir.path().join("proxy.toml")).expect("a configuration");
    let state = State::open(&config.state.expect("a state"), Box::new(|_| {})).expect("a state");
    let record = Write::put(Collection::Clients, "billing", r#"{"of":"another version"}"#);
    state.write(vec![record]).await.expect("written");
    wait_for("closed", async || api.get_as("it", "").await.status == StatusCode::UNAUTHORIZED).await;
    let second = Second::start(&api.proxy.dir);
    let path = format!("/it{USER_GET}");
    second.get(&path, &[]).await.assert_proxy_error("unauthenticated", 401, 40001);
    second.0.shutdown().await;
    state.close().await;
}

#[tokio::test]
async fn other_process_follows_within_a_second() {
    let api = Api::start().await;
    let (path, key) = (format!("/it{USER_GET}"), key_of("billing"));
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let second = Second::start(&api.proxy.dir);
    second.get(&path, &[]).await.assert_ok();
    api.call("PUT", "/api/clients/billing", client(&key, &["*"])).await.assert_status(201);
    wait_for("the client", async || second.get(&path, &[]).await.status == StatusCode::UNAUTHORIZED).await;
    second.get(&path, &[("x-api-key", &*key)]).await.assert_ok();
    let begin = std::time::Instant::now();
    api.call("DELETE", "/api/agents/it", Value::Null).await.assert_status(204);
    wait_for("the deletion", async || {
        second.get(&path, &[("x-api-key", &*key)]).await.status == StatusCode::NOT_FOUND
    })
    .await;
    // One second is promised; the machine may be loaded.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    second.0.shutdown().await;
}

#[tokio::test]
async fn entries_survive_a_restart() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let tag = api.call("PATCH", "/api/agents/it", json!({ "agentid": 5 })).await.header("etag").to_owned();
    api.call("PUT", "/api/clients/billing", client(&key_of("billing"), &["it"])).await.assert_status(201);
    let Api { proxy } = api;
    let TestProxy { app, dir, wecom, .. } = proxy;
    with_timeout(app.shutdown()).await;
    let second = Second::start(&dir);
    let path = format!("/it{USER_GET}");
    second.get(&path, &[]).await.assert_proxy_error("unauthenticated", 401, 40001);
    second.get(&path, &[("x-api-key", &*key_of("billing"))]).await.assert_ok();
    let shown = second.call("GET", "/api/agents/it").await;
    assert_eq!((shown.header("etag"), &shown.json()["agentid"]), (&*tag, &json!(5)));
    second.0.shutdown().await;
    drop(wecom);
}
