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
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, with_timeout},
    raw_http::{ManualUpstream, RawConnection},
};

/// Open, with these lines in `[server]` and `[upstream]`.
fn config_with_timeouts(server: &str, upstream: &str) -> String {
    OPEN_CONFIG.replace("[upstream]", &format!("{server}\n[upstream]\n{upstream}"))
}

/// The proxy says no more, and closes.
async fn read_until_closed(line: &mut RawConnection) -> Vec<u8> {
    line.read_to_end().await.0
}

#[tokio::test]
async fn missing_response_returns_upstream_timeout() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("", "response_timeout = \"2s\"")).await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let (get, post) = tokio::join!(stage.get(ECHO), stage.post(ECHO, "{}"));
    get.assert_proxy_error("upstream-timeout", 504, -1);
    post.assert_proxy_error("upstream-timeout", 504, -1);
    assert_eq!(stage.forwarded_count(), 3);
    stage.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn response_stalled_before_forwarding_is_upstream_timeout() {
    let mut puppet = ManualUpstream::new().await;
    let stage =
        TestProxy::start_with_upstream(puppet.address, &config_with_timeouts("", "body_timeout = \"200ms\""))
            .await;
    let play = async {
        let mut call = puppet.next_call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"a\":";
        call.connection.send(head).await.expect("it is taken");
        call
    };
    let (reply, _call) = tokio::join!(stage.get(USER_GET), play);
    reply.assert_proxy_error("upstream-timeout", 504, -1);
}

/// A connection brings one timer for all it waits for, and leaves it to the next connection: each wait has its own end.
#[tokio::test]
async fn reused_timer_ends_each_wait() {
    let mut puppet = ManualUpstream::new().await;
    let upstream = "response_timeout = \"2s\"\nbody_timeout = \"2s\"";
    let stage = TestProxy::start_with_upstream(
        puppet.address,
        &config_with_timeouts("idle_timeout = \"3s\"", upstream),
    )
    .await;
    let get = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n");
    let piece =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let mut hangs = Vec::new();
    for stalls in [true, false] {
        let mut caller = RawConnection::connect(stage.address()).await;
        if stalls {
            // The token is refused, and to the second try nothing is said.
            caller.send(&get).await.expect("it is taken");
            let mut call = puppet.next_call().await;
            let refusal = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"errcode\":40014}";
            call.connection.send(refusal).await.expect("it is taken");
            assert!(call.connection.read_head().await.starts_with("GET "));
            assert!(caller.read_response().await.0.starts_with("HTTP/1.1 504 "));
            hangs.push(call);
        }
        // An answer in pieces, on a connection that is kept.
        caller.send(&get).await.expect("it is taken");
        let mut call = puppet.next_call().await;
        call.connection.send(piece).await.expect("it is taken");
        assert!(caller.read_head().await.starts_with("HTTP/1.1 200 "));
        call.connection.send("0\r\n\r\n").await.expect("it is taken");
        assert_eq!(caller.read_exact(15).await, b"5\r\nhello\r\n0\r\n\r\n");
        // It closes under the next request, and where that is sent again nothing is said.
        caller.send(&get).await.expect("it is taken");
        assert!(call.connection.read_head().await.starts_with("GET "));
        drop(call);
        hangs.push(puppet.next_call().await);
        assert!(caller.read_response().await.0.starts_with("HTTP/1.1 504 "));
        if stalls {
            caller.send(&get).await.expect("it is taken");
            let mut call = puppet.next_call().await;
            call.connection.send(piece).await.expect("it is taken");
            assert!(caller.read_head().await.starts_with("HTTP/1.1 200 "));
            hangs.push(call);
            assert_eq!(caller.read_to_end().await.0, b"5\r\nhello\r\n");
        } else {
            assert_eq!(read_until_closed(&mut caller).await, b"");
        }
    }
}

