//! §5: bodies stream in both directions, held back by whoever is slower.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use wecom_proxy::simulator::{Fault, generated};

use crate::{
    stage::{Caller, ECHO, OPEN, Stage, USER_GET, soon},
    wire::{Line, Puppet},
};

/// More than the sockets on the way and the proxy together may hold.
const MUCH: usize = 40_000_000;
/// Nothing moved for so long: whoever writes is held back. There is no event that says so.
const HELD_BACK: Duration = Duration::from_millis(500);

/// Writes until it is held back; returns how much was taken.
async fn fill(line: &mut Line, most: usize) -> usize {
    let (piece, mut taken) = (vec![b'x'; 64 * 1024], 0);
    while taken < most && timeout(HELD_BACK, line.say(&piece)).await.is_ok_and(|said| said.is_ok()) {
        taken += piece.len();
    }
    taken
}

#[tokio::test]
async fn the_first_byte_of_a_download_does_not_wait_for_its_last() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked", "Connection: close"] {
        let chunked = framing.contains("chunked");
        for http2 in [false, true] {
            let mut puppet = Puppet::new().await;
            let stage = Stage::facing(puppet.address, OPEN).await;
            let mut caller = match http2 {
                true => Caller::http2(stage.address()).await,
                false => Caller::http1(stage.address()).await,
            };
            let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
            let play = async {
                let mut call = puppet.call().await;
                let first = if chunked { "5\r\nfirst\r\n" } else { "first" };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{framing}\r\n\r\n{first}");
                call.line.say(head).await.expect("it is taken");
                call
            };
            let (response, mut call) = tokio::join!(soon(caller.send(request)), play);
            let mut body = response.expect("a head").into_body();
            let first = soon(body.frame()).await.expect("a frame").expect("data").into_data().expect("data");
            assert_eq!(first, "first", "{framing}");
            call.line
                .say(if chunked { "4\r\nlast\r\n0\r\n\r\n" } else { "-last" })
                .await
                .expect("it is taken");
            drop(call);
            let rest = soon(body.collect()).await.expect("the rest").to_bytes();
            assert_eq!(rest, if chunked { "last" } else { "-last" }, "{framing}");
        }
    }
}

#[tokio::test]
async fn json_is_held_back_no_longer_than_it_takes_to_see_the_errcode() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, OPEN).await;
    let mut line = Line::to(stage.address()).await;
    line.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    let mut call = puppet.call().await;
    let begun = r#"{"errcode":0,"userlist":["#;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n";
    call.line.say(format!("{head}{begun}")).await.expect("it is taken");
    assert!(line.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(line.bytes(begun.len()).await, begun.as_bytes());
}

#[tokio::test]
async fn the_first_byte_of_an_upload_does_not_wait_for_its_last() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, OPEN).await;
    let mut line = Line::to(stage.address()).await;
    line.say("POST /hr/cgi-bin/media/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
        .await
        .expect("taken");
    let mut call = puppet.call().await;
    assert!(call.head.contains("content-length: 10\r\n"), "{}", call.head);
    assert_eq!(call.line.bytes(5).await, b"first");
    line.say("-last").await.expect("it is taken");
    assert_eq!(call.line.bytes(5).await, b"-last");
    call.line.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("it is taken");
    assert_eq!(line.answer().await.1, "ok");
}

#[tokio::test]
async fn a_large_download_arrives_whole() {
    let stage = Stage::open().await;
    for http2 in [false, true] {
        let mut caller = match http2 {
            true => Caller::http2(stage.address()).await,
            false => Caller::http1(stage.address()).await,
        };
        let reply = caller.get("/cgi-bin/media/get?media_id=generated-10485760").await;
        assert_eq!((reply.body.len(), reply.header("content-length")), (10_485_760, "10485760"));
        let mut at = 0;
        while at < reply.body.len() {
            let expected = generated(at as u64, reply.body.len() - at);
            assert!(reply.body[at..].starts_with(&expected), "at {at}");
            at += expected.len();
        }
    }
}

