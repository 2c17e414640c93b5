//! A caller who leaves, at each point of a request: the call to WeCom ends, its place is free, and nothing is kept.

use wecom_proxy::simulator::Fault;

use super::{
    Speech,
    callers::{Asker, Tongue},
};
use crate::{
    stage::{ECHO, Stage, USER_GET, wait_for},
    wire::Line,
};

const GETTOKEN: &str = "/cgi-bin/gettoken";
/// No time-out helps here: whatever is let go is let go because the caller left.
const PLACES: &str = "max_in_flight = 1\nqueue_timeout = \"10m\"\nresponse_timeout = \"10m\"";

/// Where the caller is when it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    WaitingForToken,
    Queued,
    Uploading,
    UploadingAgain,
    Uploaded,
    InTheBody,
}

impl Point {
    const ALL: [Self; 6] = [
        Self::WaitingForToken,
        Self::Queued,
        Self::Uploading,
        Self::UploadingAgain,
        Self::Uploaded,
        Self::InTheBody,
    ];
}

/// How it leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Close,
    Reset,
}

async fn play(speech: Speech) {
    for point in Point::ALL {
        for leave in [Leave::Close, Leave::Reset] {
            let (stage, _authority) = speech.stage("", PLACES).await;
            let name = format!("{speech}, {point:?}, {leave:?}");
            left_at(&stage, point, leave).await;
            let gone = stage.wecom.wait_until(|seen| seen.in_flight() == 0).await;
            gone.unwrap_or_else(|error| panic!("{name}: the call to WeCom goes on: {error}"));
            let shelf = stage.proxy.shelf();
            wait_for("an empty shelf", async || shelf.in_memory() + shelf.in_files() == 0).await;
            assert_eq!(stage.wecom.executed("/cgi-bin/simulator/sink"), 0, "{name}");
            // The only place in flight is free again.
            let next = Asker::new(Tongue::Http11, stage.address());
            assert_eq!({ next }.ask("GET", USER_GET, "").await.to_string(), "200", "{name}");
        }
    }
}

/// A caller comes to this point of a request, and leaves.
async fn left_at(stage: &Stage, point: Point, leave: Leave) {
    let get = |path: &str| format!("GET /hr{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut line = Line::to(stage.address()).await;
    if point != Point::WaitingForToken {
        stage.get(USER_GET).await.is_ok();
    }
    match point {
        Point::WaitingForToken => {
            stage.wecom.inject(Fault::hold().on(GETTOKEN)).expect("a fault");
            line.say(get(ECHO)).await.expect("it is taken");
            stage.wecom.wait_until(|seen| seen.received(GETTOKEN) == 1).await.expect("it arrives");
        }
        Point::Queued => {
            stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
            let mut first = Line::to(stage.address()).await;
            first.say(get(ECHO)).await.expect("it is taken");
            stage.wecom.wait_until(|seen| seen.received(ECHO) == 1).await.expect("it arrives");
            line.say(get("/cgi-bin/simulator/sink")).await.expect("it is taken");
            let places = stage.proxy.places();
            wait_for("its turn in the row", async || places.waiting() == 1).await;
            go(line, leave);
            // A place that is free before this is heard of, on a connection of its own, may be taken still.
            wait_for("an empty row", async || places.waiting() == 0).await;
            go(first, leave);
            return;
        }
        Point::Uploading | Point::UploadingAgain => {
            // WeCom need not have the body in order to refuse the token.
            let refused = point == Point::UploadingAgain;
            if refused {
                stage.wecom.revoke("hr").expect("an agent");
            }
            let head = "Host: x\r\nContent-Length: 3000000\r\n\r\n";
            line.say(format!("POST /hr/cgi-bin/simulator/sink HTTP/1.1\r\n{head}"))
                .await
                .expect("it is taken");
            // Little, so that both tries wait for more.
            let bytes = if refused { 1000 } else { 2_000_000 };
            line.say(vec![b'x'; bytes]).await.expect("it is taken");
            let sink = |record: &&wecom_proxy::simulator::Record| record.path == "/cgi-bin/simulator/sink";
            let tries = 1 + usize::from(refused);
            let arrived = stage.wecom.wait_until(|seen| seen.requests().filter(sink).count() == tries);
            arrived.await.expect("it arrives");
        }
        Point::Uploaded => {
            stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
            let head = "Host: x\r\nContent-Length: 300000\r\n\r\n";
            line.say(format!("POST /hr{ECHO} HTTP/1.1\r\n{head}")).await.expect("it is taken");
            line.say(vec![b'x'; 300_000]).await.expect("it is taken");
            let whole = |record: &wecom_proxy::simulator::Record| record.body_bytes == 300_000;
            stage.wecom.wait_until(|seen| seen.requests().any(whole)).await.expect("it arrives");
        }
        Point::InTheBody => {
            stage.wecom.inject(Fault::stall().on("/cgi-bin/media/get")).expect("a fault");
            line.say(get("/cgi-bin/media/get?media_id=generated-300000")).await.expect("it is taken");
            assert!(line.head().await.starts_with("HTTP/1.1 200 "));
        }
    }
    go(line, leave);
    if point == Point::WaitingForToken {
        // Others may wait for the same token: the fetch itself goes on.
        stage.wecom.release();
    }
}

fn go(line: Line, leave: Leave) {
    match leave {
        Leave::Close => drop(line),
        Leave::Reset => line.reset(),
    }
}

#[tokio::test]
async fn a_caller_who_leaves_takes_everything_along() {
    tokio::join!(play(Speech::Http1), play(Speech::Http1Tls), play(Speech::Http2));
}
