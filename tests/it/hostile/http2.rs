//! Malformed and ambiguous HTTP/2. The upstream receives nothing of it or one canonical request, and other clients are served
//! meanwhile.

use std::fmt::Write as _;

use super::{
    cases::CaseRunner,
    http2_frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameClient, GOAWAY, HEADERS, PADDED, PING,
        PREFACE, PRIORITY, SETTINGS, StreamEnd, WINDOW_UPDATE, encode_frame, encode_header, encode_integer,
        encode_setting,
    },
    known_failures::KNOWN_FAILURES,
    recorder::{ArrivalState, RecordedArrival, TOKEN},
};

mod tables;

use tables::{
    INVALID_HEADERS, INVALID_PSEUDO_HEADERS, LENGTH_CASES, ambiguous_blocks, invalid_blocks, invalid_frames,
    invalid_heads, padded_head, trailer_cases,
};

/// The pseudo-headers of a valid request.
const VALID_HEADERS: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/hr/cgi-bin/case"), (":authority", "proxy.test")];

/// Encodes a header block.
fn encode_block(headers: &[(&str, &str)]) -> Vec<u8> {
    headers.iter().flat_map(|(name, value)| encode_header(name, value)).collect()
}

fn valid_block() -> Vec<u8> {
    encode_block(&VALID_HEADERS)
}

/// A valid block in which these headers replace those of the same name.
fn valid_block_with(replacements: &[(&str, &str)]) -> Vec<u8> {
    let value = |name: &str| replacements.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let headers: Vec<_> =
        VALID_HEADERS.iter().map(|(name, default)| (*name, value(name).unwrap_or(default))).collect();
    encode_block(&headers)
}

/// A valid block without this header.
fn valid_block_without(name: &str) -> Vec<u8> {
    encode_block(&VALID_HEADERS.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>())
}

/// A valid block followed by this header.
fn valid_block_plus(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [valid_block(), encode_header(name, value)].concat()
}

/// A request without a body on the first stream.
fn get_frame(block: Vec<u8>) -> Vec<u8> {
    encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
}

/// A POST with these headers and this body, in DATA frames of `frame_bytes` bytes.
fn post_frames(headers: &[(&str, &str)], body: &[u8], frame_bytes: usize) -> Vec<u8> {
    let block = [valid_block_with(&[(":method", "POST")]), encode_block(headers)].concat();
    let mut frames = encode_frame(HEADERS, END_HEADERS, 1, block);
    for data in body.chunks(frame_bytes) {
        frames.extend(encode_frame(DATA, 0, 1, data));
    }
    frames.extend(encode_frame(DATA, END_STREAM, 1, ""));
    frames
}

/// The expected outcome of a case.
#[derive(Clone, Copy)]
enum Expect {
    /// Nothing reaches the upstream.
    Refused,
    /// One upstream request with this method, query and body.
    Served(&'static str, &'static str, &'static str),
    /// Either.
    ServedOrRefused(&'static str, &'static str, &'static str),
}

use Expect::{Refused, Served, ServedOrRefused};

/// A case: its name, the bytes after the preface and SETTINGS, and the expected outcome.
type Case = (String, Vec<u8>, Expect);

/// Whether the upstream may receive an incomplete request, which may arrive late from an HTTP/2 stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PartialAllowed {
    Never,
    Maybe,
}

fn check_outcome(
    expect: &Expect,
    end: &StreamEnd,
    arrivals: &[RecordedArrival],
    partial: PartialAllowed,
) -> Result<(), String> {
    let mut complete = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            ArrivalState::Complete(request) => complete.push(request),
            ArrivalState::NotCanonical(why) => {
                return Err(format!("the upstream received a non-canonical request: {why}"));
            }
            ArrivalState::Partial { head: true } if partial == PartialAllowed::Maybe => {}
            ArrivalState::Partial { .. } => return Err("the upstream received a part of it".to_owned()),
        }
    }
    if *end == StreamEnd::TimedOut {
        return Err("it hangs".to_owned());
    }
    match (complete.as_slice(), expect) {
        ([], Served(..)) => Err(format!("it ended with {end:?}")),
        ([], _) if *end == StreamEnd::Served => {
            Err("the response was 200 without an upstream request".to_owned())
        }
        ([], _) => Ok(()),
        ([request], Served(method, query, body) | ServedOrRefused(method, query, body)) => {
            let target = format!("/cgi-bin/case?{query}access_token={TOKEN}");
            if (&*request.method, &*request.target, &*request.body) != (*method, &*target, body.as_bytes()) {
                return Err(format!("it was served as {} {}", request.method, request.target));
            }
            match (end, expect) {
                (StreamEnd::Served, _) | (StreamEnd::Reset(_), ServedOrRefused(..)) => Ok(()),
                _ => Err(format!("it was served, and ended with {end:?}")),
            }
        }
        _ => Err("it was served".to_owned()),
    }
}

