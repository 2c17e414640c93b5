//! Resident memory of the program while it forwards large bodies.

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
    raw_http::{ManualUpstream, RawConnection, chunks_with_extensions, raw_get},
};

const MIB: u64 = 1 << 20;
/// Bound on resident memory above the idle value.
const MAX_GROWTH_BYTES: u64 = 64 * MIB;

/// The program in its own process, with its default configuration.
struct ProxyProcess {
    child: Child,
    address: SocketAddr,
}

impl ProxyProcess {
    fn start(dir: &TempDir, upstream: SocketAddr) -> Self {
        Self::start_with(dir, upstream, "")
    }

    /// Starts the program with `extra` in its configuration.
    fn start_with(dir: &TempDir, upstream: SocketAddr, extra: &str) -> Self {
        let agents: String =
            Settings::default().agents.iter().map(|agent| agent_section(agent, "")).collect();
        let upstream = format!("[upstream]\nurl = \"http://{upstream}\"\n");
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, format!("[server]\nlisten = \"127.0.0.1:0\"\n{upstream}{extra}{agents}"))
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
        let ready = ready.expect("a log line with ready");
        let address = ready.split(['"', ' ', '=']);
        let address = address.filter_map(|part| part.parse().ok()).next();
        // Drains stderr: a full pipe would block the program's log writer.
        std::thread::spawn(move || lines.for_each(drop));
        Self { address: address.unwrap_or_else(|| panic!("no address in {ready}")), child }
    }

    /// A value of `/proc/PID/status`, in bytes.
    fn status_bytes(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("a running program");
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
    let process = ProxyProcess::start(&dir, wecom.api_addr());
    let mut client = TestClient::connect_http1(process.address).await;
    client.get(USER_GET).await.assert_ok();
    let idle = process.status_bytes("VmRSS");

    let (started, total) = (Instant::now(), 1024 * MIB);
    let download = http::Request::get(format!("/hr/cgi-bin/media/get?media_id=generated-{total}"));
    let download = download.body(http_body_util::Full::new(Bytes::new())).expect("a request");
    let mut body = client.send(download).await.expect("a response").into_body();
    let (mut received, mut compared) = (0, 0);
    while let Some(frame) = body.frame().await {
        let chunk = frame.expect("a complete body").into_data().expect("data");
        // The start of each chunk is compared: a lost or duplicated byte shifts everything after it.
        let expected = generated_bytes(received, chunk.len().min(16));
        assert_eq!(chunk[..expected.len()], expected[..], "at {received}");
        (received, compared) = (received + chunk.len() as u64, compared + expected.len());
    }
    assert_eq!(received, total);
    let seconds = started.elapsed().as_secs_f64();
    let after = process.status_bytes("VmHWM");
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    eprintln!(
        "1 GiB down in {seconds:.1} s ({compared} bytes compared): idle {:.1} MiB, at most {:.1} MiB",
        mib(idle),
        mib(after)
    );
    assert!(after - idle < MAX_GROWTH_BYTES, "{:.1} MiB beyond idle", mib(after - idle));

    let started = Instant::now();
    let upload = http::Request::post("/hr/cgi-bin/simulator/sink");
    let response = client.request(upload, vec![b'x'; 64 * MIB as usize]).await;
    assert_eq!(response.assert_ok().json()["body_bytes"], 64 * MIB);
    let after = process.status_bytes("VmHWM");
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("64 MiB up in {seconds:.1} s: at most {:.1} MiB", mib(after));
    assert!(after - idle < MAX_GROWTH_BYTES, "{:.1} MiB beyond idle", mib(after - idle));
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn unread_response_buffer_does_not_grow_with_the_upload() {
    const CHUNK: usize = 4000;
    let dir = TempDir::new().expect("a directory");
    let mut upstream = ManualUpstream::new().await;
    let process = ProxyProcess::start(&dir, upstream.address);
    let mut connection = RawConnection::connect(process.address).await;
    let head = "POST /hr/cgi-bin/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(head).await.expect("sent");
    let call = upstream.next_call().await;
    let (mut request_half, mut response_half) = call.connection.stream.into_split();
    let responding = tokio::spawn(async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n";
        response_half.write_all(head.as_bytes()).await.expect("sent");
        let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &[b'z'; CHUNK], b"\r\n"].concat();
        while response_half.write_all(&chunk).await.is_ok() {}
    });
    // Each uploaded byte wakes the request task, while the client does not read the response.
    let mut before = 0;
    for nth in 0..10_000 {
        connection.send("1\r\na\r\n").await.expect("sent");
        let mut buffer = [0; 64];
        with_timeout(request_half.read(&mut buffer)).await.expect("a successful read");
        if nth == 2_000 {
            before = process.status_bytes("VmRSS");
        }
    }
    let growth = process.status_bytes("VmRSS").saturating_sub(before);
    assert!(growth < 8 * MIB, "{:.1} MiB for 8,000 bytes", growth as f64 / MIB as f64);
    responding.abort();
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn json_without_errcode_uses_little_memory() {
    const CHUNK: usize = 64 * 1024;
    let dir = TempDir::new().expect("a directory");
    let mut upstream = ManualUpstream::new().await;
    let process = ProxyProcess::start(&dir, upstream.address);
    let mut connection = RawConnection::connect(process.address).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    let mut call = upstream.next_call().await;
    let idle = process.status_bytes("VmRSS");
    let chunks = 100 * MIB as usize / CHUNK;
    let total = chunks * CHUNK;
    let responding = tokio::spawn(async move {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        call.connection.send(format!("{head}Content-Length: {total}\r\n\r\n")).await.expect("sent");
        call.connection
            .send([b"{\"list\":[0", &b",0".repeat(CHUNK / 2 - 5)[..]].concat())
            .await
            .expect("sent");
        for _ in 1..chunks {
            call.connection.send(b",0".repeat(CHUNK / 2)).await.expect("sent");
        }
    });
    assert!(connection.read_head().await.starts_with("HTTP/1.1 200 "));
    let mut received = 0;
    while received < total {
        let length = (total - received).min(CHUNK);
        received += connection.read_exact(length).await.len();
    }
    responding.await.expect("the complete body is sent");
    let growth = process.status_bytes("VmHWM").saturating_sub(idle);
    eprintln!("100 MiB of JSON without an errcode: {:.1} MiB", growth as f64 / MIB as f64);
    assert!(growth < 16 * MIB, "{:.1} MiB beyond idle", growth as f64 / MIB as f64);
}

