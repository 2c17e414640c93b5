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
    app::{App, Prepared},
    config::{self, Address},
    simulator::{Settings, Simulator},
};

const KEY: &str = "key-of-fuzz-0000000000";
/// Far longer than the time-outs of the proxy under test.
const MAX_WAIT: Duration = Duration::from_secs(20);
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
static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::start()));

/// The input is a sequence of steps: a byte that says which, and bytes that say how.
pub fn check(data: &[u8]) {
    let mut rig = RIG.lock().unwrap_or_else(PoisonError::into_inner);
    rig.scripts += 1;
    let script = Script::of(data, rig.scripts);
    rig.send(&script.wire);
    rig.wait_until_idle();
    rig.compare(&script);
    rig.ask();
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a worker panicked");
}

/// The proxy under test and its upstream.
struct Rig {
    app: App,
    wecom: Simulator,
    address: SocketAddr,
    scripts: u64,
    _dir: tempfile::TempDir,
}

impl Rig {
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
                let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
                started.send(Self::before(wecom)).expect("the check waits");
                std::future::pending::<()>().await;
            });
        });
        starting.recv().expect("a proxy")
    }

    fn before(wecom: Simulator) -> Self {
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
        let prepared = Prepared::new(config::load(&path).expect("a configuration")).expect("usable files");
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
        let until = Instant::now() + MAX_WAIT;
        stream.set_write_timeout(Some(MAX_WAIT)).expect("a socket");
        stream.set_read_timeout(Some(MAX_WAIT)).expect("a socket");
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
        let until = Instant::now() + MAX_WAIT;
        while self.app.places().taken() > 0 || self.wecom.look(|seen| seen.in_flight()) > 0 {
            assert!(Instant::now() < until, "requests stay in flight without their connection");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the upstream took for a whole request was ended by the client, and is as long as what the client sent.
    fn compare(&self, script: &Script) {
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
                let is_all_there = stream.declared.is_some_and(|declared| stream.bytes >= declared);
                assert!(stream.ended || is_all_there, "a request without its end became whole: {script:?}");
                assert_eq!(record.body_bytes, stream.declared.unwrap_or(stream.bytes), "{script:?}");
            }
        }
    }

    /// An ordinary request, to see that the proxy still serves.
    fn ask(&self) {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(MAX_WAIT)).expect("a socket");
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
    streams: HashMap<u32, Stream>,
    last: u32,
}

#[derive(Debug, Default)]
struct Stream {
    has_key: bool,
    /// END_STREAM was sent before any reset.
    ended: bool,
    closed: bool,
    declared: Option<u64>,
    bytes: u64,
}

/// The input that is left; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
}

