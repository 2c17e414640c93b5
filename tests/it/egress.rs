//! `upstream.via`: connections through a CONNECT proxy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use wecom_proxy::simulator::Settings;

use crate::{
    certificates::Authority,
    harness::{ECHO, TestProxy, USER_GET},
};

/// A CONNECT proxy that records the request heads it receives.
struct ConnectProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Responds with `refusal`; with `None`, opens the tunnel.
    async fn start(refusal: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let recorded = heads.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tunnel(stream, recorded.clone(), refusal));
            }
        });
        Self { address, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }

    /// A proxy whose TLS upstream is reached through this CONNECT proxy; `login` is the userinfo of its URL.
    async fn start_proxy_behind(&self, login: &str) -> TestProxy {
        let authority = Authority::new();
        let tls = authority.issue_server("127.0.0.1").server_config(&["h2", "http/1.1"]);
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{{api}}\"\nca_file = \"{}\"\nvia = \"http://{login}{}\"\n{{agents}}",
            authority.ca_file().display(),
            self.address
        );
        TestProxy::start_with_settings(Settings { tls: Some(tls), ..Settings::default() }, &toml).await
    }
}

async fn tunnel(mut stream: TcpStream, heads: Arc<Mutex<Vec<String>>>, refusal: Option<&'static str>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).expect("UTF-8");
    let target = head.split(' ').nth(1).expect("a target").to_owned();
    heads.lock().expect("no panic").push(head);
    if let Some(refusal) = refusal {
        let _ = stream.write_all(refusal.as_bytes()).await;
        return;
    }
    let mut upstream = TcpStream::connect(target).await.expect("the simulator");
    stream.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n").await.expect("a tunnel");
    let _ = copy_bidirectional(&mut stream, &mut upstream).await;
}

#[tokio::test]
async fn requests_use_the_egress_proxy_with_its_password() {
    let egress = ConnectProxy::start(None).await;
    let proxy = egress.start_proxy_behind("robot:p%40ss-word@").await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.post(ECHO, "{}").await.assert_ok();
    let target = proxy.wecom.api_addr();
    let login = BASE64_STANDARD.encode("robot:p@ss-word");
    for head in egress.heads() {
        assert!(head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n")), "{head}");
        assert!(head.contains(&format!("\r\nProxy-Authorization: Basic {login}\r\n")), "{head}");
        assert!(!head.contains("not-a-secret") && !head.contains("access_token"), "{head}");
    }
    assert_eq!(egress.heads().len() as u64, proxy.wecom.observe(|observed| observed.connection_count()));
    for record in proxy.wecom.requests() {
        assert_eq!(record.header_values("proxy-authorization"), Vec::<&str>::new());
    }
}

#[tokio::test]
async fn egress_proxy_without_user_gets_no_credentials() {
    let egress = ConnectProxy::start(None).await;
    egress.start_proxy_behind("").await.get(USER_GET).await.assert_ok();
    assert!(!egress.heads().is_empty());
    assert!(egress.heads().iter().all(|head| !head.contains("Authorization")));
}

#[tokio::test]
async fn refused_tunnel_is_reported_to_the_client() {
    let cases = [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!", "403"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "USER:PASSWORD"),
        ("what?\r\n\r\n", "does not speak HTTP"),
        ("", "closed the connection"),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "101"),
    ];
    for (refusal, expected) in cases {
        let egress = ConnectProxy::start(Some(refusal)).await;
        let proxy = egress.start_proxy_behind("robot:p%40ss-word@").await;
        let response = proxy.get(USER_GET).await;
        response.assert_proxy_error("token-unavailable", 502, -1);
        assert!(response.text().contains(expected), "{}", response.text());
        assert!(
            !response.text().contains("p@ss-word") && !response.text().contains("p%40ss"),
            "{}",
            response.text()
        );
        let webhook = proxy.post("/cgi-bin/webhook/send?key=00000000-1111", "{}").await;
        webhook.assert_proxy_error("upstream-unreachable", 502, -1);
        assert_eq!(proxy.wecom.observe(|observed| observed.connection_count()), 0);
    }
}
