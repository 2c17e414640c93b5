//! What no honest client says in HTTP/2. The upstream gets nothing of it or one clean request, the work has a bound, and
//! others are served meanwhile.

use std::fmt::Write as _;

use super::{
    cases::CaseRunner,
    http2_frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameClient, GOAWAY, HEADERS, PADDED, PING,
        PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, StreamEnd, WINDOW_UPDATE, encode_frame,
        encode_header, encode_integer, encode_setting, encode_string,
    },
    known_failures::KNOWN_FAILURES,
    recorder::{ArrivalState, RecordedArrival, TOKEN},
};

/// The fields of an honest request.
const VALID_HEADERS: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/hr/cgi-bin/case"), (":authority", "proxy.test")];

/// A header block of these fields.
fn encode_block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| encode_header(name, value)).collect()
}

fn valid_block() -> Vec<u8> {
    encode_block(&VALID_HEADERS)
}

/// An honest block but for these fields, which stand in the place of those of the same name.
fn valid_block_with(changed: &[(&str, &str)]) -> Vec<u8> {
    let value = |name: &str| changed.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let fields: Vec<_> =
        VALID_HEADERS.iter().map(|(name, old)| (*name, value(name).unwrap_or(old))).collect();
    encode_block(&fields)
}

/// An honest block without this field.
fn valid_block_without(name: &str) -> Vec<u8> {
    encode_block(&VALID_HEADERS.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>())
}

/// An honest block with these fields behind it.
fn valid_block_plus(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [valid_block(), encode_header(name, value)].concat()
}

/// A request without a body on the first stream.
fn get_frame(block: Vec<u8>) -> Vec<u8> {
    encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
}

/// A POST with these fields and this body, in frames of the length given.
fn post_frames(fields: &[(&str, &str)], body: &[u8], piece: usize) -> Vec<u8> {
    let block = [valid_block_with(&[(":method", "POST")]), encode_block(fields)].concat();
    let mut frames = encode_frame(HEADERS, END_HEADERS, 1, block);
    for piece in body.chunks(piece) {
        frames.extend(encode_frame(DATA, 0, 1, piece));
    }
    frames.extend(encode_frame(DATA, END_STREAM, 1, ""));
    frames
}

/// What may come of a case.
enum Expect {
    /// Nothing that reaches the upstream.
    Refused,
    /// One request with this method, query and body.
    Served(&'static str, &'static str, &'static str),
    /// One or the other.
    ServedOrRefused(&'static str, &'static str, &'static str),
}

use Expect::{Refused, Served, ServedOrRefused};

/// One case: its name, what follows the preface and the settings, and what may come of it.
type Case = (String, Vec<u8>, Expect);

/// Whether the upstream may get a beginning of what never becomes a whole; with the streams of HTTP/2 it may come late.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PartialAllowed {
    Never,
    Maybe,
}

fn check_outcome(
    expect: &Expect,
    end: &StreamEnd,
    arrivals: &[RecordedArrival],
    beginnings: PartialAllowed,
) -> Result<(), String> {
    let mut whole = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            ArrivalState::Complete(seen) => whole.push(seen),
            ArrivalState::NotCanonical(why) => {
                return Err(format!("the upstream got what is not canonical: {why}"));
            }
            ArrivalState::Partial { head: true } if beginnings == PartialAllowed::Maybe => {}
            ArrivalState::Partial { .. } => return Err("the upstream got a part of it".to_owned()),
        }
    }
    if *end == StreamEnd::TimedOut {
        return Err("it hangs".to_owned());
    }
    match (whole.as_slice(), expect) {
        ([], Served(..)) => Err(format!("it ended with {end:?}")),
        ([], _) if *end == StreamEnd::Served => {
            Err("it was answered 200, and the upstream knows nothing of it".to_owned())
        }
        ([], _) => Ok(()),
        ([seen], Served(method, query, body) | ServedOrRefused(method, query, body)) => {
            let target = format!("/cgi-bin/case?{query}access_token={TOKEN}");
            if (&*seen.method, &*seen.target, &*seen.body) != (*method, &*target, body.as_bytes()) {
                return Err(format!("it was served as {} {}", seen.method, seen.target));
            }
            match (end, expect) {
                (StreamEnd::Served, _) | (StreamEnd::Reset(_), ServedOrRefused(..)) => Ok(()),
                _ => Err(format!("it was served, and ended with {end:?}")),
            }
        }
        _ => Err("it was served".to_owned()),
    }
}

