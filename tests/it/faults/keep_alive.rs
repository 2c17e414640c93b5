//! A client connection stays open after a request that was read to its end, however its body was sent.

use super::{UpstreamProtocol, run_concurrently};
use crate::{harness::USER_GET, raw_http::RawConnection};

/// The simulator's sink call: its response contains the length of the body.
const SINK: &str = "/cgi-bin/simulator/sink";

/// When a body is sent.
#[derive(Clone, Copy, Debug)]
enum BodyTiming {
    /// In one write with its head.
    WithHead,
    /// In two writes after the head.
    AfterHead,
    /// After 100 (Continue).
    AfterContinue,
}

async fn upload(connection: &mut RawConnection, timing: BodyTiming, chunked: bool, length: usize) -> String {
    let body = "x".repeat(length);
    let (framing, body) = match chunked {
        true => {
            let (first, second) = body.split_at(length / 2);
            let chunk = |part: &str| match part.len() {
                0 => String::new(),
                length => format!("{length:x}\r\n{part}\r\n"),
            };
            ("Transfer-Encoding: chunked".to_owned(), format!("{}{}0\r\n\r\n", chunk(first), chunk(second)))
        }
        false => (format!("Content-Length: {length}"), body),
    };
    let expect = if matches!(timing, BodyTiming::AfterContinue) { "Expect: 100-continue\r\n" } else { "" };
    let head = format!("POST /hr{SINK} HTTP/1.1\r\nHost: x\r\n{framing}\r\n{expect}\r\n");
    match timing {
        BodyTiming::WithHead => connection.send(head + &body).await.expect("sent"),
        BodyTiming::AfterHead => {
            let (first, second) = body.split_at(body.len() / 3);
            for part in [&*head, first, second] {
                connection.send(part).await.expect("sent");
                tokio::task::yield_now().await;
            }
        }
        BodyTiming::AfterContinue => {
            connection.send(head).await.expect("sent");
            let interim = connection.read_head().await;
            assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
            connection.send(body).await.expect("sent");
        }
    }
    let (head, body) = connection.read_response().await;
    assert!(body.contains(&format!("\"body_bytes\":{length},")), "{head}{body}");
    head.to_ascii_lowercase()
}

async fn run_uploads(upstream_protocol: UpstreamProtocol) {
    for length in [1, 100, 5000, 8192, 100_000, 3_000_000] {
        // A new proxy per length, because the refresh budget limits refreshes in a short time.
        let (proxy, _authority) = upstream_protocol.start_proxy("", "").await;
        assert_eq!(proxy.get(USER_GET).await.status, 200);
        let mut connection = RawConnection::connect(proxy.address()).await;
        for timing in [BodyTiming::WithHead, BodyTiming::AfterHead, BodyTiming::AfterContinue] {
            for chunked in [false, true] {
                for refused in [false, true] {
                    let name = format!(
                        "{upstream_protocol}: {length}, {timing:?}, chunked {chunked}, refused {refused}"
                    );
                    if refused {
                        proxy.wecom.revoke_tokens("hr").expect("an agent");
                    }
                    let head = upload(&mut connection, timing, chunked, length).await;
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
