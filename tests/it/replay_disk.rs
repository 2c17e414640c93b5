//! `replay.disk`: what is kept of request bodies in files is bounded, and what does not fit is told so or goes on unkept.

use http::Request;
use wecom_proxy::simulator::Fault;

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, client_key,
        wait_for,
    },
    raw_http::{ManualUpstream, RawConnection},
};

/// One body gets 8 KiB of memory.
const REPLAY_CONFIG: &str = "\n[replay]\nmemory = \"64KiB\"\ndisk = \"100KiB\"\ndir = \"{dir}\"\n";
const OVERSIZED_BYTES: usize = 200 * 1024;

async fn start_proxy() -> TestProxy {
    let stage = TestProxy::start_with_config(&format!("{OPEN_CONFIG}{REPLAY_CONFIG}")).await;
    stage.get(USER_GET).await.assert_ok();
    stage
}

fn post_head(length: usize, path: &str) -> String {
    format!("POST /hr{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}

fn assert_overloaded(reply: &TestResponse) {
    reply.assert_proxy_error("overloaded", 503, -1);
    assert_eq!(reply.header("retry-after"), "1");
    assert!(reply.text().contains("raise replay.disk"), "{}", reply.text());
}

#[tokio::test]
async fn declared_body_beyond_the_budget_is_refused_unsent() {
    let stage = start_proxy().await;
    let before = stage.forwarded_count();
    assert_overloaded(&stage.post(ECHO, vec![b'x'; OVERSIZED_BYTES]).await);
    let mut caller = TestClient::connect_http2(stage.address()).await;
    assert_overloaded(
        &caller.request(Request::post(format!("/hr{ECHO}")), vec![b'x'; OVERSIZED_BYTES]).await,
    );
    assert_eq!(stage.forwarded_count(), before, "nothing is sent");
    stage.post(ECHO, vec![b'x'; 90 * 1024]).await.assert_ok();
    // A call whose credential is its own is never sent again, and nothing is kept of it.
    stage.post("/cgi-bin/webhook/send?key=0", vec![b'x'; OVERSIZED_BYTES]).await;
    assert_eq!(stage.forwarded_count(), before + 2);
}

#[tokio::test]
async fn announced_body_that_is_not_sent_takes_no_disk() {
    let stage = start_proxy().await;
    let shelf = stage.app.replay_budget();
    let before = stage.forwarded_count();
    let mut silent = Vec::new();
    for _ in 0..4 {
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(post_head(90_000, ECHO)).await.expect("it is taken");
        silent.push(line);
    }
    wait_for("the heads", async || stage.forwarded_count() == before + 4).await;
    assert_eq!(shelf.disk_used(), 0);
    stage.post(ECHO, vec![b'x'; 90_000]).await.assert_ok();
    // Those that are sent after all still come through.
    for line in &mut silent {
        line.send(vec![b'x'; 90_000]).await.expect("it is taken");
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 200 "));
    }
    wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
}

#[tokio::test]
async fn client_that_fills_the_disk_leaves_others_half_of_it() {
    let stage = TestProxy::start_with_config(&format!("{CONFIG_WITH_CLIENTS}{REPLAY_CONFIG}")).await;
    let with_key = |name: &str| Request::post(format!("/hr{ECHO}")).header("x-api-key", client_key(name));
    stage.request(with_key("billing"), "").await.assert_ok();
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let shelf = stage.app.replay_budget();
    let send = async |name: &str, framing: String| {
        let mut line = RawConnection::connect(stage.address()).await;
        let head =
            format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\n{framing}", client_key(name));
        line.send(head).await.expect("it is taken");
        line
    };
    let arrived = async |bytes: u64, bodies: usize| {
        let all = stage
            .wecom
            .wait_until(|seen| seen.requests().filter(|record| record.body_bytes == bytes).count() == bodies);
        all.await.expect("all of them arrived");
    };
    let mut lines = Vec::new();
    let chunk = format!("Transfer-Encoding: chunked\r\n\r\n61a8\r\n{}\r\n0\r\n\r\n", "x".repeat(25_000));
    for _ in 0..10 {
        lines.push(send("crm", chunk.clone()).await);
    }
    arrived(25_000, 10).await;
    assert!((30_000..=51_200).contains(&shelf.disk_used()), "{} in files", shelf.disk_used());
    assert_overloaded(&stage.request(with_key("crm"), vec![b'x'; 45_000]).await);
    lines.push(send("billing", format!("Content-Length: 45000\r\n\r\n{}", "x".repeat(45_000))).await);
    arrived(45_000, 1).await;
    assert!(shelf.disk_used() > 70_000, "what billing sends is kept");
    stage.wecom.release_held();
    for line in &mut lines {
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 200 "));
    }
    wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
}

#[tokio::test]
async fn body_outgrowing_the_disk_budget_is_sent_without_retry() {
    let mut puppet = ManualUpstream::new().await;
    let stage =
        TestProxy::start_with_upstream(puppet.address, &format!("{OPEN_CONFIG}{REPLAY_CONFIG}")).await;
    for (length, retried) in [(50_000, true), (OVERSIZED_BYTES, false)] {
        let mut line = RawConnection::connect(stage.address()).await;
        let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        line.send(format!("{head}{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length)))
            .await
            .expect("it is taken");
        // The upstream takes all of it before it refuses the token.
        for refused in [true, false].into_iter().take(1 + usize::from(retried)) {
            let mut call = puppet.next_call().await;
            let mut taken = Vec::new();
            while !taken.ends_with(b"\r\n0\r\n\r\n") {
                taken.extend(call.connection.read_exact(1).await);
            }
            let body = format!("{{\"errcode\":{}}}", if refused { 40014 } else { 0 });
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json";
            call.connection
                .send(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
                .await
                .expect("taken");
        }
        let (head, body) = line.read_response().await;
        assert_eq!(head.contains("\r\nx-wecom-retried: 40014\r\n"), retried, "{head}");
        assert_eq!(body, if retried { "{\"errcode\":0}" } else { "{\"errcode\":40014}" });
    }
    let shelf = stage.app.replay_budget();
    wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
}

#[tokio::test]
async fn replay_bodies_stay_within_their_budgets() {
    let stage = start_proxy().await;
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let mut lines = Vec::new();
    for _ in 0..8 {
        let mut line = RawConnection::connect(stage.address()).await;
        let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        let body = "7d0\r\n".to_owned() + &"x".repeat(2000) + "\r\n";
        line.send(head + &body.repeat(15) + "0\r\n\r\n").await.expect("it is taken");
        lines.push(line);
        let (memory, files) =
            (stage.app.replay_budget().memory_used(), stage.app.replay_budget().disk_used());
        assert!(memory <= (64 + 8 * 4) * 1024 && files <= 100 * 1024, "{memory} in memory, {files} in files");
    }
    let arrived = |seen: &wecom_proxy::simulator::RecordedRequest| seen.body_bytes == 30_000;
    let all = stage.wecom.wait_until(|seen| seen.requests().filter(|record| arrived(record)).count() == 8);
    all.await.expect("all of them arrived");
    let (memory, files) = (stage.app.replay_budget().memory_used(), stage.app.replay_budget().disk_used());
    assert!(memory <= (64 + 8 * 4) * 1024 && files <= 100 * 1024, "{memory} in memory, {files} in files");
    assert!(files > 50 * 1024, "some of them are kept");
    stage.wecom.release_held();
    for line in &mut lines {
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 200 "));
    }
    let shelf = stage.app.replay_budget();
    wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
}

/// Chunks of one byte with an extension, so many bytes on the wire in all.
fn chunks_with_extensions(bytes: usize) -> String {
    let chunk = format!("1;{}\r\n \r\n", "e".repeat(1000));
    chunk.repeat(bytes / chunk.len())
}

#[tokio::test]
async fn request_of_mostly_chunk_framing_is_refused() {
    let stage = start_proxy().await;
    let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let few = stage
        .send_raw(
            head.replace("Host", "Connection: close\r\nHost") + &chunks_with_extensions(60_000) + "0\r\n\r\n",
        )
        .await;
    assert!(few.starts_with("HTTP/1.1 200 "), "{few}");
    for (body, end) in [
        (chunks_with_extensions(80_000), "0\r\n\r\n"),
        // Trailers are framing too.
        (
            chunks_with_extensions(60_000) + "0\r\n" + &format!("X: {}\r\n", "y".repeat(1000)).repeat(8),
            "\r\n",
        ),
    ] {
        let refused = stage.send_raw(head.clone() + &body + end).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
        assert!(refused.contains("\r\nx-wecom-proxy-error: bad-request\r\n"), "{refused}");
        assert!(refused.contains("send larger chunks, without extensions"), "{refused}");
    }
    // Single bytes without extensions are 5 bytes of framing each.
    let bytes = "1\r\nx\r\n".repeat(50_000);
    let taken =
        stage.send_raw(head.replace("Host", "Connection: close\r\nHost") + &bytes + "0\r\n\r\n").await;
    assert!(taken.starts_with("HTTP/1.1 200 ") && taken.contains("\"body_bytes\":50000,"), "{taken}");
}

#[tokio::test]
async fn response_of_mostly_chunk_framing_is_upstream_broke() {
    for (content_type, broken_head) in [("application/json", true), ("image/png", false)] {
        let mut puppet = ManualUpstream::new().await;
        let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
        let mut call = puppet.next_call().await;
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n");
        call.connection
            .send(head + "6\r\n{\"l\":[\r\n" + &chunks_with_extensions(80_000))
            .await
            .expect("it is taken");
        if broken_head {
            let (head, body) = line.read_response().await;
            assert!(head.starts_with("HTTP/1.1 502 ") && body.contains("chunk framing"), "{head}{body}");
            assert!(head.contains("\r\nx-wecom-proxy-error: upstream-broke\r\n"), "{head}");
        } else {
            assert!(line.read_head().await.starts_with("HTTP/1.1 200 "));
            let (rest, _) = line.read_to_end().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks whole");
        }
    }
}
