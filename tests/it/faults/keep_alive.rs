//! A connection on which a request was taken to its end is kept, however its body came.

use super::{UpstreamProtocol, run_concurrently};
use crate::{harness::USER_GET, raw_http::RawConnection};

/// Takes in nothing of what it is sent, and says how much it was.
const SINK: &str = "/cgi-bin/simulator/sink";

/// How a body comes.
#[derive(Clone, Copy, Debug)]
enum BodyTiming {
    /// In one piece with its head.
    WithHead,
    /// In two pieces behind it.
    AfterHead,
    /// When it is asked for.
    AfterContinue,
}

async fn upload(line: &mut RawConnection, way: BodyTiming, chunked: bool, length: usize) -> String {
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
    let expect = if matches!(way, BodyTiming::AfterContinue) { "Expect: 100-continue\r\n" } else { "" };
    let head = format!("POST /hr{SINK} HTTP/1.1\r\nHost: x\r\n{framing}\r\n{expect}\r\n");
    match way {
        BodyTiming::WithHead => line.send(head + &body).await.expect("it is taken"),
        BodyTiming::AfterHead => {
            let (one, other) = body.split_at(body.len() / 3);
            for piece in [&*head, one, other] {
                line.send(piece).await.expect("it is taken");
                tokio::task::yield_now().await;
            }
        }
        BodyTiming::AfterContinue => {
            line.send(head).await.expect("it is taken");
            let told = line.read_head().await;
            assert_eq!(told, "HTTP/1.1 100 Continue\r\n\r\n");
            line.send(body).await.expect("it is taken");
        }
    }
    let (head, body) = line.read_response().await;
    assert!(body.contains(&format!("\"body_bytes\":{length},")), "{head}{body}");
    head.to_ascii_lowercase()
}

async fn run_uploads(speech: UpstreamProtocol) {
    for length in [1, 100, 5000, 8192, 100_000, 3_000_000] {
        // A token is renewed a few times only within a short time.
        let (stage, _authority) = speech.start_proxy("", "").await;
        assert_eq!(stage.get(USER_GET).await.status, 200);
        let mut line = RawConnection::connect(stage.address()).await;
        for way in [BodyTiming::WithHead, BodyTiming::AfterHead, BodyTiming::AfterContinue] {
            for chunked in [false, true] {
                for refused in [false, true] {
                    let name = format!("{speech}: {length}, {way:?}, chunked {chunked}, refused {refused}");
                    if refused {
                        stage.wecom.revoke_tokens("hr").expect("an agent");
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
async fn connection_stays_open_after_a_complete_upload() {
    run_concurrently(
        [UpstreamProtocol::Http1, UpstreamProtocol::Http1Tls, UpstreamProtocol::Http2]
            .into_iter()
            .map(run_uploads),
    )
    .await;
}
