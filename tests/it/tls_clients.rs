//! TLS towards clients: protocols by ALPN, client certificates, and a certificate that is replaced.

use std::{fs, time::Duration};

use http::Request;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    certificates::{Authority, Identity},
    stage::{Caller, Stage, USER_GET, soon},
};

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
tls = { cert = "{certs}/server.pem", key = "{certs}/server.key"{more} }
[upstream]
url = "http://{api}"
{agents}
"#;

/// A directory with the files that the configuration names.
fn files(identity: &Identity) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    put(&dir, identity);
    dir
}

fn put(dir: &TempDir, identity: &Identity) {
    fs::write(dir.path().join("server.pem"), &identity.pem).expect("a file");
    fs::write(dir.path().join("server.key"), &identity.key_pem).expect("a file");
}

fn config(dir: &TempDir, more: &str) -> String {
    CONFIG.replace("{certs}", &dir.path().display().to_string()).replace("{more}", more)
}

#[tokio::test]
async fn clients_speak_the_protocol_that_alpn_agrees_on() {
    let authority = Authority::new();
    let dir = files(&authority.server("localhost"));
    let stage = Stage::with(&config(&dir, "")).await;
    for offered in [&["h2", "http/1.1"][..], &["h2"]] {
        let stream = authority.connect(stage.address(), offered, None).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut caller = Caller::http2_over(stream).await;
        caller.get(USER_GET).await.is_ok();
        caller.get(USER_GET).await.is_ok();
    }
    for (offered, agreed) in [(&["http/1.1"][..], Some(&b"http/1.1"[..])), (&[], None)] {
        let stream = authority.connect(stage.address(), offered, None).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        let mut caller = Caller::http1_over(stream).await;
        caller.get(USER_GET).await.is_ok();
        caller.get(USER_GET).await.is_ok();
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

/// Whether a client with this identity gets an answer.
async fn is_served(stage: &Stage, authority: &Authority, identity: Option<&Identity>) -> bool {
    let Ok(stream) = authority.connect(stage.address(), &["http/1.1"], identity).await else { return false };
    // In TLS 1.3 a client learns only afterwards that its certificate was not welcome.
    let mut caller = Caller::http1_over(stream).await;
    let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
    caller.send(request).await.is_ok()
}

#[tokio::test]
async fn with_a_client_ca_only_clients_with_its_certificates_are_served() {
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let dir = files(&authority.server("localhost"));
    let more = format!(", client_ca = \"{}\"", clients.file().display());
    let stage = Stage::with(&config(&dir, &more)).await;
    assert!(!is_served(&stage, &authority, None).await, "no certificate");
    assert!(!is_served(&stage, &authority, Some(&strangers.client("billing"))).await, "another authority's");
    assert!(!is_served(&stage, &authority, Some(&clients.expired("billing"))).await, "expired");
    assert_eq!(stage.wecom.look(|seen| seen.total()), 0);
    assert!(is_served(&stage, &authority, Some(&clients.client("billing"))).await);
}

#[tokio::test]
async fn a_reload_takes_a_new_certificate_and_leaves_open_connections_alone() {
    let (before, after) = (Authority::new(), Authority::new());
    let dir = files(&before.server("localhost"));
    let stage = Stage::with(&config(&dir, "")).await;
    let stream = before.connect(stage.address(), &["h2"], None).await.expect("a handshake");
    let mut open = Caller::http2_over(stream).await;
    open.get(USER_GET).await.is_ok();

    put(&dir, &after.server("localhost"));
    stage.proxy.reload().expect("a reload");
    assert!(is_served(&stage, &after, None).await);
    assert!(!is_served(&stage, &before, None).await);
    open.get(USER_GET).await.is_ok();

    // A key that does not go with the certificate: nothing changes.
    fs::write(dir.path().join("server.key"), before.server("localhost").key_pem).expect("a file");
    let error = stage.proxy.reload().expect_err("no reload").to_string();
    assert!(error.contains("server.tls"), "{error}");
    assert!(is_served(&stage, &after, None).await);
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn clients_that_have_not_greeted_yet_hold_up_no_shutdown() {
    let authority = Authority::new();
    let dir = files(&authority.server("localhost"));
    let stage = Stage::with(&config(&dir, "")).await;
    let mut mute = Vec::new();
    for _ in 0..4 {
        mute.push(TcpStream::connect(stage.address()).await.expect("a connection"));
    }
    let greeted = authority.connect(stage.address(), &["http/1.1"], None).await.expect("a handshake");
    let fresh = authority.connect(stage.address(), &["h2"], None).await.expect("a handshake");
    let stopped = tokio::time::timeout(Duration::from_secs(20), stage.proxy.shut_down()).await;
    assert_eq!(stopped, Ok(true));
    drop((greeted, fresh, mute));
}

#[tokio::test]
async fn clients_that_do_not_greet_keep_nobody_out_of_a_full_house() {
    let authority = Authority::new();
    let dir = files(&authority.server("localhost"));
    let bounds = "max_connections = 2\nheader_timeout = \"60s\"\n[upstream]";
    let stage = Stage::with(&config(&dir, "").replace("[upstream]", bounds)).await;
    for said in [&b""[..], b"\x16\x03\x01\x02\x00"] {
        let mut mute = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(stage.address()).await.expect("a connection");
            stream.write_all(said).await.expect("it is taken");
            mute.push(stream);
        }
        assert!(soon(is_served(&stage, &authority, None)).await);
    }
}

#[tokio::test]
async fn a_client_without_tls_is_not_served_where_tls_is_configured() {
    let authority = Authority::new();
    let dir = files(&authority.server("localhost"));
    let stage = Stage::with(&config(&dir, "")).await;
    let answer = stage.raw(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    assert_eq!(stage.wecom.look(|seen| seen.total()), 0);
}
