//! Malformed and ambiguous chunked bodies. The upstream receives a valid body, or an incomplete one.

use super::cases::{BAD_REQUEST, Case, CaseRunner, case, case_name, post, smuggled_request};

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Invalid chunk sizes, in front of five bytes.
const INVALID_SIZES: &[&[u8]] = &[
    b"0x5",
    b"0X5",
    b"x5",
    b"-5",
    b"+5",
    b"-0",
    b" 5",
    b"\t5",
    b"5 ",
    b"5\t",
    b"5 \t ",
    b"5\x0b",
    b"\x0b5",
    b"5\x0c",
    b"5\0",
    b"\x005",
    b"5 5",
    b"5,5",
    b"5.0",
    b"5h",
    b"5g",
    b"g",
    b"5_",
    b"5'",
    b"\"5\"",
    b"5=",
    b"5:",
    b"",
    b" ",
    b"\t",
    b"\r",
    b"\n",
    b"5\r",
    b"\r5",
    b"5\n",
    b"\n5",
    b"5\rX",
    b"5\nX",
    b"5\r\r",
    b"\xef\xbc\x95",
    b"\xd9\xa5",
    b"\xb2",
    b"\x855",
    b"5\xa0",
    b"%35",
    b"five",
    b"\xef\xbb\xbf5",
];

/// Sizes beyond all limits, some of which would overflow to five.
const HUGE_SIZES: &[&str] = &[
    "10000000000000005",
    "100000000000000000000000000000005",
    "FFFFFFFFFFFFFFFF",
    "FFFFFFFFFFFFFFFE",
    "fffffffffffffffff",
    "fffffffffffffffb",
    "7FFFFFFFFFFFFFFF",
    "8000000000000000",
    "8000000000000005",
    "ffffffff",
    "100000005",
    "4000001",
];

/// Invalid chunk extensions.
const INVALID_EXTENSIONS: &[&[u8]] = &[
    b";a\nb",
    b";\n",
    b";a=\"\n\"",
    b";a\rb",
    b";\r",
    b";a=\"\r\"",
    b";a\0",
    b";a=\0",
    b";a=\x01",
    b";a=\x7f",
    b"\n;a",
    b"\r;a",
    b" a",
    b",a=b",
    b"&a=b",
];

/// Valid and nearly valid chunk extensions, all without effect.
const EXTENSIONS: &[&[u8]] = &[
    b";a",
    b";a=b",
    b";a=b;c=d",
    b";a=\"b\"",
    b";a=\"b;c\"",
    b";a=\"b\\\"c\"",
    b" ;a=b",
    b"\t;a=b",
    b"; a=b",
    b";a = b",
    b" ; a = b",
    b";",
    b";;",
    b";=",
    b";=b",
    b";a=",
    b";a=\"b",
    b";a=b\"",
    b";a=\xff",
    b";a=\"\xe4\xbc\x81\"",
    b";0",
    b";0x5",
    b";a=\"5 6 7\"",
];

/// Valid trailers, none of which is forwarded.
const TRAILERS: &[&[u8]] = &[
    b"X-T: 1\r\n",
    b"X-T:1\r\nX-U: 2\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Host: evil.test\r\n",
    b"Authorization: Bearer x\r\n",
    b"X-Wecom-Agent: ops\r\n",
    b"Cookie: a=b\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, x-y\r\n",
    b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"Trailer: X-T\r\n",
    b"X-T: \xe4\xbc\x81\r\n",
    b"X-T:\r\n",
    b"GET: /hr/cgi-bin/hidden HTTP/1.1\r\nHost: proxy.test\r\n",
];

/// Invalid trailer sections.
const INVALID_TRAILERS: &[&[u8]] = &[
    b"X-T\r\n",
    b"X-T : 1\r\n",
    b"X-T\t: 1\r\n",
    b": 1\r\n",
    b" X-T: 1\r\n",
    b"\tX-T: 1\r\n",
    b"X T: 1\r\n",
    b"X-T: 1\0\r\n",
    b"X\0T: 1\r\n",
    b"X-T: a\rb\r\n",
    b"X-T: a\r\r\n",
    b"\rX-T: a\r\n",
    b"X\xff: a\r\n",
    b"X(: a\r\n",
    b"GET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: proxy.test\r\n",
    b"\0",
    b"\r",
    b"0\r\n",
    b"\x0b\r\n",
];

