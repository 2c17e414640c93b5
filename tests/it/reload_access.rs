//! A reload never opens a closed proxy, whatever `server.listen` is, unless the file has `server.open = true`.

use std::{fs, net::TcpListener, os::fd::OwnedFd};

use http::{Request, StatusCode};
use tempfile::TempDir;
use wecom_proxy::simulator::{Settings, Simulator};

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy, USER_GET, client_key, write_config},
    process::Process,
};

fn client_section(name: &str) -> String {
    format!("[clients.{name}]\nkey = \"{}\"\nagents = [\"*\"]\n", client_key(name))
}

/// The open configuration with another `listen` line and these clients.
fn open_config_with(listen: &str, clients: &str) -> String {
    format!("{}\n{clients}", OPEN_CONFIG.replacen("listen = \"127.0.0.1:0\"", listen, 1))
}

async fn status_without_key(proxy: &TestProxy) -> u16 {
    proxy.get(USER_GET).await.status.as_u16()
}

async fn status_with_key(proxy: &TestProxy, client: &str) -> u16 {
    let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key(client));
    proxy.request(request, "").await.status.as_u16()
}

/// Asserts that a reload of `toml` fails with `message` in its error and changes nothing.
async fn assert_stays_closed(proxy: &TestProxy, toml: &str, message: &str) {
    proxy.rewrite_config(toml);
    let error = proxy.app.reload().expect_err("no reload").to_string();
    assert!(error.contains("proxy.toml") && error.contains(message), "{error}");
    let sent = proxy.forwarded_count();
    assert_eq!(status_without_key(proxy).await, 401, "{toml}");
    assert_eq!(proxy.forwarded_count(), sent);
    assert_eq!(status_with_key(proxy, "billing").await, 200);
}

#[tokio::test]
async fn reload_without_clients_leaves_a_closed_proxy_closed() {
    let loopback = "listen = \"127.0.0.1:0\"";
    for listen in [
        loopback,
        "listen = \"0.0.0.0:0\"",
        "listen = [\"unix:{dir}/a.sock\", \"0.0.0.0:0\", \"127.0.0.1:0\"]",
    ] {
        let proxy = TestProxy::start_with_config(&open_config_with(listen, &client_section("billing"))).await;
        assert_eq!((status_without_key(&proxy).await, status_with_key(&proxy, "billing").await), (401, 200));
        for file in [loopback, "listen = \"unix:{dir}/b.sock\"", listen] {
            assert_stays_closed(&proxy, &open_config_with(file, ""), "[clients.*]").await;
        }
    }
}

#[tokio::test]
async fn reload_is_checked_against_the_bound_sockets() {
    let proxy =
        TestProxy::start_with_config(&open_config_with("listen = \"0.0.0.0:0\"\nopen = true", "")).await;
    assert_eq!(status_without_key(&proxy).await, 200);
    // A start with this file would be allowed, but the bound socket is reachable from other machines.
    proxy.rewrite_config(&open_config_with("listen = \"127.0.0.1:0\"", ""));
    let error = proxy.app.reload().expect_err("no reload").to_string();
    assert!(error.contains("0.0.0.0") && error.contains("server.open"), "{error}");
    proxy.rewrite_config(&open_config_with("listen = \"127.0.0.1:0\"", &client_section("billing")));
    proxy.app.reload().expect("a reload");
    assert_eq!((status_without_key(&proxy).await, status_with_key(&proxy, "billing").await), (401, 200));
}

#[tokio::test]
async fn first_client_closes_an_open_proxy_permanently() {
    let (open, closed) = (OPEN_CONFIG.to_owned(), format!("{OPEN_CONFIG}\n{}", client_section("billing")));
    let proxy = TestProxy::start_with_config(&open).await;
    proxy.rewrite_config(&open);
    proxy.app.reload().expect("a reload that stays open");
    assert_eq!(status_without_key(&proxy).await, 200);
    proxy.rewrite_config(&closed);
    proxy.app.reload().expect("a reload");
    assert_stays_closed(&proxy, &open, "[clients.*]").await;
    proxy.rewrite_config(&open.replacen("[server]", "[server]\nopen = true", 1));
    proxy.app.reload().expect("a reload with server.open");
    assert_eq!(status_without_key(&proxy).await, 200);
    proxy.rewrite_config(&closed);
    proxy.app.reload().expect("a reload");
    assert_eq!((status_without_key(&proxy).await, status_with_key(&proxy, "billing").await), (401, 200));
}

