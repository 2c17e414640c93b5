//! `replay.disk`: what is kept of request bodies in files is bounded, and what does not fit is told so or goes on unkept.

use http::Request;
use wecom_proxy::simulator::Fault;

use crate::{
    stage::{Caller, ECHO, KEYED, OPEN, Reply, Stage, USER_GET, key, wait_for},
    wire::{Line, Puppet},
};

/// One body gets 8 KiB of memory.
const SMALL: &str = "\n[replay]\nmemory = \"64KiB\"\ndisk = \"100KiB\"\ndir = \"{dir}\"\n";
const MANY: usize = 200 * 1024;

async fn stage() -> Stage {
    let stage = Stage::with(&format!("{OPEN}{SMALL}")).await;
    stage.get(USER_GET).await.is_ok();
    stage
}

fn post(length: usize, path: &str) -> String {
    format!("POST /hr{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}

fn is_overloaded(reply: &Reply) {
    reply.is_own("overloaded", 503, -1);
    assert_eq!(reply.header("retry-after"), "1");
    assert!(reply.text().contains("raise replay.disk"), "{}", reply.text());
}

#[tokio::test]
async fn announced_body_that_fits_nowhere_is_refused_unsent() {
    let stage = stage().await;
    let before = stage.got_through();
    is_overloaded(&stage.post(ECHO, vec![b'x'; MANY]).await);
    let mut caller = Caller::http2(stage.address()).await;
    is_overloaded(&caller.call(Request::post(format!("/hr{ECHO}")), vec![b'x'; MANY]).await);
    assert_eq!(stage.got_through(), before, "nothing is sent");
    stage.post(ECHO, vec![b'x'; 90 * 1024]).await.is_ok();
    // A call whose credential is its own is never sent again, and nothing is kept of it.
    stage.post("/cgi-bin/webhook/send?key=0", vec![b'x'; MANY]).await;
    assert_eq!(stage.got_through(), before + 2);
}

#[tokio::test]
async fn announced_body_that_is_not_sent_takes_no_disk() {
    let stage = stage().await;
    let shelf = stage.proxy.shelf();
    let before = stage.got_through();
    let mut silent = Vec::new();
    for _ in 0..4 {
        let mut line = Line::to(stage.address()).await;
        line.say(post(90_000, ECHO)).await.expect("it is taken");
        silent.push(line);
    }
    wait_for("the heads", async || stage.got_through() == before + 4).await;
    assert_eq!(shelf.in_files(), 0);
    stage.post(ECHO, vec![b'x'; 90_000]).await.is_ok();
    // Those that are sent after all still come through.
    for line in &mut silent {
        line.say(vec![b'x'; 90_000]).await.expect("it is taken");
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
    }
    wait_for("an empty shelf", async || shelf.in_memory() + shelf.in_files() == 0).await;
}

#[tokio::test]
async fn client_that_fills_the_disk_leaves_others_half_of_it() {
    let stage = Stage::with(&format!("{KEYED}{SMALL}")).await;
    let with_key = |name: &str| Request::post(format!("/hr{ECHO}")).header("x-api-key", key(name));
    stage.call(with_key("billing"), "").await.is_ok();
    stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
    let shelf = stage.proxy.shelf();
    let send = async |name: &str, framing: String| {
        let mut line = Line::to(stage.address()).await;
        let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\n{framing}", key(name));
        line.say(head).await.expect("it is taken");
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
    assert!((30_000..=51_200).contains(&shelf.in_files()), "{} in files", shelf.in_files());
    is_overloaded(&stage.call(with_key("crm"), vec![b'x'; 45_000]).await);
    lines.push(send("billing", format!("Content-Length: 45000\r\n\r\n{}", "x".repeat(45_000))).await);
    arrived(45_000, 1).await;
    assert!(shelf.in_files() > 70_000, "what billing sends is kept");
    stage.wecom.release();
    for line in &mut lines {
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
    }
    wait_for("an empty shelf", async || shelf.in_memory() + shelf.in_files() == 0).await;
}

#[tokio::test]
async fn body_that_outgrows_the_disk_goes_on_without_a_retry() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, &format!("{OPEN}{SMALL}")).await;
    for (length, retried) in [(50_000, true), (MANY, false)] {
        let mut line = Line::to(stage.address()).await;
        let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        line.say(format!("{head}{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length)))
            .await
            .expect("it is taken");
        // The upstream takes all of it before it refuses the token.
        for refused in [true, false].into_iter().take(1 + usize::from(retried)) {
            let mut call = puppet.call().await;
            let mut taken = Vec::new();
            while !taken.ends_with(b"\r\n0\r\n\r\n") {
                taken.extend(call.line.bytes(1).await);
            }
            let body = format!("{{\"errcode\":{}}}", if refused { 40014 } else { 0 });
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json";
            call.line
                .say(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
                .await
                .expect("taken");
        }
        let (head, body) = line.answer().await;
        assert_eq!(head.contains("\r\nx-wecom-retried: 40014\r\n"), retried, "{head}");
        assert_eq!(body, if retried { "{\"errcode\":0}" } else { "{\"errcode\":40014}" });
    }
    let shelf = stage.proxy.shelf();
    wait_for("an empty shelf", async || shelf.in_memory() + shelf.in_files() == 0).await;
}

#[tokio::test]
async fn kept_bodies_never_take_more_than_their_budgets() {
    let stage = stage().await;
    stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
    let mut lines = Vec::new();
    for _ in 0..8 {
        let mut line = Line::to(stage.address()).await;
        let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        let body = "7d0\r\n".to_owned() + &"x".repeat(2000) + "\r\n";
        line.say(head + &body.repeat(15) + "0\r\n\r\n").await.expect("it is taken");
        lines.push(line);
        let (memory, files) = (stage.proxy.shelf().in_memory(), stage.proxy.shelf().in_files());
        assert!(memory <= (64 + 8 * 4) * 1024 && files <= 100 * 1024, "{memory} in memory, {files} in files");
    }
    let arrived = |seen: &wecom_proxy::simulator::Record| seen.body_bytes == 30_000;
    let all = stage.wecom.wait_until(|seen| seen.requests().filter(|record| arrived(record)).count() == 8);
    all.await.expect("all of them arrived");
    let (memory, files) = (stage.proxy.shelf().in_memory(), stage.proxy.shelf().in_files());
    assert!(memory <= (64 + 8 * 4) * 1024 && files <= 100 * 1024, "{memory} in memory, {files} in files");
    assert!(files > 50 * 1024, "some of them are kept");
    stage.wecom.release();
    for line in &mut lines {
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
    }
    let shelf = stage.proxy.shelf();
    wait_for("an empty shelf", async || shelf.in_memory() + shelf.in_files() == 0).await;
}

/// Chunks of one byte with an extension, so many bytes on the wire in all.
fn extended(bytes: usize) -> String {
    let chunk = format!("1;{}\r\n \r\n", "e".repeat(1000));
    chunk.repeat(bytes / chunk.len())
}

#[tokio::test]
async fn request_that_is_all_chunk_framing_is_refused() {
    let stage = stage().await;
    let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let few =
        stage.raw(head.replace("Host", "Connection: close\r\nHost") + &extended(60_000) + "0\r\n\r\n").await;
    assert!(few.starts_with("HTTP/1.1 200 "), "{few}");
    for (body, end) in [
        (extended(80_000), "0\r\n\r\n"),
        // Trailers are framing too.
        (extended(60_000) + "0\r\n" + &format!("X: {}\r\n", "y".repeat(1000)).repeat(8), "\r\n"),
    ] {
        let refused = stage.raw(head.clone() + &body + end).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
        assert!(refused.contains("\r\nx-wecom-proxy-error: bad-request\r\n"), "{refused}");
        assert!(refused.contains("send larger chunks, without extensions"), "{refused}");
    }
    // Single bytes without extensions are 5 bytes of framing each.
    let bytes = "1\r\nx\r\n".repeat(50_000);
    let taken = stage.raw(head.replace("Host", "Connection: close\r\nHost") + &bytes + "0\r\n\r\n").await;
    assert!(taken.starts_with("HTTP/1.1 200 ") && taken.contains("\"body_bytes\":50000,"), "{taken}");
}

#[tokio::test]
async fn response_that_is_all_chunk_framing_is_upstream_broke() {
    for (content_type, broken_head) in [("application/json", true), ("image/png", false)] {
        let mut puppet = Puppet::new().await;
        let stage = Stage::facing(puppet.address, OPEN).await;
        let mut line = Line::to(stage.address()).await;
        line.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
        let mut call = puppet.call().await;
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n");
        call.line.say(head + "6\r\n{\"l\":[\r\n" + &extended(80_000)).await.expect("it is taken");
        if broken_head {
            let (head, body) = line.answer().await;
            assert!(head.starts_with("HTTP/1.1 502 ") && body.contains("chunk framing"), "{head}{body}");
            assert!(head.contains("\r\nx-wecom-proxy-error: upstream-broke\r\n"), "{head}");
        } else {
            assert!(line.head().await.starts_with("HTTP/1.1 200 "));
            let (rest, _) = line.rest().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks whole");
        }
    }
}