/// Malformed chunked bodies.
const MALFORMED_BODIES: &[(&str, &[u8])] = &[
    ("a chunk too long", b"5\r\nhello!\r\n0\r\n\r\n"),
    ("a chunk too long by CR LF", b"5\r\nhello\r\n\r\n0\r\n\r\n"),
    ("a chunk too short", b"6\r\nhello\r\n0\r\n\r\n"),
    ("a chunk too short by CR LF", b"7\r\nhello\r\n0\r\n\r\n"),
    ("nothing after a chunk", b"5\r\nhello0\r\n\r\n"),
    ("LF after a chunk", b"5\r\nhello\n0\r\n\r\n"),
    ("CR after a chunk", b"5\r\nhello\r0\r\n\r\n"),
    ("LF CR after a chunk", b"5\r\nhello\n\r0\r\n\r\n"),
    ("two CR after a chunk", b"5\r\nhello\r\r\n0\r\n\r\n"),
    ("a space after a chunk", b"5\r\nhello \r\n0\r\n\r\n"),
    ("two letters after a chunk", b"5\r\nhelloXX0\r\n\r\n"),
    ("LF after the size", b"5\nhello\r\n0\r\n\r\n"),
    ("LF everywhere", b"5\nhello\n0\n\n"),
    ("CR after the size", b"5\rhello\r\n0\r\n\r\n"),
    ("no size", b"hello\r\n0\r\n\r\n"),
    ("an empty line first", b"\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("LF after the last chunk's size", b"5\r\nhello\r\n0\n\r\n"),
    ("CR after the last chunk's size", b"5\r\nhello\r\n0\r\r\n"),
    ("a space after the last chunk's size", b"5\r\nhello\r\n0 \r\n\r\n"),
    ("CR CR LF at the end", b"5\r\nhello\r\n0\r\n\r\r\n"),
    ("a last chunk of -0", b"5\r\nhello\r\n-0\r\n\r\n"),
    ("a last chunk of +0", b"5\r\nhello\r\n+0\r\n\r\n"),
    ("a last chunk of 0x0", b"5\r\nhello\r\n0x0\r\n\r\n"),
    ("a chunk of 2^64", b"5\r\nhello\r\n10000000000000000\r\n\r\n"),
    ("a size in decimal", b"16\r\nhello hello hello!\r\n0\r\n\r\n"),
];

fn chunked_case(name: String, body: &[u8]) -> Case {
    case(name, post(CHUNKED, [body, &smuggled_request()].concat()))
}

#[tokio::test]
async fn malformed_chunked_body_is_never_complete_upstream() {
    let mut cases = Vec::new();
    for size in INVALID_SIZES {
        cases.push(
            chunked_case(case_name("size", size), &[size, &b"\r\nhello\r\n0\r\n\r\n"[..]].concat())
                .or_aborted(),
        );
        let second = [b"5\r\nhello\r\n", *size, b"\r\nhello\r\n0\r\n\r\n"].concat();
        cases.push(chunked_case(case_name("second size", size), &second).or_aborted());
    }
    for size in HUGE_SIZES {
        let name = format!("size {size}");
        cases.push(
            chunked_case(name, format!("{size}\r\nhello\r\n0\r\n\r\n").as_bytes()).or_aborted().half_closed(),
        );
        let second = format!("5\r\nhello\r\n{size}\r\nhello\r\n0\r\n\r\n");
        cases.push(chunked_case(format!("second size {size}"), second.as_bytes()).or_aborted().half_closed());
    }
    for extension in INVALID_EXTENSIONS {
        let body = [b"5", *extension, b"\r\nhello\r\n0\r\n\r\n"].concat();
        cases.push(chunked_case(case_name("extension", extension), &body).or_aborted());
        let last = [b"5\r\nhello\r\n0", *extension, b"\r\n\r\n"].concat();
        cases.push(chunked_case(case_name("last extension", extension), &last).or_aborted());
    }
    for trailers in INVALID_TRAILERS {
        let body = [b"5\r\nhello\r\n0\r\n", *trailers, b"\r\n"].concat();
        cases.push(chunked_case(case_name("trailers", trailers), &body).or_aborted());
    }
    for (name, body) in MALFORMED_BODIES {
        cases.push(chunked_case((*name).to_owned(), body).or_aborted());
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn chunk_extensions_and_trailers_are_not_forwarded() {
    let mut cases = Vec::new();
    let valid = |name: String, body: &[u8]| chunked_case(name, body).forwarded("hello").then_smuggled();
    for extension in EXTENSIONS {
        let body = [b"5", *extension, b"\r\nhello\r\n0\r\n\r\n"].concat();
        cases.push(valid(case_name("extension", extension), &body).or_aborted());
        let last = [b"5\r\nhello\r\n0", *extension, b"\r\n\r\n"].concat();
        cases.push(valid(case_name("last extension", extension), &last).or_aborted());
    }
    for trailers in TRAILERS {
        let body = [b"5\r\nhello\r\n0\r\n", *trailers, b"\r\n"].concat();
        cases.push(valid(case_name("trailers", trailers), &body).or_aborted());
    }
    for (name, body) in [
        ("one chunk", "5\r\nhello\r\n0\r\n\r\n"),
        ("small chunks", "1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n"),
    ] {
        cases.push(valid(name.to_owned(), body.as_bytes()));
    }
    for (name, body) in [
        ("a leading zero", "05\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("sixteen digits", "0000000000000005\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("seventeen digits", "00000000000000005\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("forty digits", format!("{:040}\r\nhello\r\n0\r\n\r\n", 5)),
        ("many zeros at the end", format!("5\r\nhello\r\n{:040}\r\n\r\n", 0)),
        ("two zeros at the end", "5\r\nhello\r\n00\r\n\r\n".to_owned()),
        ("LF at the end", "5\r\nhello\r\n0\r\n\n".to_owned()),
        ("a trailer that ends with LF", "5\r\nhello\r\n0\r\nX-T: 1\n\r\n".to_owned()),
        ("a folded trailer", "5\r\nhello\r\n0\r\nX-T: 1\r\n 2\r\n\r\n".to_owned()),
        ("60,000 zeros", format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(60_000))),
        ("an extension of 100,000 bytes", format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(100_000))),
        ("10,000 extensions", format!("5{}\r\nhello\r\n0\r\n\r\n", ";a=b".repeat(10_000))),
        ("a trailer of 100,000 bytes", format!("5\r\nhello\r\n0\r\nX: {}\r\n\r\n", "a".repeat(100_000))),
        ("1,000 trailers", format!("5\r\nhello\r\n0\r\n{}\r\n", "X: y\r\n".repeat(1000))),
    ] {
        cases.push(valid(name.to_owned(), body.as_bytes()).or_aborted());
    }
    // Bodies with much framing and little data may be refused.
    let (single_bytes, long_extensions) =
        ("1;a=b\r\nx\r\n".repeat(5000), format!("1;{}\r\nx\r\n", "a".repeat(100)).repeat(1000));
    cases.push(
        chunked_case("5,000 bytes one by one".into(), (single_bytes + "0\r\n\r\n").as_bytes())
            .forwarded("x".repeat(5000))
            .then_smuggled()
            .or_aborted(),
    );
    cases.push(
        chunked_case("1,000 bytes with 100 bytes each".into(), (long_extensions + "0\r\n\r\n").as_bytes())
            .forwarded("x".repeat(1000))
            .then_smuggled()
            .or_aborted(),
    );
    // CR LF ends the chunk size line, even inside quotation marks.
    let quoted = chunked_case("a quoted CR LF".into(), b"5;a=\"\r\nhello\r\n0;\"\r\n\r\n");
    cases.push(quoted.forwarded("hello").then_smuggled().or_aborted());
    let head = [&b"Trailer: Content-Length\r\n"[..], CHUNKED.as_bytes()].concat();
    let body = b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n";
    cases.push(case("a declared trailer", post(head, body)).forwarded("hello").or_refused(BAD_REQUEST));
    CaseRunner::start().await.run(cases).await;
}
