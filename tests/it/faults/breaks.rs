//! An upstream that drops, stalls or crumbles, at each point of an exchange.

use wecom_proxy::simulator::{Fault, When};

use super::{
    Speech,
    callers::{Asker, Tongue},
    side_by_side,
};
use crate::stage::{ECHO, Stage, USER_GET};

/// An answer without errcode, whose head goes on at once.
const MEDIA: &str = "/cgi-bin/media/get?media_id=generated-200000";
/// What an upstream that falls silent costs; nobody else is so slow, even where the machine stands still for a while.
const SILENCE: &str = "2s";
/// No time-out ends a case that is not about one.
const EVER: &str = "10m";

/// What goes wrong, with which request, what the caller is told, and how often WeCom got the request and carried it out.
struct Case {
    fault: Fault,
    method: &'static str,
    path: &'static str,
    told: &'static str,
    received: usize,
    executed: u64,
    falls_silent: bool,
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let case = |fault: Fault, method, path, told, received, executed| Case { fault, method, path, told, received, executed, falls_silent: false };
    let silent = |fault: Fault, method, path, told| Case { falls_silent: true, ..case(fault.times(1), method, path, told, 1, 1) };
    let drop = |when| Fault::drop(when);
    vec![
        // The connection was kept, and not a byte of an answer came: what does no harm twice goes out again.
        case(drop(When::Arrival), "GET", ECHO, "200", 2, 1),
        case(drop(When::Arrival), "POST", ECHO, "502 upstream-broke", 1, 0),
        case(drop(When::Before), "GET", ECHO, "200", 2, 2),
        case(drop(When::Before), "PUT", ECHO, "200", 2, 2),
        case(drop(When::Before), "POST", ECHO, "502 upstream-broke", 1, 1),
        case(drop(When::Before), "PATCH", ECHO, "502 upstream-broke", 1, 1),
        case(drop(When::Head), "POST", ECHO, "502 upstream-broke", 1, 1),
        case(drop(When::Head), "GET", MEDIA, "broken off", 1, 1),
        case(drop(When::Body), "POST", ECHO, "broken off", 1, 1),
        case(drop(When::Body), "GET", MEDIA, "broken off", 1, 1),
        silent(Fault::stall(), "POST", ECHO, "broken off"),
        silent(Fault::stall(), "GET", MEDIA, "broken off"),
        silent(Fault::hold(), "GET", ECHO, "504 upstream-timeout"),
        silent(Fault::hold(), "POST", ECHO, "504 upstream-timeout"),
        case(Fault::pieces(1).times(1), "POST", ECHO, "200", 1, 1),
        case(Fault::pieces(1000).times(1), "GET", MEDIA, "200", 1, 1),
    ]
}

/// Plays the cases one after the other; each that waits for a time-out beside them, by itself.
async fn play(speech: Speech, tongue: Tongue) {
    let (silent, others): (Vec<_>, Vec<_>) = cases().into_iter().partition(|case| case.falls_silent);
    let silent = silent.into_iter().map(|case| (vec![case], SILENCE));
    side_by_side(silent.chain([(others, EVER)]).map(|(cases, wait)| play_on(speech, tongue, cases, wait)))
        .await;
}

async fn play_on(speech: Speech, tongue: Tongue, cases: Vec<Case>, wait: &str) {
    let times = format!(
        "response_timeout = \"{wait}\"\nbody_timeout = \"{wait}\"\nmax_in_flight = 1\nqueue_timeout = \"10m\""
    );
    let (stage, _authority) = speech.stage("", &times).await;
    let mut asker = Asker::new(tongue, stage.address());
    for case in cases {
        // A connection to WeCom is kept now, in the part of the proxy that serves this caller.
        next_one_is_served(&mut asker).await;
        stage.wecom.reset();
        let path = case.path.split('?').next().expect("a path");
        let name = format!("{tongue:?}, {speech}: {:?}, {} {path}", case.fault, case.method);
        stage.wecom.inject(case.fault.on(path)).expect("a fault");
        let body = if case.method == "GET" { "" } else { "{\"a\":1}" };
        let told = asker.ask(case.method, case.path, body).await;
        // Over HTTP/2 the stream may break before the connection is seen to: then WeCom may have acted, and nothing is sent
        // again.
        let (expected, received, executed) = match speech {
            Speech::Http2 if case.received == 2 && told.to_string() != case.told => {
                ("502 upstream-broke", 1, case.executed - 1)
            }
            _ => (case.told, case.received, case.executed),
        };
        // To a caller of HTTP/1.0 that is told no length only the reset shows.
        assert_eq!(told.to_string(), expected, "{name}: {told:?}");
        stage.wecom.release();
        next_one_is_served(&mut asker).await;
        assert_eq!(counts(&stage, path), (received, executed), "{name}");
    }
}

fn counts(stage: &Stage, path: &str) -> (usize, u64) {
    stage.wecom.look(|seen| (seen.received(path), seen.executed(path)))
}

/// The only place in flight is free, and what is answered is this request.
async fn next_one_is_served(asker: &mut Asker) {
    let told = asker.ask("GET", USER_GET, "").await;
    let shown = String::from_utf8_lossy(told.body());
    assert!(told.to_string() == "200" && shown.contains("\"userid\":\"zhangsan\""), "{told:?}");
}

#[tokio::test]
async fn a_caller_of_http_1_0_is_told_the_truth() {
    tokio::join!(play(Speech::Http1, Tongue::Http10), play(Speech::Http2, Tongue::Http10));
}

#[tokio::test]
async fn a_caller_of_http_1_1_is_told_the_truth() {
    tokio::join!(
        play(Speech::Http1, Tongue::Http11),
        play(Speech::Http1Tls, Tongue::Http11),
        play(Speech::Http2, Tongue::Http11)
    );
}

#[tokio::test]
async fn a_caller_of_http_2_is_told_the_truth() {
    tokio::join!(play(Speech::Http1, Tongue::Http2), play(Speech::Http2, Tongue::Http2));
}