#[tokio::test]
async fn response_stalled_in_its_body_aborts_the_client_connection() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("", "body_timeout = \"200ms\"")).await;
    stage.wecom.inject(Fault::stall().on_path("/cgi-bin/media/get")).expect("a fault");
    for http2 in [false, true] {
        let mut caller = match http2 {
            true => TestClient::connect_http2(stage.address()).await,
            false => TestClient::connect_http1(stage.address()).await,
        };
        let media = "/hr/cgi-bin/media/get?media_id=generated-100000";
        let request = http::Request::get(media).body(Default::default()).expect("a request");
        let response = with_timeout(caller.send(request)).await.expect("a head");
        assert!(with_timeout(http_body_util::BodyExt::collect(response.into_body())).await.is_err());
    }
}

#[tokio::test]
async fn incomplete_request_head_is_closed() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"300ms\"", "")).await;
    for beginning in [
        "G",
        "GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n",
        "P",
        "PRI * HT",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n",
    ] {
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(beginning).await.expect("it is taken");
        assert_eq!(read_until_closed(&mut line).await, b"", "{beginning:?}");
    }
}

#[tokio::test]
async fn slow_request_head_is_closed() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"300ms\"", "")).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send("GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.expect("it is taken");
    let mut drips = tokio::time::interval(Duration::from_millis(20));
    let cut = async {
        while line.send("x").await.is_ok() {
            drips.tick().await;
        }
    };
    with_timeout(cut).await;
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn second_request_head_is_timed_too() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"2s\"", "")).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    assert!(line.read_response().await.0.starts_with("HTTP/1.1 200 "));
    line.send("GET /hr").await.expect("it is taken");
    assert_eq!(read_until_closed(&mut line).await, b"");
}

/// A task that has used up its turn is told by the runtime to come again, and told so by the timer too. However many requests
/// come at once, the connection is closed when nothing follows.
#[tokio::test]
async fn idle_connection_after_a_burst_is_closed() {
    let stage = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"1s\"\nheader_timeout = \"60s\"",
        "",
    ))
    .await;
    let mut lines = Vec::new();
    for requests in 110..140 {
        let mut line = RawConnection::connect(stage.address()).await;
        line.send("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(requests)).await.expect("it is taken");
        lines.push((requests, line));
    }
    for (requests, line) in &mut lines {
        let all = String::from_utf8(read_until_closed(line).await).expect("text");
        assert_eq!(all.matches("HTTP/1.1 404 ").count(), *requests);
    }
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let stage = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"2s\"\nheader_timeout = \"60s\"",
        "",
    ))
    .await;
    let after = async |requests| {
        let mut line = RawConnection::connect(stage.address()).await;
        for _ in 0..requests {
            line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
            assert!(line.read_response().await.0.starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(read_until_closed(&mut line).await, b"");
    };
    tokio::join!(after(0), after(1), after(2));
}

#[tokio::test]
async fn keep_alive_idle_time_is_not_header_timeout() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"2s\"", "")).await;
    let mut line = RawConnection::connect(stage.address()).await;
    for last in [false, true] {
        line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 200 "));
        if !last {
            // That nothing happens has no event: twice as long as a head may take.
            let silence = tokio::time::timeout(Duration::from_secs(4), line.read_more()).await;
            assert!(silence.is_err(), "the connection was closed");
        }
    }
}

/// The preface of HTTP/2 and empty settings.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

#[tokio::test]
async fn idle_http2_connection_is_closed() {
    let stage = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"2s\"\nheader_timeout = \"60s\"",
        "",
    ))
    .await;
    let mut without_streams = RawConnection::connect(stage.address()).await;
    without_streams.send(HTTP2_PREFACE).await.expect("it is taken");

    let mut line = RawConnection::connect(stage.address()).await;
    let path = format!("/hr{USER_GET}");
    // GET, http, a path and an authority, none of them indexed.
    let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
    let headers = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat();
    line.send([HTTP2_PREFACE, &headers].concat()).await.expect("it is taken");
    tokio::join!(read_until_closed(&mut without_streams), read_until_closed(&mut line));
    assert_eq!(stage.wecom.executed_count("/cgi-bin/user/get"), 1);
}

