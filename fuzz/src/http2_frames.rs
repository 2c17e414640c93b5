//! Sequences of HTTP/2 frames from a client, over a socket to a proxy before the simulator. Whatever comes, nothing panics,
//! the connection ends, what it held is released, and the upstream gets a request as whole only where the client ended it.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    panic,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use wecom_proxy::{
    app::{App, PreparedConfig},
    config::{self, Address},
    simulator::{Settings, Simulator},
};

const KEY: &str = "key-of-fuzz-0000000000";
/// Far longer than the time-outs of the proxy under test.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_STEPS: usize = 96;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

static PANICS: AtomicUsize = AtomicUsize::new(0);
static HARNESS: LazyLock<Mutex<Harness>> = LazyLock::new(|| Mutex::new(Harness::start()));

/// The input is a sequence of steps: a byte that says which, and bytes that say how.
pub fn check(data: &[u8]) {
    let mut rig = HARNESS.lock().unwrap_or_else(PoisonError::into_inner);
    rig.scripts += 1;
    let script = Script::from_input(data, rig.scripts);
    rig.send(&script.wire);
    rig.wait_until_idle();
    rig.check_recorded_requests(&script);
    rig.check_still_serving();
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a worker panicked");
}

/// The proxy under test and its upstream.
struct Harness {
    app: App,
    wecom: Simulator,
    address: SocketAddr,
    scripts: u64,
    _dir: tempfile::TempDir,
}