/// Plays each case on a connection of its own.
async fn run_cases(beginnings: PartialAllowed, cases: Vec<Case>) {
    let (mut scene, mut report) = (CaseRunner::start().await, String::new());
    for (name, bytes, expect) in &cases {
        let before = scene.recorder.arrival_count();
        let mut client = FrameClient::connect(scene.proxy.address()).await;
        client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), bytes].concat()).await;
        let end = client.stream_end(1).await;
        drop(client);
        let arrivals = scene.arrivals_without_marker(before).await;
        let judged = check_outcome(expect, &end, &arrivals, beginnings);
        let name = format!("h2: {name}");
        let known = KNOWN_FAILURES.iter().find(|(known, _)| *known == name).map(|(_, why)| *why);
        match (judged, known) {
            (Ok(()), None) => {}
            (Err(why), Some(known)) if why == known => {}
            (Ok(()), Some(_)) => _ = writeln!(report, "{name}: it is right now; take it out of TODAY"),
            (Err(why), _) => _ = writeln!(report, "{name}: {why} ({end:?})"),
        }
    }
    assert!(report.is_empty(), "of {} cases\n{report}", cases.len());
}

#[tokio::test]
async fn invalid_header_fields_are_refused() {
    let mut cases: Vec<Case> = Vec::new();
    let mut refused = |name: &str, block: Vec<u8>| cases.push((name.to_owned(), get_frame(block), Refused));
    for (name, value) in [
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "x-y"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("X-Y", "upper case"),
        ("Transfer-Encoding", "chunked"),
        ("", "no name"),
        ("x y", "z"),
        ("x:y", "z"),
        ("x\0y", "z"),
        ("x\r\ny", "z"),
        ("x\ny", "z"),
        ("x\u{fc}", "z"),
        ("x\u{7f}", "z"),
        ("x(y)", "z"),
        ("x\"y", "z"),
        ("\"", "z"),
        ("x-y", "a\r\nb: c"),
        ("x-y", "a\nb: c"),
        ("x-y", "a\rb"),
        ("x-y", "a\0b"),
        ("x-y", "\r\n\r\nGET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: x\r\n\r\n"),
        (":method", "GET"),
        (":path", "/hr/cgi-bin/hidden"),
        (":scheme", "http"),
        (":authority", "proxy.test"),
        (":status", "200"),
        (":x", "y"),
        (":protocol", "websocket"),
        (":", "y"),
    ] {
        let shown = format!("{}: {}", name.escape_default(), value.escape_default());
        refused(&format!("behind the others, {shown}"), valid_block_plus(name, value));
        refused(&format!("before the others, {shown}"), [encode_header(name, value), valid_block()].concat());
    }
    for (name, value) in [
        (":path", ""),
        (":path", "hr/cgi-bin/case"),
        (":path", "*"),
        (":path", "?a=b"),
        (":path", "#x"),
        (":path", "/hr/cgi-bin/case#x"),
        (":path", "/hr/cgi-bin/case HTTP/1.1\r\nX: y"),
        (":path", "/hr/cgi-bin/case x"),
        (":path", "/hr/cgi-bin/case\0"),
        (":path", "/hr/cgi-bin/case?a=\r\nX:y"),
        (":path", "/hr/cgi-bin/\u{5f20}"),
        (":path", "/hr/cgi-bin/../case"),
        (":path", "/hr/cgi-bin/%2e%2e/case"),
        (":path", "/hr/cgi-bin/a%2fb"),
        (":path", "/hr/cgi-bin/a\\b"),
        (":path", "/hr/cgi-bin"),
        (":path", "/"),
        (":path", "http://proxy.test/hr/cgi-bin/case"),
        (":path", "http://evil.test/hr/cgi-bin/case"),
        (":path", "@evil.test/hr/cgi-bin/case"),
        (":path", " /hr/cgi-bin/case"),
        (":path", "/hr/cgi-bin/case "),
        (":method", ""),
        (":method", " "),
        (":method", "G ET"),
        (":method", "GET /hr/cgi-bin/hidden HTTP/1.1\r\nX: y\r\n\r\nGET"),
        (":method", "GET\r\n"),
        (":method", "G\0T"),
        (":method", "G\u{cb}T"),
        (":method", "CONNECT"),
        (":method", "TRACE"),
        (":method", "trace"),
        (":method", "Connect"),
        (":method", "TRACK"),
        (":method", "get"),
        (":scheme", ""),
        (":scheme", "http\r\n"),
        (":scheme", "http://evil.test/?"),
        (":scheme", "ht tp"),
        (":scheme", "ftp"),
        (":authority", "user@proxy.test"),
        (":authority", "proxy.test/hr"),
        (":authority", "proxy.test\r\nX: y"),
        (":authority", "proxy test"),
        (":authority", "a\0b"),
        (":authority", "a#b"),
        (":authority", "a?b"),
    ] {
        refused(&format!("instead, {name}: {}", value.escape_default()), valid_block_with(&[(name, value)]));
    }
    for name in [":method", ":scheme", ":path"] {
        refused(&format!("without {name}"), valid_block_without(name));
    }
    let late = |name: &str| {
        let value = VALID_HEADERS.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        [
            valid_block_without(name),
            encode_header("x-y", "z"),
            encode_header(name, value.expect("an honest field")),
        ]
        .concat()
    };
    for (name, _) in VALID_HEADERS {
        refused(&format!("behind a regular field, {name}"), late(name));
    }
    refused("OPTIONS *", valid_block_with(&[(":method", "OPTIONS"), (":path", "*")]));
    refused("a regular CONNECT", encode_block(&[(":method", "CONNECT"), (":authority", "proxy.test:443")]));
    refused(
        "an extended CONNECT",
        [valid_block_with(&[(":method", "CONNECT")]), encode_header(":protocol", "websocket")].concat(),
    );
    refused("no fields", Vec::new());
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
    served("nothing odd", valid_block(), "");
    served("te: trailers", valid_block_plus("te", "trailers"), "");
    served("two cookies", [valid_block_plus("cookie", "a=b"), encode_header("cookie", "c=d")].concat(), "");
    served(
        "credentials",
        [valid_block_plus("authorization", "Bearer x"), encode_header("x-api-key", "y")].concat(),
        "",
    );
    served(
        "what a network tells",
        [
            valid_block_plus("via", "1.1 x"),
            encode_header("x-forwarded-for", "1"),
            encode_header("forwarded", "for=1"),
        ]
        .concat(),
        "",
    );
    served("what is said to the proxy", valid_block_plus("x-wecom-debug", "1"), "");
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
        "pseudo-fields in another order",
        encode_block(&[VALID_HEADERS[3], VALID_HEADERS[2], VALID_HEADERS[1], VALID_HEADERS[0]]),
        "",
    );
    for (name, block) in [
        ("another host", valid_block_plus("host", "evil.test")),
        ("two hosts", [valid_block_plus("host", "proxy.test"), encode_header("host", "evil.test")].concat()),
        ("a host that is none", valid_block_plus("host", "a b")),
        (
            "a host that is none and no authority",
            [valid_block_without(":authority"), encode_header("host", "a@b/c")].concat(),
        ),
        ("neither host nor authority", valid_block_without(":authority")),
        ("an empty authority", valid_block_with(&[(":authority", "")])),
        ("https", valid_block_with(&[(":scheme", "https")])),
        ("a space before a value", valid_block_plus("x-y", " z")),
        ("a space behind a value", valid_block_plus("x-y", "z ")),
        ("a control character in a value", valid_block_plus("x-y", "a\u{1}b")),
        ("high bytes in a value", valid_block_plus("x-y", b"\xff\xfe")),
        ("te twice", [valid_block_plus("te", "trailers"), encode_header("te", "trailers")].concat()),
        ("priority", valid_block_plus("priority", "u=9, i=?2")),
    ] {
        cases.push((name.to_owned(), get_frame(block), ServedOrRefused("GET", "", "")));
    }
    run_cases(PartialAllowed::Never, cases).await;
}

