//! Where a request ends: Content-Length, Transfer-Encoding, and both.

use super::cases::{
    BAD_OR_UNSUPPORTED, BAD_REQUEST, CLOSED_SILENTLY, Case, CaseRunner, case, get, post, request,
    smuggled_request,
};

const CHUNKED: &[u8] = b"5\r\nhello\r\n0\r\n\r\n";

/// Values of Transfer-Encoding that are not `chunked`, however they look.
const INVALID_CODINGS: &[&[u8]] = &[
    b" xchunked",
    b" chunkedx",
    b" x-chunked",
    b" chunk",
    b" chunked, identity",
    b" identity, chunked",
    b" identity",
    b" gzip",
    b" gzip, chunked",
    b" chunked, gzip",
    b" deflate, chunked",
    b" x, chunked",
    b" cow",
    b" chunked, cow",
    b" chunked, chunked",
    b" chunked,",
    b" ,chunked",
    b" chunked,,",
    b" chunked;",
    b" chunked;q=1",
    b" chunked; a=b",
    b" chunked chunked",
    b" chunked\tchunked",
    b" x chunked",
    b" chunked x",
    b" \"chunked\"",
    b" 'chunked'",
    b" \"chunked",
    b" chunked\"",
    b" (chunked)",
    b" chunked:",
    b": chunked",
    b"",
    b" ",
    b" \0",
    b"\0chunked",
    b" chunked\0",
    b" Chunked\0",
    b" chun\0ked",
    b"\x0bchunked",
    b" \x0bchunked",
    b" chunked\x0b",
    b"\x0cchunked",
    b" \x0cchunked",
    b" chunked\x0c",
    b"\x01chunked",
    b" chunked\x1f",
    b" chunked\x7f",
    b" \x85chunked",
    b" \xa0chunked",
    b" chunked\xa0",
    b" \xc2\xa0chunked",
    b" \xef\xbb\xbfchunked",
    b" \xe2\x80\x8bchunked",
    b" chun\xe2\x84\xaaed",
    b" \xff",
    b" chunked\r",
    b" \rchunked",
    b"\rchunked",
    b" chun\rked",
    b"\nchunked",
    b"\r\nchunked",
    b"\r\n chunked, identity",
    b" chunked\r\n , identity",
    b" chunked\r\n\tidentity",
    b" identity\r\n chunked",
    b" chunked%",
    b" %63hunked",
    b" =?utf-8?q?chunked?=",
    b" ch\\unked",
    b" chunked\\r\\n",
    b" true",
    b" 1",
];

/// Lines that a careless reader takes for `Transfer-Encoding: chunked`, and that no header line may look like.
const INVALID_CODING_LINES: &[&[u8]] = &[
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding  : chunked\r\n",
    b"Transfer-Encoding\t: chunked\r\n",
    b"Transfer-Encoding\x0b: chunked\r\n",
    b"Transfer-Encoding\x0c: chunked\r\n",
    b"Transfer-Encoding\0: chunked\r\n",
    b"Transfer-Encoding\xa0: chunked\r\n",
    b"Transfer-Encoding\r: chunked\r\n",
    b"Transfer-Encoding\r\n: chunked\r\n",
    b"Transfer-Encoding\n: chunked\r\n",
    b"Transfer-Encoding\r\n : chunked\r\n",
    b"Transfer-\r\n Encoding: chunked\r\n",
    b"Transfer Encoding: chunked\r\n",
    b"Transfer-Encoding chunked\r\n",
    b"Transfer-Encoding=chunked\r\n",
    b"Transfer-Encoding\r\n",
    b"Transfer-Encoding;: chunked\r\n",
    b"Transfer-Encoding,: chunked\r\n",
    b"\"Transfer-Encoding\": chunked\r\n",
    b":Transfer-Encoding: chunked\r\n",
    b"\0Transfer-Encoding: chunked\r\n",
    b"\rTransfer-Encoding: chunked\r\n",
    b"\x0bTransfer-Encoding: chunked\r\n",
    b"\xa0Transfer-Encoding: chunked\r\n",
    b"\xef\xbb\xbfTransfer-Encoding: chunked\r\n",
    b"Transf\xe9r-Encoding: chunked\r\n",
    b"Transfer-Encoding\xc2\xad: chunked\r\n",
    b"X: y\rTransfer-Encoding: chunked\r\n",
    b"X: y\r\rTransfer-Encoding: chunked\r\n",
    b"X: y\r\n\rTransfer-Encoding: chunked\r\n",
    b"X: y\0\r\nTransfer-Encoding: chunked\r\n",
    b"X\r\nTransfer-Encoding: chunked\r\n",
    b"X y\r\nTransfer-Encoding: chunked\r\n",
];

