//! Pipelined requests, split at any byte: each is served once, in order, with its own response.

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

/// Pipelined requests of every framing; `series` distinguishes the connections.
fn pipeline(series: usize, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..count {
        let start =
            |method: &str| format!("{method} /hr/cgi-bin/train?s={series}&n={index} HTTP/1.1\r\nHost: x\r\n");
        let close = if index + 1 == count { "Connection: close\r\n" } else { "" };
        let request = match index % 4 {
            0 => format!("{}{close}\r\n", start("GET")),
            1 => format!("{}{close}Content-Length: 12\r\n\r\nGET / HTTP/1", start("POST")),
            2 => format!(
                "{}Transfer-Encoding: chunked\r\n{close}\r\n5;a=\"b\"\r\nGET /\r\n7\r\n HTTP/1\r\n0\r\nX: y\r\n\r\n",
                start("PUT")
            ),
            _ => format!("\r\n{}Content-Length: 0\r\nX-Y: z\r\n{close}\r\n", start("DELETE")),
        };
        bytes.extend_from_slice(request.as_bytes());
    }
    bytes
}

/// Whether this is the expected upstream request.
fn is_expected(request: &CanonicalRequest, series: usize, index: usize) -> bool {
    let (method, body) =
        [("GET", ""), ("POST", "GET / HTTP/1"), ("PUT", "GET / HTTP/1"), ("DELETE", "")][index % 4];
    let target = format!("/cgi-bin/train?s={series}&n={index}&access_token={TOKEN}");
    (request.method.as_str(), request.target.as_str(), request.body.as_slice())
        == (method, &*target, body.as_bytes())
}

/// Asserts that all requests of a series arrived once and in order, and got their own responses.
fn assert_pipeline_served(arrivals: &[RecordedArrival], series: usize, count: usize, responses: &str) {
    let marker = format!("?s={series}&");
    let mut numbers = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            ArrivalState::Complete(request) if request.target.contains(&marker) => {
                assert!(
                    is_expected(request, series, numbers.len()),
                    "{} of {series}: {request:?}\n{responses}",
                    numbers.len()
                );
                numbers.push(arrival.nth);
            }
            ArrivalState::Complete(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(numbers.len(), count, "of {series}");
    let response_numbers: Vec<usize> = responses
        .match_indices("\"nth\":")
        .map(|(start, _)| leading_number(&responses[start + 6..]))
        .collect();
    assert_eq!(response_numbers, numbers, "of {series}: {responses}");
    assert_eq!(responses.matches("HTTP/1.1 200 ").count(), count, "of {series}: {responses}");
}

fn leading_number(text: &str) -> usize {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().expect("a number")
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    with_timeout(stream.read_to_end(&mut received)).await.expect("an orderly end");
    String::from_utf8(received).expect("text")
}

#[tokio::test]
async fn pipelined_requests_in_one_packet_are_served_in_order() {
    let mut runner = CaseRunner::start().await;
    for count in [1, 2, 3, 4, 5, 8, 13, 21, 34, 50] {
        let before = runner.recorder.arrival_count();
        let mut stream = TcpStream::connect(runner.proxy.address()).await.expect("a connection");
        stream.write_all(&pipeline(count, count)).await.expect("sent");
        let responses = read_to_end(&mut stream).await;
        assert_pipeline_served(&runner.arrivals_before_marker(before).await, count, count, &responses);
    }
}

#[tokio::test]
async fn pipeline_split_at_every_byte_is_served_in_order() {
    let mut runner = CaseRunner::start().await;
    let reference = pipeline(100, 8);
    let before = runner.recorder.arrival_count();
    // All first parts are sent; once a marker is served, the proxy has read them; then the rest is sent.
    let mut streams = Vec::new();
    for position in 1..reference.len() {
        let bytes = pipeline(position + 1000, 8);
        let cut = position + bytes.len() - reference.len();
        let mut stream = TcpStream::connect(runner.proxy.address()).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(&bytes[..cut]).await.expect("sent");
        streams.push((position + 1000, stream, bytes[cut..].to_vec()));
    }
    runner.send_marker().await;
    for (_, stream, bytes) in &mut streams {
        stream.write_all(bytes).await.expect("sent");
    }
    let mut responses = Vec::new();
    for (series, stream, _) in &mut streams {
        responses.push((*series, read_to_end(stream).await));
    }
    let arrivals = runner.arrivals_before_marker(before).await;
    for (series, responses) in responses {
        assert_pipeline_served(&arrivals, series, 8, &responses);
    }
}

#[tokio::test]
async fn pipeline_sent_byte_by_byte_is_served_in_order() {
    let mut runner = CaseRunner::start().await;
    let before = runner.recorder.arrival_count();
    let mut stream = TcpStream::connect(runner.proxy.address()).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    for byte in pipeline(1, 4) {
        stream.write_all(&[byte]).await.expect("sent");
        // Waits until the proxy has read the byte.
        runner.send_marker().await;
    }
    let responses = read_to_end(&mut stream).await;
    assert_pipeline_served(&runner.arrivals_before_marker(before).await, 1, 4, &responses);
}