/// Runs each case on its own connection.
async fn run_cases(partial: PartialAllowed, cases: Vec<Case>) {
    let (mut runner, mut report) = (CaseRunner::start().await, String::new());
    for (name, bytes, expect) in &cases {
        let before = runner.recorder.arrival_count();
        let mut client = FrameClient::connect(runner.proxy.address()).await;
        client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), bytes].concat()).await;
        let end = client.stream_end(1).await;
        drop(client);
        let arrivals = runner.arrivals_without_marker(before).await;
        let outcome = check_outcome(expect, &end, &arrivals, partial);
        let name = format!("h2: {name}");
        let known = KNOWN_FAILURES.iter().find(|(known, _)| *known == name).map(|(_, why)| *why);
        match (outcome, known) {
            (Ok(()), None) => {}
            (Err(why), Some(known)) if why == known => {}
            (Ok(()), Some(_)) => _ = writeln!(report, "{name}: passes; remove it from KNOWN_FAILURES"),
            (Err(why), _) => _ = writeln!(report, "{name}: {why} ({end:?})"),
        }
    }
    assert!(report.is_empty(), "of {} cases\n{report}", cases.len());
}

#[tokio::test]
async fn invalid_header_fields_are_refused() {
    let mut cases: Vec<Case> = Vec::new();
    let mut refused = |name: &str, block: Vec<u8>| cases.push((name.to_owned(), get_frame(block), Refused));
    for (name, value) in INVALID_HEADERS {
        let escaped = format!("{}: {}", name.escape_default(), value.escape_default());
        refused(&format!("after the others, {escaped}"), valid_block_plus(name, value));
        refused(
            &format!("before the others, {escaped}"),
            [encode_header(name, value), valid_block()].concat(),
        );
    }
    for (name, value) in INVALID_PSEUDO_HEADERS {
        refused(&format!("with {name}: {}", value.escape_default()), valid_block_with(&[(name, value)]));
    }
    for name in [":method", ":scheme", ":path"] {
        refused(&format!("without {name}"), valid_block_without(name));
    }
    let moved_after_regular = |name: &str| {
        let value = VALID_HEADERS.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        [
            valid_block_without(name),
            encode_header("x-y", "z"),
            encode_header(name, value.expect("a valid header")),
        ]
        .concat()
    };
    for (name, _) in VALID_HEADERS {
        refused(&format!("after a regular header, {name}"), moved_after_regular(name));
    }
    refused("OPTIONS *", valid_block_with(&[(":method", "OPTIONS"), (":path", "*")]));
    refused("a regular CONNECT", encode_block(&[(":method", "CONNECT"), (":authority", "proxy.test:443")]));
    refused(
        "an extended CONNECT",
        [valid_block_with(&[(":method", "CONNECT")]), encode_header(":protocol", "websocket")].concat(),
    );
    refused("no headers", Vec::new());
    refused("high bytes in a name", valid_block_plus(b"x\xff", "z"));
    refused("another agent", valid_block_plus("x-wecom-agent", "ops"));
    run_cases(PartialAllowed::Never, cases).await;
}

