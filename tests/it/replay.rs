//! What was refused goes out once more, the same to the byte; what may have been carried out does not.

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
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, wait_for, with_timeout},
    raw_http::{ManualUpstream, RawConnection},
};

const SEND: &str = "/cgi-bin/message/send";
const MIB: usize = 1 << 20;
/// As much as nothing: every body goes to a file.
const REPLAY_CONFIG: &str = "\n[replay]\nmemory = \"64KiB\"\ndir = \"{dir}\"\n";

/// Bytes that betray a shift.
fn generated_body(length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend_from_slice(&generated_bytes(bytes.len() as u64, length - bytes.len()));
    }
    bytes.into()
}

/// Heads and bodies, in order.
type RequestLog = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A WeCom that takes a request to its last byte before it judges it, and keeps all that came.
struct BufferingUpstream {
    address: SocketAddr,
    requests: RequestLog,
}

impl BufferingUpstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let heard = RequestLog::default();
        let (all, gettokens) = (heard.clone(), Arc::new(Mutex::new(0)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::serve(stream, all.clone(), gettokens.clone()));
            }
        });
        Self { address, requests: heard }
    }

    /// Hands out T1, T2 …; refuses whatever carries an odd one.
    async fn serve(stream: TcpStream, all: RequestLog, gettokens: Arc<Mutex<u32>>) {
        let mut stream = BufReader::new(stream);
        while let Some((head, body)) = read_request(&mut stream).await {
            let said = if head.starts_with("GET /cgi-bin/gettoken") {
                let mut nth = gettokens.lock().expect("no panic");
                *nth += 1;
                format!("{{\"errcode\":0,\"errmsg\":\"ok\",\"access_token\":\"T{nth}\",\"expires_in\":7200}}")
            } else {
                let line = head.lines().next().unwrap_or_default();
                let token = line.split("access_token=T").nth(1).and_then(|rest| rest.split(' ').next());
                let odd = token.and_then(|token| token.parse::<u32>().ok()).expect("a token") % 2 == 1;
                all.lock().expect("no panic").push((head, body));
                format!("{{\"errcode\":{},\"errmsg\":\"\"}}", if odd { 40014 } else { 0 })
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                said.len()
            );
            if stream.write_all((head + &said).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// One request, its body unchunked.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let field = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let mut body = Vec::new();
    if field("transfer-encoding:").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let length = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
            let from = body.len();
            body.resize(from + length, 0);
            stream.read_exact(&mut body[from..]).await.ok()?;
            stream.read_line(&mut line).await.ok()?;
            if length == 0 {
                break;
            }
        }
    } else if let Some(length) = field("content-length:") {
        body.resize(length.parse().expect("a length"), 0);
        stream.read_exact(&mut body).await.ok()?;
    }
    Some((head, body))
}

/// Sends a request with a body, chunked or not, and returns the whole answer as text.
async fn exchange(address: SocketAddr, line: &str, body: &Bytes, chunked: bool) -> String {
    let framing =
        if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {}", body.len()) };
    let head = format!(
        "{line} HTTP/1.1\r\nHost: proxy.test\r\nX-Odd: \u{e4} ;,\r\nX-Twice: a\r\nX-Twice: \
         b\r\nUser-Agent: replay\r\n{framing}\r\nConnection: close\r\n\r\n"
    );
    let (mut from, mut to) = TcpStream::connect(address).await.expect("a connection").into_split();
    let body = body.clone();
    let sending = tokio::spawn(async move {
        to.write_all(head.as_bytes()).await?;
        if !chunked {
            to.write_all(&body).await?;
            return Ok(to);
        }
        for chunk in body.chunks(65_537) {
            to.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
            to.write_all(chunk).await?;
            to.write_all(b"\r\n").await?;
        }
        to.write_all(b"0\r\n\r\n").await?;
        std::io::Result::Ok(to)
    });
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), from.read_to_end(&mut answer)).await;
    read.expect("an answer in time").expect("an answer");
    drop(sending);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Every method with this body, chunked and not, each with a token that is refused after the body's last byte.
