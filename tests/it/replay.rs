//! Retries: a request refused for its token is replayed byte for byte; one that may have been executed is not.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use wecom_proxy::simulator::{DropPoint, Fault, generated_bytes};

use crate::{
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, sha256, wait_for, with_timeout},
    raw_http::{ManualUpstream, RawConnection},
};

const SEND: &str = "/cgi-bin/message/send";
const MIB: usize = 1 << 20;
/// The smallest memory budget: almost every body goes to a file.
const REPLAY_CONFIG: &str = "\n[replay]\nmemory = \"64KiB\"\ndir = \"{dir}\"\n";

/// Position-dependent bytes, so that a lost or duplicated byte is noticed.
fn generated_body(length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend_from_slice(&generated_bytes(bytes.len() as u64, length - bytes.len()));
    }
    bytes.into()
}

/// Heads and bodies of the received requests, in order.
type RequestLog = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// An upstream that reads each request to its last byte before it responds, and records all requests.
struct BufferingUpstream {
    address: SocketAddr,
    requests: RequestLog,
}

impl BufferingUpstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests = RequestLog::default();
        let (log, gettokens) = (requests.clone(), Arc::new(Mutex::new(0)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::serve(stream, log.clone(), gettokens.clone()));
            }
        });
        Self { address, requests }
    }

    /// Issues the tokens T1, T2 …, and refuses every request with an odd one.
    async fn serve(stream: TcpStream, log: RequestLog, gettokens: Arc<Mutex<u32>>) {
        let mut stream = BufReader::new(stream);
        while let Some((head, request_body)) = read_request(&mut stream).await {
            let body = if head.starts_with("GET /cgi-bin/gettoken") {
                let mut nth = gettokens.lock().expect("no panic");
                *nth += 1;
                format!("{{\"errcode\":0,\"errmsg\":\"ok\",\"access_token\":\"T{nth}\",\"expires_in\":7200}}")
            } else {
                let request_line = head.lines().next().unwrap_or_default();
                let token =
                    request_line.split("access_token=T").nth(1).and_then(|rest| rest.split(' ').next());
                let is_odd = token.and_then(|token| token.parse::<u32>().ok()).expect("a token") % 2 == 1;
                log.lock().expect("no panic").push((head, request_body));
                format!("{{\"errcode\":{},\"errmsg\":\"\"}}", if is_odd { 40014 } else { 0 })
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            if stream.write_all((head + &body).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Reads one request, with its body de-chunked.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let mut body = Vec::new();
    if header("transfer-encoding:").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let length = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
            let start = body.len();
            body.resize(start + length, 0);
            stream.read_exact(&mut body[start..]).await.ok()?;
            stream.read_line(&mut line).await.ok()?;
            if length == 0 {
                break;
            }
        }
    } else if let Some(length) = header("content-length:") {
        body.resize(length.parse().expect("a length"), 0);
        stream.read_exact(&mut body).await.ok()?;
    }
    Some((head, body))
}

/// Sends a request with a body, chunked or not, and returns the complete response as text.
async fn exchange(address: SocketAddr, request_line: &str, body: &Bytes, chunked: bool) -> String {
    let framing =
        if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {}", body.len()) };
    let head = format!(
        "{request_line} HTTP/1.1\r\nHost: proxy.test\r\nX-Odd: \u{e4} ;,\r\nX-Twice: a\r\nX-Twice: \
         b\r\nUser-Agent: replay\r\n{framing}\r\nConnection: close\r\n\r\n"
    );
    let (mut read_half, mut write_half) =
        TcpStream::connect(address).await.expect("a connection").into_split();
    let body = body.clone();
    let sending = tokio::spawn(async move {
        write_half.write_all(head.as_bytes()).await?;
        if !chunked {
            write_half.write_all(&body).await?;
            return Ok(write_half);
        }
        for chunk in body.chunks(65_537) {
            write_half.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
            write_half.write_all(chunk).await?;
            write_half.write_all(b"\r\n").await?;
        }
        write_half.write_all(b"0\r\n\r\n").await?;
        std::io::Result::Ok(write_half)
    });
    let mut response = Vec::new();
    let result = tokio::time::timeout(Duration::from_secs(60), read_half.read_to_end(&mut response)).await;
    result.expect("a response in time").expect("a response");
    drop(sending);
    String::from_utf8_lossy(&response).into_owned()
}

/// Sends every method with this body, chunked and not, each with a token that is refused after the body's last byte.
async fn assert_replayed_with_every_method(length: usize) {
    let wecom = BufferingUpstream::start().await;
    let body = generated_body(length);
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for chunked in [false, true] {
            // Each case has its own proxy, so that it starts with a refused token.
            let proxy =
                TestProxy::start_with_config(&OPEN_CONFIG.replace("{api}", &wecom.address.to_string())).await;
            let request_line = format!("{method} /hr/cgi-bin/a//b?x=%20&&y=%E4&access_token=mine&z");
            let response = exchange(proxy.address(), &request_line, &body, chunked).await;
            let case = format!("{method} {length} chunked {chunked}");
            assert!(response.contains("\r\nx-wecom-retried: 40014\r\n"), "{case}: {response}");
            assert!(response.ends_with(r#"{"errcode":0,"errmsg":""}"#), "{case}: {response}");
            let requests = std::mem::take(&mut *wecom.requests.lock().expect("no panic"));
            let [(first, first_body), (second, second_body)] = &requests[..] else {
                panic!("{case}: {} requests", requests.len());
            };
            let target = format!("{method} /cgi-bin/a//b?x=%20&&y=%E4&z&access_token=T");
            assert!(first.starts_with(&target), "{case}: {first}");
            assert!(first_body == &body && second_body == &body, "{case}: the body differs");
            let (_, rest) = first.split_once("\r\n").expect("a head");
            let (request_line, second_rest) = second.split_once("\r\n").expect("a head");
            // The length of a body is known by the second attempt.
            let with_length =
                rest.replace("transfer-encoding: chunked", &format!("content-length: {length}"));
            assert_eq!(with_length, second_rest, "{case}");
            assert!(request_line.starts_with(&target), "{case}: {request_line}");
            assert!(rest.to_lowercase().contains("x-twice: a\r\nx-twice: b\r\n"), "{case}: {rest}");
        }
    }
}

#[tokio::test]
async fn empty_body_is_replayed_with_every_method() {
    assert_replayed_with_every_method(0).await;
}

#[tokio::test]
async fn one_byte_body_is_replayed_with_every_method() {
    assert_replayed_with_every_method(1).await;
}

#[tokio::test]
async fn ordinary_body_is_replayed_with_every_method() {
    assert_replayed_with_every_method(64 * 1024).await;
}

#[tokio::test]
async fn large_body_is_replayed_with_every_method() {
    assert_replayed_with_every_method(20 * MIB).await;
}

#[tokio::test]
async fn upload_refused_before_its_end_is_replayed_completely() {
    for replay in ["", REPLAY_CONFIG] {
        let proxy = TestProxy::start_with_config(&format!("{OPEN_CONFIG}{replay}")).await;
        proxy.get(USER_GET).await.assert_ok();
        for length in [1, 64 * 1024, 20 * MIB] {
            for chunked in [false, true] {
                proxy.wecom.revoke_tokens("hr").expect("an agent");
                let request_line = format!("POST /hr{ECHO}");
                let response =
                    exchange(proxy.address(), &request_line, &generated_body(length), chunked).await;
                assert!(response.contains("\r\nx-wecom-retried: 40014\r\n"), "{length}: {response}");
                assert!(response.contains(&format!("\"body_bytes\":{length},")), "{response}");
                assert!(response.contains(&sha256(generated_body(length))), "{length}: {response}");
            }
        }
        let budget = proxy.app.replay_budget();
        wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
    }
}

#[tokio::test]
async fn body_beyond_replay_memory_spills_to_an_unnamed_file() {
    let proxy = Arc::new(TestProxy::start_with_config(&format!("{OPEN_CONFIG}{REPLAY_CONFIG}")).await);
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let request = {
        let proxy = proxy.clone();
        tokio::spawn(async move { proxy.post(ECHO, generated_body(MIB)).await })
    };
    let is_complete = |record: &wecom_proxy::simulator::RecordedRequest| record.body_bytes == MIB as u64;
    proxy.wecom.wait_until(|observed| observed.requests().any(is_complete)).await.expect("the complete body");
    let (memory, disk) = (proxy.app.replay_budget().memory_used(), proxy.app.replay_budget().disk_used());
    assert!(memory <= 8 * 1024 && memory + disk == MIB as u64, "{memory} in memory, {disk} in files");
    let names: Vec<_> = std::fs::read_dir(proxy.dir.path())
        .expect("a directory")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names, ["proxy.toml"]);
    proxy.wecom.release_held();
    request.await.expect("no panic").assert_ok();
    let budget = proxy.app.replay_budget();
    wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
}

#[tokio::test]
async fn unwritable_replay_directory_only_disables_the_retry() {
    let removed = TempDir::new().expect("a directory");
    let replay = REPLAY_CONFIG.replace("{dir}", &removed.path().display().to_string());
    let proxy = TestProxy::start_with_config(&format!("{OPEN_CONFIG}{replay}")).await;
    drop(removed);
    proxy.post(ECHO, generated_body(MIB)).await.assert_ok();
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let refused = proxy.post(ECHO, generated_body(MIB)).await;
    assert_eq!((refused.errcode(), refused.header("x-wecom-retried")), (40014, ""));
    // The token is refreshed nevertheless, so that uploads are not refused forever.
    wait_for("the next token", async || proxy.post(ECHO, generated_body(MIB)).await.errcode() == 0).await;
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 2);
}