#[tokio::test]
async fn unusual_valid_headers_are_forwarded_sanitized() {
    let mut cases: Vec<Case> = Vec::new();
    let mut served = |name: &str, block: Vec<u8>, query: &'static str| {
        cases.push((name.to_owned(), get_frame(block), Served("GET", query, "")));
    };
    served("a plain request", valid_block(), "");
    served("te: trailers", valid_block_plus("te", "trailers"), "");
    served("two cookies", [valid_block_plus("cookie", "a=b"), encode_header("cookie", "c=d")].concat(), "");
    served(
        "credentials",
        [valid_block_plus("authorization", "Bearer x"), encode_header("x-api-key", "y")].concat(),
        "",
    );
    served(
        "headers of other proxies",
        [
            valid_block_plus("via", "1.1 x"),
            encode_header("x-forwarded-for", "1"),
            encode_header("forwarded", "for=1"),
        ]
        .concat(),
        "",
    );
    served("a header for the proxy", valid_block_plus("x-wecom-debug", "1"), "");
    served("trailer", valid_block_plus("trailer", "x-t"), "");
    served("expect", valid_block_plus("expect", "100-continue"), "");
    served("http2-settings", valid_block_plus("http2-settings", "AAMAAABk"), "");
    served("proxy-authorization", valid_block_plus("proxy-authorization", "Basic eDp5"), "");
    served("a token", valid_block_with(&[(":path", "/hr/cgi-bin/case?access_token=x&a=1")]), "a=1&");
    served(
        "an encoded token",
        valid_block_with(&[(":path", "/hr/cgi-bin/case?%61ccess%5Ftoken=x&a=1")]),
        "a=1&",
    );
    served("another authority", valid_block_with(&[(":authority", "evil.test")]), "");
    served(
        "a host for an authority",
        [valid_block_without(":authority"), encode_header("host", "proxy.test")].concat(),
        "",
    );
    served("content-length: 0", valid_block_plus("content-length", "0"), "");
    served("doubled slashes", valid_block_with(&[(":path", "//hr//cgi-bin/case")]), "");
    served(
        "pseudo-headers in another order",
        encode_block(&[VALID_HEADERS[3], VALID_HEADERS[2], VALID_HEADERS[1], VALID_HEADERS[0]]),
        "",
    );
    for (name, block) in ambiguous_blocks() {
        cases.push((name.to_owned(), get_frame(block), ServedOrRefused("GET", "", "")));
    }
    run_cases(PartialAllowed::Never, cases).await;
}

#[tokio::test]
async fn content_length_mismatch_is_never_complete_upstream() {
    let mut cases: Vec<Case> = Vec::new();
    for (name, headers, body, expect) in LENGTH_CASES {
        cases.push(((*name).to_owned(), post_frames(headers, body.as_bytes(), 100), *expect));
    }
    let with_end_stream =
        |rest: Vec<u8>| get_frame([valid_block_with(&[(":method", "POST")]), rest].concat());
    cases.push((
        "a length and the end at once".into(),
        with_end_stream(encode_header("content-length", "5")),
        Refused,
    ));
    cases.extend(trailer_cases());
    run_cases(PartialAllowed::Maybe, cases).await;
}

