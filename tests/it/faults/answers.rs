//! Answers that are none, or not one: what the caller is told of each, and that the next answer is its own.

use std::time::Duration;

use super::{
    callers::{Asker, Told, Tongue},
    peer::{CASE, Peer, Step},
    side_by_side,
};
use crate::stage::{OPEN, Stage};

/// What is said, what becomes of the connection, and what a caller is told.
struct Case {
    method: &'static str,
    said: Vec<u8>,
    then: Option<Step>,
    told: &'static str,
    body: &'static [u8],
}

fn get(said: impl AsRef<[u8]>, then: Option<Step>, told: &'static str) -> Case {
    Case { method: "GET", said: said.as_ref().to_vec(), then, told, body: b"" }
}

/// A sound answer, with something behind it that nobody asked for.
fn sound(method: &'static str, said: &str, told: &'static str, body: &'static str) -> Case {
    Case { method, said: said.as_bytes().to_vec(), then: None, told, body: body.as_bytes() }
}

/// Plays each case, and asks for something else on the same connection after it.
async fn play(tongue: Tongue, cases: Vec<Case>) {
    let peer = Peer::new().await;
    // No time-out ends a case that is not about one.
    let falls_silent =
        |case: &Case| matches!(case.then, Some(Step::Silence)) || case.told == "504 upstream-timeout";
    let wait = if cases.iter().any(falls_silent) { "2s" } else { "10m" };
    let times =
        format!("response_timeout = \"{wait}\"\nbody_timeout = \"{wait}\"\nmax_in_flight = 1\n[admin]");
    let stage = Stage::facing(peer.address, &OPEN.replace("[admin]", &times)).await;
    let mut asker = Asker::new(tongue, stage.address());
    for (nth, case) in cases.into_iter().enumerate() {
        let shown = String::from_utf8_lossy(&case.said[..case.said.len().min(120)]).into_owned();
        let name = format!("{tongue:?}, {} {shown:?}, then {:?}", case.method, case.then);
        next_one_is_served(&mut asker, nth * 2).await;
        peer.plays([Step::Say(case.said)].into_iter().chain(case.then).collect());
        peer.heard();
        let told = asker.ask(case.method, CASE, "").await;
        assert_eq!(told.to_string(), case.told, "{name}: {told:?}");
        assert_eq!(peer.heard().len(), 1, "{name}");
        let own = matches!(&told, Told::Whole { kind, .. } if !kind.is_empty());
        if !own {
            assert_eq!(told.body(), case.body, "{name}");
        }
        assert!(!String::from_utf8_lossy(told.body()).contains("TOKEN-OF"), "{name}: {told:?}");
        next_one_is_served(&mut asker, nth * 2 + 1).await;
    }
}

async fn next_one_is_served(asker: &mut Asker, nth: usize) {
    let told = asker.ask("POST", &format!("/cgi-bin/next/{nth}?"), "{}").await;
    let shown = String::from_utf8_lossy(told.body());
    assert!(shown.contains(&format!("/cgi-bin/next/{nth}?")), "{told:?}");
}

/// Plays the cases to callers of every protocol.
async fn play_all(cases: impl Fn() -> Vec<Case>) {
    tokio::join!(play(Tongue::Http10, cases()), play(Tongue::Http11, cases()), play(Tongue::Http2, cases()));
}

/// The same with cases that each wait for a time-out: all of them at once.
async fn play_each(cases: impl Fn() -> Vec<Case>) {
    let tongues = [Tongue::Http10, Tongue::Http11, Tongue::Http2];
    side_by_side(tongues.iter().flat_map(|tongue| cases().into_iter().map(|case| play(*tongue, vec![case]))))
        .await;
}

