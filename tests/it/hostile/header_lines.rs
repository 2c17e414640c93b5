//! Header lines that are none, that are too many or too long, and those that stay here.

use super::cases::{
    BAD_REQUEST, CLOSED_SILENTLY, Case, CaseRunner, HEAD_TOO_LONG, case, get, post, request, smuggled_request,
};
use crate::harness::{CONFIG_WITH_CLIENTS, client_key};

/// Lines that no header section may hold.
const INVALID_LINES: &[&[u8]] = &[
    b": y\r\n",
    b" : y\r\n",
    b":\r\n",
    b"X\r\n",
    b"X y\r\n",
    b"X : y\r\n",
    b"X\t: y\r\n",
    b"X  \t : y\r\n",
    b"X\x0b: y\r\n",
    b"X\x0c: y\r\n",
    b"X y: z\r\n",
    b"X\ty: z\r\n",
    b"\x0bX: y\r\n",
    b"\x0cX: y\r\n",
    b"\0X: y\r\n",
    b"X\0: y\r\n",
    b"X: \0\r\n",
    b"X: y\0z\r\n",
    b"X: y\0\r\n",
    b"X: y\rz\r\n",
    b"X: y\r\r\n",
    b"X: \ry\r\n",
    b"X:\ry\r\n",
    b"X\r: y\r\n",
    b"\rX: y\r\n",
    b"X: y\r\n\rY: z\r\n",
    b"X: y\rY: z\r\n",
    b"X: y\r \r\n",
    b"X: y\n\rY: z\r\n",
    b"X(: y\r\n",
    b"X): y\r\n",
    b"X<: y\r\n",
    b"X>: y\r\n",
    b"X@: y\r\n",
    b"X,: y\r\n",
    b"X;: y\r\n",
    b"X\\: y\r\n",
    b"X\": y\r\n",
    b"X/: y\r\n",
    b"X[: y\r\n",
    b"X]: y\r\n",
    b"X?: y\r\n",
    b"X=: y\r\n",
    b"X{: y\r\n",
    b"X}: y\r\n",
    b"X\x01: y\r\n",
    b"X\x07: y\r\n",
    b"X\x08: y\r\n",
    b"X\x1b: y\r\n",
    b"X\x1f: y\r\n",
    b"X\x7f: y\r\n",
    b"X\x80: y\r\n",
    b"X\xa0: y\r\n",
    b"X\xff: y\r\n",
    b"\xe4\xbc\x81: y\r\n",
    b"X\xc3\xbc: y\r\n",
    b"\xef\xbb\xbfX: y\r\n",
    b"GET /hr/cgi-bin/hidden HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
];

/// Values that no recipient has to take, and that do no harm where they are whole.
const AMBIGUOUS_LINES: &[&[u8]] = &[
    b"X: \x01\r\n",
    b"X: \x08\r\n",
    b"X: \x0b\r\n",
    b"X: y\x0cz\r\n",
    b"X: \x1b[31m\r\n",
    b"X: \x1f\r\n",
    b"X: \x7f\r\n",
    b"X: y\r\n z\r\n",
    b"X: y\r\n\tz\r\n",
    b"X:\r\n y\r\n",
    b"X: y\r\n \r\n",
    b"X: y\r\n Y: z\r\n",
    b"X: y\r\n Content-Length: 50\r\n",
    b"X: y\r\n Transfer-Encoding: chunked\r\n",
    b"X: y\r\n\r\n Z: a\r\n",
    b"X: y\nZ: a\r\n",
    b"X: y\n\r\n",
];

