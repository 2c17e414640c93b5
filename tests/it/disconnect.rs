//! Clients that leave, or shut down their sending side, while their request waits for a token.

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
/// Bodies: none, one that comes with its head, and some of which much is left in the kernel while the request waits.
const LENGTHS: [usize; 4] = [0, 10, 20_000, 60_000];

fn post(version: &str, length: usize) -> Vec<u8> {
    let head = format!("POST /hr{SINK} HTTP/{version}\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; length]].concat()
}

/// An open proxy of which no token is fetched until the simulator is released.
async fn stage(tls: Option<&Path>) -> TestProxy {
    let line = "listen = \"127.0.0.1:0\"";
    let toml = match tls {
        None => OPEN_CONFIG.to_owned(),
        Some(dir) => {
            let dir = dir.display();
            let tls = format!("{line}\ntls = {{ cert = \"{dir}/server.pem\", key = \"{dir}/server.key\" }}");
            OPEN_CONFIG.replacen(line, &tls, 1)
        }
    };
    let stage = TestProxy::start_with_config(&toml).await;
    stage.wecom.inject(Fault::hold().on_path(GETTOKEN)).expect("a fault");
    stage
}

async fn waiting(stage: &TestProxy, count: usize) {
    let mut admin = TestClient::connect_http1(stage.admin_address()).await;
    wait_for("the requests that wait", async || waiter_count(&mut admin).await == count).await;
}

#[tokio::test]
async fn client_gone_while_its_token_is_fetched_is_not_executed() {
    for length in LENGTHS {
        for (version, reset) in [("1.1", false), ("1.1", true), ("1.0", false), ("1.0", true)] {
            let stage = stage(None).await;
            let mut line = RawConnection::connect(stage.address()).await;
            line.send(post(version, length)).await.expect("it is taken");
            waiting(&stage, 1).await;
            match reset {
                true => line.reset(),
                false => drop(line),
            }
            waiting(&stage, 0).await;
            stage.wecom.release_held();
            stage.get(USER_GET).await.assert_ok();
            assert_eq!(stage.wecom.executed_count(SINK), 0, "{length} bytes, HTTP/{version}, reset: {reset}");
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
            let stage = stage(Some(dir.path())).await;
            let mut stream = authority.connect_tls(stage.address(), &[], None).await.expect("a handshake");
            with_timeout(stream.write_all(&post("1.1", length))).await.expect("it is taken");
            with_timeout(stream.flush()).await.expect("it is taken");
            waiting(&stage, 1).await;
            if close_notify {
                with_timeout(stream.shutdown()).await.expect("it is taken");
            }
            drop(stream);
            waiting(&stage, 0).await;
            stage.wecom.release_held();
            assert_eq!(stage.wecom.executed_count(SINK), 0, "{length} bytes, close_notify: {close_notify}");
        }
    }
}

#[tokio::test]
async fn client_that_only_stops_sending_gets_its_response() {
    for length in LENGTHS {
        let stage = stage(None).await;
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(post("1.1", length)).await.expect("it is taken");
        waiting(&stage, 1).await;
        line.stream.shutdown().await.expect("a socket");
        assert_eq!(line.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{length} bytes");
        stage.wecom.release_held();
        let (head, _) = line.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{length} bytes: {head}");
        assert_eq!(line.stream.read(&mut [0; 1]).await.expect("the end"), 0);
        assert_eq!(stage.wecom.executed_count(SINK), 1, "{length} bytes");
    }
}

#[tokio::test]
async fn client_that_stops_sending_while_wecom_answers_is_served() {
    let stage = TestProxy::start_with_config(OPEN_CONFIG).await;
    stage.get(USER_GET).await.assert_ok();
    for length in LENGTHS {
        stage.wecom.inject(Fault::hold().on_path(SINK)).expect("a fault");
        let before = stage.forwarded_count();
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(post("1.1", length)).await.expect("it is taken");
        wait_for("the call", async || stage.forwarded_count() == before + 1).await;
        line.stream.shutdown().await.expect("a socket");
        assert_eq!(line.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{length} bytes");
        stage.wecom.release_held();
        let (head, _) = line.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{length} bytes: {head}");
    }
}