async fn assert_replayed_with_every_method(length: usize) {
    let wecom = BufferingUpstream::start().await;
    let body = generated_body(length);
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for chunked in [false, true] {
            // A proxy of its own, so that it begins with a token that is refused.
            let stage =
                TestProxy::start_with_config(&OPEN_CONFIG.replace("{api}", &wecom.address.to_string())).await;
            let line = format!("{method} /hr/cgi-bin/a//b?x=%20&&y=%E4&access_token=mine&z");
            let answer = exchange(stage.address(), &line, &body, chunked).await;
            let case = format!("{method} {length} chunked {chunked}");
            assert!(answer.contains("\r\nx-wecom-retried: 40014\r\n"), "{case}: {answer}");
            assert!(answer.ends_with(r#"{"errcode":0,"errmsg":""}"#), "{case}: {answer}");
            let heard = std::mem::take(&mut *wecom.requests.lock().expect("no panic"));
            let [(first, first_body), (second, second_body)] = &heard[..] else {
                panic!("{case}: {} requests", heard.len());
            };
            let target = format!("{method} /cgi-bin/a//b?x=%20&&y=%E4&z&access_token=T");
            assert!(first.starts_with(&target), "{case}: {first}");
            assert!(first_body == &body && second_body == &body, "{case}: the body is another");
            let (_, rest) = first.split_once("\r\n").expect("a head");
            let (line, second_rest) = second.split_once("\r\n").expect("a head");
            assert_eq!(rest, second_rest, "{case}");
            assert!(line.starts_with(&target), "{case}: {line}");
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
        let stage = TestProxy::start_with_config(&format!("{OPEN_CONFIG}{replay}")).await;
        stage.get(USER_GET).await.assert_ok();
        for length in [1, 64 * 1024, 20 * MIB] {
            for chunked in [false, true] {
                stage.wecom.revoke_tokens("hr").expect("an agent");
                let line = format!("POST /hr{ECHO}");
                let answer = exchange(stage.address(), &line, &generated_body(length), chunked).await;
                assert!(answer.contains("\r\nx-wecom-retried: 40014\r\n"), "{length}: {answer}");
                assert!(answer.contains(&format!("\"body_bytes\":{length},")), "{answer}");
                assert!(answer.contains(&sha256(&generated_body(length))), "{length}: {answer}");
            }
        }
        let shelf = stage.app.replay_budget();
        wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn body_beyond_replay_memory_spills_to_an_unnamed_file() {
    let stage = Arc::new(TestProxy::start_with_config(&format!("{OPEN_CONFIG}{REPLAY_CONFIG}")).await);
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let caller = {
        let stage = stage.clone();
        tokio::spawn(async move { stage.post(ECHO, generated_body(MIB)).await })
    };
    let arrived = |record: &wecom_proxy::simulator::RecordedRequest| record.body_bytes == MIB as u64;
    stage.wecom.wait_until(|seen| seen.requests().any(arrived)).await.expect("all of it arrived");
    let (memory, files) = (stage.app.replay_budget().memory_used(), stage.app.replay_budget().disk_used());
    assert!(memory <= 8 * 1024 && memory + files == MIB as u64, "{memory} in memory, {files} in files");
    let names: Vec<_> =
        std::fs::read_dir(stage.dir.path()).expect("a directory").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["proxy.toml"]);
    stage.wecom.release_held();
    caller.await.expect("no panic").assert_ok();
    let shelf = stage.app.replay_budget();
    wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
}

#[tokio::test]
async fn unwritable_replay_directory_only_disables_the_retry() {
    let gone = TempDir::new().expect("a directory");
    let replay = REPLAY_CONFIG.replace("{dir}", &gone.path().display().to_string());
    let stage = TestProxy::start_with_config(&format!("{OPEN_CONFIG}{replay}")).await;
    drop(gone);
    stage.post(ECHO, generated_body(MIB)).await.assert_ok();
    stage.wecom.revoke_tokens("hr").expect("an agent");
    let refused = stage.post(ECHO, generated_body(MIB)).await;
    assert_eq!((refused.errcode(), refused.header("x-wecom-retried")), (40014, ""));
    // The token is renewed all the same: uploads alone must not stay refused for ever.
    wait_for("the next token", async || stage.post(ECHO, generated_body(MIB)).await.errcode() == 0).await;
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 2);
}

#[tokio::test]
async fn pooled_connection_closed_by_wecom_is_replaced() {
    let stage = TestProxy::start_open().await;
    let mut caller = TestClient::connect_http1(stage.address()).await;
    caller.get(USER_GET).await.assert_ok();
    stage.wecom.close_connections();
    stage.wecom.wait_until(|seen| seen.open_connections() == 0).await.expect("they are closed");
    let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hi"}}"#;
    caller.request(Request::post(format!("/hr{SEND}")), message).await.assert_ok();
    stage.wecom.close_connections();
    stage.wecom.wait_until(|seen| seen.open_connections() == 0).await.expect("they are closed");
    caller.get(USER_GET).await.assert_ok();
    assert_eq!(stage.wecom.messages().len(), 1);
}

#[tokio::test]
async fn get_on_a_closing_connection_is_retried_and_post_is_not() {
    let stage = TestProxy::start_open().await;
    let mut caller = TestClient::connect_http1(stage.address()).await;
    caller.get(ECHO).await.assert_ok();
    stage.wecom.inject(Fault::drop(DropPoint::OnArrival).on_path(ECHO)).expect("a fault");
    caller.get(ECHO).await.assert_ok();
    assert_eq!(stage.wecom.observe(|seen| (seen.received_count(ECHO), seen.executed_count(ECHO))), (3, 2));

    for when in [DropPoint::OnArrival, DropPoint::BeforeResponse] {
        stage.wecom.inject(Fault::drop(when).on_path(SEND)).expect("a fault");
        let before = stage.wecom.observe(|seen| seen.received_count(SEND));
        let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hi"}}"#;
        let reply = caller.request(Request::post(format!("/hr{SEND}")), message).await;
        reply.assert_proxy_error("upstream-broke", 502, -1);
        assert_eq!(stage.wecom.observe(|seen| seen.received_count(SEND)) - before, 1);
        caller.get(ECHO).await.assert_ok();
    }
}

#[tokio::test]
async fn response_before_the_upload_ends_reaches_the_client() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.inject(Fault::errcode(45009).on_path(ECHO)).expect("a fault");
    let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: {MIB}\r\n\r\n");
    for sent in [0, 100 * 1024] {
        let mut stream = TcpStream::connect(stage.address()).await.expect("a connection");
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&generated_body(sent)).await.expect("sent");
        let mut answer = vec![0; 4096];
        // It does not wait for the body.
        let length = with_timeout(stream.read(&mut answer)).await.expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer[..length]));
    }
    let whole = stage.post(ECHO, generated_body(20 * MIB)).await;
    assert_eq!((whole.status, whole.errcode()), (StatusCode::OK, 45009));
}

