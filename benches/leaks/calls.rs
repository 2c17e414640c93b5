//! Requests of all kinds, including failing ones.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use wecom_proxy::simulator::{DropPoint, Fault, Settings, Simulator};

use crate::{harness::with_timeout, process::ProxyProcess, raw_http::RawConnection};

/// A body larger than the configured replay memory, in bytes.
const SPILLED_BODY_BYTES: usize = 96 * 1024;
const CHUNKED_REQUEST: &str = "POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                               5\r\nhello\r\n3;a=b\r\nyou\r\n0\r\nX-T: 1\r\n\r\n";
const WEBHOOK_PATH: &str = "/cgi-bin/webhook/send?key=00000000-1111-2222-3333-444444444444";
const WEBHOOK_MESSAGE: &str = r#"{"msgtype":"text","text":{"content":"a"}}"#;
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
idle_timeout = "2s"
[upstream]
url = "http://{api}"
idle_timeout = "2s"
[replay]
memory = "64KiB"
dir = "{spool_dir}"
"#;

/// The simulator, the proxy in front of it, and the outcomes of the calls so far.
pub struct LeakScenario {
    pub wecom: Simulator,
    pub process: ProxyProcess,
    outcomes: Mutex<BTreeMap<(&'static str, String), u64>>,
    _dir: TempDir,
}

/// A kind of request.
#[derive(Clone, Copy)]
enum CallKind {
    Get,
    Post,
    Chunked,
    SpilledToFile,
    ConnectionClose,
    Http10,
    UnknownAgent,
    Malformed,
    NoRoute,
    Gettoken,
    Pass,
    Webhook,
    UpstreamDrop(DropPoint),
    /// The token has just been revoked. Only the first 300 are refreshed: the refresh budget allows no more per hour.
    RevokedToken,
    ClientAbort,
    HalfBody,
    Http2,
    Download,
}

const CALL_SEQUENCE: [(&str, CallKind); 25] = [
    ("get", CallKind::Get),
    ("post", CallKind::Post),
    ("chunked", CallKind::Chunked),
    ("get", CallKind::Get),
    ("spilled to a file", CallKind::SpilledToFile),
    ("http2", CallKind::Http2),
    ("connection close", CallKind::ConnectionClose),
    ("http/1.0", CallKind::Http10),
    ("get", CallKind::Get),
    ("refused", CallKind::UnknownAgent),
    ("malformed", CallKind::Malformed),
    ("no route", CallKind::NoRoute),
    ("post", CallKind::Post),
    ("gettoken", CallKind::Gettoken),
    ("pass", CallKind::Pass),
    ("webhook", CallKind::Webhook),
    ("get", CallKind::Get),
    ("upstream closes before its response", CallKind::UpstreamDrop(DropPoint::BeforeResponse)),
    ("upstream closes within its response", CallKind::UpstreamDrop(DropPoint::MidBody)),
    ("revoked token", CallKind::RevokedToken),
    ("client abort", CallKind::ClientAbort),
    ("half a body", CallKind::HalfBody),
    ("http2", CallKind::Http2),
    ("download", CallKind::Download),
    ("chunked", CallKind::Chunked),
];

impl LeakScenario {
    /// Starts a simulator and a proxy with little replay memory.
    pub async fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let settings = Settings::default();
        let wecom = Simulator::start_local(settings.clone()).await.expect("a simulator");
        let spool_dir = dir.path().join("spilled");
        std::fs::create_dir(&spool_dir).expect("a directory");
        let mut text = CONFIG
            .replace("{api}", &wecom.api_addr().to_string())
            .replace("{spool_dir}", &spool_dir.display().to_string());
        for agent in &settings.agents {
            let (name, corpid, secret) = (&agent.name, &agent.corpid, &agent.secret);
            text.push_str(&format!("[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = \"{secret}\"\n"));
        }
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text).expect("a file");
        let process = ProxyProcess::start(&path, &spool_dir);
        Self { wecom, process, outcomes: Mutex::default(), _dir: dir }
    }

    /// Makes `calls` sequential calls, of every kind in turn, starting at index `from`.
    pub async fn run_calls(&self, from: u64, calls: u64) {
        let mut client = Client {
            scenario: self,
            connection: None,
            http2: None,
            pass: String::new(),
            next_is_reset: false,
        };
        for index in from..from + calls {
            let (name, call) = CALL_SEQUENCE[index as usize % CALL_SEQUENCE.len()];
            let outcome = with_timeout(client.call(call)).await;
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            *outcomes.entry((name, outcome)).or_default() += 1;
        }
    }

    /// Prints the number of each outcome per kind of call.
    pub fn print_outcomes(&self) {
        for ((name, outcome), count) in &*self.outcomes.lock().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("{count:>8} {name}: {outcome}");
        }
    }
}

/// A client with its persistent connections.
struct Client<'a> {
    scenario: &'a LeakScenario,
    connection: Option<RawConnection>,
    http2: Option<http2::SendRequest<Full<Bytes>>>,
    pass: String,
    next_is_reset: bool,
}

