//! Message framing: Content-Length, Transfer-Encoding, and both (RFC 9112, section 6).

use super::cases::{
    BAD_OR_UNSUPPORTED, BAD_REQUEST, CLOSED_SILENTLY, Case, CaseRunner, case, case_name, get, post, request,
    smuggled_request,
};

mod tables;

use tables::{
    HUGE_LENGTHS, INVALID_CODING_LINES, INVALID_CODINGS, INVALID_LENGTH_LINES, INVALID_LENGTHS,
    REPEATED_CODING_LINES,
};

const CHUNKED: &[u8] = b"5\r\nhello\r\n0\r\n\r\n";

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
        let name = format!("no body for a length {length}");
        cases.push(
            case(name, post(format!("Content-Length: {length}\r\n"), ""))
                .or_refused(&[400, 413])
                .half_closed(),
        );
    }
    CaseRunner::start().await.run(cases).await;
}

/// Content-Length with Transfer-Encoding: refused, or framed by its chunks and the last request on its connection
/// (RFC 9112, section 6.1).
fn length_and_coding_case(name: &str, lines: &str, rest: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Case {
    case(name, post(lines, rest)).forwarded(body).or_refused(BAD_REQUEST).closes_connection()
}

#[rustfmt::skip]
fn length_and_coding_cases() -> Vec<Case> {
    let smuggled = smuggled_request();
    let wrapped = [format!("{:x}\r\n", smuggled.len()).as_bytes(), &smuggled, b"\r\n0\r\n\r\n"].concat();
    vec![
        length_and_coding_case("CL.TE with a surplus letter", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG", ""),
        length_and_coding_case("TE.CL with a surplus letter", "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\nG", ""),
        length_and_coding_case("the same in capitals", "CONTENT-LENGTH: 6\r\nTRANSFER-ENCODING: CHUNKED\r\n", "0\r\n\r\nG", ""),
        length_and_coding_case("length of the first chunk's line", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &wrapped, &smuggled),
        length_and_coding_case("the same, coding first", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &wrapped, &smuggled),
        length_and_coding_case("length 0 beside chunks", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", &wrapped, &smuggled),
        length_and_coding_case("length 0 after chunks", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", &wrapped, &smuggled),
        length_and_coding_case("a right length beside chunks", "Content-Length: 15\r\nTransfer-Encoding: chunked\r\n", CHUNKED, "hello"),
        length_and_coding_case("two lengths beside chunks", "Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKED, "hello"),
        length_and_coding_case("two lengths around chunks", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 15\r\n", CHUNKED, "hello"),
        length_and_coding_case("a huge length beside chunks", "Content-Length: 99999999999\r\nTransfer-Encoding: chunked\r\n", CHUNKED, "hello").or_refused(&[413]),
        length_and_coding_case("no number beside chunks", "Content-Length: x\r\nTransfer-Encoding: chunked\r\n", CHUNKED, "hello"),
        length_and_coding_case("a negative length beside chunks", "Transfer-Encoding: chunked\r\nContent-Length: -1\r\n", CHUNKED, "hello"),
        length_and_coding_case("an empty length beside chunks", "Transfer-Encoding: chunked\r\nContent-Length:\r\n", CHUNKED, "hello"),
        length_and_coding_case("a list of lengths beside chunks", "Transfer-Encoding: chunked\r\nContent-Length: 5, 6\r\n", CHUNKED, "hello"),
        length_and_coding_case("a length that Connection names", "Connection: content-length\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG", ""),
        length_and_coding_case("a coding that Connection names", "Connection: transfer-encoding\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG", ""),
        length_and_coding_case("a length after a bare LF", "X: y\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG", ""),
        length_and_coding_case("a coding after a bare LF", "X: y\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\nG", ""),
    ]
}

#[tokio::test]
async fn content_length_with_transfer_encoding_is_ignored() {
    let smuggled = smuggled_request();
    let empty = [b"0\r\n\r\n", &smuggled[..]].concat();
    let mut cases = length_and_coding_cases();
    for length in [1, 3, 5, 6, 10, 30, empty.len(), empty.len() + 1, empty.len() + 200] {
        let (length_line, coding_line) =
            (format!("Content-Length: {length}\r\n"), "Transfer-Encoding: chunked\r\n");
        cases.push(length_and_coding_case(
            &format!("CL.TE of {length}"),
            &format!("{length_line}{coding_line}"),
            &empty,
            "",
        ));
        cases.push(length_and_coding_case(
            &format!("TE.CL of {length}"),
            &format!("{coding_line}{length_line}"),
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
    // The framing is faulty by RFC 9112, section 6.1: if the request is served, the connection closes after it.
    for (name, lines) in [
        ("chunks in HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
        ("chunks in a persistent HTTP/1.0", "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n"),
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

#[rustfmt::skip]
fn valid_framing_cases() -> Vec<Case> {
    vec![
        case("a length", post("Content-Length: 5\r\n", "hello")).forwarded("hello"),
        case("no space", post("Content-Length:5\r\n", "hello")).forwarded("hello"),
        case("much space", post("Content-Length:\t  5 \t\r\n", "hello")).forwarded("hello"),
        case("capitals", post("CONTENT-LENGTH: 5\r\n", "hello")).forwarded("hello"),
        case("chunks", post("Transfer-Encoding: chunked\r\n", CHUNKED)).forwarded("hello"),
        case("chunks without a space", post("Transfer-Encoding:chunked\r\n", CHUNKED)).forwarded("hello"),
        case("chunks with much space", post("Transfer-Encoding: \t chunked \t\r\n", CHUNKED)).forwarded("hello"),
        case("chunks in capitals", post("TRANSFER-ENCODING: CHUNKED\r\n", CHUNKED)).forwarded("hello"),
        case("chunks in mixed case", post("tRansfer-eNcoding: chUnked\r\n", CHUNKED)).forwarded("hello"),
        case("folded chunks", post("Transfer-Encoding:\r\n chunked\r\n", CHUNKED)).forwarded("hello").or_refused(BAD_REQUEST),
        case("folded by a tab", post("Transfer-Encoding:\r\n\tchunked\r\n", CHUNKED)).forwarded("hello").or_refused(BAD_REQUEST),
        case("a folded length", post("Content-Length:\r\n 5\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("a list of the same", post("Content-Length: 5, 5\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("a tight list", post("Content-Length: 5,5\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("two of the same", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("two of the same number", post("Content-Length: 5\r\nContent-Length: 05\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("a leading zero", post("Content-Length: 05\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("many zeros", post("Content-Length: 000000000000000000000000000005\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("underscored length", post("Content_Length: 50\r\nContent-Length: 5\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("underscored coding", post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("length named by Connection", post("Connection: content-length\r\nContent-Length: 5\r\n", "hello")).forwarded("hello").or_refused(BAD_REQUEST),
        case("coding named by Connection", post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", CHUNKED)).forwarded("hello").or_refused(BAD_REQUEST),
    ]
}

/// Cases with a second request after the body, or as the body.
#[rustfmt::skip]
fn enclosed_request_cases() -> Vec<Case> {
    let smuggled = smuggled_request();
    let text = String::from_utf8_lossy(&smuggled).into_owned();
    let length = format!("Content-Length: {}\r\n", smuggled.len());
    let chunks = format!("{:x}\r\n{text}\r\n0\r\n\r\n", smuggled.len());
    vec![
        case("length 0 before another request", post("Content-Length: 0\r\n", &smuggled)).forwarded("").then_smuggled(),
        case("00 before another request", post("Content-Length: 00\r\n", &smuggled)).forwarded("").then_smuggled().or_refused(BAD_REQUEST),
        case("no length before another request", post("", &smuggled)).forwarded("").then_smuggled(),
        case("no chunks before another request", post("Transfer-Encoding: chunked\r\n", format!("0\r\n\r\n{text}"))).forwarded("").then_smuggled(),
        case("GET before another request", [get(""), smuggled.clone()].concat()).forwarded("").then_smuggled(),
        case("a request as a body", post(&length, &text)).forwarded(&text),
        case("a request as chunks", post("Transfer-Encoding: chunked\r\n", &chunks)).forwarded(&text),
        case("a body one byte too long", post("Content-Length: 5\r\n", "hello\0")).forwarded("hello"),
        case("one byte after the chunks", post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n\0")).forwarded(""),
        case("a length too short by a request", post("Content-Length: 0\r\n", &text)).forwarded("").then_smuggled(),
        case("CR LF after a body", post("Content-Length: 5\r\n", "hello\r\n")).forwarded("hello"),
        case("HTTP/1.0 with a length", request("POST /hr/cgi-bin/case HTTP/1.0", "Content-Length: 5\r\n", "hello")).forwarded("hello").closes_connection(),
        case("HTTP/1.0 without a length", request("POST /hr/cgi-bin/case HTTP/1.0", "", &smuggled)).forwarded("").closes_connection(),
        case("HTTP/1.0 with keep-alive", request("POST /hr/cgi-bin/case HTTP/1.0", "Connection: keep-alive\r\nContent-Length: 5\r\n", "hello")).forwarded("hello"),
    ]
}

#[tokio::test]
async fn valid_framing_is_forwarded_as_valid_framing() {
    let smuggled = smuggled_request();
    let (length_bytes, text) = (smuggled.len(), String::from_utf8_lossy(&smuggled).into_owned());
    let length = format!("Content-Length: {length_bytes}\r\n");
    let chunks = format!("{length_bytes:x}\r\n{text}\r\n0\r\n\r\n");
    let with_method = |method: &str, lines: &str, rest: &str| {
        request(format!("{method} /hr/cgi-bin/case HTTP/1.1"), lines, rest)
    };
    let mut cases = valid_framing_cases();
    cases.extend(enclosed_request_cases());
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH"] {
        cases.push(
            case(format!("{method} with a length"), with_method(method, &length, &text))
                .forwarded(&text)
                .or_refused(BAD_OR_UNSUPPORTED),
        );
        let name = format!("{method} with chunks");
        cases.push(
            case(name, with_method(method, "Transfer-Encoding: chunked\r\n", &chunks))
                .forwarded(&text)
                .or_refused(BAD_OR_UNSUPPORTED),
        );
        let name = format!("{method} with length 0");
        cases.push(
            case(name, with_method(method, "Content-Length: 0\r\n", &text))
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
    let complete = post("Content-Length: 5\r\nX-Y: z\r\n", "hello");
    let head = complete.len() - 5;
    for length in 1..complete.len() {
        let case = case(format!("a length, {length} bytes"), &complete[..length]).half_closed();
        cases.push(if length < head { case.or_refused(&[400, CLOSED_SILENTLY]) } else { case.or_aborted() });
    }
    let complete = post("Transfer-Encoding: chunked\r\n", "5;a=b\r\nhello\r\n00\r\nX: y\r\n\r\n");
    let head = complete.len() - 27;
    for length in 1..complete.len() {
        let case = case(format!("chunks, {length} bytes"), &complete[..length]).half_closed();
        cases.push(if length < head { case.or_refused(&[400, CLOSED_SILENTLY]) } else { case.or_aborted() });
    }
    let smuggled = smuggled_request();
    for missing in [1, 2, 100, 1000] {
        let lines = format!("Content-Length: {}\r\n", smuggled.len() + missing);
        cases.push(
            case(format!("a request {missing} bytes shorter than declared"), post(lines, &smuggled))
                .or_aborted()
                .half_closed(),
        );
    }
    cases.push(case("nothing", "").or_refused(&[CLOSED_SILENTLY]).half_closed());
    cases.push(
        case("Expect without a body", post("Expect: 100-continue\r\nContent-Length: 5\r\n", ""))
            .or_aborted()
            .half_closed(),
    );
    CaseRunner::start().await.run(cases).await;
}
