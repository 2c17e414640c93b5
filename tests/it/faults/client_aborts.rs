//! A caller who leaves, at each point of a request: the call to WeCom ends, its place is free, and nothing is kept.

use wecom_proxy::simulator::Fault;

use super::{
    UpstreamProtocol,
    clients::{ClientProtocol, ProtocolClient},
};
use crate::{
    harness::{ECHO, TestProxy, USER_GET, wait_for},
    raw_http::RawConnection,
};

const GETTOKEN: &str = "/cgi-bin/gettoken";
/// No time-out helps here: whatever is let go is let go because the caller left.
const LIMITS: &str = "max_in_flight = 1\nqueue_timeout = \"10m\"\nresponse_timeout = \"10m\"";

/// Where the caller is when it leaves.
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

/// How it leaves.
#[derive(Clone, Copy, Debug)]
enum AbortKind {
    Close,
    Reset,
}

async fn run_aborts(speech: UpstreamProtocol) {
    for point in AbortPoint::ALL {
        for leave in [AbortKind::Close, AbortKind::Reset] {
            let (stage, _authority) = speech.start_proxy("", LIMITS).await;
            let name = format!("{speech}, {point:?}, {leave:?}");
            abort_at(&stage, point, leave).await;
            let gone = stage.wecom.wait_until(|seen| seen.in_flight() == 0).await;
            gone.unwrap_or_else(|error| panic!("{name}: the call to WeCom goes on: {error}"));
            let shelf = stage.app.replay_budget();
            wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
            assert_eq!(stage.wecom.executed_count("/cgi-bin/simulator/sink"), 0, "{name}");
            // The only place in flight is free again.
            let next = ProtocolClient::new(ClientProtocol::Http11, stage.address());
            assert_eq!({ next }.request("GET", USER_GET, "").await.to_string(), "200", "{name}");
        }
    }
}

/// A caller comes to this point of a request, and leaves.
async fn abort_at(stage: &TestProxy, point: AbortPoint, leave: AbortKind) {
    let get = |path: &str| format!("GET /hr{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut line = RawConnection::connect(stage.address()).await;
    if point != AbortPoint::WaitingForToken {
        stage.get(USER_GET).await.assert_ok();
    }
    match point {
        AbortPoint::WaitingForToken => {
            stage.wecom.inject(Fault::hold().on_path(GETTOKEN)).expect("a fault");
            line.send(get(ECHO)).await.expect("it is taken");
            stage.wecom.wait_until(|seen| seen.received_count(GETTOKEN) == 1).await.expect("it arrives");
        }
        AbortPoint::Queued => {
            stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
            let mut first = RawConnection::connect(stage.address()).await;
            first.send(get(ECHO)).await.expect("it is taken");
            stage.wecom.wait_until(|seen| seen.received_count(ECHO) == 1).await.expect("it arrives");
            line.send(get("/cgi-bin/simulator/sink")).await.expect("it is taken");
            let places = stage.app.concurrency_limit();
            wait_for("its turn in the row", async || places.queued() == 1).await;
            abort(line, leave);
            // A place that is free before this is heard of, on a connection of its own, may be taken still.
            wait_for("an empty row", async || places.queued() == 0).await;
            first.reset();
            return;
        }
        AbortPoint::Uploading | AbortPoint::UploadingAgain => {
            // WeCom need not have the body in order to refuse the token.
            let refused = point == AbortPoint::UploadingAgain;
            if refused {
                stage.wecom.revoke_tokens("hr").expect("an agent");
            }
            let head = "Host: x\r\nContent-Length: 3000000\r\n\r\n";
            line.send(format!("POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\n{head}"))
                .await
                .expect("it is taken");
            // Little, so that both tries wait for more.
            let bytes = if refused { 1000 } else { 2_000_000 };
            line.send(vec![b'x'; bytes]).await.expect("it is taken");
            let sink =
                |record: &&wecom_proxy::simulator::RecordedRequest| record.path == "/cgi-bin/simulator/sink";
            let tries = 1 + usize::from(refused);
            let arrived = stage.wecom.wait_until(|seen| seen.requests().filter(sink).count() == tries);
            arrived.await.expect("it arrives");
        }
        AbortPoint::Uploaded => {
            stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
            let head = "Host: x\r\nContent-Length: 300000\r\n\r\n";
            line.send(format!("POST /hr{ECHO} HTTP/1.1\r\n{head}")).await.expect("it is taken");
            line.send(vec![b'x'; 300_000]).await.expect("it is taken");
            let whole = |record: &wecom_proxy::simulator::RecordedRequest| record.body_bytes == 300_000;
            stage.wecom.wait_until(|seen| seen.requests().any(whole)).await.expect("it arrives");
        }
        AbortPoint::InResponseBody => {
            stage.wecom.inject(Fault::stall().on_path("/cgi-bin/media/get")).expect("a fault");
            line.send(get("/cgi-bin/media/get?media_id=generated-300000")).await.expect("it is taken");
            assert!(line.read_head().await.starts_with("HTTP/1.1 200 "));
        }
    }
    match point {
        // A close after a complete request sends only FIN: no more than the end of sending.
        AbortPoint::Uploaded if matches!(leave, AbortKind::Close) => {
            drop(line);
            stage.wecom.release_held();
        }
        AbortPoint::InResponseBody => line.reset(),
        _ => abort(line, leave),
    }
    if point == AbortPoint::WaitingForToken {
        // Others may wait for the same token: the fetch itself goes on.
        stage.wecom.release_held();
    }
}

fn abort(line: RawConnection, leave: AbortKind) {
    match leave {
        AbortKind::Close => drop(line),
        AbortKind::Reset => line.reset(),
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
