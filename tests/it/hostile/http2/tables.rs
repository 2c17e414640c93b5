//! Headers and frames of the cases.

use super::{
    Case, Expect,
    Expect::{Refused, Served, ServedOrRefused},
    encode_block, get_frame, valid_block, valid_block_plus, valid_block_with, valid_block_without,
};
use crate::hostile::http2_frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITY, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, encode_frame, encode_header, encode_integer, encode_setting,
    encode_string,
};

/// Headers that are invalid in a request (RFC 9113, section 8.2).
pub(super) const INVALID_HEADERS: &[(&str, &str)] = &[
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
];

/// Values of pseudo-headers that are invalid or refused.
pub(super) const INVALID_PSEUDO_HEADERS: &[(&str, &str)] = &[
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
];

/// Header blocks that may be refused.
pub(super) fn ambiguous_blocks() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("another host", valid_block_plus("host", "evil.test")),
        ("two hosts", [valid_block_plus("host", "proxy.test"), encode_header("host", "evil.test")].concat()),
        ("an invalid host", valid_block_plus("host", "a b")),
        (
            "an invalid host and no authority",
            [valid_block_without(":authority"), encode_header("host", "a@b/c")].concat(),
        ),
        ("neither host nor authority", valid_block_without(":authority")),
        ("an empty authority", valid_block_with(&[(":authority", "")])),
        ("https", valid_block_with(&[(":scheme", "https")])),
        ("a space before a value", valid_block_plus("x-y", " z")),
        ("a space after a value", valid_block_plus("x-y", "z ")),
        ("a control character in a value", valid_block_plus("x-y", "a\u{1}b")),
        ("high bytes in a value", valid_block_plus("x-y", b"\xff\xfe")),
        ("te twice", [valid_block_plus("te", "trailers"), encode_header("te", "trailers")].concat()),
        ("priority", valid_block_plus("priority", "u=9, i=?2")),
    ]
}

/// Name, headers and body of a POST, and the expected outcome.
pub(super) type LengthCase = (&'static str, &'static [(&'static str, &'static str)], &'static str, Expect);

pub(super) const LENGTH_CASES: &[LengthCase] = &[
    ("a right length", &[("content-length", "5")], "hello", Served("POST", "", "hello")),
    ("no length", &[], "hello", Served("POST", "", "hello")),
    ("too short", &[("content-length", "6")], "hello", Refused),
    ("too long", &[("content-length", "4")], "hello", Refused),
    ("no body for a length", &[("content-length", "5")], "", Refused),
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
    ("beyond the limit", &[("content-length", "67108865")], "hello", Refused),
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
];

/// POSTs with trailers, and one that is reset.
pub(super) fn trailer_cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let head = |headers: &[(&str, &str)]| {
        encode_frame(
            HEADERS,
            END_HEADERS,
            1,
            [valid_block_with(&[(":method", "POST")]), encode_block(headers)].concat(),
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
    let rest = encode_frame(DATA, END_STREAM, 1, "!");
    let early = encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, encode_header("x-t", "1"));
    let reset = [encode_frame(RST_STREAM, 0, 1, [0, 0, 0, 8]), encode_frame(PING, 0, 0, [0; 7])].concat();
    for (name, bytes) in [
        ("trailers that do not end it", [trailers(0, encode_header("x-t", "1")), rest].concat()),
        ("trailers too early", [head(&[("content-length", "9")]), data.clone(), early].concat()),
        ("a reset after half of a body", [head(&[]), data.clone(), reset].concat()),
    ] {
        cases.push((name.to_owned(), bytes, Refused));
    }
    cases
}

/// A padded HEADERS frame: the pad length, then the payload.
pub(super) fn padded_head(length: u8, payload: &[u8]) -> Vec<u8> {
    encode_frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, [&[length], payload].concat())
}

/// Frames that are invalid on a new connection.
pub(super) fn invalid_frames() -> Vec<(&'static str, Vec<u8>)> {
    vec![
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
        ("CONTINUATION without HEADERS", encode_frame(CONTINUATION, END_HEADERS, 1, valid_block())),
    ]
}

/// Frames that are too long, and invalid HEADERS and CONTINUATION frames.
pub(super) fn invalid_heads() -> Vec<(&'static str, Vec<u8>)> {
    let open_head = encode_frame(HEADERS, END_STREAM, 1, valid_block());
    vec![
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
        ("DATA within a head", [&open_head[..], &encode_frame(DATA, 0, 1, "x")].concat()),
        ("PING within a head", [&open_head[..], &encode_frame(PING, 0, 0, [0; 8])].concat()),
        ("an unknown frame within a head", [&open_head[..], &encode_frame(0x42, 0, 0, "")].concat()),
        (
            "another head within a head",
            [&open_head[..], &encode_frame(HEADERS, END_HEADERS | END_STREAM, 3, valid_block())].concat(),
        ),
        (
            "CONTINUATION of another stream",
            [&open_head[..], &encode_frame(CONTINUATION, END_HEADERS, 3, "")].concat(),
        ),
        ("more padding than payload", padded_head(255, &valid_block())),
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
    ]
}

/// Header blocks that are invalid in HPACK (RFC 7541).
pub(super) fn invalid_blocks() -> Vec<(&'static str, Vec<u8>)> {
    vec![
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
            "a table size update after a header",
            get_frame([valid_block(), encode_integer(0, 5, 0x20)].concat()),
        ),
        (
            "Huffman code of EOS",
            get_frame([valid_block(), vec![0, 1, b'x', 0x84, 255, 255, 255, 255]].concat()),
        ),
        (
            "Huffman code with long padding",
            get_frame([valid_block(), vec![0, 1, b'x', 0x82, 255, 255]].concat()),
        ),
    ]
}