#[tokio::test]
async fn pooled_connection_closed_by_wecom_is_replaced() {
    let proxy = TestProxy::start_open().await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get(USER_GET).await.assert_ok();
    proxy.wecom.close_connections();
    proxy.wecom.wait_until(|observed| observed.open_connections() == 0).await.expect("closed connections");
    let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hi"}}"#;
    client.request(Request::post(format!("/hr{SEND}")), message).await.assert_ok();
    proxy.wecom.close_connections();
    proxy.wecom.wait_until(|observed| observed.open_connections() == 0).await.expect("closed connections");
    client.get(USER_GET).await.assert_ok();
    assert_eq!(proxy.wecom.messages().len(), 1);
}

#[tokio::test]
async fn get_on_a_closing_connection_is_retried_and_post_is_not() {
    let proxy = TestProxy::start_open().await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get(ECHO).await.assert_ok();
    proxy.wecom.inject(Fault::drop(DropPoint::OnArrival).on_path(ECHO)).expect("a fault");
    client.get(ECHO).await.assert_ok();
    assert_eq!(
        proxy.wecom.observe(|observed| (observed.received_count(ECHO), observed.executed_count(ECHO))),
        (3, 2)
    );

    for drop_point in [DropPoint::OnArrival, DropPoint::BeforeResponse] {
        proxy.wecom.inject(Fault::drop(drop_point).on_path(SEND)).expect("a fault");
        let before = proxy.wecom.observe(|observed| observed.received_count(SEND));
        let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hi"}}"#;
        let response = client.request(Request::post(format!("/hr{SEND}")), message).await;
        response.assert_proxy_error("upstream-broke", 502, -1);
        assert_eq!(proxy.wecom.observe(|observed| observed.received_count(SEND)) - before, 1);
        client.get(ECHO).await.assert_ok();
    }
}

