//! What the program weighs while large bodies go through it.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Instant,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wecom_proxy::simulator::{Settings, generated_bytes};

use crate::{
    harness::{TestClient, USER_GET, agent_section, with_timeout},
    raw_http::{ManualUpstream, RawConnection},
};

const MIB: u64 = 1 << 20;
/// Beyond what it weighs when idle.
const MAX_GROWTH_BYTES: u64 = 64 * MIB;

/// The program as a process of its own, with its default configuration.
struct ProxyProcess {
    child: Child,
    address: SocketAddr,
}

impl ProxyProcess {
    fn start(dir: &TempDir, upstream: SocketAddr) -> Self {
        Self::start_with(dir, upstream, "")
    }

    /// With more in its configuration.
    fn start_with(dir: &TempDir, upstream: SocketAddr, more: &str) -> Self {
        let agents: String =
            Settings::default().agents.iter().map(|agent| agent_section(agent, "")).collect();
        let upstream = format!("[upstream]\nurl = \"http://{upstream}\"\n");
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, format!("[server]\nlisten = \"127.0.0.1:0\"\n{upstream}{more}{agents}"))
            .expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_wecom-proxy"))
            .arg("serve")
            .arg("--config")
            .arg(&path)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("ready"));
        let ready = ready.expect("a line that says ready");
        let address = ready.split(['"', ' ', '=']);
        let address = address.filter_map(|word| word.parse().ok()).next();
        // Whoever writes logs must not block because nobody reads them.
        std::thread::spawn(move || lines.for_each(drop));
        Self { address: address.unwrap_or_else(|| panic!("no address in {ready}")), child }
    }

    /// A line of the process's status, in bytes.
    fn status_bytes(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the program runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
        let kib = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        kib.parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn large_bodies_use_little_memory() {
    let dir = TempDir::new().expect("a directory");
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    let program = ProxyProcess::start(&dir, wecom.api_addr());
    let mut caller = TestClient::connect_http1(program.address).await;
    caller.get(USER_GET).await.assert_ok();
    let idle = program.status_bytes("VmRSS");

    let (began, total) = (Instant::now(), 1024 * MIB);
    let download = http::Request::get(format!("/hr/cgi-bin/media/get?media_id=generated-{total}"));
    let download = download.body(http_body_util::Full::new(Bytes::new())).expect("a request");
    let mut body = caller.send(download).await.expect("an answer").into_body();
    let (mut at, mut sampled) = (0, 0);
    while let Some(frame) = body.frame().await {
        let piece = frame.expect("a whole body").into_data().expect("data");
        // Every piece at its start: a lost or doubled byte shifts all that follow it.
        let expected = generated_bytes(at, piece.len().min(16));
        assert_eq!(piece[..expected.len()], expected[..], "at {at}");
        (at, sampled) = (at + piece.len() as u64, sampled + expected.len());
    }
    assert_eq!(at, total);
    let took = began.elapsed().as_secs_f64();
    let after = program.status_bytes("VmHWM");
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    eprintln!(
        "1 GiB down in {took:.1} s ({sampled} bytes compared): idle {:.1} MiB, at most {:.1} MiB",
        mib(idle),
        mib(after)
    );
    assert!(after - idle < MAX_GROWTH_BYTES, "{:.1} MiB beyond idle", mib(after - idle));

    let began = Instant::now();
    let upload = http::Request::post("/hr/cgi-bin/simulator/sink");
    let reply = caller.request(upload, vec![b'x'; 64 * MIB as usize]).await;
    assert_eq!(reply.assert_ok().json()["body_bytes"], 64 * MIB);
    let after = program.status_bytes("VmHWM");
    let took = began.elapsed().as_secs_f64();
    eprintln!("64 MiB up in {took:.1} s: at most {:.1} MiB", mib(after));
    assert!(after - idle < MAX_GROWTH_BYTES, "{:.1} MiB beyond idle", mib(after - idle));
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn unread_response_buffer_does_not_grow_with_the_upload() {
    const CHUNK: usize = 4000;
    let dir = TempDir::new().expect("a directory");
    let mut puppet = ManualUpstream::new().await;
    let program = ProxyProcess::start(&dir, puppet.address);
    let mut line = RawConnection::connect(program.address).await;
    let head = "POST /hr/cgi-bin/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    line.send(head).await.expect("it is taken");
    let call = puppet.next_call().await;
    let (mut uploaded, mut answering) = call.connection.stream.into_split();
    let answer = tokio::spawn(async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n";
        answering.write_all(head.as_bytes()).await.expect("it is taken");
        let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &[b'z'; CHUNK], b"\r\n"].concat();
        while answering.write_all(&chunk).await.is_ok() {}
    });
    // The upload comes byte by byte, and each byte wakes the request; the answer is not read.
    let mut before = 0;
    for nth in 0..10_000 {
        line.send("1\r\na\r\n").await.expect("it is taken");
        let mut piece = [0; 64];
        with_timeout(uploaded.read(&mut piece)).await.expect("it comes through");
        if nth == 2_000 {
            before = program.status_bytes("VmRSS");
        }
    }
    let grown = program.status_bytes("VmRSS").saturating_sub(before);
    assert!(grown < 8 * MIB, "{:.1} MiB for 8,000 bytes", grown as f64 / MIB as f64);
    answer.abort();
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn json_without_errcode_uses_little_memory() {
    const PIECE: usize = 64 * 1024;
    let dir = TempDir::new().expect("a directory");
    let mut puppet = ManualUpstream::new().await;
    let program = ProxyProcess::start(&dir, puppet.address);
    let mut line = RawConnection::connect(program.address).await;
    line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    let mut call = puppet.next_call().await;
    let idle = program.status_bytes("VmRSS");
    let pieces = 100 * MIB as usize / PIECE;
    let total = pieces * PIECE;
    let answering = tokio::spawn(async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        call.connection.send(format!("{head}Content-Length: {total}\r\n\r\n")).await.expect("it is taken");
        call.connection
            .send([b"{\"list\":[0", &b",0".repeat(PIECE / 2 - 5)[..]].concat())
            .await
            .expect("it is taken");
        for _ in 1..pieces {
            call.connection.send(b",0".repeat(PIECE / 2)).await.expect("it is taken");
        }
    });
    assert!(line.read_head().await.starts_with("HTTP/1.1 200 "));
    let mut came = 0;
    while came < total {
        let piece = (total - came).min(PIECE);
        came += line.read_exact(piece).await.len();
    }
    answering.await.expect("all of it was taken");
    let grown = program.status_bytes("VmHWM").saturating_sub(idle);
    eprintln!("100 MiB of JSON without an errcode: {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < 16 * MIB, "{:.1} MiB beyond idle", grown as f64 / MIB as f64);
}

/// Chunks of one byte, each with an extension of so many bytes.
fn chunks_with_extensions(chunks: usize, extension: usize) -> String {
    format!("1;{}\r\n \r\n", "e".repeat(extension)).repeat(chunks)
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn replay_chunks_between_framing_use_what_is_counted() {
    let dir = TempDir::new().expect("a directory");
    let mut puppet = ManualUpstream::new().await;
    let program = ProxyProcess::start_with(&dir, puppet.address, "[replay]\nmemory = \"64MiB\"\n");
    let mut line = RawConnection::connect(program.address).await;
    let head = "POST /hr/cgi-bin/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    line.send(head).await.expect("it is taken");
    let mut call = puppet.next_call().await;
    let idle = program.status_bytes("VmRSS");
    // As much framing as there may be for each byte: one such chunk used to hold all that was read with it.
    let unit = format!("1000\r\n{}\r\n{}", "A".repeat(4096), chunks_with_extensions(60, 1000));
    let taking = tokio::spawn(async move {
        let mut piece = vec![0; 1 << 20];
        while call.connection.stream.read(&mut piece).await.is_ok_and(|read| read > 0) {}
    });
    for _ in 0..128 * MIB as usize / unit.len() {
        line.send(&unit).await.expect("it is taken");
    }
    let grown = program.status_bytes("VmHWM").saturating_sub(idle);
    eprintln!("128 MiB of chunks with 8 MiB of data: {:.1} MiB", grown as f64 / MIB as f64);
    assert!(grown < 32 * MIB, "{:.1} MiB beyond idle", grown as f64 / MIB as f64);
    drop(line);
    with_timeout(taking).await.expect("no panic");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn json_in_one_byte_chunks_uses_little_memory() {
    let dir = TempDir::new().expect("a directory");
    let mut puppet = ManualUpstream::new().await;
    let program = ProxyProcess::start(&dir, puppet.address);
    for path in [USER_GET, "/cgi-bin/get_jsapi_ticket"] {
        let mut line = RawConnection::connect(program.address).await;
        line.send(format!("GET /hr{path} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
        let mut call = puppet.next_call().await;
        let idle = program.status_bytes("VmRSS");
        let answering = tokio::spawn(async move {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            call.connection.send(format!("{head}6\r\n{{\"l\":[\r\n")).await.expect("it is taken");
            let mut sent = 0;
            // It is held back once the look has ended, for its caller takes nothing.
            let piece = chunks_with_extensions(4096, 9);
            while sent < 40 * MIB as usize && call.connection.stream.write_all(piece.as_bytes()).await.is_ok()
            {
                sent += piece.len();
            }
        });
        assert!(line.read_head().await.starts_with("HTTP/1.1 200 "), "{path}");
        let grown = program.status_bytes("VmRSS").saturating_sub(idle);
        eprintln!("{path} in single bytes: {:.1} MiB", grown as f64 / MIB as f64);
        assert!(grown < 16 * MIB, "{path}: {:.1} MiB beyond idle", grown as f64 / MIB as f64);
        answering.abort();
    }
}
