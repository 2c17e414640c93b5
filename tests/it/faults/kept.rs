//! A connection on which a request was taken to its end is kept, however its body came.

use super::{Speech, side_by_side};
use crate::{stage::USER_GET, wire::Line};

/// Takes in nothing of what it is sent, and says how much it was.
const SINK: &str = "/cgi-bin/simulator/sink";

/// How a body comes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// In one piece with its head.
    WithHead,
    /// In two pieces behind it.
    Behind,
    /// When it is asked for.
    Asked,
}

async fn upload(line: &mut Line, way: Way, chunked: bool, length: usize) -> String {
    let body = "x".repeat(length);
    let (framing, body) = match chunked {
        true => {
            let (one, other) = body.split_at(length / 2);
            let chunk = |piece: &str| match piece.len() {
                0 => String::new(),
                length => format!("{length:x}\r\n{piece}\r\n"),
            };
            ("Transfer-Encoding: chunked".to_owned(), format!("{}{}0\r\n\r\n", chunk(one), chunk(other)))
        }
        false => (format!("Content-Length: {length}"), body),
    };
    let expect = if matches!(way, Way::Asked) { "Expect: 100-continue\r\n" } else { "" };
    let head = format!("POST /hr{SINK} HTTP/1.1\r\nHost: x\r\n{framing}\r\n{expect}\r\n");
    match way {
        Way::WithHead => line.say(head + &body).await.expect("it is taken"),
        Way::Behind => {
            let (one, other) = body.split_at(body.len() / 3);
            for piece in [&*head, one, other] {
                line.say(piece).await.expect("it is taken");
                tokio::task::yield_now().await;
            }
        }
        Way::Asked => {
            line.say(head).await.expect("it is taken");
            let told = line.head().await;
            assert_eq!(told, "HTTP/1.1 100 Continue\r\n\r\n");
            line.say(body).await.expect("it is taken");
        }
    }
    let (head, body) = line.answer().await;
    assert!(body.contains(&format!("\"body_bytes\":{length},")), "{head}{body}");
    head.to_ascii_lowercase()
}

async fn play(speech: Speech) {
    for length in [1, 100, 5000, 8192, 100_000, 3_000_000] {
        // A token is renewed a few times only within a short time.
        let (stage, _authority) = speech.stage("", "").await;
        assert_eq!(stage.get(USER_GET).await.status, 200);
        let mut line = Line::to(stage.address()).await;
        for way in [Way::WithHead, Way::Behind, Way::Asked] {
            for chunked in [false, true] {
                for refused in [false, true] {
                    let name = format!("{speech}: {length}, {way:?}, chunked {chunked}, refused {refused}");
                    if refused {
                        stage.wecom.revoke("hr").expect("an agent");
                    }
                    let head = upload(&mut line, way, chunked, length).await;
                    assert_eq!(head.contains("\r\nx-wecom-retried: 40014\r\n"), refused, "{name}: {head}");
                    assert!(!head.contains("\r\nconnection:"), "{name}: {head}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_connection_is_kept_where_an_upload_was_taken_to_its_end() {
    side_by_side([Speech::Http1, Speech::Http1Tls, Speech::Http2].into_iter().map(play)).await;
}