#[tokio::test]
async fn response_before_the_upload_ends_reaches_the_client() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(45009).on_path(ECHO)).expect("a fault");
    let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: {MIB}\r\n\r\n");
    for sent in [0, 100 * 1024] {
        let mut stream = TcpStream::connect(proxy.address()).await.expect("a connection");
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&generated_body(sent)).await.expect("sent");
        let mut response = vec![0; 4096];
        // The response does not wait for the rest of the body.
        let length = with_timeout(stream.read(&mut response)).await.expect("a response");
        assert!(
            response.starts_with(b"HTTP/1.1 200 OK\r\n"),
            "{}",
            String::from_utf8_lossy(&response[..length])
        );
    }
    let complete = proxy.post(ECHO, generated_body(20 * MIB)).await;
    assert_eq!((complete.status, complete.errcode()), (StatusCode::OK, 45009));
}

/// Body and response are both larger than the socket buffers between client and upstream.
#[tokio::test]
async fn client_may_send_its_whole_body_before_reading() {
    const LARGE: usize = 16 << 20;
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let mut client = RawConnection::connect(proxy.address()).await;
    let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\n\r\n");
    client.send(head).await.expect("sent");
    let call = upstream.next_call().await;
    let (mut request_half, mut response_half) = call.connection.stream.into_split();
    let reading = tokio::spawn(async move {
        let mut body = vec![0; LARGE];
        request_half.read_exact(&mut body).await.map(|_| body.iter().all(|byte| *byte == b'x'))
    });
    let writing = tokio::spawn(async move {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {LARGE}\r\n\r\n");
        response_half.write_all(head.as_bytes()).await?;
        response_half.write_all(&vec![b'y'; LARGE]).await
    });
    assert!(client.read_head().await.starts_with("HTTP/1.1 200 "));
    client.send(vec![b'x'; LARGE]).await.expect("sent");
    assert!(with_timeout(reading).await.expect("no panic").expect("the complete body"), "byte for byte");
    assert!(client.read_exact(LARGE).await.iter().all(|byte| *byte == b'y'));
    writing.await.expect("no panic").expect("sent");
}

#[tokio::test]
async fn early_response_of_a_closing_upstream_is_forwarded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let config = OPEN_CONFIG.replace("{api}", &listener.local_addr().expect("an address").to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let length = stream.read(&mut head).await.expect("a head");
                let body = match head[..length].starts_with(b"GET /cgi-bin/gettoken") {
                    true => r#"{"errcode":0,"access_token":"T1","expires_in":7200}"#,
                    false => r#"{"errcode":45001,"errmsg":"media size out of limit"}"#,
                };
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json";
                let message = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(message.as_bytes()).await.expect("sent");
                stream.shutdown().await.expect("closed");
                // It reads no more, but delays the reset until the client can have read the response.
                tokio::time::sleep(Duration::from_millis(500)).await;
            });
        }
    });
    let proxy = TestProxy::start_with_config(&config).await;
    for _ in 0..3 {
        let response = proxy.post(ECHO, generated_body(20 * MIB)).await;
        assert_eq!((response.status, response.errcode()), (StatusCode::OK, 45001));
    }
}
