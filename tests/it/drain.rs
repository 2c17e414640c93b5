//! The end of the real program: in order, and soon.

use std::{io, net::SocketAddr, os::unix::net::UnixDatagram, time::Duration};

use http::Request;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    certificates::Authority,
    process::{Process, field, wecom_proxy},
    stage::{Caller, ECHO, OPEN, USER_GET, write_config},
    wire::Line,
};

/// Without waiting for anything: every grace here but the shortest is far longer.
const SOON: Duration = Duration::from_secs(20);

/// The real program before a simulator; `grace` is its `shutdown_grace`.
struct Scene {
    wecom: Simulator,
    dir: TempDir,
    proxy: Process,
    address: SocketAddr,
}

impl Scene {
    async fn new(grace: &str) -> Self {
        let wecom = crate::confidant::simulator(Settings::default()).await;
        let dir = TempDir::new().expect("a directory");
        let toml = OPEN.replace("[upstream]", &format!("shutdown_grace = \"{grace}\"\n[upstream]"));
        let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
        let address = proxy.address().await;
        Self { wecom, dir, proxy, address }
    }

    /// A request that WeCom holds.
    async fn held(&self) -> tokio::task::JoinHandle<hyper::Result<http::Response<hyper::body::Incoming>>> {
        let mut caller = Caller::http1(self.address).await;
        caller.get(USER_GET).await.is_ok();
        self.wecom.inject(Fault::hold().on("/cgi-bin/user/get")).expect("a fault");
        let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
        let call = tokio::spawn(async move { caller.send(request).await });
        self.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        call
    }

    async fn term(&self) {
        self.proxy.signal("TERM");
        self.proxy.err.line("stopping").await;
    }
}

