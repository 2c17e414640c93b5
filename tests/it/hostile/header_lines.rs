//! Invalid, ambiguous and oversized header lines, and headers that must not be forwarded.

use super::cases::{
    BAD_REQUEST, CLOSED_SILENTLY, Case, CaseRunner, HEAD_TOO_LONG, case, case_name, get, post, request,
    smuggled_request,
};
use crate::harness::{CONFIG_WITH_CLIENTS, client_key};

mod tables;

use tables::{AMBIGUOUS_KEYS, AMBIGUOUS_LINES, INVALID_KEYS, INVALID_LINES, UNUSUAL_KEYS, VALID_LINES};

#[tokio::test]
async fn invalid_header_line_is_refused() {
    let mut cases = Vec::new();
    for line in INVALID_LINES {
        // As the first, a middle and the last header line.
        let first =
            [b"GET /hr/cgi-bin/case HTTP/1.1\r\n", *line, b"Host: proxy.test\r\n\r\n", &smuggled_request()]
                .concat();
        cases.push(case(case_name("first", line), first).or_refused(BAD_REQUEST));
        let lines = [*line, b"Content-Length: 5\r\n"].concat();
        cases.push(
            case(case_name("between", line), post(lines, [b"hello", &smuggled_request()[..]].concat()))
                .or_refused(BAD_REQUEST),
        );
        cases.push(
            case(case_name("last", line), [get(line), smuggled_request()].concat()).or_refused(BAD_REQUEST),
        );
    }
    for (name, head) in [
        ("a space before the first header", "GET /hr/cgi-bin/case HTTP/1.1\r\n Host: proxy.test\r\n\r\n"),
        ("a tab before the first header", "GET /hr/cgi-bin/case HTTP/1.1\r\n\tHost: proxy.test\r\n\r\n"),
        ("a blank line of spaces", "GET /hr/cgi-bin/case HTTP/1.1\r\n  \r\nHost: proxy.test\r\n\r\n"),
        (
            "an invalid line before a valid one",
            "GET /hr/cgi-bin/case HTTP/1.1\r\n X: y\r\nHost: proxy.test\r\n\r\n",
        ),
        ("CR for line ends", "GET /hr/cgi-bin/case HTTP/1.1\rHost: proxy.test\r\r"),
        ("CR CR LF for line ends", "GET /hr/cgi-bin/case HTTP/1.1\r\r\nHost: proxy.test\r\r\n\r\r\n"),
        ("LF CR for line ends", "GET /hr/cgi-bin/case HTTP/1.1\n\rHost: proxy.test\n\r\n\r"),
        ("CR at the end of the head", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\r\n\r\r\n"),
        ("a letter after the last CR", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\r\n\rX"),
    ] {
        cases.push(case(name, [head.as_bytes(), &smuggled_request()].concat()).or_refused(BAD_REQUEST));
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn ambiguous_header_line_is_refused_or_sanitized() {
    let mut cases = Vec::new();
    for line in AMBIGUOUS_LINES {
        // An empty line within the line ends the head: bytes after it are a separate request.
        cases.push(case(case_name("ambiguous", line), get(line)).forwarded("").or_refused(BAD_REQUEST));
        let lines = [*line, b"Content-Length: 5\r\n"].concat();
        let ends_early = line.windows(3).any(|three| three == b"\n\r\n");
        let body = if ends_early { "" } else { "hello" };
        cases.push(
            case(case_name("before a body,", line), post(lines, "hello"))
                .forwarded(body)
                .or_refused(BAD_REQUEST),
        );
    }
    for (name, head) in [
        ("LF for line ends", "GET /hr/cgi-bin/case HTTP/1.1\nHost: proxy.test\n\n"),
        ("LF after the request line", "GET /hr/cgi-bin/case HTTP/1.1\nHost: proxy.test\r\n\r\n"),
        ("LF after a header", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\n\r\n"),
        ("LF at the end of the head", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\r\n\n"),
    ] {
        cases.push(case(name, head).forwarded("").or_refused(BAD_REQUEST));
    }
    for line in VALID_LINES {
        cases.push(
            case(case_name("valid", line), post([*line, b"Content-Length: 5\r\n"].concat(), "hello"))
                .forwarded("hello"),
        );
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn request_head_size_is_bounded() {
    let long = |count: usize| "a".repeat(count);
    let lines = |count: usize| (0..count).map(|index| format!("X-{index}: y\r\n")).collect::<String>();
    let either = |name: &str, bytes: Vec<u8>| case(name, bytes).forwarded("").or_refused(HEAD_TOO_LONG);
    let refused = |name: &str, bytes: Vec<u8>| case(name, bytes).or_refused(HEAD_TOO_LONG);
    let target = |target: String| request(format!("GET {target} HTTP/1.1"), "", "");
    let mut cases = vec![
        case("a header of 8,000 bytes", get(format!("X: {}\r\n", long(8000)))).forwarded(""),
        case("50 headers", get(lines(50))).forwarded(""),
        either("a header of 50,000 bytes", get(format!("X: {}\r\n", long(50_000)))),
        refused("a header of 65,536 bytes", get(format!("X: {}\r\n", long(65_536)))),
        refused("a header of 100,000 bytes", get(format!("X: {}\r\n", long(102_400)))),
        refused("a header of 1,000,000 bytes", get(format!("X: {}\r\n", long(1_000_000))))
            .or_refused(&[CLOSED_SILENTLY]),
        either("a name of 30,000 bytes", get(format!("{}: y\r\n", long(30_000)))),
        refused("a name of 65,536 bytes", get(format!("{}: y\r\n", long(65_536)))),
        refused("a name without an end", get(long(200_000))),
        either("98 headers and Host", get(lines(98))),
        either("100 headers", get(lines(99))),
        either("101 headers", get(lines(100))),
        either("128 headers", get(lines(127))),
        either("129 headers", get(lines(128))),
        refused("300 headers", get(lines(300))),
        refused("5,000 headers", get(lines(5000))),
        refused("30,000 headers", get("a:\r\n".repeat(30_000))),
        refused("a target of 70,000 bytes", target(format!("/hr/cgi-bin/{}", long(70_000)))),
        refused("a query of 70,000 bytes", target(format!("/hr/cgi-bin/case?{}", long(70_000)))),
        refused("a target of 1,000,000 bytes", target(format!("/hr/cgi-bin/{}", long(1_000_000))))
            .or_refused(&[CLOSED_SILENTLY]),
        refused("a method of 70,000 bytes", request(format!("{} / HTTP/1.1", long(70_000)), "", "")),
        refused(
            "a Host of 70,000 bytes",
            format!("GET /hr/cgi-bin/case HTTP/1.1\r\nHost: {}\r\n\r\n", long(70_000)).into(),
        ),
        refused(
            "a length of 70,000 digits",
            post(format!("Content-Length: {}5\r\n", "0".repeat(70_000)), "hello"),
        ),
        refused("a head of 1,000 lines of 200 bytes", get(format!("X: {}\r\n", long(196)).repeat(1000))),
        either("Connection with 90 names", get(format!("Connection: {}close\r\n", "x-y, ".repeat(89))))
            .closes_connection(),
        refused("Connection with 5,000 names", get(format!("Connection: {}close\r\n", "x-y, ".repeat(5000)))),
        refused("Connection with 30,000 names beside many lines", {
            get(format!("Connection: {}a\r\n{}", "a,".repeat(30_000), "b: c\r\n".repeat(95)))
        }),
        refused(
            "20 lines of Connection with 20 names",
            get(format!("Connection: {}\r\n", "a,".repeat(20)).repeat(20)),
        ),
        either("20 lines of Connection", get("Connection: x-y\r\n".repeat(20) + "X-Y: z\r\n"))
            .without_headers(&["x-y"]),
        either("50 lines of Cookie", get("Cookie: a=b\r\n".repeat(50))),
    ];
    for count in [1, 2, 3, 10, 100, 1000] {
        let bytes = [b"\r\n".repeat(count), get("")].concat();
        cases.push(either(&format!("{count} empty lines first"), bytes));
    }
    cases.push(
        refused("100,000 empty lines first", [b"\r\n".repeat(100_000), get("")].concat()).forwarded(""),
    );
    CaseRunner::start().await.run(cases).await;
}

/// A POST with these header lines and a body, which is forwarded.
fn forwarded(name: &str, lines: &str) -> Case {
    case(name, post(format!("{lines}Content-Length: 5\r\n"), "hello")).forwarded("hello")
}

/// Cases of the Connection header.
fn connection_option_cases() -> Vec<Case> {
    vec![
        forwarded(
            "required headers named",
            "Connection: authorization, host, content-length, transfer-encoding, te\r\n",
        ),
        forwarded(
            "required headers named, and close",
            "Connection: authorization, host, content-length, transfer-encoding, close\r\n",
        )
        .closes_connection(),
        forwarded("Host named", "Connection: host\r\n"),
        forwarded("Connection named", "Connection: connection\r\n"),
        forwarded("the agent's header named", "Connection: x-wecom-agent\r\nX-Wecom-Agent: hr\r\n"),
        forwarded("another header named", "Connection: x-y\r\nX-Y: z\r\n").without_headers(&["x-y"]),
        forwarded("another header named in capitals", "Connection: X-Y\r\nx-y: z\r\n")
            .without_headers(&["x-y"]),
        forwarded("named before others", "Connection: x-y,keep-alive\r\nX-Y: z\r\n")
            .without_headers(&["x-y"]),
        forwarded("named after commas", "Connection: ,, ,x-y\r\nX-Y: z\r\n").without_headers(&["x-y"]),
        forwarded("named with tabs", "Connection: keep-alive,\tx-y\t\r\nX-Y: z\r\n")
            .without_headers(&["x-y"]),
        forwarded("named in a second line", "Connection: keep-alive\r\nConnection: x-y\r\nX-Y: z\r\n")
            .without_headers(&["x-y"]),
        forwarded("two of a name", "Connection: x-y\r\nX-Y: z\r\nX-Y: a\r\n").without_headers(&["x-y"]),
        forwarded("named beside an invalid name", "Connection: @@, x-y, (a)\r\nX-Y: z\r\n")
            .without_headers(&["x-y"]),
        forwarded("close in capitals", "Connection: CLOSE\r\n").closes_connection(),
        forwarded("close after another", "Connection: x-y , close\r\n").closes_connection(),
        forwarded("close in a second line", "Connection: x-y\r\nConnection: close\r\n").closes_connection(),
        forwarded("close and keep-alive", "Connection: keep-alive, close\r\n").closes_connection(),
        forwarded("close twice", "Connection: close, close\r\n").closes_connection(),
        forwarded("closed", "Connection: closed\r\nClosed: y\r\n").without_headers(&["closed"]),
        forwarded("an empty Connection", "Connection:\r\n"),
        forwarded("commas alone", "Connection: ,,,\r\n"),
        forwarded("a quoted name", "Connection: \"x-y\"\r\n"),
    ]
}

/// Cases of other headers that are not forwarded.
fn hop_by_hop_header_cases() -> Vec<Case> {
    vec![
        forwarded(
            "keep-alive with parameters",
            "Connection: keep-alive\r\nKeep-Alive: timeout=9999, max=1000000\r\n",
        ),
        forwarded("Proxy-Connection", "Proxy-Connection: close\r\n"),
        forwarded(
            "Proxy-Authorization",
            "Proxy-Authorization: Basic eDp5\r\nProxy-Authenticate: x\r\nProxy-Authentication-Info: x\r\n",
        ),
        forwarded("TE", "TE: trailers\r\n"),
        forwarded("TE and chunks", "TE: chunked\r\n"),
        forwarded("Trailer", "Trailer: Content-Length, Host\r\n"),
        forwarded("Via", "Via: 1.1 a\r\nvia: 1.0 b\r\n"),
        forwarded("Forwarded", "Forwarded: for=192.0.2.1;host=evil.test\r\n"),
        forwarded(
            "X-Forwarded",
            "X-Forwarded-For: 1\r\nX-Forwarded-Host: evil.test\r\nX-FORWARDED-PROTO: x\r\nX-Forwarded-\u{7e}: y\r\n",
        ),
        forwarded("Cookie", "Cookie: a=b\r\nCOOKIE: c=d\r\n"),
        forwarded("credentials", "Authorization: Bearer k\r\nX-Api-Key: k\r\n"),
        forwarded("X-Wecom", "X-Wecom-Debug: 1\r\nX-Wecom-Whatever: 1\r\nx-wecom-: y\r\n"),
        forwarded("several agents", "X-Wecom-Agent: hr\r\nX-Wecom-Agent: ops\r\n")
            .or_refused_keeping_connection(BAD_REQUEST),
        forwarded("another agent", "X-Wecom-Agent: ops\r\n").or_refused_keeping_connection(BAD_REQUEST),
        forwarded(
            "an offer of h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        ),
        forwarded(
            "an offer of WebSocket",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
        ),
        forwarded("an offer of TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n"),
        forwarded("an offer without Connection", "Upgrade: h2c\r\n"),
    ]
}

/// Cases of the Expect header, and of requests after the last one on a connection.
fn expect_cases() -> Vec<Case> {
    vec![
        forwarded("Expect", "Expect: 100-continue\r\n"),
        forwarded("Expect in capitals", "EXPECT: 100-CONTINUE\r\n"),
        forwarded("Expect twice", "Expect: 100-continue\r\nExpect: 100-continue\r\n").or_refused(&[400, 417]),
        forwarded("Expect a list", "Expect: 100-continue, x\r\n").or_refused(&[400, 417]),
        forwarded("Expect nonsense", "Expect: nonsense\r\n").or_refused(&[400, 417]),
        forwarded("Expect nothing", "Expect:\r\n").or_refused(&[400, 417]),
        forwarded("Expect 100-continue and a fold", "Expect: 100-\r\n continue\r\n").or_refused(&[400, 417]),
        case("Expect without a body", get("Expect: 100-continue\r\n")).forwarded(""),
        case(
            "Expect and length 0",
            post("Expect: 100-continue\r\nContent-Length: 0\r\n", smuggled_request()),
        )
        .forwarded("")
        .then_smuggled(),
        case(
            "Expect and chunks",
            post("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        )
        .forwarded("hello"),
        case(
            "Expect in HTTP/1.0",
            request(
                "POST /hr/cgi-bin/case HTTP/1.0",
                "Expect: 100-continue\r\nContent-Length: 5\r\n",
                "hello",
            ),
        )
        .forwarded("hello")
        .closes_connection(),
        case("close before another request", [get("Connection: close\r\n"), smuggled_request()].concat())
            .forwarded("")
            .closes_connection(),
        case(
            "close in HTTP/1.0 before another request",
            [request("GET /hr/cgi-bin/case HTTP/1.0", "", ""), smuggled_request()].concat(),
        )
        .forwarded("")
        .closes_connection(),
    ]
}

#[tokio::test]
async fn connection_headers_do_not_affect_the_upstream_request() {
    let mut cases = connection_option_cases();
    cases.extend(hop_by_hop_header_cases());
    cases.extend(expect_cases());
    // A non-ASCII value does not hide another option.
    let named = post(b"Connection: x-y, \xff\r\nX-Y: z\r\nContent-Length: 5\r\n", "hello");
    cases.push(
        case("named beside a high byte", named)
            .forwarded("hello")
            .without_headers(&["x-y"])
            .or_refused(BAD_REQUEST),
    );
    let named =
        post(b"Connection: \xe4\xbc\x81\r\nConnection: x-y\r\nX-Y: z\r\nContent-Length: 5\r\n", "hello");
    cases.push(
        case("named after a high byte", named)
            .forwarded("hello")
            .without_headers(&["x-y"])
            .or_refused(BAD_REQUEST),
    );
    let lines = "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    cases.push(case("h2c and its preface", [&get(lines)[..], preface].concat()).forwarded(""));
    cases.push(
        case(
            "WebSocket and its frames",
            [&get("Connection: Upgrade\r\nUpgrade: websocket\r\n")[..], b"\x81\x05hello"].concat(),
        )
        .forwarded(""),
    );
    cases.push(
        case("forwarded headers are unchanged", get(b"User-Agent: a (b)  c\r\nAccept: */*\r\nX-O: \xe4\r\n"))
            .forwarded("")
            .with_headers(&[("user-agent", "a (b)  c"), ("accept", "*/*")]),
    );
    CaseRunner::start().await.run(cases).await;
}

/// The key of the client `crm`, which may use every agent.
const KEY: &str = "X-Api-Key: key-of-crm-0000000000\r\n";

#[tokio::test]
async fn malformed_key_is_refused() {
    assert_eq!(KEY, format!("X-Api-Key: {}\r\n", client_key("crm")));
    let smuggled =
        [&b"GET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: proxy.test\r\n"[..], KEY.as_bytes(), b"\r\n"].concat();
    let length = format!("Content-Length: {}\r\n", smuggled.len());
    let chunks = [format!("{:x}\r\n", smuggled.len()).as_bytes(), &smuggled, b"\r\n0\r\n\r\n"].concat();
    let with_lines = |name: &str, lines: &str| case(name, post(format!("{lines}{length}"), &smuggled));
    let mut cases: Vec<Case> = Vec::new();
    for (name, lines) in INVALID_KEYS {
        cases.push(with_lines(name, lines).or_refused_keeping_connection(&[401]));
    }
    for (name, lines) in AMBIGUOUS_KEYS {
        cases.push(with_lines(name, lines).or_refused_keeping_connection(&[400, 401]));
    }
    for (name, lines) in UNUSUAL_KEYS {
        cases.push(with_lines(name, lines).forwarded(&smuggled).or_refused_keeping_connection(&[401]));
    }
    cases.push(
        case("no key and chunks", post("Transfer-Encoding: chunked\r\n", &chunks))
            .or_refused_keeping_connection(&[401]),
    );
    cases.push(
        case("no key, Expect", post(format!("Expect: 100-continue\r\n{length}"), &smuggled))
            .or_refused_keeping_connection(&[401, 417]),
    );
    cases.push(
        case("no key and a huge body", post("Content-Length: 67108865\r\n", &smuggled))
            .or_refused(&[401, 413]),
    );
    cases.push(
        case(
            "no key and a bad body",
            post("Transfer-Encoding: chunked\r\n", [b"x\r\n", &smuggled[..]].concat()),
        )
        .or_refused(&[400, 401]),
    );
    for path in ["/nowhere", "/", "/hr/cgi-bin/../x", "/hr/cgi-bin"] {
        let bytes = request(format!("POST {path} HTTP/1.1"), &length, &smuggled);
        cases.push(case(format!("no key and {path}"), bytes).or_refused_keeping_connection(&[400, 401, 404]));
        let bytes = request(format!("POST {path} HTTP/1.1"), "Transfer-Encoding: chunked\r\n", &chunks);
        cases.push(
            case(format!("no key, chunks and {path}"), bytes).or_refused_keeping_connection(&[400, 401, 404]),
        );
    }
    CaseRunner::start_with(CONFIG_WITH_CLIENTS, KEY).await.run(cases).await;
}