impl Harness {
    fn start() -> Self {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name().is_some_and(|name| name.starts_with("worker-")) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
        let (started, starting) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
                started.send(Self::start_proxy(wecom)).expect("the check waits");
                std::future::pending::<()>().await;
            });
        });
        starting.recv().expect("a proxy")
    }

    fn start_proxy(wecom: Simulator) -> Self {
        let agent = &Settings::default().agents[0];
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\nbody_timeout = \"1s\"\n\
             [upstream]\nurl = \"http://{}\"\n[log]\naccess = false\n\
             [agents.hr]\ncorpid = \"{}\"\nsecret = \"{}\"\n[clients.fuzz]\nkey = \"{KEY}\"\nagents = [\"hr\"]\n",
            wecom.api_addr(),
            agent.corpid,
            agent.secret
        );
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, toml).expect("written");
        let prepared =
            PreparedConfig::new(config::load(&path).expect("a configuration")).expect("usable files");
        let app = App::start(prepared).expect("a proxy");
        let address = app.addresses().iter().find_map(|address| match address {
            Address::Tcp(address) => Some(*address),
            _ => None,
        });
        Self { app, wecom, address: address.expect("a TCP address"), scripts: 0, _dir: dir }
    }

    /// Sends the bytes and the end, and reads until the proxy ends the connection too.
    fn send(&self, wire: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        let until = Instant::now() + WAIT_TIMEOUT;
        stream.set_write_timeout(Some(WAIT_TIMEOUT)).expect("a socket");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a socket");
        // The proxy may have hung up by then.
        let _ = stream.write_all(wire).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut room = [0; 16 * 1024];
        loop {
            match stream.read(&mut room) {
                Ok(0) => return,
                Ok(_) => assert!(Instant::now() < until, "the connection does not end"),
                Err(error) => {
                    let is_late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    assert!(!is_late, "the connection does not end");
                    return;
                }
            }
        }
    }

    /// Waits until nothing is in flight any more.
    fn wait_until_idle(&self) {
        let until = Instant::now() + WAIT_TIMEOUT;
        while self.app.concurrency_limit().in_use() > 0 || self.wecom.observe(|seen| seen.in_flight()) > 0 {
            assert!(Instant::now() < until, "requests stay in flight without their connection");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the upstream took for a whole request was ended by the client, and is as long as what the client sent.
    fn check_recorded_requests(&self, script: &Script) {
        let mark = format!("n={}&", script.nonce);
        let requests = self.wecom.requests();
        for record in requests.iter().filter(|record| record.query.starts_with(&mark)) {
            let id = record.query[mark.len()..].split('&').next().and_then(|id| id.strip_prefix("s="));
            let stream =
                id.and_then(|id| script.streams.get(&id.parse().ok()?)).expect("a stream of the script");
            assert!(stream.has_key, "a request without a key reached the upstream");
            if record.body_sha256.is_some() {
                // A body that is as long as its head says is all there; towards an upstream of HTTP/1 its end needs no mark,
                // and what comes behind it comes too late.
                let is_all_there =
                    stream.declared_length.is_some_and(|declared| stream.sent_bytes >= declared);
                assert!(stream.ended || is_all_there, "a request without its end became whole: {script:?}");
                assert_eq!(
                    record.body_bytes,
                    stream.declared_length.unwrap_or(stream.sent_bytes),
                    "{script:?}"
                );
            }
        }
    }

    /// An ordinary request, to see that the proxy still serves.
    fn check_still_serving(&self) {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a socket");
        let request = format!(
            "GET /hr/cgi-bin/user/get?userid=a HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("it is taken");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("a response");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
}

/// What a client sends, and what comes of it where all of it is taken.
#[derive(Debug)]
struct Script {
    nonce: u64,
    wire: Vec<u8>,
    streams: HashMap<u32, ExpectedStream>,
    last_stream_id: u32,
}

#[derive(Debug, Default)]
struct ExpectedStream {
    has_key: bool,
    /// END_STREAM was sent before any reset.
    ended: bool,
    closed: bool,
    declared_length: Option<u64>,
    sent_bytes: u64,
}

/// The input that is left; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next_byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
}

impl Script {
    fn from_input(data: &[u8], nonce: u64) -> Self {
        let mut script = Self {
            nonce,
            wire: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            streams: HashMap::new(),
            last_stream_id: 0,
        };
        let mut input = Input(data);
        // Nearly always the preface is whole.
        if input.next_byte() != b'!' {
            script.push_frame(SETTINGS, 0, 0, &[]);
        }
        for _ in 0..MAX_STEPS {
            if input.0.is_empty() || !script.step(&mut input) {
                break;
            }
        }
        script
    }

    /// Adds what the next step says; false where nothing can follow it.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let (what, how) = (input.next_byte() % 16, input.next_byte());
        match what {
            0..=2 => self.open_stream(how, true),
            3..=5 => self.open_stream(how, false),
            6 | 7 => self.push_data(how, input.next_byte()),
            8 => self.push_reset(how),
            9 => {
                let increment = [0, 1, 1000, 0x7fff_ffff][usize::from(input.next_byte() % 4)];
                let id = self.pick_stream(how);
                self.push_frame(WINDOW_UPDATE, 0, id, &u32::to_be_bytes(increment));
            }
            10 => self.push_settings(how, input.next_byte()),
            11 => self.push_frame(PING, how & 1, 0, &[how; 8]),
            12 => return self.push_split_headers(how),
            13 => self.push_unexpected_frame(how, input.next_byte()),
            14 => {
                self.wire.extend_from_slice(input.0);
                return false;
            }
            _ => {
                let cut = usize::from(how) % self.wire.len().min(64);
                self.wire.truncate(self.wire.len() - cut);
                // What was cut off may have ended a stream; it cannot have become more than the model says.
                return false;
            }
        }
        true
    }

    fn push_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        self.wire.extend_from_slice(&[kind, flags]);
        self.wire.extend_from_slice(&stream.to_be_bytes());
        self.wire.extend_from_slice(payload);
    }

    /// A stream that there is, mostly; else the connection, or one that there cannot be.
    fn pick_stream(&self, how: u8) -> u32 {
        match how % 8 {
            7 => 0,
            6 => self.last_stream_id + 1,
            back => self.last_stream_id.saturating_sub(2 * u32::from(back)).max(1),
        }
    }

    /// A new request, with or without a body.
    fn open_stream(&mut self, how: u8, ends: bool) {
        let (id, block) = self.new_request_block(how, ends);
        self.push_frame(HEADERS, END_HEADERS | (u8::from(ends) * END_STREAM), id, &block);
    }

    fn new_request_block(&mut self, how: u8, ends: bool) -> (u32, Vec<u8>) {
        let id = if self.last_stream_id == 0 { 1 } else { self.last_stream_id + 2 };
        self.last_stream_id = id;
        let has_key = how % 8 != 7;
        let declared = (!ends && how & 0x20 != 0).then_some(u64::from(how));
        let mut block = vec![if ends { 0x82 } else { 0x83 }, 0x86, 0x04];
        push_string(&mut block, &format!("/hr/cgi-bin/simulator/sink?n={}&s={id}&", self.nonce));
        block.push(0x01);
        push_string(&mut block, "proxy.test");
        if has_key {
            push_header(&mut block, "x-api-key", KEY);
        }
        if let Some(declared) = declared {
            push_header(&mut block, "content-length", &declared.to_string());
        }
        if how & 0x40 != 0 {
            push_header(&mut block, "x-long", &"a".repeat(100));
        }
        let stream =
            ExpectedStream { has_key, ended: ends, closed: ends, declared_length: declared, sent_bytes: 0 };
        self.streams.insert(id, stream);
        (id, block)
    }

    fn push_data(&mut self, how: u8, more: u8) {
        let (id, ends) = (self.pick_stream(how), more & 1 == 1);
        let length = usize::from(more >> 1) * usize::from(1 + (how >> 3));
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.closed) {
            stream.sent_bytes += length as u64;
            (stream.ended, stream.closed) = (ends, ends);
        }
        self.push_frame(DATA, u8::from(ends) * END_STREAM, id, &vec![b'x'; length]);
    }

    fn push_reset(&mut self, how: u8) {
        let id = self.pick_stream(how);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.closed = true;
        }
        self.push_frame(RST_STREAM, 0, id, &u32::to_be_bytes(u32::from(how >> 4)));
    }

    fn push_settings(&mut self, how: u8, value: u8) {
        if how == 0 {
            return self.push_frame(SETTINGS, 1, 0, &[]);
        }
        let value = [0, 1, 100, 65_535, 0x7fff_ffff, u32::MAX][usize::from(value % 6)];
        let payload = [&[0, how % 10][..], &value.to_be_bytes()].concat();
        self.push_frame(SETTINGS, 0, 0, &payload);
    }

    /// A head in two frames, with something between them or without its second one now and then.
    fn push_split_headers(&mut self, how: u8) -> bool {
        let (id, block) = self.new_request_block(how, true);
        let (first, second) = block.split_at(usize::from(how) % block.len());
        self.push_frame(HEADERS, END_STREAM, id, first);
        if how & 0x10 != 0 {
            self.push_frame(PING, 0, 0, &[0; 8]);
        }
        self.push_frame(CONTINUATION, END_HEADERS, id, second);
        true
    }

    /// Frames that have no use here, trailers among them.
    fn push_unexpected_frame(&mut self, how: u8, kind: u8) {
        let id = self.pick_stream(how);
        match kind % 6 {
            0 => self.push_frame(PRIORITY, 0, id, &[0, 0, 0, how, 16]),
            1 => self.push_frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, how]),
            2 => self.push_frame(PUSH_PROMISE, END_HEADERS, id, &[0, 0, 0, 2, 0x82]),
            3 => self.push_frame(0x20 | how, how, id, &[how; 7]),
            4 => self.push_frame(CONTINUATION, END_HEADERS, id, &[0x82]),
            _ => {
                let mut block = Vec::new();
                push_header(&mut block, "x-trailer", "a");
                if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.closed) {
                    (stream.ended, stream.closed) = (true, true);
                }
                self.push_frame(HEADERS, END_HEADERS | END_STREAM, id, &block);
            }
        }
    }
}

/// A literal header field that no table keeps (RFC 7541 §6.2.2).
fn push_header(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    push_string(block, name);
    push_string(block, value);
}

/// A string of fewer than 127 bytes.
fn push_string(block: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127, "its length has one byte");
    block.push(text.len() as u8);
    block.extend_from_slice(text.as_bytes());
}