#[tokio::test]
async fn data_beyond_content_length_is_discarded() {
    let mut runner = CaseRunner::start().await;
    // The declared body may be forwarded before the surplus arrives; the request is then complete.
    for (length, data) in [("5", "hello"), ("0", "")] {
        let before = runner.recorder.arrival_count();
        let mut client = FrameClient::connect(runner.proxy.address()).await;
        let block =
            [valid_block_with(&[(":method", "POST")]), encode_header("content-length", length)].concat();
        let bytes = [
            encode_frame(HEADERS, END_HEADERS, 1, block),
            encode_frame(DATA, 0, 1, data),
            encode_frame(DATA, END_STREAM, 1, "!"),
        ];
        client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &bytes.concat()].concat()).await;
        assert_ne!(client.stream_end(1).await, StreamEnd::TimedOut);
        drop(client);
        for arrival in runner.arrivals_without_marker(before).await {
            match &arrival.state {
                ArrivalState::Partial { head: true } => {}
                ArrivalState::Complete(request) => {
                    assert!(request.body == data.as_bytes(), "{request:?}")
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn invalid_frames_close_the_connection() {
    let mut cases: Vec<Case> = Vec::new();
    let valid = get_frame(valid_block());
    // Invalid by themselves; a valid request after them is not served.
    for (name, bytes) in invalid_frames().into_iter().chain(invalid_heads()).chain(invalid_blocks()) {
        cases.push((name.to_owned(), [&bytes[..], &valid].concat(), Refused));
    }
    for (name, bytes) in [
        ("SETTINGS ACK without SETTINGS", encode_frame(SETTINGS, ACK, 0, "")),
        ("an unknown setting", encode_frame(SETTINGS, 0, 0, encode_setting(0x4242, 7))),
        ("an unknown frame", encode_frame(0x42, 255, 7, "x")),
        ("PRIORITY", encode_frame(PRIORITY, 0, 1, [0, 0, 0, 3, 1])),
        ("PING", encode_frame(PING, 0, 0, [7; 8])),
        ("PING ACK without PING", encode_frame(PING, ACK, 0, [7; 8])),
    ] {
        cases.push((name.to_owned(), [&bytes[..], &valid].concat(), ServedOrRefused("GET", "", "")));
    }
    for (name, bytes) in [
        ("padding", padded_head(3, &[&valid_block()[..], &[0; 3]].concat())),
        (
            "a head in two frames",
            [
                encode_frame(HEADERS, END_STREAM, 1, &valid_block()[..20]),
                encode_frame(CONTINUATION, END_HEADERS, 1, &valid_block()[20..]),
            ]
            .concat(),
        ),
        ("a table size update", get_frame([encode_integer(0, 5, 0x20), valid_block()].concat())),
    ] {
        cases.push((name.to_owned(), bytes, Served("GET", "", "")));
    }
    let single_bytes: Vec<u8> =
        valid_block().iter().flat_map(|byte| encode_frame(CONTINUATION, 0, 1, [*byte])).collect();
    let byte_by_byte = [
        encode_frame(HEADERS, END_STREAM, 1, ""),
        single_bytes,
        encode_frame(CONTINUATION, END_HEADERS, 1, ""),
    ]
    .concat();
    cases.push(("a head byte by byte".into(), byte_by_byte, ServedOrRefused("GET", "", "")));
    run_cases(PartialAllowed::Never, cases).await;
}

#[tokio::test]
async fn preface_without_settings_is_closed_or_accepted() {
    let mut runner = CaseRunner::start().await;
    let ping = encode_frame(PING, 0, 0, [0; 8]);
    for first in [
        get_frame(valid_block()),
        [ping, get_frame(valid_block())].concat(),
        encode_frame(SETTINGS, ACK, 0, ""),
    ] {
        let before = runner.recorder.arrival_count();
        let mut client = FrameClient::connect(runner.proxy.address()).await;
        client.send([PREFACE, &first[..], &encode_frame(GOAWAY, 0, 0, [0; 8])].concat()).await;
        let end = client.stream_end(1).await;
        assert!(
            end != StreamEnd::TimedOut && runner.arrivals_without_marker(before).await.len() <= 1,
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn invalid_frames_within_a_request_end_it() {
    let mut cases: Vec<Case> = Vec::new();
    let valid = get_frame(valid_block());
    let open_request = encode_frame(HEADERS, END_HEADERS, 1, valid_block_with(&[(":method", "POST")]));
    cases.push((
        "a second head on the same stream".into(),
        [&open_request[..], &open_request, &valid].concat(),
        Refused,
    ));
    cases.push((
        "more padding than DATA".into(),
        [&open_request[..], &encode_frame(DATA, END_STREAM | PADDED, 1, [9, 1])].concat(),
        Refused,
    ));
    cases.push((
        "a window of a stream beyond 2^31".into(),
        [&open_request[..], &encode_frame(WINDOW_UPDATE, 0, 1, [0x7f, 255, 255, 255])].concat(),
        Refused,
    ));
    cases.push((
        "a window of a stream by 0".into(),
        [&open_request[..], &encode_frame(WINDOW_UPDATE, 0, 1, [0; 4])].concat(),
        Refused,
    ));
    run_cases(PartialAllowed::Maybe, cases).await;
}
