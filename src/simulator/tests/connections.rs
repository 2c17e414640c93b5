use std::future::Future;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, rustls};

use super::*;

async fn open_raw(wecom: &Simulator, head: &str) -> TcpStream {
    let mut socket = TcpStream::connect(wecom.api_addr()).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(socket.read_u8().await.expect("more bytes"));
    }
    String::from_utf8(text).unwrap()
}

async fn connect_http2(wecom: &Simulator) -> http2::SendRequest<Full<Bytes>> {
    let socket = TcpStream::connect(wecom.api_addr()).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn with_timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(10), future).await.expect("in time")
}

#[tokio::test]
async fn refused_upload_gets_its_response_before_the_body() {
    let wecom = start_simulator().await;
    let head = "POST /cgi-bin/media/upload?type=file&access_token=void HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc";
    let mut socket = open_raw(&wecom, head).await;
    let response = with_timeout(read_until(&mut socket, "}")).await;
    assert!(
        response.starts_with("HTTP/1.1 200 OK\r\n") && response.contains("Error-Code: 40014\r\n"),
        "{response}"
    );
    // The rest of the body is read, and the connection serves the next request.
    socket.write_all(b"defGET /cgi-bin/tag/list HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(with_timeout(read_until(&mut socket, "}")).await.contains("Error-Code: 41001\r\n"));
    wecom
        .wait_until(|observed| observed.requests().all(|record| record.body_sha256.is_some()))
        .await
        .unwrap();
    assert_eq!(wecom.requests()[0].body_bytes, 6);
    assert_eq!(wecom.observe(|observed| observed.connection_count()), 1);
}

#[tokio::test]
async fn expect_continue_on_refusal_gets_no_100() {
    let wecom = start_simulator().await;
    let head = "POST /cgi-bin/media/upload?type=file HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n";
    let mut socket = open_raw(&wecom, head).await;
    let mut response = String::new();
    with_timeout(socket.read_to_string(&mut response)).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    let token = fetch_token(&wecom).await;
    let head =
        format!("PUT /cgi-bin/simulator/sink?access_token={token} HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc");
    let mut response = String::new();
    with_timeout(open_raw(&wecom, &head).await.read_to_string(&mut response)).await.unwrap();
    assert!(
        response.starts_with("HTTP/1.0 200 OK\r\n") && response.contains("\"body_bytes\":3"),
        "{response}"
    );
}

#[tokio::test]
async fn http2_prior_knowledge_is_served() {
    let wecom = start_simulator().await;
    let mut sender = connect_http2(&wecom).await;
    let uri = format!("http://x/cgi-bin/gettoken?{HR_CREDENTIALS}");
    let get = || Request::get(&uri).body(Full::<Bytes>::default()).unwrap();
    let response = read_response(sender.send_request(get()).await.unwrap()).await.unwrap();
    assert_eq!((response.errcode(), response.header("content-length").parse()), (0, Ok(response.body.len())));
    assert_eq!(wecom.requests()[0].version, "HTTP/2.0");
    for point in [DropPoint::AfterHead, DropPoint::MidBody] {
        let mut sender = connect_http2(&wecom).await;
        wecom.inject(Fault::drop(point)).unwrap();
        let response = sender.send_request(get()).await.unwrap();
        assert!(read_response(response).await.is_err());
    }
    for point in [DropPoint::OnArrival, DropPoint::BeforeResponse] {
        let mut sender = connect_http2(&wecom).await;
        wecom.inject(Fault::drop(point)).unwrap();
        assert!(sender.send_request(get()).await.is_err());
    }
    drop(sender);
    wecom.wait_until(|observed| observed.open_connections() == 0).await.unwrap();
    assert_eq!(
        wecom.observe(|observed| (observed.connection_count(), observed.executed_count("/cgi-bin/gettoken"))),
        (5, 4)
    );
}

#[tokio::test]
async fn tls_serves_the_alpn_protocol() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server =
        rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let mut server = server
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let wecom = Simulator::start_local(Settings { tls: Some(Arc::new(server)), ..Settings::default() })
        .await
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    for (alpn, version) in [(&b"h2"[..], "HTTP/2.0"), (b"http/1.1", "HTTP/1.1")] {
        let client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions();
        let mut client = client.unwrap().with_root_certificates(roots.clone()).with_no_client_auth();
        client.alpn_protocols = vec![alpn.to_vec()];
        let socket = TcpStream::connect(wecom.api_addr()).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
        let get = Request::get(format!("https://localhost/cgi-bin/gettoken?{HR_CREDENTIALS}"));
        let get = get.body(Full::<Bytes>::default()).unwrap();
        let io = TokioIo::new(stream);
        let response = if alpn == b"h2" {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(get).await.unwrap()
        } else {
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(get).await.unwrap()
        };
        assert_eq!(read_response(response).await.unwrap().errcode(), 0);
        assert_eq!(wecom.requests().last().unwrap().version, version);
    }
}

#[tokio::test]
async fn connections_close_on_disconnect_and_on_drop() {
    let wecom = start_simulator().await;
    let mut idle = open_raw(&wecom, "").await;
    wecom.wait_until(|observed| observed.open_connections() == 1).await.unwrap();
    wecom.close_connections();
    assert_eq!(with_timeout(idle.read(&mut [0])).await.unwrap(), 0);
    let mut idle = open_raw(&wecom, "").await;
    wecom.wait_until(|observed| observed.open_connections() == 1).await.unwrap();
    let (api, clone) = (wecom.api_addr(), wecom.clone());
    drop(wecom);
    assert_eq!(call(&clone, "GET /cgi-bin/tag/list").await.errcode(), 41001);
    drop(clone);
    assert_eq!(with_timeout(idle.read(&mut [0])).await.unwrap(), 0);
    with_timeout(async { while TcpStream::connect(api).await.is_ok() {} }).await;
}

#[tokio::test]
async fn stopped_simulator_frees_its_addresses() {
    let wecom = start_simulator().await;
    let mut idle = open_raw(&wecom, "").await;
    wecom.wait_until(|observed| observed.open_connections() == 1).await.unwrap();
    with_timeout(wecom.stop()).await;
    assert_eq!(with_timeout(idle.read(&mut [0])).await.unwrap(), 0);
    assert!(TcpStream::connect(wecom.api_addr()).await.is_err());
    let next = Simulator::start(Settings::default(), wecom.api_addr(), wecom.control_addr()).await.unwrap();
    assert_eq!(call(&next, "GET /cgi-bin/tag/list").await.errcode(), 41001);
}

#[tokio::test]
async fn thousand_connects_while_busy_wait_in_the_backlog() {
    let wecom = start_simulator().await;
    // Blocking connects: the simulator's tasks cannot run on this thread and accept nothing.
    let timeout = std::time::Duration::from_secs(10);
    let connect = |_| std::net::TcpStream::connect_timeout(&wecom.api_addr(), timeout);
    let sockets: Vec<_> = (0..1000).map(connect).collect::<Result<_, _>>().expect("a backlog for all");
    wecom.wait_until(|observed| observed.open_connections() == 1000).await.unwrap();
    drop(sockets);
}

#[tokio::test]
async fn sink_streams_a_large_body() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    let body = vec![7; 16 << 20];
    let response =
        send(&wecom, request(&format!("POST /cgi-bin/simulator/sink?access_token={token}"), body)).await;
    assert_eq!(response.unwrap().json()["body_bytes"], 16 << 20);
}