/// Several lines that do not say `chunked` exactly once.
const REPEATED_CODING_LINES: &[&[u8]] = &[
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-encoding: x\r\n",
    b"Transfer-Encoding: x\r\nTransfer-encoding: chunked\r\n",
    b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nX: y\r\nTransfer-Encoding: gzip\r\n",
];

/// Values of Content-Length that are no number, for a body of five bytes.
const INVALID_LENGTHS: &[&[u8]] = &[
    b" 5, 6",
    b" 6, 5",
    b" 5, 5, 6",
    b" 5;",
    b" 5;6",
    b" +5",
    b" -5",
    b" -0",
    b" -1",
    b" +0",
    b" 0x5",
    b" 0X5",
    b" x5",
    b" 0b101",
    b" 0o5",
    b" 5h",
    b" 5 5",
    b" 5\t5",
    b" 0 5",
    b" 5 0",
    b" 5.0",
    b" 5.",
    b" .5",
    b" 5e0",
    b" 1e1",
    b" 5_0",
    b" 5'",
    b" \"5\"",
    b" (5)",
    b" 5,",
    b" ,5",
    b" 5,,5",
    b" 5, ",
    b" 5, x",
    b" five",
    b" NaN",
    b" null",
    b" Infinity",
    b"",
    b" ",
    b"\t",
    b" \0",
    b" 5\0",
    b"\x005",
    b" \x0b5",
    b" 5\x0b",
    b" \x0c5",
    b" 5\x0c",
    b" 5\x7f",
    b" \xa05",
    b" 5\xa0",
    b" \xd9\xa5",
    b" \xef\xbc\x95",
    b" \xb2",
    b" 5\r",
    b" \r5",
    b" 5\r6",
    b"\n5",
    b"\r\n5",
    b" 5\r\n 5",
    b" 5\r\n , 6",
    b": 5",
    b" %35",
    b" $5",
    b" 5#",
    b" 1,000",
];

/// Lines that a careless reader takes for a Content-Length, and that no header line may look like.
const INVALID_LENGTH_LINES: &[&[u8]] = &[
    b"Content-Length : 5\r\n",
    b"Content-Length\t: 5\r\n",
    b"Content-Length\0: 5\r\n",
    b"Content-Length\x0b: 5\r\n",
    b"Content-Length\r\n: 5\r\n",
    b"Content-Length 5\r\n",
    b"Content Length: 5\r\n",
    b"\0Content-Length: 5\r\n",
    b"\xa0Content-Length: 5\r\n",
    b"X: y\rContent-Length: 5\r\n",
    b"X: y\r\n\rContent-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: 6\r\nContent-Length: 5\r\n",
    b"Content-Length: 0\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 0\r\n",
    b"Content-Length: 5\r\nContent-Length:\r\n",
    b"Content-Length:\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nX: y\r\ncontent-length: 50\r\n",
    b"Content-Length: 5\r\nContent-Length: -5\r\n",
    b"Content-Length: 5\r\nContent-Length: 5, 6\r\n",
    b"Content-Length: 5\r\nContent-Length: +5\r\n",
];

/// Lengths beyond all bounds. No number may wrap around to a small one.
const HUGE_LENGTHS: &[&str] = &[
    "67108865",
    "2147483648",
    "4294967296",
    "4294967301",
    "9223372036854775807",
    "9223372036854775808",
    "9223372036854775813",
    "18446744073709551615",
    "18446744073709551616",
    "18446744073709551621",
    "36893488147419103237",
    "99999999999999999999",
    "340282366920938463463374607431768211461",
];

fn case_name(what: &str, bytes: &[u8]) -> String {
    format!("{what} {}", bytes.escape_ascii())
}

