//! `replay.disk` bounds the request bodies buffered in files: a body beyond it is refused, or sent without a retry.

use std::time::Duration;

use http::Request;
use tokio::io::AsyncWriteExt;
use wecom_proxy::simulator::Fault;

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, client_key,
        send_raw, wait_for,
    },
    raw_http::{ManualUpstream, RawConnection, chunks_with_extensions, raw_get},
};

/// With this memory budget one body gets 8 KiB of it.
const REPLAY_CONFIG: &str = "\n[replay]\nmemory = \"64KiB\"\ndisk = \"100KiB\"\ndir = \"{dir}\"\n";
const OVERSIZED_BYTES: usize = 200 * 1024;

async fn start_proxy() -> TestProxy {
    let proxy = TestProxy::start_with_config(&format!("{OPEN_CONFIG}{REPLAY_CONFIG}")).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy
}

/// A proxy with two clients, which has its token already, and these budgets.
async fn start_proxy_with_clients(budgets: &str) -> TestProxy {
    let replay = format!("\n[replay]\n{budgets}\ndir = \"{{dir}}\"\n");
    let proxy = TestProxy::start_with_config(&format!("{CONFIG_WITH_CLIENTS}{replay}")).await;
    let request = Request::post(format!("/hr{ECHO}")).header("x-api-key", client_key("billing"));
    proxy.request(request, "").await.assert_ok();
    proxy
}

fn post_head_with_key(client: &str, length: usize) -> String {
    let key = client_key(client);
    format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Length: {length}\r\n\r\n")
}

/// Number of requests that wait before they are sent.
async fn waiting_requests(proxy: &TestProxy) -> u64 {
    let metrics = send_raw(
        proxy.admin_address(),
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    let metrics = metrics.await;
    let line = metrics.lines().find_map(|line| line.strip_prefix("wecom_proxy_token_waiters "));
    line.and_then(|value| value.trim().parse().ok()).expect("a gauge")
}

fn assert_overloaded(response: &TestResponse) {
    response.assert_proxy_error("overloaded", 503, -1);
    assert_eq!(response.header("retry-after"), "1");
    assert!(response.text().contains("no room to buffer a request body"), "{}", response.text());
}

#[tokio::test]
async fn declared_body_beyond_the_budget_is_refused_unsent() {
    let proxy = start_proxy().await;
    let before = proxy.forwarded_count();
    assert_overloaded(&proxy.post(ECHO, vec![b'x'; OVERSIZED_BYTES]).await);
    let mut client = TestClient::connect_http2(proxy.address()).await;
    assert_overloaded(
        &client.request(Request::post(format!("/hr{ECHO}")), vec![b'x'; OVERSIZED_BYTES]).await,
    );
    assert_eq!(proxy.forwarded_count(), before, "nothing is forwarded");
    proxy.post(ECHO, vec![b'x'; 90 * 1024]).await.assert_ok();
    // A pass-through call is never retried, so its body is not buffered.
    proxy.post("/cgi-bin/webhook/send?key=0", vec![b'x'; OVERSIZED_BYTES]).await;
    assert_eq!(proxy.forwarded_count(), before + 2);
}

#[tokio::test]
async fn declared_lengths_without_bodies_take_nothing_from_others() {
    let proxy = start_proxy_with_clients("memory = \"64KiB\"\ndisk = \"100KiB\"").await;
    let budget = proxy.app.replay_budget();
    let before = proxy.forwarded_count();
    let mut idle = Vec::new();
    // Half of the memory and half of the disk are reserved at once; the others wait for their first bytes.
    for length in [[40_000; 3], [8_000; 3], [8_000; 3], [50_000; 3]].as_flattened() {
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(post_head_with_key("crm", *length)).await.expect("sent");
        idle.push((connection, *length));
        wait_for("the head", async || {
            waiting_requests(&proxy).await as usize + proxy.forwarded_count() - before == idle.len()
        })
        .await;
    }
    assert_eq!((budget.memory_used(), budget.disk_used()), (32_000, 48_000));
    assert_eq!(proxy.forwarded_count() - before, 6, "nothing is sent for the others");
    for client in ["billing", "crm"] {
        let request = Request::post(format!("/hr{ECHO}")).header("x-api-key", client_key(client));
        proxy.request(request, vec![b'x'; 54_000]).await.assert_ok();
    }
    // The declared bodies are still accepted when they arrive.
    for (connection, length) in &mut idle {
        connection.send(vec![b'x'; *length]).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
    }
    wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
}

#[tokio::test]
async fn declared_body_is_reserved_when_it_begins_to_arrive() {
    let proxy = start_proxy_with_clients("memory = \"64KiB\"\ndisk = \"100KiB\"").await;
    let budget = proxy.app.replay_budget();
    let before = proxy.forwarded_count();
    let mut late = RawConnection::connect(proxy.address()).await;
    late.send(post_head_with_key("crm", 60_000)).await.expect("sent");
    wait_for("the head", async || waiting_requests(&proxy).await == 1).await;
    let mut arriving = RawConnection::connect(proxy.address()).await;
    arriving.send(post_head_with_key("billing", 90_000) + "x").await.expect("sent");
    wait_for("a reservation", async || budget.disk_used() == 90_000).await;
    // A length that no longer fits is refused, at once or when its body begins.
    let request = Request::post(format!("/hr{ECHO}")).header("x-api-key", client_key("crm"));
    assert_overloaded(&proxy.request(request, vec![b'x'; 20_000]).await);
    late.send("x").await.expect("sent");
    let (head, body) = late.read_response().await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && body.contains("no room to buffer a request body"),
        "{head}{body}"
    );
    wait_for("the first body", async || proxy.forwarded_count() == before + 1).await;
    // Bodies of unknown length use up the rest; the reserved body is kept all the same.
    let chunked = format!(
        "POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        client_key("crm")
    );
    let mut unknown = RawConnection::connect(proxy.address()).await;
    unknown.send(format!("{chunked}ea60\r\n{}\r\n0\r\n\r\n", "x".repeat(60_000))).await.expect("sent");
    assert!(unknown.read_response().await.0.starts_with("HTTP/1.1 200 "));
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    arriving.send(vec![b'x'; 89_999]).await.expect("sent");
    assert!(arriving.read_response().await.0.starts_with("HTTP/1.1 200 "));
    wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
}

