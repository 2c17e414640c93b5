//! TLS towards clients: ALPN, client certificates, and certificate replacement on reload.

use std::{fs, time::Duration};

use http::Request;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

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

/// A directory with the certificate files of [`CONFIG`].
fn certificate_dir(identity: &Identity) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    write_certificate(&dir, identity);
    dir
}

fn write_certificate(dir: &TempDir, identity: &Identity) {
    identity.write_files(dir.path(), "server");
}

fn config(dir: &TempDir, more: &str) -> String {
    CONFIG.replace("{certs}", &dir.path().display().to_string()).replace("{more}", more)
}

#[tokio::test]
async fn alpn_selects_the_client_protocol() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let proxy = TestProxy::start_with_config(&config(&dir, "")).await;
    for offered in [&["h2", "http/1.1"][..], &["h2"]] {
        let stream = authority.connect_tls(proxy.address(), offered, None).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut client = TestClient::http2_over(stream).await;
        client.get(USER_GET).await.assert_ok();
        client.get(USER_GET).await.assert_ok();
    }
    for (offered, agreed) in [(&["http/1.1"][..], Some(&b"http/1.1"[..])), (&[], None)] {
        let stream = authority.connect_tls(proxy.address(), offered, None).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        let mut client = TestClient::http1_over(stream).await;
        client.get(USER_GET).await.assert_ok();
        client.get(USER_GET).await.assert_ok();
    }
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

/// Whether a client with this certificate gets a response.
async fn is_served(proxy: &TestProxy, authority: &Authority, identity: Option<&Identity>) -> bool {
    let Ok(stream) = authority.connect_tls(proxy.address(), &["http/1.1"], identity).await else {
        return false;
    };
    // In TLS 1.3 the client's handshake completes before the server verifies its certificate (RFC 8446 §2).
    let mut client = TestClient::http1_over(stream).await;
    let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
    client.send(request).await.is_ok()
}

#[tokio::test]
async fn client_ca_serves_only_clients_with_its_certificates() {
    let (authority, clients, other_clients) = (Authority::new(), Authority::new(), Authority::new());
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let more = format!(", client_ca = \"{}\"", clients.ca_file().display());
    let proxy = TestProxy::start_with_config(&config(&dir, &more)).await;
    assert!(!is_served(&proxy, &authority, None).await, "no certificate");
    assert!(
        !is_served(&proxy, &authority, Some(&other_clients.issue_client("billing"))).await,
        "certificate of another authority"
    );
    assert!(!is_served(&proxy, &authority, Some(&clients.issue_expired("billing"))).await, "expired");
    assert_eq!(proxy.wecom.observe(|observed| observed.request_count()), 0);
    assert!(is_served(&proxy, &authority, Some(&clients.issue_client("billing"))).await);
}

#[tokio::test]
async fn reload_swaps_the_certificate_and_keeps_connections() {
    let (before, after) = (Authority::new(), Authority::new());
    let dir = certificate_dir(&before.issue_server("localhost"));
    let proxy = TestProxy::start_with_config(&config(&dir, "")).await;
    let stream = before.connect_tls(proxy.address(), &["h2"], None).await.expect("a handshake");
    let mut open = TestClient::http2_over(stream).await;
    open.get(USER_GET).await.assert_ok();

    write_certificate(&dir, &after.issue_server("localhost"));
    proxy.app.reload().expect("a reload");
    assert!(is_served(&proxy, &after, None).await);
    assert!(!is_served(&proxy, &before, None).await);
    open.get(USER_GET).await.assert_ok();

    // A key that does not match the certificate: the reload fails and changes nothing.
    fs::write(dir.path().join("server.key"), before.issue_server("localhost").key_pem).expect("a file");
    let error = proxy.app.reload().expect_err("no reload").to_string();
    assert!(error.contains("server.tls"), "{error}");
    assert!(is_served(&proxy, &after, None).await);
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn pending_tls_handshakes_do_not_delay_shutdown() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let proxy = TestProxy::start_with_config(&config(&dir, "")).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(proxy.address()).await.expect("a connection"));
    }
    let http1 = authority.connect_tls(proxy.address(), &["http/1.1"], None).await.expect("a handshake");
    let http2 = authority.connect_tls(proxy.address(), &["h2"], None).await.expect("a handshake");
    let stopped = tokio::time::timeout(Duration::from_secs(20), proxy.app.shutdown()).await;
    assert_eq!(stopped, Ok(true));
    drop((http1, http2, silent));
}

#[tokio::test]
async fn pending_tls_handshakes_block_no_client_of_a_full_proxy() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let bounds = "max_connections = 2\nheader_timeout = \"60s\"\n[upstream]";
    let proxy = TestProxy::start_with_config(&config(&dir, "").replace("[upstream]", bounds)).await;
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00"] {
        let mut silent = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(proxy.address()).await.expect("a connection");
            stream.write_all(bytes).await.expect("sent");
            silent.push(stream);
        }
        assert!(with_timeout(is_served(&proxy, &authority, None)).await);
    }
}

/// A handshake message of 65,000 bytes would be held until it is complete.
#[tokio::test]
async fn endless_client_hello_ends_the_connection() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let toml = config(&dir, "").replace("[upstream]", "header_timeout = \"60s\"\n[upstream]");
    let proxy = TestProxy::start_with_config(&toml).await;
    let mut stream = TcpStream::connect(proxy.address()).await.expect("a connection");
    let record = |payload: &[u8]| {
        let length = u16::try_from(payload.len()).expect("a record");
        [&b"\x16\x03\x01"[..], &length.to_be_bytes(), payload].concat()
    };
    let first = [&b"\x01\x00\xfd\xe8"[..], &[0; 16_000]].concat();
    for payload in [&first[..], &[0; 16_000], &[0; 16_000]] {
        let _ = stream.write_all(&record(payload)).await;
    }
    let ended = with_timeout(stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_err() || ended.is_ok_and(|read| read < 100), "not ended");
}

#[tokio::test]
async fn plain_client_on_a_tls_listener_is_told_so() {
    let authority = Authority::new();
    let dir = certificate_dir(&authority.issue_server("localhost"));
    let proxy = TestProxy::start_with_config(&config(&dir, "")).await;
    for request in
        [format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: a\r\n\r\n"), "PRI * HTTP/2.0\r\n\r\n".to_owned()]
    {
        let response = proxy.send_raw(request).await;
        assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("speaks HTTPS"), "{response}");
    }
    assert_eq!(proxy.wecom.observe(|observed| observed.request_count()), 0);
}