#[tokio::test]
async fn incomplete_http2_header_block_is_closed() {
    let stage = TestProxy::start_with_config(&config_with_timeouts(
        "header_timeout = \"300ms\"\nidle_timeout = \"60s\"",
        "",
    ))
    .await;
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let begins = b"\0\0\x02\x01\x01\0\0\0\x03\x82\x86";
    let goes_on = b"\0\0\0\x09\0\0\0\0\x03";
    let path = format!("/hr{ECHO}");
    let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
    let other = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat();
    // A request that is being served beside it changes nothing.
    for before in [&b""[..], &other] {
        for drip in [&b""[..], goes_on] {
            let mut line = RawConnection::connect(stage.address()).await;
            line.send([HTTP2_PREFACE, before, begins].concat()).await.expect("it is taken");
            if drip.is_empty() {
                read_until_closed(&mut line).await;
                continue;
            }
            let mut drips = tokio::time::interval(Duration::from_millis(50));
            let cut = async {
                while line.send(drip).await.is_ok() {
                    drips.tick().await;
                }
            };
            with_timeout(cut).await;
        }
    }
}

#[tokio::test]
async fn quiet_http2_client_is_pinged() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("idle_timeout = \"300ms\"", "")).await;
    stage.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let path = format!("/hr{ECHO}");
    let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
    let mut line = RawConnection::connect(stage.address()).await;
    line.send([HTTP2_PREFACE, &[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat())
        .await
        .expect("taken");
    // While a request lasts, silence is no reason to close: a ping tells whether anybody is there.
    while {
        let head = line.read_exact(9).await;
        line.read_exact(usize::from(head[1]) << 8 | usize::from(head[2])).await;
        (head[3], head[4]) != (6, 0)
    } {}
    stage.wecom.release_held();
}

#[tokio::test]
async fn pinging_http2_connection_lives_until_idle_timeout() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"2s\"", "")).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(HTTP2_PREFACE).await.expect("it is taken");
    // Twice as long as a head may take: nothing here is one.
    let mut pings = tokio::time::interval(Duration::from_millis(350));
    for _ in 0..12 {
        pings.tick().await;
        line.send(b"\x00\x00\x08\x06\x00\x00\x00\x00\x00onetwo12").await.expect("it is open");
    }
    let mut pongs = 0;
    while pongs < 12 {
        let head = line.read_exact(9).await;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        line.read_exact(length).await;
        pongs += usize::from(head[3] == 6);
    }
}

#[tokio::test]
async fn slow_request_is_not_idle() {
    let stage = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"2s\"\nheader_timeout = \"2s\"",
        "",
    ))
    .await;
    stage.wecom.inject(Fault::delay(Duration::from_secs(4)).on_path(ECHO)).expect("a fault");
    let http2 = async { TestClient::connect_http2(stage.address()).await.get(ECHO).await };
    let (one, two) = tokio::join!(stage.get(ECHO), http2);
    one.assert_ok();
    two.assert_ok();
}

#[tokio::test]
async fn stalled_body_is_refused_and_the_upstream_released() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("body_timeout = \"300ms\"", "")).await;
    stage.get(USER_GET).await.assert_ok();
    for lines in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{lines}")).await.expect("it is taken");
        let (head, body) = line.read_response().await;
        assert!(head.starts_with("HTTP/1.1 400 ") && body.contains("server.body_timeout"), "{head}{body}");
    }
    stage.wecom.wait_until(|seen| seen.in_flight() == 0).await.expect("the upstream is let go");
    assert_eq!(stage.wecom.executed_count(ECHO), 0);
}

