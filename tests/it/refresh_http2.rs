//! The same towards a WeCom that speaks HTTP/2: one connection carries everything, refusals and uploads side by side.

use std::sync::Arc;

use tempfile::TempDir;
use wecom_proxy::simulator::{Settings, generated};

use crate::stage::{ECHO, OPEN, Stage, USER_GET, all_at_once};

/// A TLS server of HTTP/2, and a directory with its certificate in `ca.pem`.
pub fn certified() -> (Arc<rustls::ServerConfig>, TempDir) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let dir = TempDir::new().expect("a directory");
    std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).expect("written");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let server = server.expect("versions").with_no_client_auth();
    let mut server = server.with_single_cert(vec![made.cert.der().clone()], key).expect("usable");
    server.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(server), dir)
}

/// A configuration whose upstream shows the certificate in this directory.
pub fn trusting(dir: &TempDir) -> String {
    let ca = dir.path().join("ca.pem");
    let upstream = format!("url = \"https://{{api}}\"\nca_file = \"{}\"", ca.display());
    OPEN.replace("url = \"http://{api}\"", &upstream)
}

/// A stage whose WeCom offers HTTP/2 under TLS; the directory holds its certificate.
async fn stage() -> (Stage, TempDir) {
    let (server, dir) = certified();
    let settings = Settings { tls: Some(server), ..Settings::default() };
    (Stage::set(settings, &trusting(&dir)).await, dir)
}

#[tokio::test]
async fn a_thousand_callers_over_http_2_cause_one_gettoken_and_one_more() {
    let (stage, _dir) = stage().await;
    let stage = Arc::new(stage);
    for gettokens in [1, 2] {
        for reply in all_at_once(&stage, 1000, USER_GET).await {
            reply.is_ok();
        }
        assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), gettokens);
        stage.wecom.revoke("hr").expect("an agent");
    }
    assert!(stage.wecom.requests().iter().all(|record| record.version == "HTTP/2.0"));
    assert_eq!(stage.wecom.executed("/cgi-bin/user/get"), 2000);
}

#[tokio::test]
async fn an_upload_that_is_refused_over_http_2_is_sent_whole() {
    let (stage, _dir) = stage().await;
    stage.get(USER_GET).await.is_ok();
    for length in [0, 1, 64 * 1024, 20 << 20] {
        let mut body = Vec::with_capacity(length);
        while body.len() < length {
            body.extend_from_slice(&generated(body.len() as u64, length - body.len()));
        }
        let expected = stage.post(ECHO, body.clone()).await;
        assert_eq!(expected.is_ok().header("x-wecom-retried"), "");
        stage.wecom.revoke("hr").expect("an agent");
        let reply = stage.post(ECHO, body).await;
        assert_eq!(reply.is_ok().header("x-wecom-retried"), "40014", "{length}");
        assert_eq!(reply.json()["body_bytes"], length);
        assert_eq!(reply.json(), expected.json(), "{length}");
    }
}
