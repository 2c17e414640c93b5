//! An upstream that answers before the upload has ended.

use super::{
    Speech,
    callers::{Asker, Tongue},
    peer::{CASE, Peer, Step, json},
};
use crate::{
    stage::{ECHO, OPEN, Stage, USER_GET},
    wire::Line,
};
use wecom_proxy::simulator::Fault;

/// More than the sockets on the way hold.
const LARGE: usize = 12 << 20;
/// They hold this.
const SMALL: usize = 100_000;

struct Case {
    said: Vec<u8>,
    told: &'static str,
    /// How often the request reaches the upstream.
    heard: usize,
}

fn cases() -> Vec<Case> {
    let case = |said: &[u8], told, heard| Case { said: said.to_vec(), told, heard };
    let too_large = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge";
    vec![
        case(&json("{\"errcode\":0}"), "200", 1),
        case(too_large, "413", 1),
        case(&json("{\"errcode\":45001,\"errmsg\":\"media size out of limit\"}"), "200", 1),
        // The second attempt is taken, and judged, to its end.
        case(&json("{\"errcode\":40014,\"errmsg\":\"invalid access_token\"}"), "200 retried", 2),
    ]
}

async fn play(tongue: Tongue) {
    let peer = Peer::new().await;
    let bounds = "max_in_flight = 1\nresponse_timeout = \"20s\"\n[replay]\nmemory = \"1MiB\"\n[admin]";
    let stage = Stage::facing(peer.address, &OPEN.replace("[admin]", bounds)).await;
    let well = vec![Step::TakeBody, Step::Say(json("{\"errcode\":0}"))];
    // An upstream that reads no more after its answer is left; one that reads on may be asked again, and has
    // to answer then.
    for (length, then) in [(SMALL, Step::TakeBody), (LARGE, Step::TakeBody), (LARGE, Step::Deaf)] {
        for Case { said, told, heard } in cases() {
            let name = format!("{tongue:?}, {length}, {:?}, then {then:?}", String::from_utf8_lossy(&said));
            peer.heard();
            peer.plays_two(vec![Step::Say(said), then.clone()], well.clone());
            // A connection on which a request was not taken to its end is closed.
            let mut asker = Asker::new(tongue, stage.address());
            assert_eq!(asker.ask("PUT", CASE, vec![b'x'; length]).await.to_string(), told, "{name}");
            assert_eq!(peer.heard().len(), heard, "{name}");
            let next = Asker::new(tongue, stage.address()).ask("POST", "/cgi-bin/next/1?", "{}").await;
            let shown = String::from_utf8_lossy(next.body());
            assert!(shown.contains("/cgi-bin/next/1?"), "{name}: {next:?}");
            let heard = peer.heard();
            assert!(heard.len() == 1 && heard[0].starts_with("POST /cgi-bin/next/1?"), "{name}: {heard:?}");
        }
    }
    let shelf = stage.proxy.shelf();
    crate::stage::wait_for("an empty shelf", async || shelf.in_memory() + shelf.in_files() == 0).await;
}

#[tokio::test]
async fn an_early_answer_reaches_a_caller_of_http_1_1() {
    play(Tongue::Http11).await;
}

#[tokio::test]
async fn an_early_answer_reaches_a_caller_of_http_2() {
    play(Tongue::Http2).await;
}

#[tokio::test]
async fn an_early_answer_of_http_2_reaches_the_caller() {
    for tongue in [Tongue::Http11, Tongue::Http2] {
        let (stage, _authority) = Speech::Http2.stage("", "max_in_flight = 1").await;
        let asker = || Asker::new(tongue, stage.address());
        assert_eq!(asker().ask("GET", USER_GET, "").await.to_string(), "200");
        stage.wecom.inject(Fault::errcode(45009).on(ECHO).times(1)).expect("a fault");
        let told = asker().ask("POST", ECHO, vec![b'x'; LARGE]).await;
        assert!(String::from_utf8_lossy(told.body()).contains("45009"), "{tongue:?}: {told:?}");
        stage.wecom.inject(Fault::status(413).on(ECHO).times(1)).expect("a fault");
        let told = asker().ask("POST", ECHO, vec![b'x'; LARGE]).await;
        assert_eq!(told.to_string(), "413", "{tongue:?}");
        assert_eq!(asker().ask("POST", ECHO, "{}").await.to_string(), "200", "{tongue:?}");
    }
}

#[tokio::test]
async fn an_early_answer_of_http_2_says_that_it_is_the_last() {
    let (stage, _authority) = Speech::Http2.stage("", "max_in_flight = 1").await;
    assert_eq!(stage.get(USER_GET).await.status, 200);
    stage.wecom.inject(Fault::errcode(45009).on(ECHO).times(1)).expect("a fault");
    let mut line = Line::to(stage.address()).await;
    let half = "x".repeat(SMALL / 2);
    line.say(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: {SMALL}\r\n\r\n{half}"))
        .await
        .expect("half");
    let (head, body) = line.answer().await;
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert!(body.contains("45009"), "{body}");
    line.say(half).await.expect("a client that takes no notice");
    let (more, end) = line.rest().await;
    assert!(more.is_empty() && end.is_ok(), "{end:?}: {}", String::from_utf8_lossy(&more));
}
