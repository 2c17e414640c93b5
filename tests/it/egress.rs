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

const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n";

/// A CONNECT proxy that records the request heads it receives.
struct ConnectProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Responds with `response`, and opens the tunnel if that has a status 200.
    async fn start(response: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let recorded = heads.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tunnel(stream, recorded.clone(), response));
            }
        });
        Self { address, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }

    /// A proxy whose TLS upstream is reached through this CONNECT proxy; `login` is the userinfo of its URL.
    async fn start_proxy_behind(&self, login: &str) -> TestProxy {
        start_proxy_via(&format!("\"http://{login}{}\"", self.address)).await
    }
}

/// A proxy whose TLS upstream is reached through `via`.
async fn start_proxy_via(via: &str) -> TestProxy {
    let authority = Authority::new();
    let tls = authority.issue_server("127.0.0.1").server_config(&["h2", "http/1.1"]);
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{{api}}\"\n{}\nvia = {via}\n{{agents}}",
        authority.ca_config_line(),
    );
    TestProxy::start_with_settings(Settings { tls: Some(tls), ..Settings::default() }, &toml).await
}

async fn tunnel(mut stream: TcpStream, heads: Arc<Mutex<Vec<String>>>, response: &'static str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).expect("UTF-8");
    let target = head.split(' ').nth(1).expect("a target").to_owned();
    heads.lock().expect("no panic").push(head);
    let _ = stream.write_all(response.as_bytes()).await;
    if !response.contains(" 20") {
        return;
    }
    let mut upstream = TcpStream::connect(target).await.expect("the simulator");
    let _ = copy_bidirectional(&mut stream, &mut upstream).await;
}

#[tokio::test]
async fn requests_use_the_egress_proxy_with_its_password() {
    let egress = ConnectProxy::start(ESTABLISHED).await;
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
    let egress = ConnectProxy::start(ESTABLISHED).await;
    egress.start_proxy_behind("").await.get(USER_GET).await.assert_ok();
    assert!(!egress.heads().is_empty());
    assert!(egress.heads().iter().all(|head| !head.contains("Authorization")));
}

#[tokio::test]
async fn refused_tunnel_is_reported_to_the_client() {
    let cases = [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!", "403"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "refused user and password"),
        (
            "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM TlRM\r\n\r\n",
            "offers only Negotiate, NTLM",
        ),
        (
            "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=x\r\n\r\n",
            "refused user and password",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        ("what?\r\n\r\n", "does not speak HTTP"),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        ("", "closed the connection"),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "101"),
    ];
    for (refusal, expected) in cases {
        let egress = ConnectProxy::start(refusal).await;
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

#[tokio::test]
async fn unusual_connect_responses_open_the_tunnel() {
    for response in [
        "HTTP/1.0 200 OK\nVia: 1.0 old\n\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let egress = ConnectProxy::start(response).await;
        egress.start_proxy_behind("").await.get(USER_GET).await.assert_ok();
    }
}

#[tokio::test]
async fn egress_proxy_that_wants_a_user_is_explained() {
    let egress = ConnectProxy::start("HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm=x\r\n\r\n").await;
    let response = egress.start_proxy_behind("").await.get(USER_GET).await;
    response.assert_proxy_error("token-unavailable", 502, -1);
    assert!(response.text().contains("requires a user and password"), "{}", response.text());
}

/// A SOCKS5 proxy (RFC 1928) that wants this user and password (RFC 1929), if there are any, and reports each target.
async fn socks5_proxy(login: Option<(&'static str, &'static str)>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let targets = Arc::<Mutex<Vec<String>>>::default();
    let recorded = targets.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_socks5(stream, login, recorded.clone()));
        }
    });
    (address, targets)
}

async fn serve_socks5(
    mut stream: TcpStream,
    login: Option<(&'static str, &'static str)>,
    targets: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let _version = stream.read_u8().await?;
    let methods = read_prefixed(&mut stream).await?;
    let method = if login.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        return stream.write_all(&[5, 0xff]).await;
    }
    stream.write_all(&[5, method]).await?;
    if let Some((user, password)) = login {
        let _version = stream.read_u8().await?;
        let shown = (read_prefixed(&mut stream).await?, read_prefixed(&mut stream).await?);
        let is_right = shown == (user.into(), password.into());
        stream.write_all(&[1, u8::from(!is_right)]).await?;
        if !is_right {
            return Ok(());
        }
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let host = match head[3] {
        1 => std::net::Ipv4Addr::from(stream.read_u32().await?).to_string(),
        _ => String::from_utf8(read_prefixed(&mut stream).await?).expect("UTF-8"),
    };
    let port = stream.read_u16().await?;
    targets.lock().expect("no panic").push(host);
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    let mut upstream = TcpStream::connect(("127.0.0.1", port)).await?;
    copy_bidirectional(&mut stream, &mut upstream).await.map(|_| ())
}

/// The bytes whose count stands before them in one byte.
async fn read_prefixed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[tokio::test]
async fn socks5_proxy_carries_requests() {
    let (address, targets) = socks5_proxy(Some(("robot", "p@ss"))).await;
    let proxy = start_proxy_via(&format!("\"socks5://robot:p%40ss@{address}\"")).await;
    proxy.get(USER_GET).await.assert_ok();
    assert_eq!(targets.lock().expect("no panic")[0], "127.0.0.1");
}

#[tokio::test]
async fn socks5_resolves_here_and_socks5h_there() {
    for (scheme, expected) in [("socks5", "127.0.0.1"), ("socks5h", "localhost")] {
        let (address, targets) = socks5_proxy(None).await;
        let wecom = TestProxy::start_open().await;
        let port = wecom.wecom.api_addr().port();
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://localhost:{port}\"\nvia = \"{scheme}://{address}\"\n{{agents}}"
        );
        let proxy = TestProxy::start_with_config(&toml).await;
        proxy.get(USER_GET).await.assert_ok();
        assert_eq!(targets.lock().expect("no panic")[0], expected, "{scheme}");
    }
}

/// hyper-util has room for 262 bytes in all.
#[tokio::test]
async fn longest_accepted_socks5_login_serves() {
    let password: &str = "p".repeat(246 - "robot".len()).leak();
    let (address, targets) = socks5_proxy(Some(("robot", password))).await;
    let proxy = start_proxy_via(&format!("\"socks5://robot:{password}@{address}\"")).await;
    proxy.get(USER_GET).await.assert_ok();
    assert_eq!(targets.lock().expect("no panic")[0], "127.0.0.1");
}

#[tokio::test]
async fn socks5_login_errors_are_explained() {
    for (wanted, login, expected) in [
        (Some(("robot", "right")), "robot:wrong@", "refused user and password"),
        (Some(("robot", "right")), "", "requires a user and password"),
        (None, "robot:p@", "takes no user and password"),
    ] {
        let (address, targets) = socks5_proxy(wanted).await;
        let proxy = start_proxy_via(&format!("\"socks5h://{login}{address}\"")).await;
        let response = proxy.get(USER_GET).await;
        response.assert_proxy_error("token-unavailable", 502, -1);
        assert!(response.text().contains(expected), "{}", response.text());
        assert!(targets.lock().expect("no panic").is_empty());
    }
}