impl Client<'_> {
    /// Makes a call and returns its outcome.
    async fn call(&mut self, call: CallKind) -> String {
        let message =
            "{\"touser\":\"zhangsan\",\"msgtype\":\"text\",\"agentid\":1000002,\"text\":{\"content\":\"a\"}}";
        let user_get = "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\nHost: x\r\n";
        match call {
            CallKind::Get => self.call_keep_alive(&format!("{user_get}\r\n")).await,
            CallKind::Post => self.call_keep_alive(&post_request("/hr/cgi-bin/message/send", message)).await,
            CallKind::Chunked => self.call_keep_alive(CHUNKED_REQUEST).await,
            CallKind::SpilledToFile => {
                self.call_keep_alive(&post_request(
                    "/hr/cgi-bin/simulator/sink",
                    &"x".repeat(SPILLED_BODY_BYTES),
                ))
                .await
            }
            CallKind::ConnectionClose => {
                self.call_on_new_connection(&format!("{user_get}Connection: close\r\n\r\n")).await
            }
            CallKind::Http10 => {
                self.call_on_new_connection("GET /ops/cgi-bin/user/get?userid=lisi HTTP/1.0\r\n\r\n").await
            }
            CallKind::UnknownAgent => {
                self.call_keep_alive("GET /unknown/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n").await
            }
            CallKind::Malformed => {
                self.call_on_new_connection("GET /hr/cgi-bin/../x HTTP/1.1\r\nHost: x\nA: b\r\n\r\n").await
            }
            CallKind::NoRoute => self.call_keep_alive("GET /somewhere HTTP/1.1\r\nHost: x\r\n\r\n").await,
            CallKind::Gettoken => self.call_gettoken().await,
            CallKind::Pass => {
                let target = format!("/cgi-bin/user/get?userid=zhangsan&access_token={}", self.pass);
                self.call_keep_alive(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await
            }
            CallKind::Webhook => self.call_keep_alive(&post_request(WEBHOOK_PATH, WEBHOOK_MESSAGE)).await,
            CallKind::UpstreamDrop(point) => self.call_with_upstream_drop(point).await,
            CallKind::RevokedToken => {
                self.scenario.wecom.revoke_tokens("hr").expect("an agent");
                self.call_keep_alive(&post_request("/hr/cgi-bin/message/send", message)).await
            }
            CallKind::ClientAbort => self.abort_call(&format!("{user_get}\r\n")).await,
            CallKind::HalfBody => {
                self.abort_call(
                    "POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf",
                )
                .await
            }
            CallKind::Http2 => self.call_http2().await,
            CallKind::Download => {
                self.call_keep_alive(
                    "GET /hr/cgi-bin/media/get?media_id=generated-30000 HTTP/1.1\r\nHost: x\r\n\r\n",
                )
                .await
            }
        }
    }

    /// Sends the request on the persistent connection, or on a new one if that was closed.
    async fn call_keep_alive(&mut self, request: &str) -> String {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => RawConnection::connect(self.scenario.process.address).await,
        };
        if connection.send(request).await.is_err() {
            return "connection closed".to_owned();
        }
        let head = connection.read_head().await;
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<usize>().ok())
        });
        if let Some(length) = length {
            connection.read_exact(length).await;
            self.connection =
                (!head.to_ascii_lowercase().contains("connection: close")).then_some(connection);
        }
        response_outcome(&head)
    }

    /// Sends the request on a new connection, which the proxy closes.
    async fn call_on_new_connection(&self, request: &str) -> String {
        let mut connection = RawConnection::connect(self.scenario.process.address).await;
        let _ = connection.send(request).await;
        response_outcome(&String::from_utf8_lossy(&connection.read_to_end().await.0))
    }

    async fn call_gettoken(&mut self) -> String {
        let secret = "not-a-secret-hr-0000000000000000000000000000";
        let path = format!("/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={secret}");
        let mut connection = RawConnection::connect(self.scenario.process.address).await;
        let _ = connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let (head, body) = connection.read_response().await;
        self.pass = body.split('"').find(|word| word.starts_with("wp1-")).unwrap_or_default().to_owned();
        response_outcome(&head)
    }

    /// Sends a request while the upstream drops one request; a concurrent client's request may be the one dropped.
    async fn call_with_upstream_drop(&mut self, point: DropPoint) -> String {
        self.scenario.wecom.inject(Fault::drop(point).on_path("/cgi-bin/department/list")).expect("a fault");
        let request = "GET /hr/cgi-bin/department/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        self.call_on_new_connection(request).await
    }

    /// Disconnects before a response, every second time with a reset.
    async fn abort_call(&mut self, request: &str) -> String {
        let mut connection = RawConnection::connect(self.scenario.process.address).await;
        let _ = connection.send(request).await;
        self.next_is_reset = !self.next_is_reset;
        if self.next_is_reset {
            connection.reset();
        }
        "disconnected".to_owned()
    }

    async fn call_http2(&mut self) -> String {
        if self.http2.as_ref().is_none_or(http2::SendRequest::is_closed) {
            let stream = TcpStream::connect(self.scenario.process.address).await.expect("a connection");
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (sender, connection) = handshake.expect("a handshake");
            tokio::spawn(connection);
            self.http2 = Some(sender);
        }
        let sender = self.http2.as_mut().expect("a sender");
        let target = "http://x/hr/cgi-bin/simulator/sink";
        let request = Request::post(target).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(Bytes::from_static(&[b'x'; 3000]))).expect("a request");
        let exchange = async {
            sender.ready().await.ok()?;
            let response = sender.send_request(request).await.ok()?;
            let status = response.status();
            response.into_body().collect().await.ok()?;
            Some(status.to_string())
        };
        match timeout(Duration::from_secs(20), exchange).await {
            Ok(Some(status)) => status,
            _ => "connection closed".to_owned(),
        }
    }
}

fn post_request(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The response's status, whether it was retried, and the proxy's own error.
fn response_outcome(response: &str) -> String {
    let status = response.split(' ').nth(1).unwrap_or("no response");
    let header = |name: &str| {
        response.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned))
    };
    let retried = header("x-wecom-retried:").map(|_| " retried").unwrap_or_default();
    let proxy_error = header("x-wecom-proxy-error:").unwrap_or_default();
    format!("{status}{retried}{proxy_error}")
}