#[tokio::test]
async fn what_is_said_behind_the_last_request_takes_nothing_of_its_answer() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, OPEN).await;
    // A caller that takes little at a time: the answer's end is long here when it takes it.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a socket");
    let mut line = Line::over(soon(socket.connect(stage.address())).await.expect("a connection"));
    let request = format!("GET /hr{USER_GET} HTTP/1.0\r\nHost: x\r\n\r\n");
    line.say(&request).await.expect("it is taken");
    let mut call = puppet.call().await;
    call.line.say("HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n\r\n").await.expect("it is taken");
    let (piece, mut said) = (vec![b'x'; 64 * 1024], 0);
    while said < MUCH && timeout(HELD_BACK, call.line.stream.writable()).await.is_ok() {
        said += call.line.stream.try_write(&piece).unwrap_or(0);
    }
    drop(call);
    line.say(&request).await.expect("it is taken");
    line.head().await;
    let (body, end) = line.rest().await;
    end.expect("an orderly end");
    assert_eq!(body.len(), said);
}

#[tokio::test]
async fn a_caller_that_reads_nothing_holds_the_upstream_back() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, OPEN).await;
    let mut line = Line::to(stage.address()).await;
    line.say(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    let mut call = puppet.call().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9000000000\r\n\r\n";
    call.line.say(head).await.expect("it is taken");
    let taken = fill(&mut call.line, MUCH).await;
    assert!(taken < MUCH, "the proxy took {taken} bytes that nobody read");
    assert!(line.head().await.starts_with("HTTP/1.1 200 "));
    line.bytes(taken / 2).await;
    call.line.say(vec![b'x'; 64 * 1024]).await.expect("it goes on once somebody reads");
}

#[tokio::test]
async fn an_upstream_that_reads_nothing_holds_the_caller_back() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, OPEN).await;
    let mut line = Line::to(stage.address()).await;
    line.say(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n"))
        .await
        .expect("taken");
    let _call = puppet.call().await;
    let taken = fill(&mut line, MUCH).await;
    assert!(taken < MUCH, "the proxy took {taken} bytes that nobody read");
}

#[tokio::test]
async fn an_upload_broken_off_never_looks_whole_to_the_upstream() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    for lines in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        stage.wecom.reset();
        let mut line = Line::to(stage.address()).await;
        line.say(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{lines}")).await.expect("it is taken");
        stage.wecom.wait_until(|seen| seen.received(ECHO) == 1).await.expect("it arrives");
        drop(line);
        stage.wecom.wait_until(|seen| seen.in_flight() == 0).await.expect("it is let go");
        assert_eq!(stage.wecom.executed(ECHO), 0);
    }
}

#[tokio::test]
async fn pieces_of_one_byte_arrive_whole() {
    let stage = Stage::open().await;
    stage.wecom.inject(Fault::pieces(1)).expect("a fault");
    stage.get(USER_GET).await.is_ok();
    let reply = stage.get("/cgi-bin/media/get?media_id=generated-3000").await;
    assert_eq!(reply.body, generated(0, 3000));
}

#[tokio::test]
async fn a_body_reset_with_no_error_never_becomes_whole() {
    let mut puppet = Puppet::new().await;
    let stage = Stage::facing(puppet.address, OPEN).await;
    let socket = soon(TcpStream::connect(stage.address())).await.expect("a connection");
    let (mut client, connection) = h2::client::handshake(socket).await.expect("a connection");
    tokio::spawn(connection);
    let request = Request::post("http://proxy.test/hr/cgi-bin/x").body(()).expect("a request");
    let (_response, mut body) = client.send_request(request, false).expect("it is taken");
    body.send_data(bytes::Bytes::from_static(b"half"), false).expect("it is taken");
    let mut call = puppet.call().await;
    assert_eq!(call.line.bytes(9).await, b"4\r\nhalf\r\n");
    body.send_reset(h2::Reason::NO_ERROR);
    assert_eq!(call.line.rest().await.0, b"", "the last chunk would make it whole");
}