/// Resident bytes of each of 300 uploads that wait for their last part.
async fn growth_of_slow_uploads(part: usize, parts: usize, extra: &str) -> usize {
    const UPLOADS: usize = 300;
    let dir = TempDir::new().expect("a directory");
    let mut upstream = ManualUpstream::new().await;
    let process = ProxyProcess::start_with(&dir, upstream.address, extra);
    let head = format!(
        "POST /hr/cgi-bin/message/send HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        part * (parts + 1)
    );
    let (mut clients, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..UPLOADS {
        let mut client = RawConnection::connect(process.address).await;
        client.send(&head).await.expect("sent");
        clients.push(client);
    }
    let idle = process.status_bytes("VmRSS");
    let begin = r#"{"touser":"zhangsan","text":{"content":""#;
    for nth in 0..parts {
        let sent = [if nth == 0 { begin } else { "" }, &"x".repeat(part)].concat();
        for client in &mut clients {
            client.send(&sent[..part]).await.expect("sent");
        }
        while calls.len() < UPLOADS {
            calls.push(upstream.next_call().await);
        }
        for call in &mut calls {
            call.connection.read_exact(part).await;
        }
    }
    let growth = process.status_bytes("VmRSS").saturating_sub(idle) as usize / UPLOADS;
    eprintln!("{UPLOADS} uploads of which {} KB have come: {growth} bytes each", part * parts / 1000);
    growth
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn slow_uploads_hold_little_more_than_their_bodies() {
    let growth = growth_of_slow_uploads(3_000, 12, "").await;
    let kept_for_retry = 13 * 3_000;
    assert!(growth < kept_for_retry + 16 * 1024, "{growth} bytes each");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn slow_uploads_in_files_hold_little() {
    let growth = growth_of_slow_uploads(60_000, 4, "[replay]\nmemory = \"1MiB\"\n").await;
    // Some parts are still being written.
    assert!(growth < 36 * 1024, "{growth} bytes each");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn replay_chunks_between_framing_use_what_is_counted() {
    let dir = TempDir::new().expect("a directory");
    let mut upstream = ManualUpstream::new().await;
    let process = ProxyProcess::start_with(&dir, upstream.address, "[replay]\nmemory = \"64MiB\"\n");
    let mut connection = RawConnection::connect(process.address).await;
    let head = "POST /hr/cgi-bin/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(head).await.expect("sent");
    let mut call = upstream.next_call().await;
    let idle = process.status_bytes("VmRSS");
    // The maximum framing per byte: a replayed chunk must not keep the whole read buffer alive.
    let unit = format!("1000\r\n{}\r\n{}", "A".repeat(4096), chunks_with_extensions(60, 1000));
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 20];
        while call.connection.stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    });
    for _ in 0..128 * MIB as usize / unit.len() {
        connection.send(&unit).await.expect("sent");
    }
    let growth = process.status_bytes("VmHWM").saturating_sub(idle);
    eprintln!("128 MiB of chunks with 8 MiB of data: {:.1} MiB", growth as f64 / MIB as f64);
    assert!(growth < 32 * MIB, "{:.1} MiB beyond idle", growth as f64 / MIB as f64);
    drop(connection);
    with_timeout(reading).await.expect("no panic");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn json_in_one_byte_chunks_uses_little_memory() {
    let dir = TempDir::new().expect("a directory");
    let mut upstream = ManualUpstream::new().await;
    let process = ProxyProcess::start(&dir, upstream.address);
    for path in [USER_GET, "/cgi-bin/get_jsapi_ticket"] {
        let mut connection = RawConnection::connect(process.address).await;
        connection.send(raw_get(path)).await.expect("sent");
        let mut call = upstream.next_call().await;
        let idle = process.status_bytes("VmRSS");
        let responding = tokio::spawn(async move {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            call.connection.send(format!("{head}6\r\n{{\"l\":[\r\n")).await.expect("sent");
            let mut sent = 0;
            // Backpressure applies once the errcode scan has ended, because the client reads no body.
            let chunk = chunks_with_extensions(4096, 9);
            while sent < 40 * MIB as usize && call.connection.stream.write_all(chunk.as_bytes()).await.is_ok()
            {
                sent += chunk.len();
            }
        });
        assert!(connection.read_head().await.starts_with("HTTP/1.1 200 "), "{path}");
        let growth = process.status_bytes("VmRSS").saturating_sub(idle);
        eprintln!("{path} in single bytes: {:.1} MiB", growth as f64 / MIB as f64);
        assert!(growth < 16 * MIB, "{path}: {:.1} MiB beyond idle", growth as f64 / MIB as f64);
        responding.abort();
    }
}