/// Waits until nobody listens any more.
async fn refused(address: SocketAddr) {
    let attempts = async {
        loop {
            match TcpStream::connect(address).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    timeout(SOON, attempts).await.expect("new connections are refused soon");
}

#[tokio::test]
async fn a_request_in_flight_finishes_and_new_connections_are_refused() {
    let scene = Scene::new("10m").await;
    let call = scene.held().await;
    scene.term().await;
    refused(scene.address).await;
    assert!(!call.is_finished());
    scene.wecom.release();
    let response = call.await.expect("no panic").expect("an answer");
    assert_eq!(response.status(), 200);
    let ended = scene.proxy.ended().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
}

#[tokio::test]
async fn idle_connections_close_at_once() {
    let scene = Scene::new("10m").await;
    let mut idle = Vec::new();
    for first in ["", "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = TcpStream::connect(scene.address).await.expect("a connection");
        stream.write_all(first.as_bytes()).await.expect("a write");
        if !first.is_empty() {
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).await.expect("an answer") > 0);
        }
        idle.push(stream);
    }
    let mut http2 = Caller::http2(scene.address).await;
    http2.get(USER_GET).await.is_ok();
    let began = Instant::now();
    scene.term().await;
    for mut stream in idle {
        let mut rest = Vec::new();
        timeout(SOON, stream.read_to_end(&mut rest)).await.expect("it closes at once").ok();
    }
    let ended = scene.proxy.ended().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn clients_that_do_not_hear_and_half_a_head_hold_up_no_end() {
    let scene = Scene::new("30s").await;
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut mute = Vec::new();
    // None of them answers when it is told to leave; one has begun a request.
    for more in [&b""[..], b"\0\0\x09\x01\x01\0\0\0\x01\x82\x86"] {
        let mut line = Line::to(scene.address).await;
        line.say([&hello[..], more].concat()).await.expect("it is taken");
        line.bytes(9).await;
        mute.push(line);
    }
    for half in ["GET /hr", "PRI * HTTP"] {
        let mut line = Line::to(scene.address).await;
        line.say(half).await.expect("it is taken");
        mute.push(line);
    }
    let mut kept = Line::to(scene.address).await;
    kept.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: a\r\n\r\n")).await.expect("it is taken");
    kept.answer().await;
    kept.say("GET /hr").await.expect("it is taken");
    let began = Instant::now();
    scene.term().await;
    let ended = scene.proxy.ended().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stream_of_http2_in_flight_finishes() {
    let scene = Scene::new("10m").await;
    let mut caller = Caller::http2(scene.address).await;
    caller.get(USER_GET).await.is_ok();
    scene.wecom.inject(Fault::hold().on("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        scene.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        scene.term().await;
        refused(scene.address).await;
        scene.wecom.release();
    };
    tokio::join!(caller.get(USER_GET), during).0.is_ok();
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn when_the_grace_has_passed_it_ends_anyway() {
    let scene = Scene::new("500ms").await;
    let call = scene.held().await;
    let began = Instant::now();
    scene.term().await;
    let ended = scene.proxy.ended().await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400) && took < SOON, "{took:?}");
    assert!(ended.err.contains("drained=false"), "{}", ended.err);
    assert!(call.await.expect("no panic").is_err(), "what did not finish is broken off");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let scene = Scene::new("10m").await;
        let call = scene.held().await;
        scene.term().await;
        let began = Instant::now();
        scene.proxy.signal(second);
        let ended = scene.proxy.ended().await;
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert_ne!(ended.status, 0, "it did not end in order");
        assert!(call.await.expect("no panic").is_err());
    }
}

#[tokio::test]
async fn sighup_while_stopping_does_no_harm() {
    let scene = Scene::new("10m").await;
    let call = scene.held().await;
    scene.term().await;
    scene.proxy.signal("HUP");
    refused(scene.address).await;
    scene.wecom.release();
    assert_eq!(call.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn a_unix_socket_goes_with_its_program() {
    let wecom = crate::confidant::simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN.replacen("\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]", 1);
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let socket = dir.path().join("proxy.sock");
    assert!(socket.exists());
    assert_eq!(proxy.stop().await.status, 0);
    assert!(!socket.exists());
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let scene = Scene::new("10m").await;
    let manager = scene.dir.path().join("notify.sock");
    let socket = UnixDatagram::bind(&manager).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let config = scene.dir.path().join("proxy.toml");
    let mut command = wecom_proxy(&["--config", config.to_str().expect("UTF-8")]);
    command.env("NOTIFY_SOCKET", &manager);
    let proxy = Process::start(command);
    proxy.err.line("ready listen=").await;
    let heard = || {
        let mut buffer = [0; 1024];
        let read = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    };
    let first = heard();
    assert!(first.lines().any(|line| line == "READY=1"), "{first}");
    proxy.signal("TERM");
    let second = heard();
    assert!(second.lines().any(|line| line == "STOPPING=1"), "{second}");
    assert_eq!(proxy.ended().await.status, 0);
}

/// A call on a connection that a story speaks by hand.
fn call(path: &str) -> String {
    format!("GET /hr{path} HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
}

/// A connection on which one request was answered.
async fn kept(address: SocketAddr) -> Line {
    let mut line = Line::to(address).await;
    line.say(call(USER_GET)).await.expect("it is taken");
    assert!(line.answer().await.0.starts_with("HTTP/1.1 200"));
    line
}

fn says_close(head: &str) -> bool {
    head.to_ascii_lowercase().lines().any(|line| line == "connection: close")
}

#[tokio::test]
async fn what_comes_late_on_a_kept_connection_is_told_so_and_goes_nowhere() {
    let scene = Scene::new("10m").await;
    let mut line = kept(scene.address).await;
    let late = call(USER_GET);
    let (beginning, rest) = late.split_at(20);
    line.say(beginning).await.expect("it is taken");
    scene.term().await;
    refused(scene.address).await;
    line.say(rest).await.expect("it is taken");
    let (head, body) = line.answer().await;
    assert!(head.starts_with("HTTP/1.1 503") && says_close(&head), "{head}");
    assert!(
        head.contains("x-wecom-proxy-error: shutting-down") && body.contains("\"errcode\":-1"),
        "{head}{body}"
    );
    assert_eq!(line.rest().await.0, b"");
    assert_eq!(scene.wecom.look(|seen| seen.received("/cgi-bin/user/get")), 1);
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn the_last_answer_says_close_and_what_was_sent_ahead_goes_nowhere() {
    let scene = Scene::new("10m").await;
    let mut line = kept(scene.address).await;
    scene.wecom.inject(Fault::hold().on("/cgi-bin/user/get")).expect("a fault");
    line.say(call(USER_GET) + &call(USER_GET)).await.expect("it is taken");
    scene.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
    scene.term().await;
    refused(scene.address).await;
    scene.wecom.release();
    let (head, _) = line.answer().await;
    assert!(head.starts_with("HTTP/1.1 200") && says_close(&head), "{head}");
    assert_eq!(line.rest().await.0, b"");
    assert_eq!(scene.wecom.look(|seen| seen.received("/cgi-bin/user/get")), 2);
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn who_has_just_connected_is_still_served() {
    let scene = Scene::new("10m").await;
    kept(scene.address).await;
    let mut line = Line::to(scene.address).await;
    scene.term().await;
    refused(scene.address).await;
    line.say(call(USER_GET)).await.expect("it is taken");
    let (head, _) = line.answer().await;
    assert!(head.starts_with("HTTP/1.1 200") && says_close(&head), "{head}");
    assert_eq!(line.rest().await.0, b"");
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn who_has_just_greeted_is_still_served_over_tls_and_both_protocols() {
    let authority = Authority::new();
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN.replace("[upstream]", &format!("{}\n[upstream]", authority.server_line("localhost")));
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let scene = Scene { wecom, dir, address: proxy.address().await, proxy };
    let greet = async |alpn| authority.connect(scene.address, &[alpn], None).await.expect("a handshake");
    let (http1, http2) = (greet("http/1.1").await, greet("h2").await);
    scene.term().await;
    refused(scene.address).await;
    let (mut http1, mut http2) = (Caller::http1_over(http1).await, Caller::http2_over(http2).await);
    let (one, two) = tokio::join!(http1.get(USER_GET), http2.get(USER_GET));
    one.is_ok();
    two.is_ok();
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn who_waits_in_the_kernel_when_the_stop_comes_is_served() {
    let scene = Scene::new("10m").await;
    kept(scene.address).await;
    scene.proxy.signal("STOP");
    let mut lines = Vec::new();
    for _ in 0..50 {
        let mut line = Line::to(scene.address).await;
        line.say(call(USER_GET)).await.expect("it is taken");
        lines.push(line);
    }
    scene.proxy.signal("TERM");
    scene.proxy.signal("CONT");
    for mut line in lines {
        let (head, _) = line.answer().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn what_waits_for_a_place_is_told_so_and_goes_nowhere() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let scene = Scene { wecom, dir, address: proxy.address().await, proxy };
    let held = scene.held().await;
    let mut line = Line::to(scene.address).await;
    line.say(call(ECHO)).await.expect("it is taken");
    // It waits, and on a kept connection or a new one: what comes of it now can only be an answer too early.
    assert!(timeout(Duration::from_millis(200), line.more()).await.is_err(), "it waits");
    let began = Instant::now();
    scene.term().await;
    let (head, _) = line.answer().await;
    assert!(head.contains("x-wecom-proxy-error: shutting-down") && says_close(&head), "{head}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(scene.wecom.look(|seen| seen.received(ECHO)), 0);
    scene.wecom.release();
    assert_eq!(held.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(scene.proxy.ended().await.status, 0);
}

#[tokio::test]
async fn a_stream_that_comes_before_the_client_knows_is_told_so_and_goes_nowhere() {
    let scene = Scene::new("10m").await;
    let (gate, shut) = watch::channel(false);
    let mut caller = Caller::http2(behind_a_gate(scene.address, shut).await).await;
    caller.get(USER_GET).await.is_ok();
    scene.wecom.inject(Fault::hold().on("/cgi-bin/user/get")).expect("a fault");
    let Caller::Http2(sender) = &caller else { unreachable!() };
    let mut second = Caller::Http2(sender.clone());
    let during = async {
        scene.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        gate.send_replace(true);
        scene.term().await;
        refused(scene.address).await;
        let open = async {
            // The stream is on its way by then; only its answer waits behind the gate.
            scene.proxy.err.line("shutting-down").await;
            gate.send_replace(false);
        };
        tokio::join!(second.get(ECHO), open).0.is_own("shutting-down", 503, -1);
        scene.wecom.release();
    };
    tokio::join!(caller.get(USER_GET), during).0.is_ok();
    assert_eq!(scene.wecom.look(|seen| seen.received(ECHO)), 0);
    assert_eq!(scene.proxy.ended().await.status, 0);
}

/// The TCP address among those of a program that listens on several.
async fn first_tcp(proxy: &Process) -> SocketAddr {
    let listen = field(&proxy.err.line("ready listen=").await, "listen");
    listen.split(", ").find_map(|address| address.parse().ok()).expect("an address")
}

/// A way to the proxy on which nothing comes back while it is shut.
async fn behind_a_gate(address: SocketAddr, mut shut: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gate = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (near, _) = listener.accept().await?;
        let (mut from_caller, mut to_caller) = near.into_split();
        let (mut from_proxy, mut to_proxy) = TcpStream::connect(address).await?.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_caller, &mut to_proxy).await });
        let mut buffer = [0; 8192];
        loop {
            let read = from_proxy.read(&mut buffer).await?;
            let _ = shut.wait_for(|shut| !shut).await;
            to_caller.write_all(&buffer[..read]).await?;
            if read == 0 {
                return Ok::<_, io::Error>(());
            }
        }
    });
    gate
}

#[tokio::test]
async fn a_leaving_process_leaves_the_next_ones_socket_alone() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN.replacen("\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]", 1);
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let path = dir.path().join("proxy.sock");
    let first = Process::serve(&config).await;
    let scene = Scene { wecom, dir, address: first_tcp(&first).await, proxy: first };
    let held = scene.held().await;
    // Another one in the same place, while the first still serves there: the file is replaced under its feet.
    std::fs::remove_file(&path).expect("a file");
    let second = Process::serve(&config).await;
    scene.term().await;
    refused(scene.address).await;
    scene.wecom.release();
    assert_eq!(held.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(scene.proxy.ended().await.status, 0);
    let unix = tokio::net::UnixStream::connect(&path).await.expect("the second one listens there");
    Caller::http1_over(unix).await.get(USER_GET).await.is_ok();
    assert_eq!(second.stop().await.status, 0);
    assert!(!path.exists());
}
