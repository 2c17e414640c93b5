//! A reload never opens a proxy that was closed, whatever the file says of `server.listen`, unless it says `server.open = true`.

use std::{fs, net::TcpListener, os::fd::OwnedFd};

use http::{Request, StatusCode};
use tempfile::TempDir;
use wecom_proxy::simulator::{Settings, Simulator};

use crate::{
    process::Process,
    stage::{Caller, OPEN, Stage, USER_GET, key, write_config},
};

fn client(name: &str) -> String {
    format!("[clients.{name}]\nkey = \"{}\"\nagents = [\"*\"]\n", key(name))
}

/// The open configuration with this in `[server]` and these clients.
fn with(listen: &str, clients: &str) -> String {
    format!("{}\n{clients}", OPEN.replacen("listen = \"127.0.0.1:0\"", listen, 1))
}

async fn keyless(stage: &Stage) -> u16 {
    stage.get(USER_GET).await.status.as_u16()
}

async fn keyed(stage: &Stage, client: &str) -> u16 {
    let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", key(client));
    stage.call(request, "").await.status.as_u16()
}

/// Reloads `toml`, which must fail as a whole and say `words`.
async fn stays_closed(stage: &Stage, toml: &str, words: &str) {
    stage.rewrite(toml);
    let error = stage.proxy.reload().expect_err("no reload").to_string();
    assert!(error.contains("proxy.toml") && error.contains(words), "{error}");
    let sent = stage.got_through();
    assert_eq!(keyless(stage).await, 401, "{toml}");
    assert_eq!(stage.got_through(), sent);
    assert_eq!(keyed(stage, "billing").await, 200);
}

#[tokio::test]
async fn reload_without_clients_leaves_a_closed_proxy_closed() {
    let loopback = "listen = \"127.0.0.1:0\"";
    for listen in [
        loopback,
        "listen = \"0.0.0.0:0\"",
        "listen = [\"unix:{dir}/a.sock\", \"0.0.0.0:0\", \"127.0.0.1:0\"]",
    ] {
        let stage = Stage::with(&with(listen, &client("billing"))).await;
        assert_eq!((keyless(&stage).await, keyed(&stage, "billing").await), (401, 200));
        for file in [loopback, "listen = \"unix:{dir}/b.sock\"", listen] {
            stays_closed(&stage, &with(file, ""), "[clients.*]").await;
        }
    }
}

#[tokio::test]
async fn reload_is_judged_by_the_sockets_that_are_bound() {
    let stage = Stage::with(&with("listen = \"0.0.0.0:0\"\nopen = true", "")).await;
    assert_eq!(keyless(&stage).await, 200);
    // A start with this file would be right; what is bound is reached by other machines.
    stage.rewrite(&with("listen = \"127.0.0.1:0\"", ""));
    let error = stage.proxy.reload().expect_err("no reload").to_string();
    assert!(error.contains("0.0.0.0") && error.contains("server.open"), "{error}");
    stage.rewrite(&with("listen = \"127.0.0.1:0\"", &client("billing")));
    stage.proxy.reload().expect("a reload");
    assert_eq!((keyless(&stage).await, keyed(&stage, "billing").await), (401, 200));
}

#[tokio::test]
async fn first_client_closes_an_open_proxy_for_good() {
    let (open, closed) = (OPEN.to_owned(), format!("{OPEN}\n{}", client("billing")));
    let stage = Stage::with(&open).await;
    stage.rewrite(&open);
    stage.proxy.reload().expect("it was open and stays so");
    assert_eq!(keyless(&stage).await, 200);
    stage.rewrite(&closed);
    stage.proxy.reload().expect("a reload");
    stays_closed(&stage, &open, "[clients.*]").await;
    stage.rewrite(&open.replacen("[server]", "[server]\nopen = true", 1));
    stage.proxy.reload().expect("the file says so");
    assert_eq!(keyless(&stage).await, 200);
    stage.rewrite(&closed);
    stage.proxy.reload().expect("a reload");
    assert_eq!((keyless(&stage).await, keyed(&stage, "billing").await), (401, 200));
}

#[tokio::test]
async fn include_that_matches_nothing_any_more_fails_the_reload() {
    let main = format!("include = [\"clients.d/*.toml\", \"more.d/*.toml\"]\n{OPEN}");
    let stage = Stage::with(&format!("{main}\n{}", client("first"))).await;
    let clients = stage.dir.path().join("clients.d");
    fs::create_dir(&clients).expect("a directory");
    for name in ["billing", "crm"] {
        fs::write(clients.join(format!("{name}.toml")), client(name)).expect("a file");
    }
    stage.rewrite(&main);
    stage.proxy.reload().expect("a pattern that has matched nothing so far may do so");
    assert_eq!((keyless(&stage).await, keyed(&stage, "crm").await), (401, 200));

    // The directory is put in place again in a moment, as configuration tools do.
    let aside = stage.dir.path().join("aside");
    fs::rename(&clients, &aside).expect("a directory");
    stays_closed(&stage, &main, "clients.d/*.toml").await;
    // With another client the proxy would stay closed, and these two would be gone.
    stays_closed(&stage, &format!("{main}\n{}", client("first")), "matched 2 before").await;
    fs::create_dir(&clients).expect("a directory");
    stays_closed(&stage, &main, "clients.d/*.toml").await;

    fs::write(clients.join("billing.toml"), "").expect("a file");
    stays_closed(&stage, &main, "[clients.*]").await;
    fs::remove_file(clients.join("billing.toml")).expect("a file");
    std::os::unix::fs::symlink("nowhere", clients.join("billing.toml")).expect("a link");
    stays_closed(&stage, &main, "billing.toml").await;

    fs::remove_dir_all(&clients).expect("a directory");
    fs::rename(&aside, &clients).expect("a directory");
    fs::remove_file(clients.join("crm.toml")).expect("a file");
    stage.rewrite(&main);
    stage.proxy.reload().expect("a file that is left makes it a change");
    assert_eq!((keyed(&stage, "crm").await, keyed(&stage, "billing").await), (401, 200));
}

#[tokio::test]
async fn reload_by_the_admin_listener_opens_nothing_either() {
    let stage = Stage::with(&format!("{OPEN}\n{}", client("billing"))).await;
    stage.rewrite(OPEN);
    let request = Request::post("/api/reload").header("content-type", "application/json");
    let reply = Caller::http1(stage.admin()).await.call(request, "").await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(reply.json()["failure"].as_str().is_some_and(|words| words.contains("[clients.*]")));
    assert_eq!(keyless(&stage).await, 401);
}

#[tokio::test]
async fn sighup_does_not_open_a_socket_that_was_handed_over() {
    let wecom: Simulator = crate::confidant::simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let write = |toml: &str| write_config(&dir, wecom.api_addr(), &Settings::default(), toml);
    let socket = TcpListener::bind("0.0.0.0:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    let config = write(&with(&format!("listen = \"{address}\""), &client("billing")));
    let proxy = Process::start_handing(OwnedFd::from(socket), &config);
    proxy.err.line("ready listen=").await;
    write(&with("listen = \"127.0.0.1:0\"", ""));
    proxy.signal("HUP");
    let line = proxy.err.line("configuration was not reloaded").await;
    assert!(line.contains("ERROR") && line.contains("[clients.*]"), "{line}");
    let reply = Caller::http1(address).await.get(USER_GET).await;
    reply.is_own("unauthenticated", 401, 40001);
    assert_eq!(wecom.requests().len(), 0);
    assert_eq!(proxy.stop().await.status, 0);
}
