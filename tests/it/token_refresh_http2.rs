//! Token refresh towards an HTTP/2 upstream: one connection carries all requests, refusals and uploads concurrently.

use std::sync::Arc;

use tempfile::TempDir;
use wecom_proxy::simulator::{Settings, generated_bytes};

use crate::harness::{ECHO, OPEN_CONFIG, TestProxy, USER_GET, get_concurrently, with_upstream_tls};

/// The TLS configuration of an HTTP/2 server, and a directory with its certificate in `ca.pem`.
pub fn http2_server_config() -> (Arc<rustls::ServerConfig>, TempDir) {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let dir = TempDir::new().expect("a directory");
    std::fs::write(dir.path().join("ca.pem"), certified.cert.pem()).expect("written");
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let server = server.expect("versions").with_no_client_auth();
    let mut server = server.with_single_cert(vec![certified.cert.der().clone()], key).expect("usable");
    server.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(server), dir)
}

/// A configuration that trusts the upstream certificate in this directory.
pub fn config_with_ca(dir: &TempDir) -> String {
    with_upstream_tls(OPEN_CONFIG, &dir.path().join("ca.pem"))
}

/// A proxy whose simulator offers HTTP/2 over TLS, and the directory with its certificate.
async fn start_proxy() -> (TestProxy, TempDir) {
    let (server, dir) = http2_server_config();
    let settings = Settings { tls: Some(server), ..Settings::default() };
    (TestProxy::start_with_settings(settings, &config_with_ca(&dir)).await, dir)
}

#[tokio::test]
async fn thousand_http2_clients_cause_one_gettoken_per_revocation() {
    let (proxy, _dir) = start_proxy().await;
    let proxy = Arc::new(proxy);
    for gettokens in [1, 2] {
        for response in get_concurrently(&proxy, 1000, USER_GET).await {
            response.assert_ok();
        }
        assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), gettokens);
        proxy.wecom.revoke_tokens("hr").expect("an agent");
    }
    assert!(proxy.wecom.requests().iter().all(|record| record.version == "HTTP/2.0"));
    assert_eq!(proxy.wecom.executed_count("/cgi-bin/user/get"), 2000);
}

#[tokio::test]
async fn upload_refused_over_http2_is_replayed_completely() {
    let (proxy, _dir) = start_proxy().await;
    proxy.get(USER_GET).await.assert_ok();
    for length in [0, 1, 64 * 1024, 20 << 20] {
        let mut body = Vec::with_capacity(length);
        while body.len() < length {
            body.extend_from_slice(&generated_bytes(body.len() as u64, length - body.len()));
        }
        let expected = proxy.post(ECHO, body.clone()).await;
        assert_eq!(expected.assert_ok().header("x-wecom-retried"), "");
        proxy.wecom.revoke_tokens("hr").expect("an agent");
        let response = proxy.post(ECHO, body).await;
        assert_eq!(response.assert_ok().header("x-wecom-retried"), "40014", "{length}");
        assert_eq!(response.json()["body_bytes"], length);
        assert_eq!(response.json(), expected.json(), "{length}");
    }
}