/// The sockets on the way hold neither the body nor the answer.
#[tokio::test]
async fn client_may_send_its_whole_body_before_reading() {
    const LARGE: usize = 16 << 20;
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    let mut caller = RawConnection::connect(stage.address()).await;
    let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\n\r\n");
    caller.send(head).await.expect("it is taken");
    let call = puppet.next_call().await;
    let (mut taking, mut answering) = call.connection.stream.into_split();
    let taken = tokio::spawn(async move {
        let mut body = vec![0; LARGE];
        taking.read_exact(&mut body).await.map(|_| body.iter().all(|byte| *byte == b'x'))
    });
    let answered = tokio::spawn(async move {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {LARGE}\r\n\r\n");
        answering.write_all(head.as_bytes()).await?;
        answering.write_all(&vec![b'y'; LARGE]).await
    });
    assert!(caller.read_head().await.starts_with("HTTP/1.1 200 "));
    caller.send(vec![b'x'; LARGE]).await.expect("it is taken, though the answer is not");
    assert!(with_timeout(taken).await.expect("no panic").expect("the whole body"), "byte for byte");
    assert!(caller.read_exact(LARGE).await.iter().all(|byte| *byte == b'y'));
    answered.await.expect("no panic").expect("it is taken");
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
                let said = match head[..length].starts_with(b"GET /cgi-bin/gettoken") {
                    true => r#"{"errcode":0,"access_token":"T1","expires_in":7200}"#,
                    false => r#"{"errcode":45001,"errmsg":"media size out of limit"}"#,
                };
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json";
                let said = format!("{head}\r\nContent-Length: {}\r\n\r\n{said}", said.len());
                stream.write_all(said.as_bytes()).await.expect("sent");
                stream.shutdown().await.expect("closed");
                // It takes no more, but is polite enough not to reset before its answer was read.
                tokio::time::sleep(Duration::from_millis(500)).await;
            });
        }
    });
    let stage = TestProxy::start_with_config(&config).await;
    for _ in 0..3 {
        let reply = stage.post(ECHO, generated_body(20 * MIB)).await;
        assert_eq!((reply.status, reply.errcode()), (StatusCode::OK, 45001));
    }
}