#[tokio::test]
async fn content_length_mismatch_is_never_complete_upstream() {
    let mut cases: Vec<Case> = Vec::new();
    for (name, fields, body, expect) in [
        ("a right length", &[("content-length", "5")][..], "hello", Served("POST", "", "hello")),
        ("no length", &[], "hello", Served("POST", "", "hello")),
        ("too short", &[("content-length", "6")], "hello", Refused),
        ("too long", &[("content-length", "4")], "hello", Refused),
        ("nothing behind a length", &[("content-length", "5")], "", Refused),
        ("two lengths", &[("content-length", "5"), ("content-length", "6")], "hello", Refused),
        (
            "two lengths, the second is right",
            &[("content-length", "6"), ("content-length", "5")],
            "hello",
            Refused,
        ),
        ("no number", &[("content-length", "x")], "hello", Refused),
        ("an empty length", &[("content-length", "")], "hello", Refused),
        ("a negative length", &[("content-length", "-5")], "hello", Refused),
        ("a signed length", &[("content-length", "+5")], "hello", Refused),
        ("a length in hexadecimal", &[("content-length", "0x5")], "hello", Refused),
        ("a list of lengths", &[("content-length", "5, 6")], "hello", Refused),
        ("2^64 and 5", &[("content-length", "18446744073709551621")], "hello", Refused),
        ("2^63", &[("content-length", "9223372036854775808")], "hello", Refused),
        ("beyond the bound", &[("content-length", "67108865")], "hello", Refused),
        ("a list of the same", &[("content-length", "5, 5")], "hello", ServedOrRefused("POST", "", "hello")),
        (
            "two of the same",
            &[("content-length", "5"), ("content-length", "5")],
            "hello",
            ServedOrRefused("POST", "", "hello"),
        ),
        ("a leading zero", &[("content-length", "05")], "hello", ServedOrRefused("POST", "", "hello")),
        (
            "a request",
            &[],
            "GET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: x\r\n\r\n",
            Served("POST", "", "GET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: x\r\n\r\n"),
        ),
        (
            "the end of chunks",
            &[],
            "0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            Served("POST", "", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
        ),
    ] {
        cases.push((name.to_owned(), post_frames(fields, body.as_bytes(), 100), expect));
    }
    let ended = |more: Vec<u8>| get_frame([valid_block_with(&[(":method", "POST")]), more].concat());
    cases.push(("a length and the end at once".into(), ended(encode_header("content-length", "5")), Refused));
    let head = |fields: &[(&str, &str)]| {
        encode_frame(
            HEADERS,
            END_HEADERS,
            1,
            [valid_block_with(&[(":method", "POST")]), encode_block(fields)].concat(),
        )
    };
    let data = encode_frame(DATA, 0, 1, "hello");
    let trailers = |flags: u8, block: Vec<u8>| {
        [head(&[]), data.clone(), encode_frame(HEADERS, END_HEADERS | flags, 1, block)].concat()
    };
    for (name, block, expect) in [
        ("trailers", encode_header("x-t", "1"), Served("POST", "", "hello")),
        (
            "a length in the trailers",
            encode_header("content-length", "50"),
            ServedOrRefused("POST", "", "hello"),
        ),
        (
            "credentials in the trailers",
            encode_header("authorization", "Bearer x"),
            ServedOrRefused("POST", "", "hello"),
        ),
        (
            "an agent in the trailers",
            encode_header("x-wecom-agent", "ops"),
            ServedOrRefused("POST", "", "hello"),
        ),
        ("a path in the trailers", encode_header(":path", "/hr/cgi-bin/hidden"), Refused),
        ("a status in the trailers", encode_header(":status", "200"), Refused),
        ("a connection in the trailers", encode_header("connection", "close"), Refused),
        ("CR LF in the trailers", encode_header("x-t", "a\r\nb: c"), Refused),
    ] {
        cases.push((name.to_owned(), trailers(END_STREAM, block), expect));
    }
    let more = encode_frame(DATA, END_STREAM, 1, "!");
    cases.push((
        "trailers that do not end it".into(),
        [trailers(0, encode_header("x-t", "1")), more].concat(),
        Refused,
    ));
    cases.push((
        "trailers too early".into(),
        [
            head(&[("content-length", "9")]),
            data.clone(),
            encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, encode_header("x-t", "1")),
        ]
        .concat(),
        Refused,
    ));
    cases.push((
        "a reset behind half a body".into(),
        [
            head(&[]),
            data.clone(),
            encode_frame(RST_STREAM, 0, 1, [0, 0, 0, 8]),
            encode_frame(PING, 0, 0, [0; 7]),
        ]
        .concat(),
        Refused,
    ));
    run_cases(PartialAllowed::Maybe, cases).await;
}

