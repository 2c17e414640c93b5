//! Sequences of HTTP/2 frames from a client, over a socket to a proxy in front of the simulator. For any input: no panic, the
//! connection ends, its resources are released, and the upstream receives a complete request only if the client ended it.

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
/// Much longer than the time-outs of the proxy under test.
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

/// Input: a sequence of steps, each a byte that selects the step and bytes with its parameters.
pub fn check(data: &[u8]) {
    let mut harness = HARNESS.lock().unwrap_or_else(PoisonError::into_inner);
    harness.scripts += 1;
    let script = Script::from_input(data, harness.scripts);
    harness.send(&script.wire);
    harness.wait_until_idle();
    harness.check_recorded_requests(&script);
    harness.check_still_serving();
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
        let previous_hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name().is_some_and(|name| name.starts_with("worker-")) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            previous_hook(info);
        }));
        let (started, starting) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
                started.send(Self::start_proxy(wecom)).expect("a waiting receiver");
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

    /// Sends the bytes, shuts down the write side, and reads until the proxy closes the connection.
    fn send(&self, wire: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        let deadline = Instant::now() + WAIT_TIMEOUT;
        stream.set_write_timeout(Some(WAIT_TIMEOUT)).expect("a socket");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a socket");
        // The proxy may have closed the connection already.
        let _ = stream.write_all(wire).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => assert!(Instant::now() < deadline, "the connection stays open"),
                Err(error) => {
                    let is_timeout =
                        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    assert!(!is_timeout, "the connection stays open");
                    return;
                }
            }
        }
    }

    /// Waits until no request is in flight.
    fn wait_until_idle(&self) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while self.app.concurrency_limit().in_use() > 0
            || self.wecom.observe(|observed| observed.in_flight()) > 0
        {
            assert!(Instant::now() < deadline, "requests stay in flight after their connection closed");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A request that is complete for the upstream was ended by the client, and is as long as what the client sent.
    fn check_recorded_requests(&self, script: &Script) {
        let prefix = format!("n={}&", script.nonce);
        let requests = self.wecom.requests();
        for record in requests.iter().filter(|record| record.query.starts_with(&prefix)) {
            let id = record.query[prefix.len()..].split('&').next().and_then(|id| id.strip_prefix("s="));
            let stream =
                id.and_then(|id| script.streams.get(&id.parse().ok()?)).expect("a stream of the script");
            assert!(stream.has_key, "a request without a key reached the upstream");
            if record.body_sha256.is_some() {
                // A body of its declared length is complete: an HTTP/1 upstream needs no further end mark, and later
                // frames are ignored.
                let length_reached =
                    stream.declared_length.is_some_and(|declared| stream.sent_bytes >= declared);
                assert!(stream.ended || length_reached, "an unended request became complete: {script:?}");
                assert_eq!(
                    record.body_bytes,
                    stream.declared_length.unwrap_or(stream.sent_bytes),
                    "{script:?}"
                );
            }
        }
    }

    /// An ordinary request must still succeed.
    fn check_still_serving(&self) {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a socket");
        let request = format!(
            "GET /hr/cgi-bin/user/get?userid=a HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut response = Vec::new();
        stream.read_to_end(&mut response).expect("a response");
        assert!(response.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&response));
    }
}

/// The bytes of a client, and the expected state of its streams if the proxy accepts all of them.
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

