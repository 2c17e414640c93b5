//! Requests of all kinds, and what goes wrong with them.

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

/// A body that finds no room in all the memory which the configuration allows, in bytes.
const SPILLED_BODY_BYTES: usize = 96 * 1024;
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
idle_timeout = "2s"
[upstream]
url = "http://{api}"
idle_timeout = "2s"
[replay]
memory = "64KiB"
dir = "{spilled}"
"#;

/// The simulator, the program before it, and what came of the calls so far.
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
    /// Its token has just been revoked. Only the first 300 are renewed: no more gettokens leave in an hour.
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
    ("closed", CallKind::ConnectionClose),
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
    ("upstream breaks before its answer", CallKind::UpstreamDrop(DropPoint::BeforeResponse)),
    ("upstream breaks in its answer", CallKind::UpstreamDrop(DropPoint::MidBody)),
    ("after a refusal", CallKind::RevokedToken),
    ("leaves", CallKind::ClientAbort),
    ("half a body", CallKind::HalfBody),
    ("http2", CallKind::Http2),
    ("download", CallKind::Download),
    ("chunked", CallKind::Chunked),
];

impl LeakScenario {
    /// A simulator and a program that keeps little in memory.
    pub async fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let settings = Settings::default();
        let wecom = Simulator::start_local(settings.clone()).await.expect("a simulator");
        let spilled = dir.path().join("spilled");
        std::fs::create_dir(&spilled).expect("a directory");
        let mut text = CONFIG
            .replace("{api}", &wecom.api_addr().to_string())
            .replace("{spilled}", &spilled.display().to_string());
        for agent in &settings.agents {
            let (name, corpid, secret) = (&agent.name, &agent.corpid, &agent.secret);
            text.push_str(&format!("[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = \"{secret}\"\n"));
        }
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text).expect("a file");
        let program = ProxyProcess::start(&path, &spilled);
        Self { wecom, process: program, outcomes: Mutex::default(), _dir: dir }
    }

    /// So many calls, one after the other, of every kind in turn.
    pub async fn run_calls(&self, from: u64, calls: u64) {
        let mut client = Client {
            scenario: self,
            connection: None,
            http2: None,
            pass: String::new(),
            next_is_reset: false,
        };
        for nth in from..from + calls {
            let (name, call) = CALL_SEQUENCE[nth as usize % CALL_SEQUENCE.len()];
            let outcome = with_timeout(client.call(call)).await;
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            *outcomes.entry((name, outcome)).or_default() += 1;
        }
    }

    /// How often each kind of call had which outcome.
    pub fn print_outcomes(&self) {
        for ((name, outcome), count) in &*self.outcomes.lock().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("{count:>8} {name}: {outcome}");
        }
    }
}

/// One client with its kept connections.
struct Client<'a> {
    scenario: &'a LeakScenario,
    connection: Option<RawConnection>,
    http2: Option<http2::SendRequest<Full<Bytes>>>,
    pass: String,
    next_is_reset: bool,
}