#[tokio::test]
async fn data_beyond_content_length_is_discarded() {
    let mut scene = CaseRunner::start().await;
    // What was announced may be gone before more comes, and then it was whole.
    for (length, data) in [("5", "hello"), ("0", "")] {
        let before = scene.recorder.arrival_count();
        let mut client = FrameClient::connect(scene.proxy.address()).await;
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
        for arrival in scene.arrivals_without_marker(before).await {
            match &arrival.state {
                ArrivalState::Partial { head: true } => {}
                ArrivalState::Complete(seen) => {
                    assert!(seen.body == data.as_bytes(), "{seen:?}")
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn invalid_frames_close_the_connection() {
    let mut cases: Vec<Case> = Vec::new();
    let good = get_frame(valid_block());
    let half = encode_frame(HEADERS, END_STREAM, 1, valid_block());
    let padded = |length: u8, flags: u8, payload: &[u8]| {
        encode_frame(HEADERS, END_HEADERS | END_STREAM | PADDED | flags, 1, [&[length], payload].concat())
    };
    // What is wrong on its own; an honest request behind it is not served.
    for (name, bytes) in [
        ("DATA on stream 0", encode_frame(DATA, 0, 0, "x")),
        ("DATA on a stream that is not open", encode_frame(DATA, 0, 1, "x")),
        ("HEADERS on stream 0", encode_frame(HEADERS, END_HEADERS | END_STREAM, 0, valid_block())),
        ("HEADERS on an even stream", encode_frame(HEADERS, END_HEADERS | END_STREAM, 2, valid_block())),
        (
            "PUSH_PROMISE",
            encode_frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2][..], &valid_block()].concat()),
        ),
        ("RST_STREAM on stream 0", encode_frame(RST_STREAM, 0, 0, [0; 4])),
        ("RST_STREAM on an idle stream", encode_frame(RST_STREAM, 0, 1, [0; 4])),
        ("RST_STREAM of three bytes", encode_frame(RST_STREAM, 0, 1, [0; 3])),
        ("PRIORITY on stream 0", encode_frame(PRIORITY, 0, 0, [0; 5])),
        ("SETTINGS on a stream", encode_frame(SETTINGS, 0, 1, "")),
        ("SETTINGS of five bytes", encode_frame(SETTINGS, 0, 0, [0; 5])),
        ("an ACK of settings with a setting", encode_frame(SETTINGS, ACK, 0, encode_setting(4, 1))),
        ("ENABLE_PUSH of 2", encode_frame(SETTINGS, 0, 0, encode_setting(2, 2))),
        ("a window of 2^31", encode_frame(SETTINGS, 0, 0, encode_setting(4, 1 << 31))),
        ("frames of 100 bytes", encode_frame(SETTINGS, 0, 0, encode_setting(5, 100))),
        ("frames of 2^24", encode_frame(SETTINGS, 0, 0, encode_setting(5, 1 << 24))),
        ("PING of seven bytes", encode_frame(PING, 0, 0, [0; 7])),
        ("PING on a stream", encode_frame(PING, 0, 1, [0; 8])),
        ("GOAWAY on a stream", encode_frame(GOAWAY, 0, 1, [0; 8])),
        ("GOAWAY of seven bytes", encode_frame(GOAWAY, 0, 0, [0; 7])),
        ("WINDOW_UPDATE by 0", encode_frame(WINDOW_UPDATE, 0, 0, [0; 4])),
        ("WINDOW_UPDATE of three bytes", encode_frame(WINDOW_UPDATE, 0, 0, [0; 3])),
        ("WINDOW_UPDATE on an idle stream", encode_frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 1])),
        ("WINDOW_UPDATE beyond 2^31", encode_frame(WINDOW_UPDATE, 0, 0, [0x7f, 255, 255, 255]).repeat(2)),
        ("CONTINUATION of nothing", encode_frame(CONTINUATION, END_HEADERS, 1, valid_block())),
        (
            "a frame that is too long",
            encode_frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                [valid_block(), encode_header("x", "y".repeat(20_000))].concat(),
            ),
        ),
        ("an unknown frame that is too long", encode_frame(0x42, 0, 0, [0; 20_000])),
        ("DATA within a head", [&half[..], &encode_frame(DATA, 0, 1, "x")].concat()),
        ("PING within a head", [&half[..], &encode_frame(PING, 0, 0, [0; 8])].concat()),
        ("an unknown frame within a head", [&half[..], &encode_frame(0x42, 0, 0, "")].concat()),
        (
            "another head within a head",
            [&half[..], &encode_frame(HEADERS, END_HEADERS | END_STREAM, 3, valid_block())].concat(),
        ),
        (
            "CONTINUATION of another stream",
            [&half[..], &encode_frame(CONTINUATION, END_HEADERS, 3, "")].concat(),
        ),
        ("more padding than payload", padded(255, 0, &valid_block())),
        ("padding without a payload", encode_frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, "")),
        ("half a priority", encode_frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, [0; 4])),
        (
            "a stream that depends on itself",
            encode_frame(
                HEADERS,
                END_HEADERS | END_STREAM | 0x20,
                1,
                [&[0, 0, 0, 1, 0][..], &valid_block()].concat(),
            ),
        ),
        ("an index of 0", get_frame(vec![0x80])),
        ("an index beyond the table", get_frame([valid_block(), vec![0xff, 0x7f]].concat())),
        (
            "a name beyond the table",
            get_frame([valid_block(), encode_integer(500, 4, 0), encode_string(b"x")].concat()),
        ),
        ("an integer without an end", get_frame([valid_block(), vec![0xff; 30]].concat())),
        (
            "an integer of 2^64",
            get_frame(
                [valid_block(), vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]].concat(),
            ),
        ),
        ("half a literal", get_frame([valid_block(), vec![0, 5, b'x']].concat())),
        ("a literal of 2^31", get_frame([valid_block(), vec![0], encode_integer(1 << 31, 7, 0)].concat())),
        ("a table of 2^30", get_frame([encode_integer(1 << 30, 5, 0x20), valid_block()].concat())),
        (
            "a size of the table behind a field",
            get_frame([valid_block(), encode_integer(0, 5, 0x20)].concat()),
        ),
        (
            "Huffman code of its end",
            get_frame([valid_block(), vec![0, 1, b'x', 0x84, 255, 255, 255, 255]].concat()),
        ),
        (
            "Huffman code with long padding",
            get_frame([valid_block(), vec![0, 1, b'x', 0x82, 255, 255]].concat()),
        ),
    ] {
        cases.push((name.to_owned(), [&bytes[..], &good].concat(), Refused));
    }
    for (name, bytes) in [
        ("SETTINGS that are no ACK to anything", encode_frame(SETTINGS, ACK, 0, "")),
        ("an unknown setting", encode_frame(SETTINGS, 0, 0, encode_setting(0x4242, 7))),
        ("an unknown frame", encode_frame(0x42, 255, 7, "x")),
        ("PRIORITY", encode_frame(PRIORITY, 0, 1, [0, 0, 0, 3, 1])),
        ("PING", encode_frame(PING, 0, 0, [7; 8])),
        ("an answer to no PING", encode_frame(PING, ACK, 0, [7; 8])),
    ] {
        cases.push((name.to_owned(), [&bytes[..], &good].concat(), ServedOrRefused("GET", "", "")));
    }
    for (name, bytes) in [
        ("padding", padded(3, 0, &[&valid_block()[..], &[0; 3]].concat())),
        (
            "a head in two frames",
            [
                encode_frame(HEADERS, END_STREAM, 1, &valid_block()[..20]),
                encode_frame(CONTINUATION, END_HEADERS, 1, &valid_block()[20..]),
            ]
            .concat(),
        ),
        ("a size of the table", get_frame([encode_integer(0, 5, 0x20), valid_block()].concat())),
    ] {
        cases.push((name.to_owned(), bytes, Served("GET", "", "")));
    }
    let one_by_one: Vec<u8> =
        valid_block().iter().flat_map(|byte| encode_frame(CONTINUATION, 0, 1, [*byte])).collect();
    let drip = [
        encode_frame(HEADERS, END_STREAM, 1, ""),
        one_by_one,
        encode_frame(CONTINUATION, END_HEADERS, 1, ""),
    ]
    .concat();
    cases.push(("a head byte by byte".into(), drip, ServedOrRefused("GET", "", "")));
    run_cases(PartialAllowed::Never, cases).await;
}