#[tokio::test]
async fn transfer_encoding_other_than_chunked_is_refused() {
    let mut cases = Vec::new();
    for value in INVALID_CODINGS {
        let line = [b"Transfer-Encoding:", *value, b"\r\n"].concat();
        cases.push(
            case(case_name("coding", value), post(&line, [CHUNKED, &smuggled_request()].concat()))
                .or_refused(BAD_OR_UNSUPPORTED),
        );
        let both = [b"Content-Length: 15\r\n", &line[..]].concat();
        cases.push(
            case(case_name("length, coding", value), post(both, [CHUNKED, &smuggled_request()].concat()))
                .or_refused(BAD_OR_UNSUPPORTED),
        );
    }
    for lines in INVALID_CODING_LINES.iter().chain(REPEATED_CODING_LINES) {
        cases.push(
            case(case_name("lines", lines), post(lines, [CHUNKED, &smuggled_request()].concat()))
                .or_refused(BAD_OR_UNSUPPORTED),
        );
        let both = [*lines, b"Content-Length: 15\r\n"].concat();
        cases.push(
            case(case_name("lines, length", lines), post(both, [CHUNKED, &smuggled_request()].concat()))
                .or_refused(BAD_OR_UNSUPPORTED),
        );
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn invalid_content_length_is_refused() {
    let mut cases = Vec::new();
    for value in INVALID_LENGTHS {
        let line = [b"Content-Length:", *value, b"\r\n"].concat();
        cases.push(
            case(case_name("length", value), post(&line, [b"hello", &smuggled_request()[..]].concat()))
                .or_refused(BAD_REQUEST),
        );
    }
    for lines in INVALID_LENGTH_LINES {
        cases.push(
            case(case_name("lines", lines), post(lines, [b"hello", &smuggled_request()[..]].concat()))
                .or_refused(BAD_REQUEST),
        );
    }
    for length in HUGE_LENGTHS {
        let line = format!("Content-Length: {length}\r\n");
        let name = format!("length {length}");
        cases.push(
            case(name, post(line, [b"hello", &smuggled_request()[..]].concat())).or_refused(&[400, 413]),
        );
        let name = format!("nothing behind a length {length}");
        cases.push(
            case(name, post(format!("Content-Length: {length}\r\n"), ""))
                .or_refused(&[400, 413])
                .half_closed(),
        );
    }
    CaseRunner::start().await.run(cases).await;
}

/// Content-Length beside Transfer-Encoding: refused, or read by its chunks and the last on its connection (RFC 9112
/// §6.1).
fn length_and_coding_case(name: &str, lines: &str, rest: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Case {
    case(name, post(lines, rest)).forwarded(body).or_refused(BAD_REQUEST).closes_connection()
}

#[tokio::test]
async fn content_length_with_transfer_encoding_is_ignored() {
    let hidden = smuggled_request();
    let wrapped = [format!("{:x}\r\n", hidden.len()).as_bytes(), &hidden, b"\r\n0\r\n\r\n"].concat();
    let empty = [b"0\r\n\r\n", &hidden[..]].concat();
    let mut cases = vec![
        length_and_coding_case(
            "CL.TE with one letter behind",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nG",
            "",
        ),
        length_and_coding_case(
            "TE.CL with one letter behind",
            "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
            "0\r\n\r\nG",
            "",
        ),
        length_and_coding_case(
            "the same in capitals",
            "CONTENT-LENGTH: 6\r\nTRANSFER-ENCODING: CHUNKED\r\n",
            "0\r\n\r\nG",
            "",
        ),
        length_and_coding_case(
            "length of the first chunk's line",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            &wrapped,
            &hidden,
        ),
        length_and_coding_case(
            "the same, coding first",
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            &wrapped,
            &hidden,
        ),
        length_and_coding_case(
            "length 0 beside chunks",
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
            &wrapped,
            &hidden,
        ),
        length_and_coding_case(
            "length 0 behind chunks",
            "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            &wrapped,
            &hidden,
        ),
        length_and_coding_case(
            "a right length beside chunks",
            "Content-Length: 15\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED,
            "hello",
        ),
        length_and_coding_case(
            "two lengths beside chunks",
            "Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED,
            "hello",
        ),
        length_and_coding_case(
            "two lengths around chunks",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 15\r\n",
            CHUNKED,
            "hello",
        ),
        length_and_coding_case(
            "a huge length beside chunks",
            "Content-Length: 99999999999\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED,
            "hello",
        )
        .or_refused(&[413]),
        length_and_coding_case(
            "no number beside chunks",
            "Content-Length: x\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED,
            "hello",
        ),
        length_and_coding_case(
            "a negative length beside chunks",
            "Transfer-Encoding: chunked\r\nContent-Length: -1\r\n",
            CHUNKED,
            "hello",
        ),
        length_and_coding_case(
            "an empty length beside chunks",
            "Transfer-Encoding: chunked\r\nContent-Length:\r\n",
            CHUNKED,
            "hello",
        ),
        length_and_coding_case(
            "a list of lengths beside chunks",
            "Transfer-Encoding: chunked\r\nContent-Length: 5, 6\r\n",
            CHUNKED,
            "hello",
        ),
        length_and_coding_case(
            "a length that Connection names",
            "Connection: content-length\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nG",
            "",
        ),
        length_and_coding_case(
            "a coding that Connection names",
            "Connection: transfer-encoding\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nG",
            "",
        ),
        length_and_coding_case(
            "a length behind a bare LF",
            "X: y\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nG",
            "",
        ),
        length_and_coding_case(
            "a coding behind a bare LF",
            "X: y\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n",
            "0\r\n\r\nG",
            "",
        ),
    ];
    for length in [1, 3, 5, 6, 10, 30, empty.len(), empty.len() + 1, empty.len() + 200] {
        let (one, other) = (format!("Content-Length: {length}\r\n"), "Transfer-Encoding: chunked\r\n");
        cases.push(length_and_coding_case(
            &format!("CL.TE of {length}"),
            &format!("{one}{other}"),
            &empty,
            "",
        ));
        cases.push(length_and_coding_case(
            &format!("TE.CL of {length}"),
            &format!("{other}{one}"),
            &empty,
            "",
        ));
    }
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH"] {
        let lines = "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n";
        let bytes = request(format!("{method} /hr/cgi-bin/case HTTP/1.1"), lines, "0\r\n\r\nG");
        cases.push(
            case(format!("CL.TE in {method}"), bytes)
                .forwarded("")
                .or_refused(BAD_REQUEST)
                .closes_connection(),
        );
    }
    // Faulty framing by definition: if it is served at all, the connection ends.
    for (name, lines) in [
        ("chunks in HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
        ("chunks in a kept HTTP/1.0", "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n"),
        (
            "chunks and a length in HTTP/1.0",
            "Connection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("a length and chunks in HTTP/1.0", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
    ] {
        let bytes = request("POST /hr/cgi-bin/case HTTP/1.0", lines, &empty);
        cases.push(case(name, bytes).forwarded("").or_refused(BAD_OR_UNSUPPORTED).closes_connection());
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn valid_framing_is_forwarded_as_valid_framing() {
    let hidden = smuggled_request();
    let (n, text) = (hidden.len(), String::from_utf8_lossy(&hidden).into_owned());
    let length = format!("Content-Length: {n}\r\n");
    let chunks = format!("{n:x}\r\n{text}\r\n0\r\n\r\n");
    let verb = |method: &str, lines: &str, rest: &str| {
        request(format!("{method} /hr/cgi-bin/case HTTP/1.1"), lines, rest)
    };
    let mut cases = vec![
        case("a length", post("Content-Length: 5\r\n", "hello")).forwarded("hello"),
        case("no space", post("Content-Length:5\r\n", "hello")).forwarded("hello"),
        case("much space", post("Content-Length:\t  5 \t\r\n", "hello")).forwarded("hello"),
        case("capitals", post("CONTENT-LENGTH: 5\r\n", "hello")).forwarded("hello"),
        case("chunks", post("Transfer-Encoding: chunked\r\n", CHUNKED)).forwarded("hello"),
        case("chunks without a space", post("Transfer-Encoding:chunked\r\n", CHUNKED)).forwarded("hello"),
        case("chunks with much space", post("Transfer-Encoding: \t chunked \t\r\n", CHUNKED))
            .forwarded("hello"),
        case("chunks in capitals", post("TRANSFER-ENCODING: CHUNKED\r\n", CHUNKED)).forwarded("hello"),
        case("chunks in mixed case", post("tRansfer-eNcoding: chUnked\r\n", CHUNKED)).forwarded("hello"),
        case("folded chunks", post("Transfer-Encoding:\r\n chunked\r\n", CHUNKED))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("folded by a tab", post("Transfer-Encoding:\r\n\tchunked\r\n", CHUNKED))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("a folded length", post("Content-Length:\r\n 5\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("a list of the same", post("Content-Length: 5, 5\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("a tight list", post("Content-Length: 5,5\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("two of the same", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("two of the same number", post("Content-Length: 5\r\nContent-Length: 05\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("a leading zero", post("Content-Length: 05\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("many zeros", post("Content-Length: 000000000000000000000000000005\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("underscored length", post("Content_Length: 50\r\nContent-Length: 5\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case("underscored coding", post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "hello"))
            .forwarded("hello")
            .or_refused(BAD_REQUEST),
        case(
            "length named by Connection",
            post("Connection: content-length\r\nContent-Length: 5\r\n", "hello"),
        )
        .forwarded("hello")
        .or_refused(BAD_REQUEST),
        case(
            "coding named by Connection",
            post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", CHUNKED),
        )
        .forwarded("hello")
        .or_refused(BAD_REQUEST),
        case("length 0 before another request", post("Content-Length: 0\r\n", &hidden))
            .forwarded("")
            .then_smuggled(),
        case("00 before another request", post("Content-Length: 00\r\n", &hidden))
            .forwarded("")
            .then_smuggled()
            .or_refused(BAD_REQUEST),
        case("no length before another request", post("", &hidden)).forwarded("").then_smuggled(),
        case(
            "no chunks before another request",
            post("Transfer-Encoding: chunked\r\n", format!("0\r\n\r\n{text}")),
        )
        .forwarded("")
        .then_smuggled(),
        case("GET before another request", [get(""), hidden.clone()].concat()).forwarded("").then_smuggled(),
        case("a request as a body", post(&length, &text)).forwarded(&text),
        case("a request as chunks", post("Transfer-Encoding: chunked\r\n", &chunks)).forwarded(&text),
        case("a body one byte too long", post("Content-Length: 5\r\n", "hello\0")).forwarded("hello"),
        case("one byte behind the chunks", post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n\0"))
            .forwarded(""),
        case("a length too short by a request", post("Content-Length: 0\r\n", &text))
            .forwarded("")
            .then_smuggled(),
        case("CR LF behind a body", post("Content-Length: 5\r\n", "hello\r\n")).forwarded("hello"),
        case(
            "HTTP/1.0 with a length",
            request("POST /hr/cgi-bin/case HTTP/1.0", "Content-Length: 5\r\n", "hello"),
        )
        .forwarded("hello")
        .closes_connection(),
        case("HTTP/1.0 without a length", request("POST /hr/cgi-bin/case HTTP/1.0", "", &hidden))
            .forwarded("")
            .closes_connection(),
        case(
            "HTTP/1.0 that is kept",
            request(
                "POST /hr/cgi-bin/case HTTP/1.0",
                "Connection: keep-alive\r\nContent-Length: 5\r\n",
                "hello",
            ),
        )
        .forwarded("hello"),
    ];
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH"] {
        cases.push(
            case(format!("{method} with a length"), verb(method, &length, &text))
                .forwarded(&text)
                .or_refused(BAD_OR_UNSUPPORTED),
        );
        let name = format!("{method} with chunks");
        cases.push(
            case(name, verb(method, "Transfer-Encoding: chunked\r\n", &chunks))
                .forwarded(&text)
                .or_refused(BAD_OR_UNSUPPORTED),
        );
        let name = format!("{method} with length 0");
        cases.push(
            case(name, verb(method, "Content-Length: 0\r\n", &text))
                .forwarded("")
                .then_smuggled()
                .or_refused(BAD_OR_UNSUPPORTED),
        );
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn truncated_request_is_never_complete_upstream() {
    let mut cases = Vec::new();
    let whole = post("Content-Length: 5\r\nX-Y: z\r\n", "hello");
    let head = whole.len() - 5;
    for at in 1..whole.len() {
        let case = case(format!("a length, {at} bytes"), &whole[..at]).half_closed();
        cases.push(if at < head { case.or_refused(&[400, CLOSED_SILENTLY]) } else { case.or_aborted() });
    }
    let whole = post("Transfer-Encoding: chunked\r\n", "5;a=b\r\nhello\r\n00\r\nX: y\r\n\r\n");
    let head = whole.len() - 27;
    for at in 1..whole.len() {
        let case = case(format!("chunks, {at} bytes"), &whole[..at]).half_closed();
        cases.push(if at < head { case.or_refused(&[400, CLOSED_SILENTLY]) } else { case.or_aborted() });
    }
    let hidden = smuggled_request();
    for more in [1, 2, 100, 1000] {
        let lines = format!("Content-Length: {}\r\n", hidden.len() + more);
        cases.push(
            case(format!("a request and {more} bytes less than announced"), post(lines, &hidden))
                .or_aborted()
                .half_closed(),
        );
    }
    cases.push(case("nothing", "").or_refused(&[CLOSED_SILENTLY]).half_closed());
    cases.push(
        case(
            "a continuation that nobody waits for",
            post("Expect: 100-continue\r\nContent-Length: 5\r\n", ""),
        )
        .or_aborted()
        .half_closed(),
    );
    CaseRunner::start().await.run(cases).await;
}
