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
use wecom_proxy::simulator::{Fault, Settings, Simulator, When};

use crate::{program::Program, stage::soon, wire::Line};

/// A body that finds no room in all the memory which the configuration allows, in bytes.
const LARGE: usize = 96 * 1024;
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
pub struct Scene {
    pub wecom: Simulator,
    pub program: Program,
    outcomes: Mutex<BTreeMap<(&'static str, String), u64>>,
    _dir: TempDir,
}

/// A kind of request.
#[derive(Clone, Copy)]
enum Call {
    Get,
    Post,
    Chunked,
    Spilled,
    Closed,
    Old,
    Refused,
    Malformed,
    NoRoute,
    Gettoken,
    Pass,
    Webhook,
    Broken(When),
    /// Its token has just been revoked. Only the first 300 are renewed: no more gettokens leave in an hour.
    Revoked,
    Leaves,
    HalfBody,
    Http2,
    Download,
}

const CALLS: [(&str, Call); 25] = [
    ("get", Call::Get),
    ("post", Call::Post),
    ("chunked", Call::Chunked),
    ("get", Call::Get),
    ("spilled to a file", Call::Spilled),
    ("http2", Call::Http2),
    ("closed", Call::Closed),
    ("http/1.0", Call::Old),
    ("get", Call::Get),
    ("refused", Call::Refused),
    ("malformed", Call::Malformed),
    ("no route", Call::NoRoute),
    ("post", Call::Post),
    ("gettoken", Call::Gettoken),
    ("pass", Call::Pass),
    ("webhook", Call::Webhook),
    ("get", Call::Get),
    ("upstream breaks before its answer", Call::Broken(When::Before)),
    ("upstream breaks in its answer", Call::Broken(When::Body)),
    ("after a refusal", Call::Revoked),
    ("leaves", Call::Leaves),
    ("half a body", Call::HalfBody),
    ("http2", Call::Http2),
    ("download", Call::Download),
    ("chunked", Call::Chunked),
];

impl Scene {
    /// A simulator and a program that keeps little in memory.
    pub async fn set() -> Self {
        let dir = TempDir::new().expect("a directory");
        let settings = Settings::default();
        let wecom = Simulator::local(settings.clone()).await.expect("a simulator");
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
        let program = Program::start(&path, &spilled);
        Self { wecom, program, outcomes: Mutex::default(), _dir: dir }
    }

    /// So many calls, one after the other, of every kind in turn.
    pub async fn calls(&self, from: u64, calls: u64) {
        let mut client = Client { scene: self, line: None, http2: None, pass: String::new(), resets: false };
        for nth in from..from + calls {
            let (name, call) = CALLS[nth as usize % CALLS.len()];
            let outcome = soon(client.call(call)).await;
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            *outcomes.entry((name, outcome)).or_default() += 1;
        }
    }

    /// How often each kind of call had which outcome.
    pub fn say_what_happened(&self) {
        for ((name, outcome), count) in &*self.outcomes.lock().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("{count:>8} {name}: {outcome}");
        }
    }
}

/// One client with its kept connections.
struct Client<'a> {
    scene: &'a Scene,
    line: Option<Line>,
    http2: Option<http2::SendRequest<Full<Bytes>>>,
    pass: String,
    resets: bool,
}

