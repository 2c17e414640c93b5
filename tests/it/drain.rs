//! The end of the real program: in order, and soon.

use std::{io, net::SocketAddr, os::unix::net::UnixDatagram, time::Duration};

use http::Request;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    process::{Process, wecom_proxy},
    stage::{Caller, OPEN, USER_GET, write_config},
};

const SOON: Duration = Duration::from_secs(5);

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
    let scene = Scene::new("30s").await;
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
    let scene = Scene::new("30s").await;
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
async fn a_stream_of_http2_in_flight_finishes() {
    let scene = Scene::new("30s").await;
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
        let scene = Scene::new("30s").await;
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
    let scene = Scene::new("30s").await;
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
    let scene = Scene::new("30s").await;
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