#[tokio::test]
async fn include_pattern_that_lost_its_files_fails_the_reload() {
    let main = format!("include = [\"clients.d/*.toml\", \"more.d/*.toml\"]\n{OPEN_CONFIG}");
    let proxy = TestProxy::start_with_config(&format!("{main}\n{}", client_section("first"))).await;
    let clients = proxy.dir.path().join("clients.d");
    fs::create_dir(&clients).expect("a directory");
    for name in ["billing", "crm"] {
        fs::write(clients.join(format!("{name}.toml")), client_section(name)).expect("a file");
    }
    proxy.rewrite_config(&main);
    proxy.app.reload().expect("a reload: the pattern never matched a file");
    assert_eq!((status_without_key(&proxy).await, status_with_key(&proxy, "crm").await), (401, 200));

    // Configuration tools replace a directory by moving it away first.
    let moved = proxy.dir.path().join("aside");
    fs::rename(&clients, &moved).expect("a directory");
    assert_stays_closed(&proxy, &main, "clients.d/*.toml").await;
    // With another client the proxy would stay closed, but lose these two.
    assert_stays_closed(&proxy, &format!("{main}\n{}", client_section("first")), "matched 2 before").await;
    fs::create_dir(&clients).expect("a directory");
    assert_stays_closed(&proxy, &main, "clients.d/*.toml").await;

    fs::write(clients.join("billing.toml"), "").expect("a file");
    assert_stays_closed(&proxy, &main, "[clients.*]").await;
    fs::remove_file(clients.join("billing.toml")).expect("a file");
    std::os::unix::fs::symlink("nowhere", clients.join("billing.toml")).expect("a link");
    assert_stays_closed(&proxy, &main, "billing.toml").await;

    fs::remove_dir_all(&clients).expect("a directory");
    fs::rename(&moved, &clients).expect("a directory");
    fs::remove_file(clients.join("crm.toml")).expect("a file");
    proxy.rewrite_config(&main);
    proxy.app.reload().expect("a reload: the pattern still matches a file");
    assert_eq!((status_with_key(&proxy, "crm").await, status_with_key(&proxy, "billing").await), (401, 200));
}

/// Opening a pipe waits for its writer.
#[tokio::test]
async fn pipe_in_place_of_a_file_fails_the_reload() {
    let main = format!("include = [\"clients.d/*.toml\"]\n{OPEN_CONFIG}");
    let proxy = TestProxy::start_with_config(&format!("{main}\n{}", client_section("billing"))).await;
    let make_pipe = |name: &str| {
        let status = std::process::Command::new(crate::process::tool("mkfifo"))
            .arg(proxy.dir.path().join(name))
            .status();
        assert!(status.expect("mkfifo").success());
    };
    fs::create_dir(proxy.dir.path().join("clients.d")).expect("a directory");
    make_pipe("clients.d/pipe.toml");
    let error = proxy.app.reload().expect_err("a pipe");
    assert!(error.to_string().contains("is not a file"), "{error}");
    fs::remove_file(proxy.dir.path().join("clients.d/pipe.toml")).expect("removed");
    proxy.app.reload().expect("a reload");
    fs::remove_file(proxy.dir.path().join("proxy.toml")).expect("removed");
    make_pipe("proxy.toml");
    let error = proxy.app.reload().expect_err("a pipe");
    assert!(error.to_string().contains("is not a file"), "{error}");
    assert_eq!(status_with_key(&proxy, "billing").await, 200);
}

#[tokio::test]
async fn admin_reload_does_not_open_a_closed_proxy() {
    let proxy = TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n{}", client_section("billing"))).await;
    proxy.rewrite_config(OPEN_CONFIG);
    let request = Request::post("/api/reload").header("content-type", "application/json");
    let response = TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await;
    assert_eq!(response.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(response.json()["failure"].as_str().is_some_and(|message| message.contains("[clients.*]")));
    assert_eq!(status_without_key(&proxy).await, 401);
}

#[tokio::test]
async fn sighup_does_not_open_an_inherited_socket() {
    let wecom: Simulator = crate::leak_detector::start_simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let write = |toml: &str| write_config(&dir, wecom.api_addr(), &Settings::default(), toml);
    let socket = TcpListener::bind("0.0.0.0:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    let config = write(&open_config_with(&format!("listen = \"{address}\""), &client_section("billing")));
    let proxy = Process::start_with_socket(OwnedFd::from(socket), &config);
    proxy.err.wait_for_line("ready listen=").await;
    write(&open_config_with("listen = \"127.0.0.1:0\"", ""));
    proxy.signal("HUP");
    let line = proxy.err.wait_for_line("configuration was not reloaded").await;
    assert!(line.contains("ERROR") && line.contains("[clients.*]"), "{line}");
    let response = TestClient::connect_http1(address).await.get(USER_GET).await;
    response.assert_proxy_error("unauthenticated", 401, 40001);
    assert_eq!(wecom.requests().len(), 0);
    assert_eq!(proxy.stop().await.status, 0);
}