#[tokio::test]
async fn slow_body_in_progress_is_accepted() {
    let toml = config_with_timeouts("body_timeout = \"20s\"", "response_timeout = \"2s\"");
    let stage = TestProxy::start_with_config(&toml).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"))
        .await
        .expect("taken");
    // The upstream owes no answer while the client takes its time.
    let mut drips = tokio::time::interval(Duration::from_millis(350));
    for _ in 0..12 {
        drips.tick().await;
        line.send("x").await.expect("it is taken");
    }
    let (head, body) = line.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
}

#[tokio::test]
async fn upstream_that_never_reads_is_upstream_timeout() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(
        puppet.address,
        &config_with_timeouts("", "response_timeout = \"2s\""),
    )
    .await;
    let (reply, _call) = tokio::join!(stage.post(ECHO, vec![1; 30_000_000]), puppet.next_call());
    reply.assert_proxy_error("upstream-timeout", 504, -1);
}

#[tokio::test]
async fn gettoken_timeout_is_token_unavailable() {
    let stage = TestProxy::start_with_config(&config_with_timeouts("", "response_timeout = \"200ms\"")).await;
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken")).expect("a fault");
    stage.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, -1);
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn client_not_reading_is_disconnected() {
    let mut puppet = ManualUpstream::new().await;
    let stage =
        TestProxy::start_with_upstream(puppet.address, &config_with_timeouts("body_timeout = \"300ms\"", ""))
            .await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    let mut call = puppet.next_call().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9000000000\r\n\r\n";
    call.connection.send(head).await.expect("it is taken");
    let piece = vec![b'x'; 64 * 1024];
    // It ends when the proxy has closed the upstream's connection.
    while call.connection.send(&piece).await.is_ok() {}
    drop(line);
}

/// The same with windows that are shut from the start.
const HTTP2_PREFACE_CLOSED_WINDOWS: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00";

#[tokio::test]
async fn http2_client_not_reading_is_reset() {
    let stage =
        TestProxy::start_with_config(&config_with_timeouts("body_timeout = \"300ms\"", "max_in_flight = 1"))
            .await;
    // The proxy's own answers wait for the window as the upstream's do.
    for path in ["/nowhere".to_owned(), format!("/hr{ECHO}")] {
        let mut line = RawConnection::connect(stage.address()).await;
        let block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
        let headers = [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1], &block[..]].concat();
        line.send([HTTP2_PREFACE_CLOSED_WINDOWS, &headers].concat()).await.expect("it is taken");
        // It ends with RST_STREAM, and with it the place in flight is free.
        while {
            let head = line.read_exact(9).await;
            line.read_exact(usize::from(head[1]) << 8 | usize::from(head[2])).await;
            head[3] != 3
        } {}
        stage.get(USER_GET).await.assert_ok();
    }
}

#[tokio::test]
async fn slow_http2_client_gets_the_complete_response() {
    let mut puppet = ManualUpstream::new().await;
    let stage =
        TestProxy::start_with_upstream(puppet.address, &config_with_timeouts("body_timeout = \"5s\"", ""))
            .await;
    let tcp = tokio::net::TcpStream::connect(stage.address()).await.expect("a connection");
    let handshake = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(20_000)
        .handshake(TokioIo::new(tcp));
    let (mut sender, connection) = handshake.await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::get(format!("http://proxy.test/hr{USER_GET}")).body(Empty::<Bytes>::new());
    let sending = sender.send_request(request.expect("a request"));
    let play = async {
        let mut call = puppet.next_call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 100000\r\n\r\n";
        call.connection.send([head.as_bytes(), &[b'x'; 100_000]].concat()).await.expect("it is taken");
        call
    };
    let (answer, _call) = with_timeout(async { tokio::join!(sending, play) }).await;
    let (mut body, mut taken) = (answer.expect("an answer").into_body(), 0);
    while let Some(frame) = with_timeout(body.frame()).await {
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