/// Lines that look odd and are sound.
const VALID_LINES: &[&[u8]] = &[
    b"X:y\r\n",
    b"X:\r\n",
    b"X: \r\n",
    b"X:\t \r\n",
    b"X:   y   \r\n",
    b"X:\ty\t\r\n",
    b"X: a b\tc\r\n",
    b"X: \xff\xfe\r\n",
    b"X: \xe4\xbc\x81\xe4\xb8\x9a\r\n",
    b"X: \x80\r\n",
    b"X: a: b: c\r\n",
    b"X: \"a\\\"b\r\n",
    b"X: ;;,,==\r\n",
    b"!#$%&'*+-.^_`|~: y\r\n",
    b"1: 2\r\n",
    b"-: -\r\n",
    b"_: _\r\n",
    b"X: y\r\nX: z\r\nx: a\r\n",
    b"X: %0d%0aY: z\r\n",
    b"X: \\r\\nY: z\r\n",
    b"X_Forwarded_For: 192.0.2.1\r\n",
    b"X-Y: GET /hr/cgi-bin/hidden HTTP/1.1\r\n",
    b"Content-Type: \r\n",
    b"Content-Encoding: gzip\r\n",
    b"Range: bytes=0-0,1-1,2-2\r\n",
    b"Max-Forwards: 0\r\n",
    b"X-HTTP-Method-Override: DELETE\r\n",
    b"X-Original-URL: /hr/cgi-bin/hidden\r\n",
    b"X-Rewrite-URL: /hr/cgi-bin/hidden\r\n",
    b"X-Real-IP: 192.0.2.1\r\n",
    b"Proxy: http://evil.test\r\n",
    b"Access_Token: x\r\n",
];

fn case_name(what: &str, bytes: &[u8]) -> String {
    let shown = bytes.escape_ascii().to_string();
    format!("{what} {}", shown.get(..120).unwrap_or(&shown))
}

