//! An upstream that offers HTTP/2 and then requires HTTP/1.1 (HTTP_1_1_REQUIRED, RFC 9113 §7), and error codes in the log.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{Request, Response};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use wecom_proxy::simulator::Settings;

use crate::{
    harness::{TestClient, TestProxy, write_config},
    process::Process,
    token_refresh_http2::{config_with_ca, http2_server_config},
};

const BODY: &str = r#"{"errcode":0,"access_token":"TOKEN-OF-THE-PEER","expires_in":7200}"#;

/// How many requests came over each protocol, without gettoken.
#[derive(Default)]
struct Upstream {
    http1: AtomicUsize,
    http2: AtomicUsize,
}

/// Starts an upstream that resets every HTTP/2 request with this reason.
async fn start_upstream(reason: Reason) -> (SocketAddr, Arc<Upstream>, TempDir) {
    let (server, dir) = http2_server_config();
    let mut server = Arc::unwrap_or_clone(server);
    server.alpn_protocols.push(b"http/1.1".to_vec());
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let upstream = Arc::<Upstream>::default();
    let task_upstream = upstream.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, upstream) = (acceptor.clone(), task_upstream.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => upstream.serve_http2(stream, reason).await,
                    _ => upstream.serve_http1(stream).await,
                }
            });
        }
    });
    (address, upstream, dir)
}

impl Upstream {
    async fn serve_http2(&self, stream: TlsStream<TcpStream>, reason: Reason) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            match request.uri().path() {
                "/cgi-bin/gettoken" | "/cgi-bin/responds" => respond_token(&mut respond),
                path => {
                    let nth = self.http2.fetch_add(1, Ordering::Relaxed);
                    if path == "/cgi-bin/closes-first" && nth == 0 {
                        return;
                    }
                    respond.send_reset(reason);
                }
            }
        }
    }

    async fn serve_http1(&self, stream: TlsStream<TcpStream>) {
        let service = hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
            let is_counted = request.uri().path() != "/cgi-bin/gettoken";
            self.http1.fetch_add(usize::from(is_counted), Ordering::Relaxed);
            let response = Response::builder().header("content-type", "application/json");
            response.body(http_body_util::Full::new(Bytes::from_static(BODY.as_bytes())))
        });
        let stream = hyper_util::rt::TokioIo::new(stream);
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
    }

    fn counts(&self) -> (usize, usize) {
        (self.http1.load(Ordering::Relaxed), self.http2.load(Ordering::Relaxed))
    }
}

fn respond_token(respond: &mut SendResponse<Bytes>) {
    let head = Response::builder().header("content-type", "application/json").body(()).expect("a head");
    let sent = respond.send_response(head, false);
    let _ = sent.and_then(|mut stream| stream.send_data(Bytes::from_static(BODY.as_bytes()), true));
}

#[tokio::test]
async fn request_that_requires_http11_is_sent_over_it() {
    let (address, upstream, dir) = start_upstream(Reason::HTTP_1_1_REQUIRED).await;
    let proxy = TestProxy::start_with_upstream(address, &config_with_ca(&dir)).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    for nth in 1..=5 {
        client.request(Request::post("/hr/cgi-bin/message/send"), "{}").await.assert_ok();
        // Only the first one was refused; the address is remembered.
        assert_eq!(upstream.counts(), (nth, 1));
    }
}

#[tokio::test]
async fn http11_is_required_after_a_stale_connection_too() {
    let (address, upstream, dir) = start_upstream(Reason::HTTP_1_1_REQUIRED).await;
    let proxy = TestProxy::start_with_upstream(address, &config_with_ca(&dir)).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get("/cgi-bin/responds").await.assert_ok();
    client.get("/cgi-bin/closes-first").await.assert_ok();
    assert_eq!(upstream.counts(), (1, 2));
}

#[tokio::test]
async fn http2_error_code_is_logged_and_not_shown() {
    let (address, _upstream, dir) = start_upstream(Reason::INADEQUATE_SECURITY).await;
    let config = write_config(&dir, address, &Settings::default(), &config_with_ca(&dir));
    let proxy = Process::serve_with_config_log_level(&config).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    let response = client.request(Request::post("/hr/cgi-bin/message/send"), "{}").await;
    response.assert_proxy_error("upstream-broke", 502, -1);
    assert!(!response.text().contains("INADEQUATE_SECURITY"), "{}", response.text());
    proxy.err.wait_for_line("HTTP/2 stream reset of the upstream: INADEQUATE_SECURITY (0xc)").await;
}
