//! Client aborts at each point of a request: the call to WeCom ends, its permit is released, and nothing stays buffered.

use wecom_proxy::simulator::Fault;

use super::{
    UpstreamProtocol,
    clients::{ClientProtocol, ProtocolClient},
};
use crate::{
    harness::{ECHO, TestProxy, USER_GET, wait_for},
    raw_http::{RawConnection, raw_get},
};

const GETTOKEN: &str = "/cgi-bin/gettoken";
/// Time-outs so long that only the abort can release resources.
const LIMITS: &str = "max_in_flight = 1\nqueue_timeout = \"10m\"\nresponse_timeout = \"10m\"";

/// The state of the request when the client aborts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AbortPoint {
    WaitingForToken,
    Queued,
    Uploading,
    UploadingAgain,
    Uploaded,
    InResponseBody,
}

impl AbortPoint {
    const ALL: [Self; 6] = [
        Self::WaitingForToken,
        Self::Queued,
        Self::Uploading,
        Self::UploadingAgain,
        Self::Uploaded,
        Self::InResponseBody,
    ];
}

/// How the client closes its connection.
#[derive(Clone, Copy, Debug)]
enum AbortKind {
    Close,
    Reset,
}

async fn run_aborts(upstream_protocol: UpstreamProtocol) {
    for point in AbortPoint::ALL {
        for abort_kind in [AbortKind::Close, AbortKind::Reset] {
            let (proxy, _authority) = upstream_protocol.start_proxy("", LIMITS).await;
            let name = format!("{upstream_protocol}, {point:?}, {abort_kind:?}");
            abort_at(&proxy, point, abort_kind).await;
            let ended = proxy.wecom.wait_until(|observed| observed.in_flight() == 0).await;
            ended.unwrap_or_else(|error| panic!("{name}: the call to WeCom is still in flight: {error}"));
            let budget = proxy.app.replay_budget();
            wait_for("a released replay budget", async || budget.memory_used() + budget.disk_used() == 0)
                .await;
            assert_eq!(proxy.wecom.executed_count("/cgi-bin/simulator/sink"), 0, "{name}");
            // The only permit is free again.
            let next = ProtocolClient::new(ClientProtocol::Http11, proxy.address());
            assert_eq!({ next }.request("GET", USER_GET, "").await.to_string(), "200", "{name}");
        }
    }
}

/// Sends a request up to this point, then aborts.
async fn abort_at(proxy: &TestProxy, point: AbortPoint, abort_kind: AbortKind) {
    let mut connection = RawConnection::connect(proxy.address()).await;
    if point != AbortPoint::WaitingForToken {
        proxy.get(USER_GET).await.assert_ok();
    }
    match point {
        AbortPoint::WaitingForToken => {
            proxy.wecom.inject(Fault::hold().on_path(GETTOKEN)).expect("a fault");
            connection.send(raw_get(ECHO)).await.expect("sent");
            proxy
                .wecom
                .wait_until(|observed| observed.received_count(GETTOKEN) == 1)
                .await
                .expect("received");
        }
        AbortPoint::Queued => {
            proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
            let mut first = RawConnection::connect(proxy.address()).await;
            first.send(raw_get(ECHO)).await.expect("sent");
            proxy.wecom.wait_until(|observed| observed.received_count(ECHO) == 1).await.expect("received");
            connection.send(raw_get("/cgi-bin/simulator/sink")).await.expect("sent");
            let limit = proxy.app.concurrency_limit();
            wait_for("a queued request", async || limit.queued() == 1).await;
            abort(connection, abort_kind);
            // The first request must hold its permit until the proxy has noticed this abort: otherwise the queued request
            // could still get the permit.
            wait_for("an empty queue", async || limit.queued() == 0).await;
            first.reset();
            return;
        }
        AbortPoint::Uploading | AbortPoint::UploadingAgain => {
            begin_upload(proxy, &mut connection, point == AbortPoint::UploadingAgain).await;
        }
        AbortPoint::Uploaded => {
            proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
            let head = "Host: x\r\nContent-Length: 300000\r\n\r\n";
            connection.send(format!("POST /hr{ECHO} HTTP/1.1\r\n{head}")).await.expect("sent");
            connection.send(vec![b'x'; 300_000]).await.expect("sent");
            let complete = |record: &wecom_proxy::simulator::RecordedRequest| record.body_bytes == 300_000;
            proxy.wecom.wait_until(|observed| observed.requests().any(complete)).await.expect("received");
        }
        AbortPoint::InResponseBody => {
            proxy.wecom.inject(Fault::stall().on_path("/cgi-bin/media/get")).expect("a fault");
            connection.send(raw_get("/cgi-bin/media/get?media_id=generated-300000")).await.expect("sent");
            assert!(connection.read_head().await.starts_with("HTTP/1.1 200 "));
        }
    }
    match point {
        // A close after a complete request sends only FIN, which does not abort it.
        AbortPoint::Uploaded if matches!(abort_kind, AbortKind::Close) => {
            drop(connection);
            proxy.wecom.release_held();
        }
        AbortPoint::InResponseBody => connection.reset(),
        _ => abort(connection, abort_kind),
    }
    if point == AbortPoint::WaitingForToken {
        // The token fetch continues, because other requests may wait for the same token.
        proxy.wecom.release_held();
    }
}

/// Sends a part of a body, to the first attempt or, if WeCom has refused the token, to the second one.
async fn begin_upload(proxy: &TestProxy, connection: &mut RawConnection, refused: bool) {
    // WeCom refuses the token before it has the body.
    if refused {
        proxy.wecom.revoke_tokens("hr").expect("an agent");
    }
    let head = "Host: x\r\nContent-Length: 3000000\r\n\r\n";
    connection.send(format!("POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\n{head}")).await.expect("sent");
    // For the refused token too few bytes for WeCom to finish reading, so that both attempts wait for more.
    let bytes = if refused { 1000 } else { 2_000_000 };
    connection.send(vec![b'x'; bytes]).await.expect("sent");
    let sink = |record: &&wecom_proxy::simulator::RecordedRequest| record.path == "/cgi-bin/simulator/sink";
    let attempts = 1 + usize::from(refused);
    let arrived = proxy.wecom.wait_until(|observed| observed.requests().filter(sink).count() == attempts);
    arrived.await.expect("received");
}

fn abort(connection: RawConnection, abort_kind: AbortKind) {
    match abort_kind {
        AbortKind::Close => drop(connection),
        AbortKind::Reset => connection.reset(),
    }
}

#[tokio::test]
async fn client_abort_releases_all_its_resources() {
    tokio::join!(
        run_aborts(UpstreamProtocol::Http1),
        run_aborts(UpstreamProtocol::Http1Tls),
        run_aborts(UpstreamProtocol::Http2)
    );
}
