//! TLS towards clients: protocols by ALPN, client certificates, and a certificate that is replaced.

use std::{fs, time::Duration};

use http::Request;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    certificates::{Authority, Identity},
    harness::{TestClient, TestProxy, USER_GET, with_timeout},
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
fn certificate_dir(identity: &Identity) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    write_certificate(&dir, identity);
    dir
}

fn write_certificate(dir: &TempDir, identity: &Identity) {
    fs::write(dir.path().join("server.pem"), &identity.pem).expect("a file");
    fs::write(dir.path().join("server.key"), &identity.key_pem).expect("a file");
}

fn config(dir: &TempDir, more: &str) -> String {
    CONFIG.replace("{certs}", &dir.path().display().to_string()).replace("{more}", more)
}

#[tokio::test]
async fn alpn_selects_the_client_protocol() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let stage = TestProxy::start_with_config(&config(&dir, "")).await;
    for offered in [&["h2", "http/1.1"][..], &["h2"]] {
        let stream = authority.connect_tls(stage.address(), offered, None).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut caller = TestClient::http2_over(stream).await;
        caller.get(USER_GET).await.assert_ok();
        caller.get(USER_GET).await.assert_ok();
    }
    for (offered, agreed) in [(&["http/1.1"][..], Some(&b"http/1.1"[..])), (&[], None)] {
        let stream = authority.connect_tls(stage.address(), offered, None).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        let mut caller = TestClient::http1_over(stream).await;
        caller.get(USER_GET).await.assert_ok();
        caller.get(USER_GET).await.assert_ok();
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

/// Whether a client with this identity gets an answer.
async fn is_served(stage: &TestProxy, authority: &Authority, identity: Option<&Identity>) -> bool {
    let Ok(stream) = authority.connect_tls(stage.address(), &["http/1.1"], identity).await else {
        return false;
    };
    // In TLS 1.3 a client learns only afterwards that its certificate was not welcome.
    let mut caller = TestClient::http1_over(stream).await;
    let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
    caller.send(request).await.is_ok()
}

#[tokio::test]
async fn client_ca_serves_only_clients_with_its_certificates() {
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let more = format!(", client_ca = \"{}\"", clients.ca_file().display());
    let stage = TestProxy::start_with_config(&config(&dir, &more)).await;
    assert!(!is_served(&stage, &authority, None).await, "no certificate");
    assert!(
        !is_served(&stage, &authority, Some(&strangers.issue_client("billing"))).await,
        "another authority's"
    );
    assert!(!is_served(&stage, &authority, Some(&clients.issue_expired("billing"))).await, "expired");
    assert_eq!(stage.wecom.observe(|seen| seen.request_count()), 0);
    assert!(is_served(&stage, &authority, Some(&clients.issue_client("billing"))).await);
}

#[tokio::test]
async fn reload_swaps_the_certificate_and_keeps_connections() {
    let (before, after) = (Authority::new(), Authority::new());
    let dir = certificate_dir(&before.issue_server("localhost"));
    let stage = TestProxy::start_with_config(&config(&dir, "")).await;
    let stream = before.connect_tls(stage.address(), &["h2"], None).await.expect("a handshake");
    let mut open = TestClient::http2_over(stream).await;
    open.get(USER_GET).await.assert_ok();

    write_certificate(&dir, &after.issue_server("localhost"));
    stage.app.reload().expect("a reload");
    assert!(is_served(&stage, &after, None).await);
    assert!(!is_served(&stage, &before, None).await);
    open.get(USER_GET).await.assert_ok();

    // A key that does not go with the certificate: nothing changes.
    fs::write(dir.path().join("server.key"), before.issue_server("localhost").key_pem).expect("a file");
    let error = stage.app.reload().expect_err("no reload").to_string();
    assert!(error.contains("server.tls"), "{error}");
    assert!(is_served(&stage, &after, None).await);
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn pending_tls_handshakes_do_not_delay_shutdown() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let stage = TestProxy::start_with_config(&config(&dir, "")).await;
    let mut mute = Vec::new();
    for _ in 0..4 {
        mute.push(TcpStream::connect(stage.address()).await.expect("a connection"));
    }
    let greeted = authority.connect_tls(stage.address(), &["http/1.1"], None).await.expect("a handshake");
    let fresh = authority.connect_tls(stage.address(), &["h2"], None).await.expect("a handshake");
    let stopped = tokio::time::timeout(Duration::from_secs(20), stage.app.shutdown()).await;
    assert_eq!(stopped, Ok(true));
    drop((greeted, fresh, mute));
}

#[tokio::test]
async fn pending_tls_handshakes_block_no_client_of_a_full_proxy() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let bounds = "max_connections = 2\nheader_timeout = \"60s\"\n[upstream]";
    let stage = TestProxy::start_with_config(&config(&dir, "").replace("[upstream]", bounds)).await;
    for said in [&b""[..], b"\x16\x03\x01\x02\x00"] {
        let mut mute = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(stage.address()).await.expect("a connection");
            stream.write_all(said).await.expect("it is taken");
            mute.push(stream);
        }
        assert!(with_timeout(is_served(&stage, &authority, None)).await);
    }
}

#[tokio::test]
async fn plain_client_on_a_tls_listener_is_not_served() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let stage = TestProxy::start_with_config(&config(&dir, "")).await;
    let answer = stage.send_raw(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    assert_eq!(stage.wecom.observe(|seen| seen.request_count()), 0);
}