#[tokio::test]
async fn half_close_after_an_admitted_body_does_not_drop_its_request() {
    let proxy = start_proxy_with_clients("memory = \"64KiB\"\ndisk = \"100KiB\"").await;
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(post_head_with_key("crm", 60_000)).await.expect("sent");
    wait_for("the head", async || waiting_requests(&proxy).await == 1).await;
    connection.send(vec![b'x'; 60_000]).await.expect("sent");
    connection.stream.shutdown().await.expect("a socket");
    proxy.wecom.wait_until(|observed| observed.received_count(ECHO) == 1).await.expect("received");
    // Longer than a request that still waits outlives FIN.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    proxy.wecom.release_held();
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn concurrent_declared_bodies_that_fit_are_all_retried() {
    const MIB: usize = 1 << 20;
    for lengths in [[7 * MIB, 7 * MIB], [12 * MIB, 2 * MIB], [12 * MIB, 11 * MIB]] {
        let proxy = start_proxy_with_clients("memory = \"256KiB\"\ndisk = \"24MiB\"").await;
        let budget = proxy.app.replay_budget();
        // Both bodies are at the upstream before it refuses their token.
        proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
        proxy.wecom.revoke_tokens("hr").expect("an agent");
        let upload = async |length: usize| {
            let request = Request::post(format!("/hr{ECHO}")).header("x-api-key", client_key("crm"));
            let response = proxy.request(request, vec![b'x'; length]).await;
            response.assert_ok();
            assert_eq!(response.header("x-wecom-retried"), "40014", "{length} of {lengths:?}");
            assert_eq!(response.json()["body_bytes"], length);
        };
        let release = async || {
            let all = proxy.wecom.wait_until(|observed| {
                observed.requests().filter(|record| lengths.contains(&(record.body_bytes as usize))).count()
                    == 2
            });
            all.await.expect("both bodies");
            proxy.wecom.release_held();
        };
        tokio::join!(upload(lengths[0]), upload(lengths[1]), release());
        wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
    }
}

#[tokio::test]
async fn body_outgrowing_the_disk_budget_is_sent_without_retry() {
    let mut upstream = ManualUpstream::new().await;
    let proxy =
        TestProxy::start_with_upstream(upstream.address, &format!("{OPEN_CONFIG}{REPLAY_CONFIG}")).await;
    for (length, retried) in [(50_000, true), (OVERSIZED_BYTES, false)] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        connection
            .send(format!("{head}{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length)))
            .await
            .expect("sent");
        // The upstream reads the complete body before it refuses the token.
        for refused in [true, false].into_iter().take(1 + usize::from(retried)) {
            let mut call = upstream.next_call().await;
            let mut request = Vec::new();
            // The length of the body is known by the second attempt.
            if call.head.contains("content-length: ") {
                request = call.connection.read_exact(length).await;
            }
            while refused && !request.ends_with(b"\r\n0\r\n\r\n") {
                request.extend(call.connection.read_exact(1).await);
            }
            assert!(refused || request.len() == length, "{}", call.head);
            let body = format!("{{\"errcode\":{}}}", if refused { 40014 } else { 0 });
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json";
            call.connection
                .send(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
                .await
                .expect("sent");
        }
        let (head, body) = connection.read_response().await;
        assert_eq!(head.contains("\r\nx-wecom-retried: 40014\r\n"), retried, "{head}");
        assert_eq!(body, if retried { "{\"errcode\":0}" } else { "{\"errcode\":40014}" });
    }
    let budget = proxy.app.replay_budget();
    wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
}

#[tokio::test]
async fn replay_bodies_stay_within_their_budgets() {
    let proxy = start_proxy().await;
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        let body = "7d0\r\n".to_owned() + &"x".repeat(2000) + "\r\n";
        connection.send(head + &body.repeat(15) + "0\r\n\r\n").await.expect("sent");
        connections.push(connection);
        let (memory, disk) = (proxy.app.replay_budget().memory_used(), proxy.app.replay_budget().disk_used());
        assert!(memory <= (64 + 8 * 4) * 1024 && disk <= 100 * 1024, "{memory} in memory, {disk} in files");
    }
    let is_complete = |record: &wecom_proxy::simulator::RecordedRequest| record.body_bytes == 30_000;
    let all = proxy
        .wecom
        .wait_until(|observed| observed.requests().filter(|record| is_complete(record)).count() == 8);
    all.await.expect("all bodies");
    let (memory, disk) = (proxy.app.replay_budget().memory_used(), proxy.app.replay_budget().disk_used());
    assert!(memory <= (64 + 8 * 4) * 1024 && disk <= 100 * 1024, "{memory} in memory, {disk} in files");
    assert!(disk > 50 * 1024, "some bodies are buffered");
    proxy.wecom.release_held();
    for connection in &mut connections {
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
    }
    let budget = proxy.app.replay_budget();
    wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
}

#[tokio::test]
async fn request_of_mostly_chunk_framing_is_refused() {
    let proxy = start_proxy().await;
    let head = format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let accepted = proxy
        .send_raw(
            head.replace("Host", "Connection: close\r\nHost")
                + &chunks_with_extensions(60, 1000)
                + "0\r\n\r\n",
        )
        .await;
    assert!(accepted.starts_with("HTTP/1.1 200 "), "{accepted}");
    for (body, end) in [
        (chunks_with_extensions(80, 1000), "0\r\n\r\n"),
        // Trailers count as framing.
        (
            chunks_with_extensions(60, 1000) + "0\r\n" + &format!("X: {}\r\n", "y".repeat(1000)).repeat(8),
            "\r\n",
        ),
    ] {
        let refused = proxy.send_raw(head.clone() + &body + end).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
        assert!(refused.contains("\r\nx-wecom-proxy-error: bad-request\r\n"), "{refused}");
        assert!(refused.contains("send larger chunks, without extensions"), "{refused}");
    }
    // A one-byte chunk without an extension has 5 bytes of framing.
    let chunks = "1\r\nx\r\n".repeat(50_000);
    let one_byte_chunks =
        proxy.send_raw(head.replace("Host", "Connection: close\r\nHost") + &chunks + "0\r\n\r\n").await;
    assert!(
        one_byte_chunks.starts_with("HTTP/1.1 200 ") && one_byte_chunks.contains("\"body_bytes\":50000,"),
        "{one_byte_chunks}"
    );
}

#[tokio::test]
async fn response_of_mostly_chunk_framing_is_upstream_broke() {
    for (content_type, broken_head) in [("application/json", true), ("image/png", false)] {
        let mut upstream = ManualUpstream::new().await;
        let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(raw_get(USER_GET)).await.expect("sent");
        let mut call = upstream.next_call().await;
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n");
        call.connection
            .send(head + "6\r\n{\"l\":[\r\n" + &chunks_with_extensions(80, 1000))
            .await
            .expect("sent");
        if broken_head {
            let (head, body) = connection.read_response().await;
            assert!(head.starts_with("HTTP/1.1 502 ") && body.contains("chunk framing"), "{head}{body}");
            assert!(head.contains("\r\nx-wecom-proxy-error: upstream-broke\r\n"), "{head}");
        } else {
            assert!(connection.read_head().await.starts_with("HTTP/1.1 200 "));
            let (rest, _) = connection.read_to_end().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "the body looks complete");
        }
    }
}
