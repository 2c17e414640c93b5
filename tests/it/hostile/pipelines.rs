//! Many requests in one packet, cut anywhere: each is served once, in its order, and none is mixed with another.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    canon::Seen,
    recorder::{Arrival, State, TOKEN},
    table::Scene,
};
use crate::stage::soon;

/// Requests of every framing, one after the other; `series` tells those of one connection from those of another.
fn train(series: usize, count: usize) -> Vec<u8> {
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
fn is_right(seen: &Seen, series: usize, nth: usize) -> bool {
    let (method, body) =
        [("GET", ""), ("POST", "GET / HTTP/1"), ("PUT", "GET / HTTP/1"), ("DELETE", "")][nth % 4];
    let target = format!("/cgi-bin/train?s={series}&n={nth}&access_token={TOKEN}");
    (seen.method.as_str(), seen.target.as_str(), seen.body.as_slice()) == (method, &*target, body.as_bytes())
}

/// Asserts that of one train all came, once and in order, and that the answers are theirs.
fn check(arrivals: &[Arrival], series: usize, count: usize, answers: &str) {
    let mark = format!("?s={series}&");
    let mut nths = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            State::Whole(seen) if seen.target.contains(&mark) => {
                assert!(
                    is_right(seen, series, nths.len()),
                    "{} of {series}: {seen:?}\n{answers}",
                    nths.len()
                );
                nths.push(arrival.nth);
            }
            State::Whole(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(nths.len(), count, "of {series}");
    let answered: Vec<usize> =
        answers.match_indices("\"nth\":").map(|(at, _)| number(&answers[at + 6..])).collect();
    assert_eq!(answered, nths, "of {series}: {answers}");
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), count, "of {series}: {answers}");
}

fn number(text: &str) -> usize {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().expect("a number")
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    soon(stream.read_to_end(&mut heard)).await.expect("an orderly end");
    String::from_utf8(heard).expect("text")
}

#[tokio::test]
async fn trains_of_requests_in_one_packet() {
    let mut scene = Scene::open().await;
    for count in [1, 2, 3, 4, 5, 8, 13, 21, 34, 50] {
        let before = scene.recorder.len();
        let mut stream = TcpStream::connect(scene.stage.address()).await.expect("a connection");
        stream.write_all(&train(count, count)).await.expect("it is taken");
        let answers = rest(&mut stream).await;
        check(&scene.since(before).await, count, count, &answers);
    }
}

#[tokio::test]
async fn a_train_cut_at_every_byte() {
    let mut scene = Scene::open().await;
    let whole = train(100, 8);
    let before = scene.recorder.len();
    // All begin, and have begun once an honest request behind them is served; then all go on.
    let mut streams = Vec::new();
    for at in 1..whole.len() {
        let bytes = train(at + 1000, 8);
        let cut = at + bytes.len() - whole.len();
        let mut stream = TcpStream::connect(scene.stage.address()).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(&bytes[..cut]).await.expect("it is taken");
        streams.push((at + 1000, stream, bytes[cut..].to_vec()));
    }
    scene.mark().await;
    for (_, stream, bytes) in &mut streams {
        stream.write_all(bytes).await.expect("it is taken");
    }
    let mut answers = Vec::new();
    for (series, stream, _) in &mut streams {
        answers.push((*series, rest(stream).await));
    }
    let arrivals = scene.since(before).await;
    for (series, answers) in answers {
        check(&arrivals, series, 8, &answers);
    }
}

#[tokio::test]
async fn a_train_byte_by_byte() {
    let mut scene = Scene::open().await;
    let before = scene.recorder.len();
    let mut stream = TcpStream::connect(scene.stage.address()).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    for byte in train(1, 4) {
        stream.write_all(&[byte]).await.expect("it is taken");
        // The test's own thread rests until the kernel and the proxy have had their turn.
        scene.mark().await;
    }
    let answers = rest(&mut stream).await;
    check(&scene.since(before).await, 1, 4, &answers);
}