#[tokio::test]
async fn preface_without_settings_is_closed_or_accepted() {
    let mut scene = CaseRunner::start().await;
    let ping = encode_frame(PING, 0, 0, [0; 8]);
    for first in [
        get_frame(valid_block()),
        [ping, get_frame(valid_block())].concat(),
        encode_frame(SETTINGS, ACK, 0, ""),
    ] {
        let before = scene.recorder.arrival_count();
        let mut client = FrameClient::connect(scene.proxy.address()).await;
        client.send([PREFACE, &first[..], &encode_frame(GOAWAY, 0, 0, [0; 8])].concat()).await;
        let end = client.stream_end(1).await;
        assert!(
            end != StreamEnd::TimedOut && scene.arrivals_without_marker(before).await.len() <= 1,
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn invalid_frames_within_a_request_end_it() {
    let mut cases: Vec<Case> = Vec::new();
    let good = get_frame(valid_block());
    let begun = encode_frame(HEADERS, END_HEADERS, 1, valid_block_with(&[(":method", "POST")]));
    cases.push(("a second head on the same stream".into(), [&begun[..], &begun, &good].concat(), Refused));
    cases.push((
        "more padding than DATA".into(),
        [&begun[..], &encode_frame(DATA, END_STREAM | PADDED, 1, [9, 1])].concat(),
        Refused,
    ));
    cases.push((
        "a window of a stream beyond 2^31".into(),
        [&begun[..], &encode_frame(WINDOW_UPDATE, 0, 1, [0x7f, 255, 255, 255])].concat(),
        Refused,
    ));
    cases.push((
        "a window of a stream by 0".into(),
        [&begun[..], &encode_frame(WINDOW_UPDATE, 0, 1, [0; 4])].concat(),
        Refused,
    ));
    run_cases(PartialAllowed::Maybe, cases).await;
}