impl Client<'_> {
    /// Makes a call; what came of it, in a word.
    async fn call(&mut self, call: Call) -> String {
        let small =
            "{\"touser\":\"zhangsan\",\"msgtype\":\"text\",\"agentid\":1000002,\"text\":{\"content\":\"a\"}}";
        let user_get = "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\nHost: x\r\n";
        match call {
            Call::Get => self.kept(&format!("{user_get}\r\n")).await,
            Call::Post => self.kept(&posted("/hr/cgi-bin/message/send", small)).await,
            Call::Chunked => {
                let head = "POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
                self.kept(&format!("{head}5\r\nhello\r\n3;a=b\r\nyou\r\n0\r\nX-T: 1\r\n\r\n")).await
            }
            Call::Spilled => self.kept(&posted("/hr/cgi-bin/simulator/sink", &"x".repeat(LARGE))).await,
            Call::Closed => self.alone(&format!("{user_get}Connection: close\r\n\r\n")).await,
            Call::Old => self.alone("GET /ops/cgi-bin/user/get?userid=lisi HTTP/1.0\r\n\r\n").await,
            Call::Refused => self.kept("GET /nobody/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n").await,
            Call::Malformed => self.alone("GET /hr/cgi-bin/../x HTTP/1.1\r\nHost: x\nA: b\r\n\r\n").await,
            Call::NoRoute => self.kept("GET /somewhere HTTP/1.1\r\nHost: x\r\n\r\n").await,
            Call::Gettoken => self.gettoken().await,
            Call::Pass => {
                let target = format!("/cgi-bin/user/get?userid=zhangsan&access_token={}", self.pass);
                self.kept(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await
            }
            Call::Webhook => {
                let path = "/cgi-bin/webhook/send?key=00000000-1111-2222-3333-444444444444";
                self.kept(&posted(path, "{\"msgtype\":\"text\",\"text\":{\"content\":\"a\"}}")).await
            }
            Call::Broken(when) => self.broken(when).await,
            Call::Revoked => {
                self.scene.wecom.revoke("hr").expect("an agent");
                self.kept(&posted("/hr/cgi-bin/message/send", small)).await
            }
            Call::Leaves => self.leave(&format!("{user_get}\r\n")).await,
            Call::HalfBody => {
                self.leave(
                    "POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf",
                )
                .await
            }
            Call::Http2 => self.http2().await,
            Call::Download => {
                self.kept("GET /hr/cgi-bin/media/get?media_id=generated-30000 HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await
            }
        }
    }

    /// On the kept connection, or a new one where that was closed.
    async fn kept(&mut self, request: &str) -> String {
        let mut line = match self.line.take() {
            Some(line) => line,
            None => Line::to(self.scene.program.address).await,
        };
        if line.say(request).await.is_err() {
            return "closed meanwhile".to_owned();
        }
        let head = line.head().await;
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<usize>().ok())
        });
        if let Some(length) = length {
            line.bytes(length).await;
            self.line = (!head.to_ascii_lowercase().contains("connection: close")).then_some(line);
        }
        outcome(&head)
    }

    /// On a connection of its own, which the proxy closes.
    async fn alone(&self, request: &str) -> String {
        let mut line = Line::to(self.scene.program.address).await;
        let _ = line.say(request).await;
        outcome(&String::from_utf8_lossy(&line.rest().await.0))
    }

    async fn gettoken(&mut self) -> String {
        let secret = "not-a-secret-hr-0000000000000000000000000000";
        let path = format!("/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={secret}");
        let mut line = Line::to(self.scene.program.address).await;
        let _ = line.say(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let (head, body) = line.answer().await;
        self.pass = body.split('"').find(|word| word.starts_with("wp1-")).unwrap_or_default().to_owned();
        outcome(&head)
    }

    /// While the upstream breaks off some request; whose it is does not matter.
    async fn broken(&mut self, when: When) -> String {
        self.scene.wecom.inject(Fault::drop(when).on("/cgi-bin/department/list")).expect("a fault");
        let request = "GET /hr/cgi-bin/department/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        self.alone(request).await
    }

    /// Goes away before there can be an answer, half of the times with a reset.
    async fn leave(&mut self, request: &str) -> String {
        let mut line = Line::to(self.scene.program.address).await;
        let _ = line.say(request).await;
        self.resets = !self.resets;
        if self.resets {
            line.reset();
        }
        "gone".to_owned()
    }

    async fn http2(&mut self) -> String {
        if self.http2.as_ref().is_none_or(http2::SendRequest::is_closed) {
            let stream = TcpStream::connect(self.scene.program.address).await.expect("a connection");
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

fn posted(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// An answer's status, and whether it is a second one or the proxy's own.
fn outcome(answer: &str) -> String {
    let status = answer.split(' ').nth(1).unwrap_or("no answer");
    let field = |name: &str| {
        answer.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned))
    };
    let retried = field("x-wecom-retried:").map(|_| " retried").unwrap_or_default();
    let own = field("x-wecom-proxy-error:").unwrap_or_default();
    format!("{status}{retried}{own}")
}