/// The remaining input; reads zeros after its end.
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
        // Most inputs have a complete preface.
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

    /// Adds the next step; false if no step can follow it.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let (kind, parameter) = (input.next_byte() % 16, input.next_byte());
        match kind {
            0..=2 => self.open_stream(parameter, true),
            3..=5 => self.open_stream(parameter, false),
            6 | 7 => self.push_data(parameter, input.next_byte()),
            8 => self.push_reset(parameter),
            9 => {
                let increment = [0, 1, 1000, 0x7fff_ffff][usize::from(input.next_byte() % 4)];
                let id = self.pick_stream(parameter);
                self.push_frame(WINDOW_UPDATE, 0, id, &u32::to_be_bytes(increment));
            }
            10 => self.push_settings(parameter, input.next_byte()),
            11 => self.push_frame(PING, parameter & 1, 0, &[parameter; 8]),
            12 => return self.push_split_headers(parameter),
            13 => self.push_unexpected_frame(parameter, input.next_byte()),
            14 => {
                self.wire.extend_from_slice(input.0);
                return false;
            }
            _ => {
                let cut = usize::from(parameter) % self.wire.len().min(64);
                self.wire.truncate(self.wire.len() - cut);
                // The cut may remove the end of a stream; the expected state is then an upper bound.
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

    /// Mostly an existing stream; sometimes stream 0, or an id that is not open.
    fn pick_stream(&self, parameter: u8) -> u32 {
        match parameter % 8 {
            7 => 0,
            6 => self.last_stream_id + 1,
            distance => self.last_stream_id.saturating_sub(2 * u32::from(distance)).max(1),
        }
    }

    /// Adds a new request, with or without a body.
    fn open_stream(&mut self, parameter: u8, end_stream: bool) {
        let (id, block) = self.new_request_block(parameter, end_stream);
        self.push_frame(HEADERS, END_HEADERS | (u8::from(end_stream) * END_STREAM), id, &block);
    }

    fn new_request_block(&mut self, parameter: u8, end_stream: bool) -> (u32, Vec<u8>) {
        let id = if self.last_stream_id == 0 { 1 } else { self.last_stream_id + 2 };
        self.last_stream_id = id;
        let has_key = parameter % 8 != 7;
        let declared = (!end_stream && parameter & 0x20 != 0).then_some(u64::from(parameter));
        let mut block = vec![if end_stream { 0x82 } else { 0x83 }, 0x86, 0x04];
        push_string(&mut block, &format!("/hr/cgi-bin/simulator/sink?n={}&s={id}&", self.nonce));
        block.push(0x01);
        push_string(&mut block, "proxy.test");
        if has_key {
            push_header(&mut block, "x-api-key", KEY);
        }
        if let Some(declared) = declared {
            push_header(&mut block, "content-length", &declared.to_string());
        }
        if parameter & 0x40 != 0 {
            push_header(&mut block, "x-long", &"a".repeat(100));
        }
        let stream = ExpectedStream {
            has_key,
            ended: end_stream,
            closed: end_stream,
            declared_length: declared,
            sent_bytes: 0,
        };
        self.streams.insert(id, stream);
        (id, block)
    }

    fn push_data(&mut self, parameter: u8, flags: u8) {
        let (id, end_stream) = (self.pick_stream(parameter), flags & 1 == 1);
        let length = usize::from(flags >> 1) * usize::from(1 + (parameter >> 3));
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.closed) {
            stream.sent_bytes += length as u64;
            (stream.ended, stream.closed) = (end_stream, end_stream);
        }
        self.push_frame(DATA, u8::from(end_stream) * END_STREAM, id, &vec![b'x'; length]);
    }

    fn push_reset(&mut self, parameter: u8) {
        let id = self.pick_stream(parameter);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.closed = true;
        }
        self.push_frame(RST_STREAM, 0, id, &u32::to_be_bytes(u32::from(parameter >> 4)));
    }

    fn push_settings(&mut self, parameter: u8, value: u8) {
        if parameter == 0 {
            return self.push_frame(SETTINGS, 1, 0, &[]);
        }
        let value = [0, 1, 100, 65_535, 0x7fff_ffff, u32::MAX][usize::from(value % 6)];
        let payload = [&[0, parameter % 10][..], &value.to_be_bytes()].concat();
        self.push_frame(SETTINGS, 0, 0, &payload);
    }

    /// A header block in two frames; some with a PING between them, which RFC 9113, section 6.10, forbids.
    fn push_split_headers(&mut self, parameter: u8) -> bool {
        let (id, block) = self.new_request_block(parameter, true);
        let (first, second) = block.split_at(usize::from(parameter) % block.len());
        self.push_frame(HEADERS, END_STREAM, id, first);
        if parameter & 0x10 != 0 {
            self.push_frame(PING, 0, 0, &[0; 8]);
        }
        self.push_frame(CONTINUATION, END_HEADERS, id, second);
        true
    }

    /// Frames that the proxy does not expect, and trailers.
    fn push_unexpected_frame(&mut self, parameter: u8, kind: u8) {
        let id = self.pick_stream(parameter);
        match kind % 6 {
            0 => self.push_frame(PRIORITY, 0, id, &[0, 0, 0, parameter, 16]),
            1 => self.push_frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, parameter]),
            2 => self.push_frame(PUSH_PROMISE, END_HEADERS, id, &[0, 0, 0, 2, 0x82]),
            3 => self.push_frame(0x20 | parameter, parameter, id, &[parameter; 7]),
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

/// A literal header field without indexing (RFC 7541, section 6.2.2).
fn push_header(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    push_string(block, name);
    push_string(block, value);
}

/// A string of fewer than 127 bytes, without Huffman coding.
fn push_string(block: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127, "the length takes one byte");
    block.push(text.len() as u8);
    block.extend_from_slice(text.as_bytes());
}