impl Script {
    fn of(data: &[u8], nonce: u64) -> Self {
        let mut script = Self {
            nonce,
            wire: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            streams: HashMap::new(),
            last: 0,
        };
        let mut input = Input(data);
        // Nearly always the preface is whole.
        if input.next() != b'!' {
            script.frame(SETTINGS, 0, 0, &[]);
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
        let (what, how) = (input.next() % 16, input.next());
        match what {
            0..=2 => self.open(how, true),
            3..=5 => self.open(how, false),
            6 | 7 => self.data(how, input.next()),
            8 => self.reset(how),
            9 => {
                let increment = [0, 1, 1000, 0x7fff_ffff][usize::from(input.next() % 4)];
                let id = self.pick(how);
                self.frame(WINDOW_UPDATE, 0, id, &u32::to_be_bytes(increment));
            }
            10 => self.settings(how, input.next()),
            11 => self.frame(PING, how & 1, 0, &[how; 8]),
            12 => return self.continued(how),
            13 => self.odd(how, input.next()),
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

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        self.wire.extend_from_slice(&[kind, flags]);
        self.wire.extend_from_slice(&stream.to_be_bytes());
        self.wire.extend_from_slice(payload);
    }

    /// A stream that there is, mostly; else the connection, or one that there cannot be.
    fn pick(&self, how: u8) -> u32 {
        match how % 8 {
            7 => 0,
            6 => self.last + 1,
            back => self.last.saturating_sub(2 * u32::from(back)).max(1),
        }
    }

    /// A new request, with or without a body.
    fn open(&mut self, how: u8, ends: bool) {
        let (id, block) = self.head(how, ends);
        self.frame(HEADERS, END_HEADERS | (u8::from(ends) * END_STREAM), id, &block);
    }

    fn head(&mut self, how: u8, ends: bool) -> (u32, Vec<u8>) {
        let id = if self.last == 0 { 1 } else { self.last + 2 };
        self.last = id;
        let has_key = how % 8 != 7;
        let declared = (!ends && how & 0x20 != 0).then_some(u64::from(how));
        let mut block = vec![if ends { 0x82 } else { 0x83 }, 0x86, 0x04];
        text(&mut block, &format!("/hr/cgi-bin/simulator/sink?n={}&s={id}&", self.nonce));
        block.push(0x01);
        text(&mut block, "proxy.test");
        if has_key {
            header(&mut block, "x-api-key", KEY);
        }
        if let Some(declared) = declared {
            header(&mut block, "content-length", &declared.to_string());
        }
        if how & 0x40 != 0 {
            header(&mut block, "x-long", &"a".repeat(100));
        }
        let stream = Stream { has_key, ended: ends, closed: ends, declared, bytes: 0 };
        self.streams.insert(id, stream);
        (id, block)
    }

    fn data(&mut self, how: u8, more: u8) {
        let (id, ends) = (self.pick(how), more & 1 == 1);
        let length = usize::from(more >> 1) * usize::from(1 + (how >> 3));
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.closed) {
            stream.bytes += length as u64;
            (stream.ended, stream.closed) = (ends, ends);
        }
        self.frame(DATA, u8::from(ends) * END_STREAM, id, &vec![b'x'; length]);
    }

    fn reset(&mut self, how: u8) {
        let id = self.pick(how);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.closed = true;
        }
        self.frame(RST_STREAM, 0, id, &u32::to_be_bytes(u32::from(how >> 4)));
    }

    fn settings(&mut self, how: u8, value: u8) {
        if how == 0 {
            return self.frame(SETTINGS, 1, 0, &[]);
        }
        let value = [0, 1, 100, 65_535, 0x7fff_ffff, u32::MAX][usize::from(value % 6)];
        let payload = [&[0, how % 10][..], &value.to_be_bytes()].concat();
        self.frame(SETTINGS, 0, 0, &payload);
    }

    /// A head in two frames, with something between them or without its second one now and then.
    fn continued(&mut self, how: u8) -> bool {
        let (id, block) = self.head(how, true);
        let (first, second) = block.split_at(usize::from(how) % block.len());
        self.frame(HEADERS, END_STREAM, id, first);
        if how & 0x10 != 0 {
            self.frame(PING, 0, 0, &[0; 8]);
        }
        self.frame(CONTINUATION, END_HEADERS, id, second);
        true
    }

    /// Frames that have no use here, trailers among them.
    fn odd(&mut self, how: u8, kind: u8) {
        let id = self.pick(how);
        match kind % 6 {
            0 => self.frame(PRIORITY, 0, id, &[0, 0, 0, how, 16]),
            1 => self.frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, how]),
            2 => self.frame(PUSH_PROMISE, END_HEADERS, id, &[0, 0, 0, 2, 0x82]),
            3 => self.frame(0x20 | how, how, id, &[how; 7]),
            4 => self.frame(CONTINUATION, END_HEADERS, id, &[0x82]),
            _ => {
                let mut block = Vec::new();
                header(&mut block, "x-trailer", "a");
                if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.closed) {
                    (stream.ended, stream.closed) = (true, true);
                }
                self.frame(HEADERS, END_HEADERS | END_STREAM, id, &block);
            }
        }
    }
}

/// A literal header field that no table keeps (RFC 7541 §6.2.2).
fn header(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    text(block, name);
    text(block, value);
}

/// A string of fewer than 127 bytes.
fn text(block: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127, "its length has one byte");
    block.push(text.len() as u8);
    block.extend_from_slice(text.as_bytes());
}
