//! Every wait has an end: towards the upstream, and towards a client that is slow or silent.
//!
//! Where something has to come in time besides, the time is long enough for a machine that stands still for a while.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use wecom_proxy::simulator::Fault;

use crate::{
    stage::{Caller, ECHO, OPEN, Stage, USER_GET, soon},
    wire::{Line, Puppet},
};

/// Open, with these lines in `[server]` and `[upstream]`.
fn bounded(server: &str, upstream: &str) -> String {
    OPEN.replace("[upstream]", &format!("{server}\n[upstream]\n{upstream}"))
}

/// The proxy says no more, and closes.
async fn is_closed(line: &mut Line) -> Vec<u8> {
    line.rest().await.0
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_upstream_timeout() {
    let stage = Stage::with(&bounded("", "response_timeout = \"2s\"")).await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
    let (get, post) = tokio::join!(stage.get(ECHO), stage.post(ECHO, "{}"));
    get.is_own("upstream-timeout", 504, -1);
    post.is_own("upstream-timeout", 504, -1);
    assert_eq!(stage.got_through(), 3);
    stage.get(USER_GET).await.is_ok();
}

#[tokio::test]
async fn an_answer_that_stalls_before_its_head_went_on_is_upstream_timeout() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, &bounded("", "body_timeout = \"200ms\"")).await;
    let play = async {
        let mut call = puppet.call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"a\":";
        call.line.say(head).await.expect("it is taken");
        call
    };
    let (reply, _call) = tokio::join!(stage.get(USER_GET), play);
    reply.is_own("upstream-timeout", 504, -1);
}

/// A connection brings one timer for all it waits for, and leaves it to the next connection: each wait has its own end.
#[tokio::test]
async fn whatever_was_waited_for_before_the_next_wait_has_its_end() {
    let mut puppet = Puppet::new().await;
    let upstream = "response_timeout = \"2s\"\nbody_timeout = \"2s\"";
    let stage = Stage::facing(puppet.address, &bounded("idle_timeout = \"3s\"", upstream)).await;
    let get = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n");
    let piece =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let mut hangs = Vec::new();
    for stalls in [true, false] {
        let mut caller = Line::to(stage.address()).await;
        if stalls {
            // The token is refused, and to the second try nothing is said.
            caller.say(&get).await.expect("it is taken");
            let mut call = puppet.call().await;
            let refusal = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"errcode\":40014}";
            call.line.say(refusal).await.expect("it is taken");
            assert!(call.line.head().await.starts_with("GET "));
            assert!(caller.answer().await.0.starts_with("HTTP/1.1 504 "));
            hangs.push(call);
        }
        // An answer in pieces, on a connection that is kept.
        caller.say(&get).await.expect("it is taken");
        let mut call = puppet.call().await;
        call.line.say(piece).await.expect("it is taken");
        assert!(caller.head().await.starts_with("HTTP/1.1 200 "));
        call.line.say("0\r\n\r\n").await.expect("it is taken");
        assert_eq!(caller.bytes(15).await, b"5\r\nhello\r\n0\r\n\r\n");
        // It closes under the next request, and where that is sent again nothing is said.
        caller.say(&get).await.expect("it is taken");
        assert!(call.line.head().await.starts_with("GET "));
        drop(call);
        hangs.push(puppet.call().await);
        assert!(caller.answer().await.0.starts_with("HTTP/1.1 504 "));
        if stalls {
            caller.say(&get).await.expect("it is taken");
            let mut call = puppet.call().await;
            call.line.say(piece).await.expect("it is taken");
            assert!(caller.head().await.starts_with("HTTP/1.1 200 "));
            hangs.push(call);
            assert_eq!(caller.rest().await.0, b"5\r\nhello\r\n");
        } else {
            assert_eq!(is_closed(&mut caller).await, b"");
        }
    }
}

