//! Clients that disconnect, or shut down their sending side, while their request waits for a token.

use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wecom_proxy::simulator::Fault;

use crate::{
    certificates::Authority,
    harness::{OPEN_CONFIG, TestClient, TestProxy, USER_GET, wait_for, with_timeout},
    raw_http::RawConnection,
    token_waiters::waiter_count,
};

const GETTOKEN: &str = "/cgi-bin/gettoken";
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
async fn wait_for_waiters(proxy: &TestProxy, count: usize) {
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
    std::fs::write(dir.path().join("server.pem"), &identity.pem).expect("a file");
    std::fs::write(dir.path().join("server.key"), &identity.key_pem).expect("a file");
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
        let proxy = start_with_held_gettoken(None).await;
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(post("1.1", length)).await.expect("sent");
        wait_for_waiters(&proxy, 1).await;
        connection.stream.shutdown().await.expect("a socket");
        assert_eq!(connection.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{length} bytes");
        proxy.wecom.release_held();
        let (head, _) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{length} bytes: {head}");
        assert_eq!(connection.stream.read(&mut [0; 1]).await.expect("the end"), 0);
        assert_eq!(proxy.wecom.executed_count(SINK), 1, "{length} bytes");
    }
}

#[tokio::test]
async fn client_that_stops_sending_while_wecom_answers_is_served() {
    let proxy = TestProxy::start_with_config(OPEN_CONFIG).await;
    proxy.get(USER_GET).await.assert_ok();
    for length in LENGTHS {
        proxy.wecom.inject(Fault::hold().on_path(SINK)).expect("a fault");
        let before = proxy.forwarded_count();
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(post("1.1", length)).await.expect("sent");
        wait_for("the call", async || proxy.forwarded_count() == before + 1).await;
        connection.stream.shutdown().await.expect("a socket");
        assert_eq!(connection.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{length} bytes");
        proxy.wecom.release_held();
        let (head, _) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{length} bytes: {head}");
    }
}