#[rustfmt::skip]
fn no_answers() -> Vec<Case> {
    let broke = |said: &[u8]| get(said, Some(Step::Close), "502 upstream-broke");
    let ok = |lines: &str| broke(format!("HTTP/1.1 200 OK\r\n{lines}").as_bytes());
    let many = "X: y\r\n".repeat(200);
    vec![
        broke(b"SSH-2.0-OpenSSH_9.6\r\n"),
        broke(b"\x16\x03\x01\x02\x00"),
        broke(b"<html>no head</html>"),
        broke(b"{\"errcode\":0}"),
        broke(b"HTTP/1.1 20 OK\r\n\r\n"),
        broke(b"HTTP/1.1 099 OK\r\n\r\n"),
        broke(b"HTTP/2 200 OK\r\n\r\n"),
        broke(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        broke(&b"HTTP/1.1 102 Processing\r\n\r\n".repeat(40)),
        broke(b"HTTP/1.1 100 Continue\r\n\r\n"),
        broke(b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\n{}"),
        broke(b"\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        broke(b"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        ok("Content-Length: 2\n\r\n{}"),
        ok("Content-Length: 2\r\n\n{}"),
        ok("X: y\nContent-Length: 2\r\n\r\n{}"),
        ok("Content-Length: 2\n\r\nX: y\r\n\r\n{}"),
        ok("Content-Le"),
        ok("no colon\r\n\r\n"),
        ok(&format!("{many}Content-Length: 2\r\n\r\nhi")),
        ok(&format!("Connection: {}\r\nContent-Length: 2\r\n\r\nhi", "x, ".repeat(200))),
        ok(&format!("X: {}\r\n", "y".repeat(70_000))),
        ok("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ok("Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ok("Transfer-Encoding: identity\r\n\r\n{}"),
        ok("Transfer-Encoding: unheard-of\r\n\r\n{}"),
        ok("Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        ok("Content-Length: 2, 2\r\n\r\n{}"),
        ok("Content-Length: -1\r\n\r\n{}"),
        ok("Content-Length: +2\r\n\r\n{}"),
        ok("Content-Length: 9223372036854775808\r\n\r\n{}"),
        ok("Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"errcode\""),
        ok("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        ok("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\n"),
    ]
}

#[tokio::test]
async fn what_is_no_answer_is_upstream_broke() {
    play_all(no_answers).await;
}

#[rustfmt::skip]
fn silent() -> Vec<Case> {
    let late = |said: &str| get(said, Some(Step::Silence), "504 upstream-timeout");
    let drips = |said: &str| get("", Some(Step::Drip(said.as_bytes().to_vec(), Duration::from_millis(10))), "504 upstream-timeout");
    vec![
        late(""),
        late("HTTP/1.1 200 OK\r\nContent-Le"),
        late("HTTP/1.1 100 Continue\r\n\r\n"),
        late("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"errcode\""),
        // A head that moves and never ends is no answer either.
        drips(&format!("HTTP/1.1 200 OK\r\n{}", "X-More: y\r\n".repeat(60))),
    ]
}

#[tokio::test]
async fn what_never_becomes_an_answer_is_upstream_timeout() {
    play_each(silent).await;
}

#[rustfmt::skip]
fn short() -> Vec<Case> {
    let png = |lines: &str, then| get(format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{lines}"), Some(then), "broken off");
    let chunked = |chunks: &str, then| png(&format!("Transfer-Encoding: chunked\r\n\r\n{chunks}"), then);
    let mut cases = Vec::new();
    for then in [Step::Close, Step::Reset] {
        cases.push(png("Content-Length: 10\r\n\r\n", then.clone()));
        cases.push(png("Content-Length: 10\r\n\r\nnine byte", then.clone()));
        cases.push(chunked("", then.clone()));
        cases.push(chunked("5\r\nfir", then.clone()));
        cases.push(chunked("5\r\nfirst", then.clone()));
        cases.push(chunked("5\r\nfirst\r\n", then.clone()));
        cases.push(chunked("5\r\nfirst\r\n0\r\n", then.clone()));
        cases.push(chunked("5\r\nfirst\r\n0\r\nX: y\r\n", then.clone()));
    }
    cases.push(chunked("5\r\nfirst and more\r\n0\r\n\r\n", Step::Close));
    cases.push(chunked("5\r\nfirst\r\nfffffffffffffffff\r\n", Step::Close));
    cases.push(png("\r\nuntil the end", Step::Reset));
    cases
}

#[rustfmt::skip]
fn stalled() -> Vec<Case> {
    let png = |lines: &str| get(format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{lines}"), Some(Step::Silence), "broken off");
    vec![
        png("\r\nuntil the end"),
        png("Content-Length: 10\r\n\r\nnine byte"),
        png("Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"),
    ]
}

#[tokio::test]
async fn what_is_short_never_looks_whole() {
    play_all(short).await;
}

#[tokio::test]
async fn what_stalls_never_looks_whole() {
    play_each(stalled).await;
}

#[rustfmt::skip]
fn more_than_one() -> Vec<Case> {
    let two = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    vec![
        sound("GET", two, "200", "first"),
        sound("POST", two, "200", "first"),
        sound("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst and more", "200", "first"),
        sound("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "200", "first"),
        sound("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst", "200", ""),
        sound("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n", "200", ""),
        sound("GET", "HTTP/1.1 204 No Content\r\n\r\nfirst", "204", ""),
        sound("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nfirst", "204", ""),
        sound("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nfirst", "304", ""),
        sound("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nfirst", "200", ""),
        sound("GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200", "hi"),
        sound("GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200", "hi"),
        sound("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", "200", "hi"),
        sound("GET", "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>", "502", "<html></html>"),
        sound("GET", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n<html></html>", "200", "<html></html>"),
    ]
}

#[tokio::test]
async fn of_several_answers_the_first_counts_and_the_next_request_gets_its_own() {
    play_all(more_than_one).await;
}

#[tokio::test]
async fn an_answer_until_the_close_is_whole_and_one_that_drips_too() {
    let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html></html>";
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n1;x=y\r\n!\r\n0\r\nX: y\r\n\r\n";
    let every = Duration::from_millis(1);
    play_all(|| {
        vec![
            Case { then: Some(Step::Close), ..sound("GET", html, "200", "<html></html>") },
            Case { then: Some(Step::Drip(chunked.into(), every)), ..sound("GET", "", "200", "first!") },
            Case { then: Some(Step::Drip(chunked.into(), every)), ..sound("POST", "", "200", "first!") },
        ]
    })
    .await;
}