#[tokio::test]
async fn invalid_header_line_is_refused() {
    let mut cases = Vec::new();
    for line in INVALID_LINES {
        // As the first line of all, between two, and as the last.
        let first =
            [b"GET /hr/cgi-bin/case HTTP/1.1\r\n", *line, b"Host: proxy.test\r\n\r\n", &smuggled_request()]
                .concat();
        cases.push(case(case_name("first", line), first).or_refused(BAD_REQUEST));
        let between = [*line, b"Content-Length: 5\r\n"].concat();
        cases.push(
            case(case_name("between", line), post(between, [b"hello", &smuggled_request()[..]].concat()))
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
            "an odd line before a good one",
            "GET /hr/cgi-bin/case HTTP/1.1\r\n X: y\r\nHost: proxy.test\r\n\r\n",
        ),
        ("CR for line ends", "GET /hr/cgi-bin/case HTTP/1.1\rHost: proxy.test\r\r"),
        ("CR CR LF for line ends", "GET /hr/cgi-bin/case HTTP/1.1\r\r\nHost: proxy.test\r\r\n\r\r\n"),
        ("LF CR for line ends", "GET /hr/cgi-bin/case HTTP/1.1\n\rHost: proxy.test\n\r\n\r"),
        ("CR at the end of the head", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\r\n\r\r\n"),
        ("a letter behind the last CR", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\r\n\rX"),
    ] {
        cases.push(case(name, [head.as_bytes(), &smuggled_request()].concat()).or_refused(BAD_REQUEST));
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn ambiguous_header_line_is_refused_or_sanitized() {
    let mut cases = Vec::new();
    for line in AMBIGUOUS_LINES {
        // An empty line within ends the head: what is behind it is a request of its own, if any.
        cases.push(case(case_name("doubtful", line), get(line)).forwarded("").or_refused(BAD_REQUEST));
        let between = [*line, b"Content-Length: 5\r\n"].concat();
        let ends_early = line.windows(3).any(|three| three == b"\n\r\n");
        let body = if ends_early { "" } else { "hello" };
        cases.push(
            case(case_name("before a body,", line), post(between, "hello"))
                .forwarded(body)
                .or_refused(BAD_REQUEST),
        );
    }
    for (name, head) in [
        ("LF for line ends", "GET /hr/cgi-bin/case HTTP/1.1\nHost: proxy.test\n\n"),
        ("LF behind the request line", "GET /hr/cgi-bin/case HTTP/1.1\nHost: proxy.test\r\n\r\n"),
        ("LF behind a header", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\n\r\n"),
        ("LF at the end of the head", "GET /hr/cgi-bin/case HTTP/1.1\r\nHost: proxy.test\r\n\n"),
    ] {
        cases.push(case(name, head).forwarded("").or_refused(BAD_REQUEST));
    }
    for line in VALID_LINES {
        cases.push(
            case(case_name("sound", line), post([*line, b"Content-Length: 5\r\n"].concat(), "hello"))
                .forwarded("hello"),
        );
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn request_head_size_is_bounded() {
    let long = |count: usize| "a".repeat(count);
    let lines = |count: usize| (0..count).map(|nth| format!("X-{nth}: y\r\n")).collect::<String>();
    let open = |name: &str, bytes: Vec<u8>| case(name, bytes).forwarded("").or_refused(HEAD_TOO_LONG);
    let shut = |name: &str, bytes: Vec<u8>| case(name, bytes).or_refused(HEAD_TOO_LONG);
    let target = |target: String| request(format!("GET {target} HTTP/1.1"), "", "");
    let mut cases = vec![
        case("a header of 8,000 bytes", get(format!("X: {}\r\n", long(8000)))).forwarded(""),
        case("50 headers", get(lines(50))).forwarded(""),
        open("a header of 50,000 bytes", get(format!("X: {}\r\n", long(50_000)))),
        shut("a header of 65,536 bytes", get(format!("X: {}\r\n", long(65_536)))),
        shut("a header of 100,000 bytes", get(format!("X: {}\r\n", long(102_400)))),
        shut("a header of 1,000,000 bytes", get(format!("X: {}\r\n", long(1_000_000))))
            .or_refused(&[CLOSED_SILENTLY]),
        open("a name of 30,000 bytes", get(format!("{}: y\r\n", long(30_000)))),
        shut("a name of 65,536 bytes", get(format!("{}: y\r\n", long(65_536)))),
        shut("a name without an end", get(long(200_000))),
        open("98 headers and Host", get(lines(98))),
        open("100 headers", get(lines(99))),
        open("101 headers", get(lines(100))),
        open("128 headers", get(lines(127))),
        open("129 headers", get(lines(128))),
        shut("300 headers", get(lines(300))),
        shut("5,000 headers", get(lines(5000))),
        shut("30,000 headers", get("a:\r\n".repeat(30_000))),
        shut("a target of 70,000 bytes", target(format!("/hr/cgi-bin/{}", long(70_000)))),
        shut("a query of 70,000 bytes", target(format!("/hr/cgi-bin/case?{}", long(70_000)))),
        shut("a target of 1,000,000 bytes", target(format!("/hr/cgi-bin/{}", long(1_000_000))))
            .or_refused(&[CLOSED_SILENTLY]),
        shut("a method of 70,000 bytes", request(format!("{} / HTTP/1.1", long(70_000)), "", "")),
        shut(
            "a Host of 70,000 bytes",
            format!("GET /hr/cgi-bin/case HTTP/1.1\r\nHost: {}\r\n\r\n", long(70_000)).into(),
        ),
        shut(
            "a length of 70,000 digits",
            post(format!("Content-Length: {}5\r\n", "0".repeat(70_000)), "hello"),
        ),
        shut("a head of 1,000 lines of 200 bytes", get(format!("X: {}\r\n", long(196)).repeat(1000))),
        open("Connection with 90 names", get(format!("Connection: {}close\r\n", "x-y, ".repeat(89))))
            .closes_connection(),
        shut("Connection with 5,000 names", get(format!("Connection: {}close\r\n", "x-y, ".repeat(5000)))),
        shut("Connection with 30,000 names beside many lines", {
            get(format!("Connection: {}a\r\n{}", "a,".repeat(30_000), "b: c\r\n".repeat(95)))
        }),
        shut(
            "20 lines of Connection with 20 names",
            get(format!("Connection: {}\r\n", "a,".repeat(20)).repeat(20)),
        ),
        open("20 lines of Connection", get("Connection: x-y\r\n".repeat(20) + "X-Y: z\r\n"))
            .without_headers(&["x-y"]),
        open("50 lines of Cookie", get("Cookie: a=b\r\n".repeat(50))),
    ];
    for blank in [1, 2, 3, 10] {
        let bytes = [b"\r\n".repeat(blank), get("")].concat();
        cases.push(open(&format!("{blank} empty lines first"), bytes));
    }
    for blank in [100, 1000] {
        let bytes = [b"\r\n".repeat(blank), get("")].concat();
        cases.push(open(&format!("{blank} empty lines first"), bytes));
    }
    cases.push(shut("100,000 empty lines first", [b"\r\n".repeat(100_000), get("")].concat()).forwarded(""));
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn connection_headers_do_not_affect_the_upstream_request() {
    let go = |name: &str, lines: &str| {
        case(name, post(format!("{lines}Content-Length: 5\r\n"), "hello")).forwarded("hello")
    };
    let mut cases = vec![
        go(
            "all that is needed, named",
            "Connection: authorization, host, content-length, transfer-encoding, te\r\n",
        ),
        go(
            "all that is needed, and close",
            "Connection: authorization, host, content-length, transfer-encoding, close\r\n",
        )
        .closes_connection(),
        go("Host named", "Connection: host\r\n"),
        go("Connection named", "Connection: connection\r\n"),
        go("the agent's header named", "Connection: x-wecom-agent\r\nX-Wecom-Agent: hr\r\n"),
        go("another header named", "Connection: x-y\r\nX-Y: z\r\n").without_headers(&["x-y"]),
        go("another header named in capitals", "Connection: X-Y\r\nx-y: z\r\n").without_headers(&["x-y"]),
        go("named before others", "Connection: x-y,keep-alive\r\nX-Y: z\r\n").without_headers(&["x-y"]),
        go("named behind commas", "Connection: ,, ,x-y\r\nX-Y: z\r\n").without_headers(&["x-y"]),
        go("named with tabs", "Connection: keep-alive,\tx-y\t\r\nX-Y: z\r\n").without_headers(&["x-y"]),
        go("named in a second line", "Connection: keep-alive\r\nConnection: x-y\r\nX-Y: z\r\n")
            .without_headers(&["x-y"]),
        go("two of a name", "Connection: x-y\r\nX-Y: z\r\nX-Y: a\r\n").without_headers(&["x-y"]),
        go("named beside what is no name", "Connection: @@, x-y, (a)\r\nX-Y: z\r\n")
            .without_headers(&["x-y"]),
        go("close in capitals", "Connection: CLOSE\r\n").closes_connection(),
        go("close behind another", "Connection: x-y , close\r\n").closes_connection(),
        go("close in a second line", "Connection: x-y\r\nConnection: close\r\n").closes_connection(),
        go("close and keep-alive", "Connection: keep-alive, close\r\n").closes_connection(),
        go("close twice", "Connection: close, close\r\n").closes_connection(),
        go("closed", "Connection: closed\r\nClosed: y\r\n").without_headers(&["closed"]),
        go("an empty Connection", "Connection:\r\n"),
        go("commas alone", "Connection: ,,,\r\n"),
        go("a quoted name", "Connection: \"x-y\"\r\n"),
        go(
            "keep-alive with parameters",
            "Connection: keep-alive\r\nKeep-Alive: timeout=9999, max=1000000\r\n",
        ),
        go("Proxy-Connection", "Proxy-Connection: close\r\n"),
        go(
            "Proxy-Authorization",
            "Proxy-Authorization: Basic eDp5\r\nProxy-Authenticate: x\r\nProxy-Authentication-Info: x\r\n",
        ),
        go("TE", "TE: trailers\r\n"),
        go("TE and chunks", "TE: chunked\r\n"),
        go("Trailer", "Trailer: Content-Length, Host\r\n"),
        go("Via", "Via: 1.1 a\r\nvia: 1.0 b\r\n"),
        go("Forwarded", "Forwarded: for=192.0.2.1;host=evil.test\r\n"),
        go(
            "X-Forwarded",
            "X-Forwarded-For: 1\r\nX-Forwarded-Host: evil.test\r\nX-FORWARDED-PROTO: x\r\nX-Forwarded-\u{7e}: y\r\n",
        ),
        go("Cookie", "Cookie: a=b\r\nCOOKIE: c=d\r\n"),
        go("credentials", "Authorization: Bearer k\r\nX-Api-Key: k\r\n"),
        go("X-Wecom", "X-Wecom-Debug: 1\r\nX-Wecom-Whatever: 1\r\nx-wecom-: y\r\n"),
        go("several agents", "X-Wecom-Agent: hr\r\nX-Wecom-Agent: ops\r\n")
            .or_refused_keeping_connection(BAD_REQUEST),
        go("another agent", "X-Wecom-Agent: ops\r\n").or_refused_keeping_connection(BAD_REQUEST),
        go(
            "an offer of h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        ),
        go(
            "an offer of WebSocket",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
        ),
        go("an offer of TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n"),
        go("an offer without Connection", "Upgrade: h2c\r\n"),
        go("Expect", "Expect: 100-continue\r\n"),
        go("Expect in capitals", "EXPECT: 100-CONTINUE\r\n"),
        go("Expect twice", "Expect: 100-continue\r\nExpect: 100-continue\r\n").or_refused(&[400, 417]),
        go("Expect a list", "Expect: 100-continue, x\r\n").or_refused(&[400, 417]),
        go("Expect nonsense", "Expect: nonsense\r\n").or_refused(&[400, 417]),
        go("Expect nothing", "Expect:\r\n").or_refused(&[400, 417]),
        go("Expect 100-continue and a fold", "Expect: 100-\r\n continue\r\n").or_refused(&[400, 417]),
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
    ];
    // A value beyond ASCII hides no name beside it.
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
        case("named behind a high byte", named)
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
        case(
            "what goes out goes out as it came",
            get(b"User-Agent: a (b)  c\r\nAccept: */*\r\nX-O: \xe4\r\n"),
        )
        .forwarded("")
        .with_headers(&[("user-agent", "a (b)  c"), ("accept", "*/*")]),
    );
    CaseRunner::start().await.run(cases).await;
}

/// For the client `crm`, which may use every agent.
const KEY: &str = "X-Api-Key: key-of-crm-0000000000\r\n";

#[tokio::test]
async fn malformed_key_is_refused() {
    assert_eq!(KEY, format!("X-Api-Key: {}\r\n", client_key("crm")));
    let hidden =
        [&b"GET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: proxy.test\r\n"[..], KEY.as_bytes(), b"\r\n"].concat();
    let length = format!("Content-Length: {}\r\n", hidden.len());
    let chunks = [format!("{:x}\r\n", hidden.len()).as_bytes(), &hidden, b"\r\n0\r\n\r\n"].concat();
    let shown = |name: &str, lines: &str| case(name, post(format!("{lines}{length}"), &hidden));
    let mut cases: Vec<Case> = [
        ("no key", ""),
        ("an empty key", "X-Api-Key:\r\n"),
        ("a wrong key", "X-Api-Key: key-of-crm-0000000001\r\n"),
        ("a key in capitals", "X-Api-Key: KEY-OF-CRM-0000000000\r\n"),
        ("a key and a space within", "X-Api-Key: key-of-crm -0000000000\r\n"),
        ("a list of keys", "X-Api-Key: key-of-crm-0000000000, key-of-crm-0000000000\r\n"),
        ("a key in quotation marks", "X-Api-Key: \"key-of-crm-0000000000\"\r\n"),
        ("an underscored name", "X_Api_Key: key-of-crm-0000000000\r\n"),
        ("another scheme", "Authorization: Digest key-of-crm-0000000000\r\n"),
        ("no scheme", "Authorization: key-of-crm-0000000000\r\n"),
        ("no base64", "Authorization: Basic key-of-crm-0000000000\r\n"),
        ("a proxy's credentials", "Proxy-Authorization: Bearer key-of-crm-0000000000\r\n"),
        ("a cookie", "Cookie: X-Api-Key=key-of-crm-0000000000\r\n"),
    ]
    .into_iter()
    .map(|(name, lines)| shown(name, lines).or_refused_keeping_connection(&[401]))
    .collect();
    for (name, lines) in [
        (
            "a key of another client beside it",
            "X-Api-Key: key-of-billing-0000000000\r\nAuthorization: Bearer key-of-crm-0000000000\r\n",
        ),
        ("two keys", "X-Api-Key: key-of-crm-0000000000\r\nX-Api-Key: key-of-billing-0000000000\r\n"),
        ("two credentials", "Authorization: Bearer key-of-crm-0000000000\r\nAuthorization: Bearer x\r\n"),
        ("a wrong key beside a right one", "X-Api-Key: x\r\nAuthorization: Bearer key-of-crm-0000000000\r\n"),
    ] {
        cases.push(shown(name, lines).or_refused_keeping_connection(&[400, 401]));
    }
    for (name, lines) in [
        ("a space before the colon", "X-Api-Key : key-of-crm-0000000000\r\n"),
        ("a folded key", "X-Api-Key: key-of-crm-\r\n 0000000000\r\n"),
        ("a key behind a bare CR", "X: y\rX-Api-Key: key-of-crm-0000000000\r\n"),
        ("a key and NUL", "X-Api-Key: key-of-crm-0000000000\0\r\n"),
    ] {
        cases.push(shown(name, lines).or_refused_keeping_connection(&[400, 401]));
    }
    for (name, lines) in [
        ("a key that Connection names", "Connection: x-api-key\r\nX-Api-Key: key-of-crm-0000000000\r\n"),
        (
            "credentials that Connection names",
            "Connection: authorization\r\nAuthorization: Bearer key-of-crm-0000000000\r\n",
        ),
        ("a key with spaces around", "X-Api-Key: \t key-of-crm-0000000000 \t\r\n"),
        ("a scheme in capitals", "Authorization: BEARER key-of-crm-0000000000\r\n"),
    ] {
        cases.push(shown(name, lines).forwarded(&hidden).or_refused_keeping_connection(&[401]));
    }
    cases.push(
        case("no key and chunks", post("Transfer-Encoding: chunked\r\n", &chunks))
            .or_refused_keeping_connection(&[401]),
    );
    cases.push(
        case("no key, Expect", post(format!("Expect: 100-continue\r\n{length}"), &hidden))
            .or_refused_keeping_connection(&[401, 417]),
    );
    cases.push(
        case("no key and a huge body", post("Content-Length: 67108865\r\n", &hidden)).or_refused(&[401, 413]),
    );
    cases.push(
        case(
            "no key and a bad body",
            post("Transfer-Encoding: chunked\r\n", [b"x\r\n", &hidden[..]].concat()),
        )
        .or_refused(&[400, 401]),
    );
    for path in ["/nowhere", "/", "/hr/cgi-bin/../x", "/hr/cgi-bin"] {
        let bytes = request(format!("POST {path} HTTP/1.1"), &length, &hidden);
        cases.push(case(format!("no key and {path}"), bytes).or_refused_keeping_connection(&[400, 401, 404]));
        let bytes = request(format!("POST {path} HTTP/1.1"), "Transfer-Encoding: chunked\r\n", &chunks);
        cases.push(
            case(format!("no key, chunks and {path}"), bytes).or_refused_keeping_connection(&[400, 401, 404]),
        );
    }
    CaseRunner::start_with(CONFIG_WITH_CLIENTS, KEY).await.run(cases).await;
}