#[tokio::test]
async fn an_answer_that_stalls_later_breaks_the_callers_connection_off() {
    let stage = Stage::with(&bounded("", "body_timeout = \"200ms\"")).await;
    stage.wecom.inject(Fault::stall().on("/cgi-bin/media/get")).expect("a fault");
    for http2 in [false, true] {
        let mut caller = match http2 {
            true => Caller::http2(stage.address()).await,
            false => Caller::http1(stage.address()).await,
        };
        let media = "/hr/cgi-bin/media/get?media_id=generated-100000";
        let request = http::Request::get(media).body(Default::default()).expect("a request");
        let response = soon(caller.send(request)).await.expect("a head");
        assert!(soon(http_body_util::BodyExt::collect(response.into_body())).await.is_err());
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    let stage = Stage::with(&bounded("header_timeout = \"300ms\"", "")).await;
    for beginning in [
        "G",
        "GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n",
        "P",
        "PRI * HT",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n",
    ] {
        let mut line = Line::to(stage.address()).await;
        line.say(beginning).await.expect("it is taken");
        assert_eq!(is_closed(&mut line).await, b"", "{beginning:?}");
    }
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off_all_the_same() {
    let stage = Stage::with(&bounded("header_timeout = \"300ms\"", "")).await;
    let mut line = Line::to(stage.address()).await;
    line.say("GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.expect("it is taken");
    let mut drips = tokio::time::interval(Duration::from_millis(20));
    let cut = async {
        while line.say("x").await.is_ok() {
            drips.tick().await;
        }
    };
    soon(cut).await;
    assert_eq!(stage.got_through(), 0);
}

#[tokio::test]
async fn the_second_head_on_a_connection_is_bounded_as_well() {
    let stage = Stage::with(&bounded("header_timeout = \"2s\"", "")).await;
    let mut line = Line::to(stage.address()).await;
    line.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
    line.say("GET /hr").await.expect("it is taken");
    assert_eq!(is_closed(&mut line).await, b"");
}

/// A task that has used up its turn is told by the runtime to come again, and told so by the timer too. However many requests
/// come at once, the connection is closed when nothing follows.
#[tokio::test]
async fn a_connection_that_was_busy_at_first_is_closed_when_it_is_silent() {
    let stage = Stage::with(&bounded("idle_timeout = \"1s\"\nheader_timeout = \"60s\"", "")).await;
    let mut lines = Vec::new();
    for requests in 110..140 {
        let mut line = Line::to(stage.address()).await;
        line.say("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(requests)).await.expect("it is taken");
        lines.push((requests, line));
    }
    for (requests, line) in &mut lines {
        let all = String::from_utf8(is_closed(line).await).expect("text");
        assert_eq!(all.matches("HTTP/1.1 404 ").count(), *requests);
    }
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let stage = Stage::with(&bounded("idle_timeout = \"2s\"\nheader_timeout = \"60s\"", "")).await;
    let after = async |requests| {
        let mut line = Line::to(stage.address()).await;
        for _ in 0..requests {
            line.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
            assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(is_closed(&mut line).await, b"");
    };
    tokio::join!(after(0), after(1), after(2));
}

#[tokio::test]
async fn a_kept_connection_outlives_header_timeout_between_two_requests() {
    let stage = Stage::with(&bounded("header_timeout = \"2s\"", "")).await;
    let mut line = Line::to(stage.address()).await;
    for last in [false, true] {
        line.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
        if !last {
            // That nothing happens has no event: twice as long as a head may take.
            let silence = tokio::time::timeout(Duration::from_secs(4), line.more()).await;
            assert!(silence.is_err(), "the connection was closed");
        }
    }
}

/// The preface of HTTP/2 and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

#[tokio::test]
async fn a_silent_http_2_connection_is_closed() {
    let stage = Stage::with(&bounded("idle_timeout = \"2s\"\nheader_timeout = \"60s\"", "")).await;
    let mut without_streams = Line::to(stage.address()).await;
    without_streams.say(HELLO).await.expect("it is taken");

    let mut line = Line::to(stage.address()).await;
    let path = format!("/hr{USER_GET}");
    // GET, http, a path and an authority, none of them indexed.
    let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
    let headers = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat();
    line.say([HELLO, &headers].concat()).await.expect("it is taken");
    tokio::join!(is_closed(&mut without_streams), is_closed(&mut line));
    assert_eq!(stage.wecom.executed("/cgi-bin/user/get"), 1);
}

#[tokio::test]
async fn half_a_head_of_http_2_is_cut_off() {
    let stage = Stage::with(&bounded("header_timeout = \"300ms\"\nidle_timeout = \"60s\"", "")).await;
    stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
    let begins = b"\0\0\x02\x01\x01\0\0\0\x03\x82\x86";
    let goes_on = b"\0\0\0\x09\0\0\0\0\x03";
    let path = format!("/hr{ECHO}");
    let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
    let other = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat();
    // A request that is being served beside it changes nothing.
    for before in [&b""[..], &other] {
        for drip in [&b""[..], goes_on] {
            let mut line = Line::to(stage.address()).await;
            line.say([HELLO, before, begins].concat()).await.expect("it is taken");
            if drip.is_empty() {
                is_closed(&mut line).await;
                continue;
            }
            let mut drips = tokio::time::interval(Duration::from_millis(50));
            let cut = async {
                while line.say(drip).await.is_ok() {
                    drips.tick().await;
                }
            };
            soon(cut).await;
        }
    }
}

#[tokio::test]
async fn a_client_of_http_2_that_may_be_gone_is_asked() {
    let stage = Stage::with(&bounded("idle_timeout = \"300ms\"", "")).await;
    stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
    let path = format!("/hr{ECHO}");
    let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
    let mut line = Line::to(stage.address()).await;
    line.say([HELLO, &[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat())
        .await
        .expect("taken");
    // While a request lasts, silence is no reason to close: a ping tells whether anybody is there.
    while {
        let head = line.bytes(9).await;
        line.bytes(usize::from(head[1]) << 8 | usize::from(head[2])).await;
        (head[3], head[4]) != (6, 0)
    } {}
    stage.wecom.release();
}

#[tokio::test]
async fn an_idle_http_2_connection_that_only_pings_lives_until_idle_timeout() {
    let stage = Stage::with(&bounded("header_timeout = \"2s\"", "")).await;
    let mut line = Line::to(stage.address()).await;
    line.say(HELLO).await.expect("it is taken");
    // Twice as long as a head may take: nothing here is one.
    let mut pings = tokio::time::interval(Duration::from_millis(350));
    for _ in 0..12 {
        pings.tick().await;
        line.say(b"\x00\x00\x08\x06\x00\x00\x00\x00\x00onetwo12").await.expect("it is open");
    }
    let mut pongs = 0;
    while pongs < 12 {
        let head = line.bytes(9).await;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        line.bytes(length).await;
        pongs += usize::from(head[3] == 6);
    }
}

#[tokio::test]
async fn a_request_that_takes_long_is_not_idle() {
    let stage = Stage::with(&bounded("idle_timeout = \"2s\"\nheader_timeout = \"2s\"", "")).await;
    stage.wecom.inject(Fault::delay(Duration::from_secs(4)).on(ECHO)).expect("a fault");
    let http2 = async { Caller::http2(stage.address()).await.get(ECHO).await };
    let (one, two) = tokio::join!(stage.get(ECHO), http2);
    one.is_ok();
    two.is_ok();
}

#[tokio::test]
async fn a_body_that_stalls_is_refused_and_the_upstream_let_go() {
    let stage = Stage::with(&bounded("body_timeout = \"300ms\"", "")).await;
    stage.get(USER_GET).await.is_ok();
    for lines in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut line = Line::to(stage.address()).await;
        line.say(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{lines}")).await.expect("it is taken");
        let (head, body) = line.answer().await;
        assert!(head.starts_with("HTTP/1.1 400 ") && body.contains("server.body_timeout"), "{head}{body}");
    }
    stage.wecom.wait_until(|seen| seen.in_flight() == 0).await.expect("the upstream is let go");
    assert_eq!(stage.wecom.executed(ECHO), 0);
}

#[tokio::test]
async fn a_body_that_is_slow_but_moves_is_taken() {
    let toml = bounded("body_timeout = \"20s\"", "response_timeout = \"2s\"");
    let stage = Stage::with(&toml).await;
    let mut line = Line::to(stage.address()).await;
    line.say(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"))
        .await
        .expect("taken");
    // The upstream owes no answer while the client takes its time.
    let mut drips = tokio::time::interval(Duration::from_millis(350));
    for _ in 0..12 {
        drips.tick().await;
        line.say("x").await.expect("it is taken");
    }
    let (head, body) = line.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
}

#[tokio::test]
async fn an_upstream_that_never_reads_is_upstream_timeout() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, &bounded("", "response_timeout = \"2s\"")).await;
    let (reply, _call) = tokio::join!(stage.post(ECHO, vec![1; 30_000_000]), puppet.call());
    reply.is_own("upstream-timeout", 504, -1);
}

#[tokio::test]
async fn gettoken_that_gets_no_answer_is_token_unavailable() {
    let stage = Stage::with(&bounded("", "response_timeout = \"200ms\"")).await;
    stage.wecom.inject(Fault::hold().on("/cgi-bin/gettoken")).expect("a fault");
    stage.get(USER_GET).await.is_own("token-unavailable", 502, -1);
    assert_eq!(stage.got_through(), 0);
}

#[tokio::test]
async fn a_caller_that_takes_no_answer_is_let_go() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, &bounded("body_timeout = \"300ms\"", "")).await;
    let mut line = Line::to(stage.address()).await;
    line.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    let mut call = puppet.call().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9000000000\r\n\r\n";
    call.line.say(head).await.expect("it is taken");
    let piece = vec![b'x'; 64 * 1024];
    // It ends when the proxy has closed the upstream's connection.
    while call.line.say(&piece).await.is_ok() {}
    drop(line);
}

/// The same with windows that are shut from the start.
const SHUT: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00";

#[tokio::test]
async fn an_http_2_caller_that_takes_no_answer_is_let_go() {
    let stage = Stage::with(&bounded("body_timeout = \"300ms\"", "max_in_flight = 1")).await;
    // The proxy's own answers wait for the window as the upstream's do.
    for path in ["/nowhere".to_owned(), format!("/hr{ECHO}")] {
        let mut line = Line::to(stage.address()).await;
        let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
        let headers = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat();
        line.say([SHUT, &headers].concat()).await.expect("it is taken");
        // It ends with RST_STREAM, and with it the place in flight is free.
        while {
            let head = line.bytes(9).await;
            line.bytes(usize::from(head[1]) << 8 | usize::from(head[2])).await;
            head[3] != 3
        } {}
        stage.get(USER_GET).await.is_ok();
    }
}

#[tokio::test]
async fn an_http_2_caller_that_is_slow_but_takes_something_gets_it_all() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, &bounded("body_timeout = \"5s\"", "")).await;
    let tcp = tokio::net::TcpStream::connect(stage.address()).await.expect("a connection");
    let handshake = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(20_000)
        .handshake(TokioIo::new(tcp));
    let (mut sender, connection) = handshake.await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::get(format!("http://proxy.test/hr{USER_GET}")).body(Empty::<Bytes>::new());
    let sending = sender.send_request(request.expect("a request"));
    let play = async {
        let mut call = puppet.call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 100000\r\n\r\n";
        call.line.say([head.as_bytes(), &[b'x'; 100_000]].concat()).await.expect("it is taken");
        call
    };
    let (answer, _call) = soon(async { tokio::join!(sending, play) }).await;
    let (mut body, mut taken) = (answer.expect("an answer").into_body(), 0);
    while let Some(frame) = soon(body.frame()).await {
        let before = taken;
        taken += frame.expect("more").data_ref().map_or(0, Bytes::len);
        // What the proxy offers at once, 16 KiB at most, is taken in half of the time-out, however small its frames; all of it
        // takes longer than that.
        for _ in before / 10_000..taken / 10_000 {
            tokio::time::sleep(Duration::from_millis(800)).await;
        }
    }
    assert_eq!(taken, 100_000);
}
