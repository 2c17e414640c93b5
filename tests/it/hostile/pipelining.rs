//! Many requests in one packet, cut anywhere: each is served once, in its order, and none is mixed with another.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    canonical_request::CanonicalRequest,
    cases::CaseRunner,
    recorder::{ArrivalState, RecordedArrival, TOKEN},
};
use crate::harness::with_timeout;

/// Requests of every framing, one after the other; `series` tells those of one connection from those of another.
fn pipeline(series: usize, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for nth in 0..count {
        let first =
            |method: &str| format!("{method} /hr/cgi-bin/train?s={series}&n={nth} HTTP/1.1\r\nHost: x\r\n");
        let close = if nth + 1 == count { "Connection: close\r\n" } else { "" };
        let one = match nth % 4 {
            0 => format!("{}{close}\r\n", first("GET")),
            1 => format!("{}{close}Content-Length: 12\r\n\r\nGET / HTTP/1", first("POST")),
            2 => format!(
                "{}Transfer-Encoding: chunked\r\n{close}\r\n5;a=\"b\"\r\nGET /\r\n7\r\n HTTP/1\r\n0\r\nX: y\r\n\r\n",
                first("PUT")
            ),
            _ => format!("\r\n{}Content-Length: 0\r\nX-Y: z\r\n{close}\r\n", first("DELETE")),
        };
        bytes.extend_from_slice(one.as_bytes());
    }
    bytes
}

/// Whether this is what should have gone out for a request of a train.
fn is_expected(seen: &CanonicalRequest, series: usize, nth: usize) -> bool {
    let (method, body) =
        [("GET", ""), ("POST", "GET / HTTP/1"), ("PUT", "GET / HTTP/1"), ("DELETE", "")][nth % 4];
    let target = format!("/cgi-bin/train?s={series}&n={nth}&access_token={TOKEN}");
    (seen.method.as_str(), seen.target.as_str(), seen.body.as_slice()) == (method, &*target, body.as_bytes())
}

/// Asserts that of one train all came, once and in order, and that the answers are theirs.
fn assert_pipeline_served(arrivals: &[RecordedArrival], series: usize, count: usize, answers: &str) {
    let mark = format!("?s={series}&");
    let mut nths = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            ArrivalState::Complete(seen) if seen.target.contains(&mark) => {
                assert!(
                    is_expected(seen, series, nths.len()),
                    "{} of {series}: {seen:?}\n{answers}",
                    nths.len()
                );
                nths.push(arrival.nth);
            }
            ArrivalState::Complete(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(nths.len(), count, "of {series}");
    let answered: Vec<usize> =
        answers.match_indices("\"nth\":").map(|(at, _)| leading_number(&answers[at + 6..])).collect();
    assert_eq!(answered, nths, "of {series}: {answers}");
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), count, "of {series}: {answers}");
}

fn leading_number(text: &str) -> usize {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().expect("a number")
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    with_timeout(stream.read_to_end(&mut heard)).await.expect("an orderly end");
    String::from_utf8(heard).expect("text")
}

#[tokio::test]
async fn pipelined_requests_in_one_packet_are_served_in_order() {
    let mut scene = CaseRunner::start().await;
    for count in [1, 2, 3, 4, 5, 8, 13, 21, 34, 50] {
        let before = scene.recorder.arrival_count();
        let mut stream = TcpStream::connect(scene.proxy.address()).await.expect("a connection");
        stream.write_all(&pipeline(count, count)).await.expect("it is taken");
        let answers = read_to_end(&mut stream).await;
        assert_pipeline_served(&scene.arrivals_before_marker(before).await, count, count, &answers);
    }
}

#[tokio::test]
async fn pipeline_split_at_every_byte_is_served_in_order() {
    let mut scene = CaseRunner::start().await;
    let whole = pipeline(100, 8);
    let before = scene.recorder.arrival_count();
    // All begin, and have begun once an honest request behind them is served; then all go on.
    let mut streams = Vec::new();
    for at in 1..whole.len() {
        let bytes = pipeline(at + 1000, 8);
        let cut = at + bytes.len() - whole.len();
        let mut stream = TcpStream::connect(scene.proxy.address()).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(&bytes[..cut]).await.expect("it is taken");
        streams.push((at + 1000, stream, bytes[cut..].to_vec()));
    }
    scene.send_marker().await;
    for (_, stream, bytes) in &mut streams {
        stream.write_all(bytes).await.expect("it is taken");
    }
    let mut answers = Vec::new();
    for (series, stream, _) in &mut streams {
        answers.push((*series, read_to_end(stream).await));
    }
    let arrivals = scene.arrivals_before_marker(before).await;
    for (series, answers) in answers {
        assert_pipeline_served(&arrivals, series, 8, &answers);
    }
}

#[tokio::test]
async fn pipeline_sent_byte_by_byte_is_served_in_order() {
    let mut scene = CaseRunner::start().await;
    let before = scene.recorder.arrival_count();
    let mut stream = TcpStream::connect(scene.proxy.address()).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    for byte in pipeline(1, 4) {
        stream.write_all(&[byte]).await.expect("it is taken");
        // The test's own thread rests until the kernel and the proxy have had their turn.
        scene.send_marker().await;
    }
    let answers = read_to_end(&mut stream).await;
    assert_pipeline_served(&scene.arrivals_before_marker(before).await, 1, 4, &answers);
}
