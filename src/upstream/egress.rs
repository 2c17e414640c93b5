//! Connections through the egress proxy (`upstream.via`): CONNECT (RFC 9110 §9.3.6) or SOCKS5 (RFC 1928).

use std::{future::Ready, io, task};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use hyper_util::{client::legacy::connect::proxy::SocksV5, rt::TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower_service::Service;
use zeroize::Zeroizing;

use super::{ConnectError, UpstreamErrorKind};
use crate::{
    config::{EgressLogin, EgressProtocol, EgressProxy},
    format_text, text,
    text::Text,
};

/// Maximum bytes of the heads that respond to CONNECT, together.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Maximum bytes of a CONNECT request beside its target, twice, and its login, which takes less than twice its length.
const MAX_FRAMING_BYTES: usize = 128;
/// Maximum schemes of `Proxy-Authenticate` that an error names, and bytes of each.
const MAX_SCHEMES: usize = 4;
const MAX_SCHEME_BYTES: usize = 20;
const LOGIN_REFUSED: Text = text!(
    "refused user and password: check those of upstream.via",
    "拒绝了用户名和密码：请检查 upstream.via 中的"
);
const LOGIN_REQUIRED: Text = text!(
    "requires a user and password: set upstream.via = { url = \"…\", user = \"…\", password = { env = \"NAME\" } }",
    "需要用户名和密码：请设置 upstream.via = { url = \"…\", user = \"…\", password = { env = \"NAME\" } }"
);

/// Asks the egress proxy at the other end of `tcp` for a connection to `target`, a host and a port.
pub(super) async fn open_tunnel(
    via: &EgressProxy,
    mut tcp: TcpStream,
    target: &str,
) -> Result<TcpStream, UpstreamErrorKind> {
    match via.protocol {
        EgressProtocol::HttpConnect => connect(&mut tcp, target, via.login.as_ref()).await.map(|()| tcp),
        EgressProtocol::Socks5 | EgressProtocol::Socks5Hostname => {
            connect_socks5(tcp, target, via.login.as_ref()).await
        }
    }
}

/// An error whose text may be shown to callers.
fn refused(text: Text) -> UpstreamErrorKind {
    UpstreamErrorKind::Unreachable(ConnectError::new(format_text!(
        "the egress proxy (upstream.via) {}",
        "出口代理（upstream.via）{}",
        text
    )))
}

async fn connect(
    tcp: &mut TcpStream,
    target: &str,
    login: Option<&EgressLogin>,
) -> Result<(), UpstreamErrorKind> {
    let closed =
        |error: io::Error| refused(format_text!("closed the connection: {}", "关闭了连接：{}", error));
    let login_bytes = login.map_or(0, |login| login.user.expose().len() + login.password.expose().len());
    // In full, because a copy that is outgrown would not be wiped.
    let mut request =
        Zeroizing::new(String::with_capacity(MAX_FRAMING_BYTES + 2 * (target.len() + login_bytes)));
    for part in ["CONNECT ", target, " HTTP/1.1\r\nHost: ", target, "\r\n"] {
        request.push_str(part);
    }
    if let Some(EgressLogin { user, password }) = login {
        let credentials = Zeroizing::new([user.expose(), ":", password.expose()].concat());
        request.push_str("Proxy-Authorization: Basic ");
        STANDARD.encode_string(&*credentials, &mut request);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    tcp.write_all(request.as_bytes()).await.map_err(closed)?;
    let mut received = 0;
    loop {
        let mut head = Vec::new();
        // Byte by byte: what follows the head belongs to the tunnel. Old proxies end lines with a bare LF.
        while !head.ends_with(b"\n\r\n") && !head.ends_with(b"\n\n") {
            if received == MAX_HEAD_BYTES {
                return Err(refused(text!(
                    "sent a CONNECT response head over 8 KiB",
                    "对 CONNECT 的响应头超过 8 KiB"
                )));
            }
            head.push(tcp.read_u8().await.map_err(closed)?);
            received += 1;
            if !b"HTTP/1.".starts_with(&head[..head.len().min(7)]) {
                return Err(refused(text!("does not speak HTTP", "不使用 HTTP")));
            }
        }
        match status(&head) {
            Some(200..=299) => return Ok(()),
            // An interim response (RFC 9110 §15.2).
            Some(100 | 102..=199) => {}
            Some(407) => return Err(login_error(&head, login.is_some())),
            Some(code) => {
                return Err(refused(format_text!(
                    "refused the tunnel with {code}: it must allow CONNECT to the host of upstream.url",
                    "以 {code} 拒绝了隧道：它必须允许 CONNECT 到 upstream.url 的主机"
                )));
            }
            None => return Err(refused(text!("does not speak HTTP", "不使用 HTTP"))),
        }
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let code = head.split(|byte| *byte == b' ' || *byte == b'\n').nth(1)?.trim_ascii();
    std::str::from_utf8(code).ok().filter(|code| code.len() == 3)?.parse().ok()
}

/// Explains a 407 by the login that was shown and the schemes that the egress proxy offers.
fn login_error(head: &[u8], is_login_shown: bool) -> UpstreamErrorKind {
    let schemes = offered_schemes(head);
    if !schemes.is_empty() && !schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic")) {
        let schemes = schemes.join(", ");
        return refused(format_text!(
            "offers only {schemes} for the login; this program speaks Basic: a user and password",
            "只提供 {schemes} 登录方式；本程序使用 Basic：用户名和密码"
        ));
    }
    refused(if is_login_shown { LOGIN_REFUSED } else { LOGIN_REQUIRED })
}

/// The schemes of `Proxy-Authenticate` lines, the first of each line (RFC 9110 §11.7.1).
fn offered_schemes(head: &[u8]) -> Vec<&str> {
    let values = head.split(|byte| *byte == b'\n').filter_map(|line| {
        let (name, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authenticate").then_some(value)
    });
    let schemes = values.filter_map(|value| value.split_ascii_whitespace().next());
    let is_scheme = |scheme: &&str| {
        scheme.len() <= MAX_SCHEME_BYTES && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    schemes.map(|scheme| scheme.trim_end_matches(',')).filter(is_scheme).take(MAX_SCHEMES).collect()
}

async fn connect_socks5(
    tcp: TcpStream,
    target: &str,
    login: Option<&EgressLogin>,
) -> Result<TcpStream, UpstreamErrorKind> {
    let target: Uri = target.parse().map_err(|_| {
        refused(text!("cannot be told the host of upstream.url", "无法接受 upstream.url 的主机"))
    })?;
    let mut socks = SocksV5::new(Uri::default(), Connected(Some(tcp)));
    if let Some(EgressLogin { user, password }) = login {
        socks = socks.with_auth(user.expose().to_owned(), password.expose().to_owned());
    }
    let tunnel = socks.call(target).await;
    tunnel
        .map(TokioIo::into_inner)
        .map_err(|error| refused(socks5_error(&error.to_string(), login.is_some())))
}

/// Explains an error of the handshake by its text, because hyper-util does not export its type.
fn socks5_error(text: &str, is_login_shown: bool) -> Text {
    let is_method_refused = text.contains("user/pass authentication");
    match is_login_shown {
        false if is_method_refused => LOGIN_REQUIRED,
        true if is_method_refused => text!(
            "takes no user and password: leave them out of upstream.via",
            "不接受用户名和密码：请从 upstream.via 中去掉"
        ),
        true if text.contains("credentials") => LOGIN_REFUSED,
        _ => format_text!("did not open the connection: {text}", "没有建立连接：{text}"),
    }
}

/// The connection to the egress proxy, as the connector that hyper-util's handshake wants.
struct Connected(Option<TcpStream>);

impl Service<Uri> for Connected {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let tcp = self.0.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(tcp.map(TokioIo::new))
    }
}
