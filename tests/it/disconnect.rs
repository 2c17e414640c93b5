//! Clients that disconnect, or shut down their sending side, while their request waits: for a token, a ticket or a permit.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wecom_proxy::simulator::Fault;

use crate::{
    certificates::Authority,
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, wait_for, with_timeout},
    raw_http::{RawConnection, raw_get},
    token_waiters::waiter_count,
};

const GETTOKEN: &str = "/cgi-bin/gettoken";
const JSAPI: &str = "/cgi-bin/get_jsapi_ticket";
const SINK: &str = "/cgi-bin/simulator/sink";
/// Body lengths: none, one sent with the head, and two that stay partly in the socket buffer while the request waits.
const LENGTHS: [usize; 4] = [0, 10, 20_000, 60_000];

fn post(version: &str, length: usize) -> Vec<u8> {
    let head = format!("POST /hr{SINK} HTTP/{version}\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; length]].concat()
}

/// An open proxy whose gettoken is held by the simulator until it is released.
async fn start_with_held_gettoken(tls: Option<&Path>) -> TestProxy {
    let listen = "listen = \"127.0.0.1:0\"";
    let toml = match tls {
        None => OPEN_CONFIG.to_owned(),
        Some(dir) => {
            let dir = dir.display();
            let tls =
                format!("{listen}\ntls = {{ cert = \"{dir}/server.pem\", key = \"{dir}/server.key\" }}");
            OPEN_CONFIG.replacen(listen, &tls, 1)
        }
    };
    let proxy = TestProxy::start_with_config(&toml).await;
    proxy.wecom.inject(Fault::hold().on_path(GETTOKEN)).expect("a fault");
    proxy
}

/// Waits until `count` requests wait for a token.
pub async fn wait_for_waiters(proxy: &TestProxy, count: usize) {
    let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
    wait_for("the token waiters", async || waiter_count(&mut admin).await == count).await;
}

#[tokio::test]
async fn client_gone_while_its_token_is_fetched_is_not_executed() {
    for length in LENGTHS {
        for (version, reset) in [("1.1", false), ("1.1", true), ("1.0", false), ("1.0", true)] {
            let proxy = start_with_held_gettoken(None).await;
            let mut connection = RawConnection::connect(proxy.address()).await;
            connection.send(post(version, length)).await.expect("sent");
            wait_for_waiters(&proxy, 1).await;
            match reset {
                true => connection.reset(),
                false => drop(connection),
            }
            wait_for_waiters(&proxy, 0).await;
            proxy.wecom.release_held();
            proxy.get(USER_GET).await.assert_ok();
            assert_eq!(proxy.wecom.executed_count(SINK), 0, "{length} bytes, HTTP/{version}, reset: {reset}");
        }
    }
}

#[tokio::test]
async fn client_gone_under_tls_is_not_executed() {
    let authority = Authority::new();
    let identity = authority.issue_server("localhost");
    let dir = TempDir::new().expect("a temporary directory");
    identity.write_files(dir.path(), "server");
    for length in LENGTHS {
        for close_notify in [false, true] {
            let proxy = start_with_held_gettoken(Some(dir.path())).await;
            let mut stream = authority.connect_tls(proxy.address(), &[], None).await.expect("a handshake");
            with_timeout(stream.write_all(&post("1.1", length))).await.expect("sent");
            with_timeout(stream.flush()).await.expect("sent");
            wait_for_waiters(&proxy, 1).await;
            if close_notify {
                with_timeout(stream.shutdown()).await.expect("sent");
            }
            drop(stream);
            wait_for_waiters(&proxy, 0).await;
            proxy.wecom.release_held();
            assert_eq!(proxy.wecom.executed_count(SINK), 0, "{length} bytes, close_notify: {close_notify}");
        }
    }
}

#[tokio::test]
async fn client_that_only_stops_sending_gets_its_response() {
    for length in LENGTHS {
        for version in ["1.1", "1.0"] {
            let proxy = start_with_held_gettoken(None).await;
            let mut connection = RawConnection::connect(proxy.address()).await;
            connection.send(post(version, length)).await.expect("sent");
            wait_for_waiters(&proxy, 1).await;
            connection.stream.shutdown().await.expect("a socket");
            proxy.wecom.release_held();
            let (head, _) = connection.read_response().await;
            assert!(head.starts_with(&format!("HTTP/{version} 200 ")), "{length} bytes: {head}");
            assert_eq!(connection.stream.read(&mut [0; 1]).await.expect("the end"), 0);
            assert_eq!(proxy.wecom.executed_count(SINK), 1, "{length} bytes, HTTP/{version}");
        }
    }
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Token,
    Permit,
    Ticket,
}

impl Awaited {
    const ALL: [Self; 3] = [Self::Token, Self::Permit, Self::Ticket];

    /// A proxy, a connection whose request waits, and the one whose request is at WeCom meanwhile and has sent FIN.
    async fn start(self) -> (TestProxy, RawConnection, Option<RawConnection>) {
        let limits = "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]";
        let proxy = TestProxy::start_with_config(&OPEN_CONFIG.replace("[admin]", limits)).await;
        let get = |path: &str| raw_get(path).into_bytes();
        let (held, request) = match self {
            Self::Token => (GETTOKEN, post("1.1", 10)),
            Self::Permit => (ECHO, post("1.1", 10)),
            Self::Ticket => (JSAPI, get(JSAPI)),
        };
        let mut first = None;
        if self != Self::Token {
            proxy.get(USER_GET).await.assert_ok();
        }
        proxy.wecom.inject(Fault::hold().on_path(held)).expect("a fault");
        if self != Self::Token {
            let mut connection = RawConnection::connect(proxy.address()).await;
            connection.send(get(held)).await.expect("sent");
            proxy.wecom.wait_until(|seen| seen.received_count(held) == 1).await.expect("a request");
            connection.stream.shutdown().await.expect("a socket");
            first = Some(connection);
        }
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(request).await.expect("sent");
        wait_for("the wait", async || self.waiting_count(&proxy).await == 1).await;
        (proxy, connection, first)
    }

    async fn waiting_count(self, proxy: &TestProxy) -> usize {
        let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
        match self {
            Self::Token => waiter_count(&mut admin).await,
            Self::Permit => proxy.app.concurrency_limit().queued(),
            // The request that fetches the ticket keeps its permit to wait.
            Self::Ticket => waiter_count(&mut admin).await.saturating_sub(1),
        }
    }
}

async fn assert_served(mut connection: RawConnection, what: &str) {
    let (head, _) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{what}: {head}");
    assert_eq!(connection.stream.read(&mut [0; 1]).await.expect("the end"), 0, "{what}");
}

#[tokio::test]
async fn waiting_request_is_dropped_one_second_after_fin() {
    for awaited in Awaited::ALL {
        let (proxy, mut connection, first) = awaited.start().await;
        let since = Instant::now();
        connection.stream.shutdown().await.expect("a socket");
        wait_for("the drop", async || awaited.waiting_count(&proxy).await == 0).await;
        assert!(since.elapsed() >= Duration::from_millis(900), "{awaited:?}: {:?}", since.elapsed());
        assert_eq!(connection.read_to_end().await.0, b"", "{awaited:?}");
        proxy.wecom.release_held();
        if let Some(first) = first {
            assert_served(first, "the request at WeCom").await;
        }
        proxy.get(USER_GET).await.assert_ok();
        assert_eq!(proxy.wecom.executed_count(SINK), 0, "{awaited:?}");
    }
}

#[tokio::test]
async fn waiting_request_sent_soon_after_fin_is_served() {
    for awaited in Awaited::ALL {
        let (proxy, mut connection, first) = awaited.start().await;
        // The response comes later than a waiting request would be dropped.
        proxy.wecom.inject(Fault::delay(Duration::from_millis(1500)).on_path(SINK)).expect("a fault");
        connection.stream.shutdown().await.expect("a socket");
        proxy.wecom.release_held();
        assert_served(connection, &format!("{awaited:?}")).await;
        if let Some(first) = first {
            assert_served(first, "the request at WeCom").await;
        }
        assert_eq!(proxy.wecom.executed_count(SINK), u64::from(awaited != Awaited::Ticket), "{awaited:?}");
    }
}

#[tokio::test]
async fn reset_drops_a_waiting_request_at_once() {
    for awaited in Awaited::ALL {
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            let (proxy, connection, _first) = awaited.start().await;
            let since = Instant::now();
            connection.reset();
            wait_for("the drop", async || awaited.waiting_count(&proxy).await == 0).await;
            fastest = fastest.min(since.elapsed());
            proxy.wecom.release_held();
            proxy.get(USER_GET).await.assert_ok();
            assert_eq!(proxy.wecom.executed_count(SINK), 0, "{awaited:?}");
        }
        assert!(fastest < Duration::from_millis(800), "{awaited:?}: {fastest:?}");
    }
}