impl Client<'_> {
    /// Makes a call; what came of it, in a word.
    async fn call(&mut self, call: CallKind) -> String {
        let small =
            "{\"touser\":\"zhangsan\",\"msgtype\":\"text\",\"agentid\":1000002,\"text\":{\"content\":\"a\"}}";
        let user_get = "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\nHost: x\r\n";
        match call {
            CallKind::Get => self.call_keep_alive(&format!("{user_get}\r\n")).await,
            CallKind::Post => self.call_keep_alive(&post_request("/hr/cgi-bin/message/send", small)).await,
            CallKind::Chunked => {
                let head = "POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
                self.call_keep_alive(&format!("{head}5\r\nhello\r\n3;a=b\r\nyou\r\n0\r\nX-T: 1\r\n\r\n"))
                    .await
            }
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
                self.call_keep_alive("GET /nobody/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n").await
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
            CallKind::Webhook => {
                let path = "/cgi-bin/webhook/send?key=00000000-1111-2222-3333-444444444444";
                self.call_keep_alive(&post_request(
                    path,
                    "{\"msgtype\":\"text\",\"text\":{\"content\":\"a\"}}",
                ))
                .await
            }
            CallKind::UpstreamDrop(when) => self.call_with_upstream_drop(when).await,
            CallKind::RevokedToken => {
                self.scenario.wecom.revoke_tokens("hr").expect("an agent");
                self.call_keep_alive(&post_request("/hr/cgi-bin/message/send", small)).await
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

    /// On the kept connection, or a new one where that was closed.
    async fn call_keep_alive(&mut self, request: &str) -> String {
        let mut line = match self.connection.take() {
            Some(line) => line,
            None => RawConnection::connect(self.scenario.process.address).await,
        };
        if line.send(request).await.is_err() {
            return "closed meanwhile".to_owned();
        }
        let head = line.read_head().await;
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<usize>().ok())
        });
        if let Some(length) = length {
            line.read_exact(length).await;
            self.connection = (!head.to_ascii_lowercase().contains("connection: close")).then_some(line);
        }
        response_outcome(&head)
    }

    /// On a connection of its own, which the proxy closes.
    async fn call_on_new_connection(&self, request: &str) -> String {
        let mut line = RawConnection::connect(self.scenario.process.address).await;
        let _ = line.send(request).await;
        response_outcome(&String::from_utf8_lossy(&line.read_to_end().await.0))
    }

    async fn call_gettoken(&mut self) -> String {
        let secret = "not-a-secret-hr-0000000000000000000000000000";
        let path = format!("/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={secret}");
        let mut line = RawConnection::connect(self.scenario.process.address).await;
        let _ = line.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let (head, body) = line.read_response().await;
        self.pass = body.split('"').find(|word| word.starts_with("wp1-")).unwrap_or_default().to_owned();
        response_outcome(&head)
    }

    /// While the upstream breaks off some request; whose it is does not matter.
    async fn call_with_upstream_drop(&mut self, when: DropPoint) -> String {
        self.scenario.wecom.inject(Fault::drop(when).on_path("/cgi-bin/department/list")).expect("a fault");
        let request = "GET /hr/cgi-bin/department/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        self.call_on_new_connection(request).await
    }

    /// Goes away before there can be an answer, half of the times with a reset.
    async fn abort_call(&mut self, request: &str) -> String {
        let mut line = RawConnection::connect(self.scenario.process.address).await;
        let _ = line.send(request).await;
        self.next_is_reset = !self.next_is_reset;
        if self.next_is_reset {
            line.reset();
        }
        "gone".to_owned()
    }

    async fn call_http2(&mut self) -> String {
        if self.http2.as_ref().is_none_or(http2::SendRequest::is_closed) {
            let stream = TcpStream::connect(self.scenario.process.address).await.expect("a connection");
            let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (sender, connection) = made.expect("a handshake");
            tokio::spawn(connection);
            self.http2 = Some(sender);
        }
        let sender = self.http2.as_mut().expect("one is there");
        let target = "http://x/hr/cgi-bin/simulator/sink";
        let request = Request::post(target).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(Bytes::from_static(&[b'x'; 3000]))).expect("a request");
        let answered = async {
            sender.ready().await.ok()?;
            let answer = sender.send_request(request).await.ok()?;
            let status = answer.status();
            answer.into_body().collect().await.ok()?;
            Some(status.to_string())
        };
        match timeout(Duration::from_secs(20), answered).await {
            Ok(Some(status)) => status,
            _ => "closed meanwhile".to_owned(),
        }
    }
}

fn post_request(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// An answer's status, and whether it is a second one or the proxy's own.
fn response_outcome(answer: &str) -> String {
    let status = answer.split(' ').nth(1).unwrap_or("no answer");
    let field = |name: &str| {
        answer.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned))
    };
    let retried = field("x-wecom-retried:").map(|_| " retried").unwrap_or_default();
    let own = field("x-wecom-proxy-error:").unwrap_or_default();
    format!("{status}{retried}{own}")
}
