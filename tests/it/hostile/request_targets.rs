//! Request lines, hosts, paths and queries that are not what they seem.

use super::cases::{
    BAD_OR_UNSUPPORTED, BAD_REQUEST, CLOSED_SILENTLY, CaseRunner, HEAD_TOO_LONG, case, request,
    smuggled_request,
};

/// A GET of the case's path, and this for a query.
fn get_with_query(query: &[u8]) -> Vec<u8> {
    request([b"GET /hr/cgi-bin/case", query, b" HTTP/1.1"].concat(), "", "")
}

fn case_name(what: &str, bytes: &[u8]) -> String {
    format!("{what} {}", bytes.escape_ascii())
}

/// First lines that are none.
const INVALID_REQUEST_LINES: &[&[u8]] = &[
    b"",
    b" ",
    b"GET",
    b"GET ",
    b"GET /hr/cgi-bin/case",
    b"GET /hr/cgi-bin/case ",
    b"GET  /hr/cgi-bin/case HTTP/1.1",
    b"GET /hr/cgi-bin/case  HTTP/1.1",
    b"GET\t/hr/cgi-bin/case HTTP/1.1",
    b"GET /hr/cgi-bin/case\tHTTP/1.1",
    b"GET\t/hr/cgi-bin/case\tHTTP/1.1",
    b"GET\x0b/hr/cgi-bin/case HTTP/1.1",
    b"GET\x0c/hr/cgi-bin/case HTTP/1.1",
    b"GET\xa0/hr/cgi-bin/case HTTP/1.1",
    b"GET\0/hr/cgi-bin/case HTTP/1.1",
    b"GET\r/hr/cgi-bin/case HTTP/1.1",
    b"GET\n/hr/cgi-bin/case HTTP/1.1",
    b" GET /hr/cgi-bin/case HTTP/1.1",
    b"\tGET /hr/cgi-bin/case HTTP/1.1",
    b"\0GET /hr/cgi-bin/case HTTP/1.1",
    b"\rGET /hr/cgi-bin/case HTTP/1.1",
    b"\xef\xbb\xbfGET /hr/cgi-bin/case HTTP/1.1",
    b"/hr/cgi-bin/case HTTP/1.1",
    b" /hr/cgi-bin/case HTTP/1.1",
    b"GET HTTP/1.1",
    b"GET  HTTP/1.1",
    b"GET /hr/cgi-bin/case HTTP/1.1 ",
    b"GET /hr/cgi-bin/case HTTP/1.1\t",
    b"GET /hr/cgi-bin/case HTTP/1.1 x",
    b"GET /hr/cgi-bin/case x HTTP/1.1",
    b"GET /hr/cgi-bin/case HTTP/1.1\r",
    b"GET /hr/cgi-bin/case\r HTTP/1.1",
    b"GET /hr/cgi-bin/case HTTP/1.1\0",
    b"GET /hr/cgi-bin/case HTTP/1.1\x0b",
    b"GET /hr/cgi-bin/case HTTP/1.1;x",
    b"GET /hr/cgi-bin/hidden HTTP/1.1 /hr/cgi-bin/case HTTP/1.1",
    b"GET /hr/cgi-bin/case http/1.1",
    b"GET /hr/cgi-bin/case Http/1.1",
    b"GET /hr/cgi-bin/case HTTP/0.9",
    b"GET /hr/cgi-bin/case HTTP/2.0",
    b"GET /hr/cgi-bin/case HTTP/2",
    b"GET /hr/cgi-bin/case HTTP/3",
    b"GET /hr/cgi-bin/case HTTP/3.0",
    b"GET /hr/cgi-bin/case HTTP/1",
    b"GET /hr/cgi-bin/case HTTP/1.",
    b"GET /hr/cgi-bin/case HTTP/.1",
    b"GET /hr/cgi-bin/case HTTP/11",
    b"GET /hr/cgi-bin/case HTTP/1.10",
    b"GET /hr/cgi-bin/case HTTP/1.01",
    b"GET /hr/cgi-bin/case HTTP/01.1",
    b"GET /hr/cgi-bin/case HTTP/1,1",
    b"GET /hr/cgi-bin/case HTTP/1.1.1",
    b"GET /hr/cgi-bin/case HTTP/-1.1",
    b"GET /hr/cgi-bin/case HTTP/ 1.1",
    b"GET /hr/cgi-bin/case HTTP /1.1",
    b"GET /hr/cgi-bin/case HTTP/x.y",
    b"GET /hr/cgi-bin/case HTTPS/1.1",
    b"GET /hr/cgi-bin/case SIP/2.0",
    b"GET /hr/cgi-bin/case ICE/1.0",
    b"GET /hr/cgi-bin/case \x00HTTP/1.1",
    b"GET /hr/cgi-bin/case HTTP/1.\xb9",
    b"PRI * HTTP/2.0",
    b"G\0ET /hr/cgi-bin/case HTTP/1.1",
    b"G\rET /hr/cgi-bin/case HTTP/1.1",
    b"G\x01T /hr/cgi-bin/case HTTP/1.1",
    b"G\xcbT /hr/cgi-bin/case HTTP/1.1",
    b"G\x7fT /hr/cgi-bin/case HTTP/1.1",
    b"GET: /hr/cgi-bin/case HTTP/1.1",
    b"G(T /hr/cgi-bin/case HTTP/1.1",
    b"G,T /hr/cgi-bin/case HTTP/1.1",
    b"G/T /hr/cgi-bin/case HTTP/1.1",
    b"\"GET\" /hr/cgi-bin/case HTTP/1.1",
    b"{GET} /hr/cgi-bin/case HTTP/1.1",
    b"GET hr/cgi-bin/case HTTP/1.1",
    b"GET cgi-bin/case HTTP/1.1",
    b"GET \\hr\\cgi-bin\\case HTTP/1.1",
    b"GET ?/hr/cgi-bin/case HTTP/1.1",
    b"GET ../hr/cgi-bin/case HTTP/1.1",
    b"GET ./hr/cgi-bin/case HTTP/1.1",
    b"GET \"/hr/cgi-bin/case\" HTTP/1.1",
    b"GET %2fhr/cgi-bin/case HTTP/1.1",
    b"GET @/hr/cgi-bin/case HTTP/1.1",
    b"GET :80/hr/cgi-bin/case HTTP/1.1",
    b"GET ;/hr/cgi-bin/case HTTP/1.1",
];

/// Requests with an end that is in no doubt, and a target that this proxy does not serve.
const UNSUPPORTED_TARGETS: &[&str] = &[
    "OPTIONS * HTTP/1.1",
    "PRI * HTTP/1.1",
    "GET proxy.test HTTP/1.1",
    "GET proxy.test:80 HTTP/1.1",
    "GET * HTTP/1.1",
    "HEAD * HTTP/1.1",
    "HEAD proxy.test HTTP/1.1",
    "POST * HTTP/1.1",
    "GET ** HTTP/1.1",
    "OPTIONS ** HTTP/1.1",
    "OPTIONS *x HTTP/1.1",
    "TRACE /hr/cgi-bin/case HTTP/1.1",
    "TRACE /nowhere HTTP/1.1",
    "CONNECT proxy.test:443 HTTP/1.1",
    "CONNECT 127.0.0.1:22 HTTP/1.1",
    "CONNECT [::1]:22 HTTP/1.1",
    "CONNECT proxy.test HTTP/1.1",
    "CONNECT /hr/cgi-bin/case HTTP/1.1",
    "CONNECT http://proxy.test/ HTTP/1.1",
    "CONNECT * HTTP/1.1",
    "CONNECT user@proxy.test:443 HTTP/1.1",
    "CONNECT qyapi.weixin.qq.com:443 HTTP/1.0",
    "connect proxy.test:443 HTTP/1.1",
    "Trace /hr/cgi-bin/case HTTP/1.1",
];

/// Methods that mean nothing here, and so do not go out.
const REFUSED_METHODS: &[&str] = &[
    "get",
    "Get",
    "pOST",
    "FOO",
    "LINK",
    "PURGE",
    "PROPFIND",
    "QUERY",
    "SUBSCRIBE",
    "TRACK",
    "DEBUG",
    "trace",
    "connect",
    "X",
    "G3T",
    "GET2",
    "!#$%&'*+-.^_`|~",
    "HTTP",
    "PRI",
    "_",
    "GETGET",
];

/// Paths that may mean another one to whoever reads them next.
const AMBIGUOUS_PATHS: &[&[u8]] = &[
    b"/hr/cgi-bin/../case",
    b"/hr/cgi-bin/..",
    b"/hr/cgi-bin/.",
    b"/hr/cgi-bin/./case",
    b"/hr/cgi-bin/a/../case",
    b"/hr/cgi-bin/a/..",
    b"/hr/cgi-bin/a/.",
    b"/hr/cgi-bin/../../case",
    b"/hr/../hr/cgi-bin/case",
    b"/../hr/cgi-bin/case",
    b"/./hr/cgi-bin/case",
    b"/hr/./cgi-bin/case",
    b"/hr/cgi-bin/%2e%2e/case",
    b"/hr/cgi-bin/%2E%2E/case",
    b"/hr/cgi-bin/%2e./case",
    b"/hr/cgi-bin/.%2e/case",
    b"/hr/cgi-bin/%2e/case",
    b"/hr/cgi-bin/a/%2e%2e",
    b"/%2e%2e/hr/cgi-bin/case",
    b"/hr/%2e%2e/hr/cgi-bin/case",
    b"/hr/cgi-bin/%252e%252e/case",
    b"/hr/cgi-bin/%252E./case",
    b"/hr/cgi-bin/%25%32%65%25%32%65/case",
    b"/hr/cgi-bin/%25252e%25252e/case",
    b"/hr/cgi-bin/%2525252e%2525252e/case",
    b"/hr/cgi-bin/%25252525",
    b"/hr/cgi-bin/..;/case",
    b"/hr/cgi-bin/..;a=b/case",
    b"/hr/cgi-bin/.;/case",
    b"/hr/cgi-bin/%2e%2e;/case",
    b"/hr/cgi-bin/..%3b/case",
    b"/hr/cgi-bin/..%3B/case",
    b"/hr/cgi-bin/%2e%2e%3bx/case",
    b"/hr/cgi-bin/a%2fb",
    b"/hr/cgi-bin/a%2Fb",
    b"/hr/cgi-bin/..%2fcase",
    b"/hr/cgi-bin/a%252fb",
    b"/hr/cgi-bin/a%25252fb",
    b"/hr/cgi-bin%2fcase",
    b"/hr%2fcgi-bin/case",
    b"/%2fhr/cgi-bin/case",
    b"/hr/cgi-bin/a\\b",
    b"/hr/cgi-bin\\case",
    b"/hr\\cgi-bin\\case",
    b"/\\hr/cgi-bin/case",
    b"/hr/cgi-bin/..\\case",
    b"/hr/cgi-bin/a%5cb",
    b"/hr/cgi-bin/a%5Cb",
    b"/hr/cgi-bin/..%5ccase",
    b"/hr/cgi-bin/a%255cb",
    b"/hr/cgi-bin/a%00",
    b"/hr/cgi-bin/case%00.txt",
    b"/hr/cgi-bin/a%2500",
    b"/hr/cgi-bin/a%0a",
    b"/hr/cgi-bin/a%0d",
    b"/hr/cgi-bin/a%0d%0aX:%20y",
    b"/hr/cgi-bin/a%250d%250aX:y",
    b"/hr/cgi-bin/a%09",
    b"/hr/cgi-bin/a%0b",
    b"/hr/cgi-bin/a%1f",
    b"/hr/cgi-bin/a%7f",
    b"/hr/cgi-bin/%c0%ae%c0%ae/case",
    b"/hr/cgi-bin/%c0%afcase",
    b"/hr/cgi-bin/%e0%80%ae%e0%80%ae/case",
    b"/hr/cgi-bin/%e0%80%afcase",
    b"/hr/cgi-bin/%f0%80%80%ae/case",
    b"/hr/cgi-bin/%c0%80",
    b"/hr/cgi-bin/%c1%9ccase",
    b"/hr/cgi-bin/%ff",
    b"/hr/cgi-bin/%ed%a0%80",
    b"/hr/cgi-bin/\xe5\xbc\xa0",
    b"/hr/cgi-bin/\xff",
    b"/hr/cgi-bin/\xc0\xae\xc0\xae/case",
    b"/hr/cgi-bin/a|b",
    b"/hr/cgi-bin/a\"b",
    b"/hr/cgi-bin/a<b>",
    b"/hr/cgi-bin/a`b",
    b"/hr/cgi-bin/a{b}",
    b"/hr/cgi-bin/a^b",
    b"/hr/cgi-bin/case#",
    b"/hr/cgi-bin/case#x",
    b"/hr/cgi-bin/case#?a=b",
    b"/hr/cgi-bin/case?a=b#c",
    b"/hr/cgi-bin/case?#&access_token=x",
    b"#/hr/cgi-bin/case",
];

/// Paths that lead nowhere.
const UNROUTED_PATHS: &[&[u8]] = &[
    b"/",
    b"//",
    b"/hr",
    b"/hr/",
    b"/hr//",
    b"/cgi-bin",
    b"/cgi-bin/",
    b"/cgi-bin//",
    b"/hr/cgi-bin",
    b"/hr/cgi-bin/",
    b"/hr/cgi-bin?/case",
    b"/CGI-BIN/case",
    b"/hr/CGI-BIN/case",
    b"/hr/Cgi-Bin/case",
    b"/hr/cgi-bin;/case",
    b"/hr;/cgi-bin/case",
    b"/hr/cgi_bin/case",
    b"/hr/cgi-binx/case",
    b"/hr/xcgi-bin/case",
    b"/hr/hr/cgi-bin/case",
    b"/hr/x/cgi-bin/case",
    b"/nobody/cgi-bin/case",
    b"/HR/cgi-bin/case",
    b"/h.r/cgi-bin/case",
    b"/%68r/cgi-bin/case",
    b"/hr/%63gi-bin/case",
    b"/x?/hr/cgi-bin/case",
    b"/cgi-bin%20/case",
    b"/hr/cgi-bin%20/case",
    b"/favicon.ico",
    b"/metrics",
    b"/healthz",
    b"/api/agents",
];

/// Paths and queries that are odd and legal, and what goes out for them.
const UNUSUAL_TARGETS: &[(&[u8], &str)] = &[
    (b"/hr//cgi-bin/case", "/cgi-bin/case?access_token=T"),
    (b"//hr/cgi-bin/case", "/cgi-bin/case?access_token=T"),
    (b"///hr///cgi-bin/case", "/cgi-bin/case?access_token=T"),
    (b"/hr/cgi-bin//case", "/cgi-bin//case?access_token=T"),
    (b"/hr/cgi-bin/case/", "/cgi-bin/case/?access_token=T"),
    (b"/hr/cgi-bin/case//", "/cgi-bin/case//?access_token=T"),
    (b"/hr/cgi-bin/case;a=b", "/cgi-bin/case;a=b?access_token=T"),
    (b"/hr/cgi-bin/case;", "/cgi-bin/case;?access_token=T"),
    (b"/hr/cgi-bin/c%61se", "/cgi-bin/c%61se?access_token=T"),
    (b"/hr/cgi-bin/case%20x", "/cgi-bin/case%20x?access_token=T"),
    (b"/hr/cgi-bin/%E5%BC%A0", "/cgi-bin/%E5%BC%A0?access_token=T"),
    (b"/hr/cgi-bin/100%25", "/cgi-bin/100%25?access_token=T"),
    (b"/hr/cgi-bin/...", "/cgi-bin/...?access_token=T"),
    (b"/hr/cgi-bin/.case", "/cgi-bin/.case?access_token=T"),
    (b"/hr/cgi-bin/a..b", "/cgi-bin/a..b?access_token=T"),
    (b"/hr/cgi-bin/http://x", "/cgi-bin/http://x?access_token=T"),
    (b"/hr/cgi-bin/a@b:c", "/cgi-bin/a@b:c?access_token=T"),
    (b"/hr/cgi-bin/a%3Fb", "/cgi-bin/a%3Fb?access_token=T"),
    (b"/hr/cgi-bin/a%23b", "/cgi-bin/a%23b?access_token=T"),
];

/// Queries, and what goes out for them.
const QUERIES: &[(&[u8], &str)] = &[
    (b"", "?access_token=T"),
    (b"?", "?access_token=T"),
    (b"?a=1", "?a=1&access_token=T"),
    (b"?&a=1", "?&a=1&access_token=T"),
    (b"?a=1&", "?a=1&access_token=T"),
    (b"?a=1&&b=2", "?a=1&&b=2&access_token=T"),
    (b"??a", "??a&access_token=T"),
    (b"?/../..", "?/../..&access_token=T"),
    (b"?a=%00%0d%0a%2f", "?a=%00%0d%0a%2f&access_token=T"),
    (b"?a=%", "?a=%&access_token=T"),
    (b"?a=%zz%2", "?a=%zz%2&access_token=T"),
    (b"?a=b\\c", "?a=b\\c&access_token=T"),
    (b"?a=http://evil.test/", "?a=http://evil.test/&access_token=T"),
    (b"?access_token", "?access_token=T"),
    (b"?access_token=", "?access_token=T"),
    (b"?access_token=x", "?access_token=T"),
    (b"?access_token=x=y", "?access_token=T"),
    (b"?access_token=x&a=1", "?a=1&access_token=T"),
    (b"?a=1&access_token=x", "?a=1&access_token=T"),
    (b"?a=1&access_token=x&b=2", "?a=1&b=2&access_token=T"),
    (b"?access_token=x&access_token=y", "?access_token=T"),
    (b"?access_token=x&access_token=x&access_token=x&a", "?a&access_token=T"),
    (b"?access_token=%", "?access_token=T"),
    (b"?access_token=x;access_token=y", "?access_token=T"),
    (b"?access_token=x%26access_token=y", "?access_token=T"),
    (b"?%61ccess_token=x", "?access_token=T"),
    (b"?%61%63%63%65%73%73%5f%74%6f%6b%65%6e=x", "?access_token=T"),
    (b"?%61%63%63%65%73%73%5F%74%6F%6B%65%6E=x", "?access_token=T"),
    (b"?access%5ftoken=x", "?access_token=T"),
    (b"?access%5Ftoken=x&access_toke%6e=y", "?access_token=T"),
    (b"?access%5Ftoken", "?access_token=T"),
    (b"?access_token%", "?access_token%&access_token=T"),
    (b"?%2561ccess_token=x", "?%2561ccess_token=x&access_token=T"),
    (b"?access_token[]=x", "?access_token[]=x&access_token=T"),
    (b"?access_tokens=x", "?access_tokens=x&access_token=T"),
    (b"?my_access_token=x", "?my_access_token=x&access_token=T"),
    (b"?access-token=x", "?access-token=x&access_token=T"),
    (b"?ACCESS_TOKEN=x", "?ACCESS_TOKEN=x&access_token=T"),
    (b"?a=access_token=x", "?a=access_token=x&access_token=T"),
    (b"?a=%26access_token=x", "?a=%26access_token=x&access_token=T"),
    (b"?a=%26access_token%3Dx", "?a=%26access_token%3Dx&access_token=T"),
    (b"?a=1;access_token=x", "?a=1;access_token=x&access_token=T"),
    (b"?+access_token=x", "?+access_token=x&access_token=T"),
    (b"?%20access_token=x", "?%20access_token=x&access_token=T"),
    (b"?&&&access_token=x&&&", "?&&&&&access_token=T"),
];

/// Calls for a token, however they are spelled; they are answered here.
const GETTOKEN: &[&str] = &[
    "/cgi-bin/gettoken",
    "/hr/cgi-bin/gettoken",
    "/hr/cgi-bin/gettoken?corpid=x&corpsecret=y",
    "/hr/cgi-bin/gettoken/",
    "/hr/cgi-bin//gettoken",
    "/hr/cgi-bin/GetToken",
    "/hr/cgi-bin/GETTOKEN?corpid=x&corpsecret=y",
    "/hr/cgi-bin/%67ettoken?corpid=x&corpsecret=y",
    "/hr/cgi-bin/gettoken;a=b?corpid=x&corpsecret=y",
    "/hr/cgi-bin/gettoken%3b?corpid=x&corpsecret=y",
    "/hr/cgi-bin/gettoken//?corpid=x&corpsecret=y&access_token=z",
];

#[tokio::test]
async fn invalid_request_line_is_refused() {
    let mut cases = Vec::new();
    for line in INVALID_REQUEST_LINES {
        let bytes = [request(line, "", ""), smuggled_request()].concat();
        cases.push(
            case(case_name("line", line), bytes)
                .or_refused(BAD_OR_UNSUPPORTED)
                .or_refused(&[404, CLOSED_SILENTLY]),
        );
    }
    for (name, bytes) in [
        ("TLS", &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..]),
        ("SSH", b"SSH-2.0-x\r\n\r\n"),
        ("PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        ("PROXY in binary", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"),
        ("FastCGI", b"\x01\x01\x00\x01\x00\x08\x00\x00\r\n\r\n"),
        ("RTSP", b"OPTIONS rtsp://x/ RTSP/1.0\r\n\r\n"),
        ("an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HTTP/0.9", b"GET /hr/cgi-bin/case\r\n"),
        ("HTTP/0.9 and an empty line", b"GET /hr/cgi-bin/case\r\n\r\n"),
        ("zeros", &[0; 64]),
        ("high bytes", &[0xff; 64]),
        ("half a preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
        ("a preface with LF", b"PRI * HTTP/2.0\n\nSM\n\n"),
    ] {
        cases.push(
            case(name, [bytes, &smuggled_request()].concat())
                .or_refused(BAD_OR_UNSUPPORTED)
                .or_refused(&[404, CLOSED_SILENTLY]),
        );
    }
    let preface = b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n";
    cases.push(case("a preface of HTTP/1.1", &preface[..]).or_refused_keeping_connection(BAD_OR_UNSUPPORTED));
    for line in UNSUPPORTED_TARGETS {
        let bytes = [request(line, "", ""), smuggled_request()].concat();
        cases.push(
            case(format!("line {line}"), bytes)
                .or_refused_keeping_connection(&[400, 405, 501])
                .then_smuggled(),
        );
    }
    for method in REFUSED_METHODS {
        let bytes = request(format!("{method} /hr/cgi-bin/case HTTP/1.1"), "", smuggled_request());
        cases.push(
            case(format!("method {method}"), bytes)
                .or_refused_keeping_connection(BAD_REQUEST)
                .then_smuggled(),
        );
    }
    let long = "M".repeat(5000);
    let bytes = request(format!("{long} /hr/cgi-bin/case HTTP/1.1"), "", "");
    cases.push(case("a method of 5,000 letters", bytes).or_refused_keeping_connection(HEAD_TOO_LONG));
    // A later version of HTTP/1 is read as the one that is known (RFC 9110 §2.5).
    for version in ["HTTP/1.2", "HTTP/1.9"] {
        let bytes = request(format!("GET /hr/cgi-bin/case {version}"), "", "");
        cases.push(case(version, bytes).forwarded("").or_refused(BAD_OR_UNSUPPORTED));
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn path_is_forwarded_unchanged_or_refused() {
    let mut cases = Vec::new();
    let length = format!("Content-Length: {}\r\n", smuggled_request().len());
    let ask = |path: &[u8]| request([b"POST ", path, b" HTTP/1.1"].concat(), &length, smuggled_request());
    for path in AMBIGUOUS_PATHS {
        cases.push(case(case_name("path", path), ask(path)).or_refused_keeping_connection(BAD_REQUEST));
    }
    for path in UNROUTED_PATHS {
        cases.push(case(case_name("path", path), ask(path)).or_refused_keeping_connection(&[404]));
    }
    for path in [&b"/cgi-bin/case"[..], b"//cgi-bin/case", b"/cgi-bin/hr/cgi-bin/../case"] {
        cases.push(case(case_name("no agent", path), ask(path)).or_refused_keeping_connection(BAD_REQUEST));
    }
    for path in [&b"/#/hr/cgi-bin/case"[..], b"/hr#/cgi-bin/case"] {
        cases.push(case(case_name("path", path), ask(path)).or_refused_keeping_connection(&[400, 404]));
    }
    for path in GETTOKEN {
        cases.push(case(format!("path {path}"), ask(path.as_bytes())).or_refused_keeping_connection(&[200]));
    }
    for (path, target) in UNUSUAL_TARGETS {
        cases.push(
            case(case_name("path", path), ask(path)).forwarded(smuggled_request()).forwarded_to(target),
        );
    }
    for (query, target) in QUERIES {
        cases.push(
            case(case_name("query", query), get_with_query(query))
                .forwarded("")
                .forwarded_to(&format!("/cgi-bin/case{target}")),
        );
    }
    // No URI holds them, and many a script sends them.
    let names = "?name=\u{5f20}\u{4e09}".as_bytes();
    let target: String = names.iter().map(|byte| *byte as char).collect();
    let names = case("a query in UTF-8", get_with_query(names));
    cases.push(
        names
            .forwarded("")
            .forwarded_to(&format!("/cgi-bin/case{target}&access_token=T"))
            .or_refused_keeping_connection(BAD_REQUEST),
    );
    for query in [
        &b"?a=\x01"[..],
        b"?a=\x7f",
        b"?a=\0",
        b"?a=\tb",
        b"?a=\rb",
        b"?a=\x0bb",
        b"?a=b c",
        b"?a=\xff",
        b"?access_token=\xff",
    ] {
        cases.push(
            case(case_name("query", query), [get_with_query(query), smuggled_request()].concat())
                .or_refused(BAD_REQUEST),
        );
    }
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn host_must_be_single_and_valid_and_is_not_forwarded() {
    let mut cases = Vec::new();
    let raw = |line: &str, hosts: &[u8]| [line.as_bytes(), b"\r\n", hosts, b"\r\n"].concat();
    let line = "GET /hr/cgi-bin/case HTTP/1.1";
    for hosts in [
        &b""[..],
        b"Host: a\r\nHost: b\r\n",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nX: y\r\nhOST: a\r\n",
        b"Host:\r\nHost: a\r\n",
        b"Host: a\r\nHost:\r\n",
        b"Host: a, b\r\n",
        b"Host: a,b\r\n",
        b"Host: a:65536\r\n",
        b"Host: a:99999999999\r\n",
        b"Host: a b\r\n",
        b"Host: a\tb\r\n",
        b"Host: a/b\r\n",
        b"Host: a/cgi-bin/\r\n",
        b"Host: a?b\r\n",
        b"Host: a#b\r\n",
        b"Host: a@b\r\n",
        b"Host: user:pass@b\r\n",
        b"Host: a\\b\r\n",
        b"Host: http://a\r\n",
        b"Host: a:b\r\n",
        b"Host: a:80:80\r\n",
        b"Host: a:-1\r\n",
        b"Host: a:+80\r\n",
        b"Host: a:0x50\r\n",
        b"Host: a: 80\r\n",
        b"Host: a :80\r\n",
        b"Host: [::1\r\n",
        b"Host: ::1\r\n",
        b"Host: [::1]x\r\n",
        b"Host: [x]\r\n",
        b"Host: a\"b\r\n",
        b"Host: <a>\r\n",
        b"Host: a|b\r\n",
        b"Host: a\0b\r\n",
        b"Host: a\rb\r\n",
        b"Host: a\x01\r\n",
        b"Host: \xff\r\n",
        b"Host: a\xc2\xad\r\n",
        b"Host : a\r\n",
        b"Host\t: a\r\n",
        b" Host: a\r\n",
        b"Host\r\n",
        b"Host a\r\n",
        b"H\0st: a\r\n",
        b"Host: a\rHost: b\r\n",
        b"Host: a\r\nHost : b\r\n",
        b"Host: a\r\n\tHost: b\r\n : c\r\n",
        b"X-Host: a\r\n",
    ] {
        cases.push(
            case(case_name("hosts", hosts), [raw(line, hosts), smuggled_request()].concat())
                .or_refused_keeping_connection(BAD_REQUEST)
                .then_smuggled(),
        );
    }
    for hosts in [
        &b"Host:\r\n"[..],
        b"Host: \r\n",
        b"Host: proxy.test.\r\n",
        b"Host: PROXY.TEST\r\n",
        b"Host: proxy.test:1\r\n",
        b"Host: 127.0.0.1\r\n",
        b"Host: [::1]:80\r\n",
        b"Host: evil.test\r\n",
        b"Host: under_score\r\n",
        b"Host: \t x \t\r\n",
        b"hOsT: x\r\n",
        b"Host: qyapi.weixin.qq.com\r\n",
        b"Host: x\r\nX-Forwarded-Host: evil.test\r\nForwarded: host=evil.test\r\n",
        b"Host: x\r\nX-Host: evil.test\r\nX-Original-Host: evil.test\r\n",
    ] {
        cases.push(case(case_name("hosts", hosts), raw(line, hosts)).forwarded(""));
    }
    for hosts in [
        &b"Host: a:\r\n"[..],
        b"Host: a:080\r\n",
        b"Host: %61\r\n",
        b"Host: a..b\r\n",
        b"Host: .\r\n",
        b"Host: a;b\r\n",
        b"Host: a'b\r\n",
        b"Host: [v1.x]\r\n",
        b"Host:\r\n x\r\n",
        b"Host: a\r\n b\r\n",
        b"Host: x\r\nHost_: evil.test\r\n",
    ] {
        cases.push(
            case(case_name("hosts", hosts), raw(line, hosts))
                .forwarded("")
                .or_refused_keeping_connection(BAD_REQUEST),
        );
    }
    let old = "GET /hr/cgi-bin/case HTTP/1.0";
    cases.push(case("HTTP/1.0 without Host", raw(old, b"")).forwarded("").closes_connection());
    cases.push(case("HTTP/1.0 with two", raw(old, b"Host: a\r\nHost: b\r\n")).or_refused(BAD_REQUEST));
    cases.push(case("HTTP/1.0 with a bad one", raw(old, b"Host: a b\r\n")).or_refused(BAD_REQUEST));
    CaseRunner::start().await.run(cases).await;
}

#[tokio::test]
async fn absolute_target_must_name_the_proxy_or_upstream() {
    let mut scene = CaseRunner::start().await;
    let (own, api) = (scene.proxy.address(), scene.recorder.address);
    let port = own.port();
    let mut cases = Vec::new();
    let ask =
        |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    for target in [
        "http://evil.test/hr/cgi-bin/case".to_owned(),
        "http://evil.test:80/hr/cgi-bin/case".into(),
        "https://evil.test/hr/cgi-bin/case".into(),
        "HTTP://EVIL.TEST/hr/cgi-bin/case".into(),
        format!("http://evil.test@{own}/hr/cgi-bin/case"),
        format!("http://user:pass@{own}/hr/cgi-bin/case"),
        format!("http://@{own}/hr/cgi-bin/case"),
        format!("http://:@{api}/hr/cgi-bin/case"),
        format!("http://{own}@evil.test/hr/cgi-bin/case"),
        format!("http://{own}.evil.test/hr/cgi-bin/case"),
        format!("http://{own},evil.test/hr/cgi-bin/case"),
        format!("http://{own}\\@evil.test/hr/cgi-bin/case"),
        format!("http://{own}%40evil.test/hr/cgi-bin/case"),
        format!("http://{own}%2f@evil.test/hr/cgi-bin/case"),
        format!("http://{own}:80/hr/cgi-bin/case"),
        format!("http://{}/hr/cgi-bin/case", own.ip()),
        format!("http://{}:/hr/cgi-bin/case", own.ip()),
        format!("http://{}:1/hr/cgi-bin/case", own.ip()),
        format!("http://{}:+{port}/hr/cgi-bin/case", own.ip()),
        "http://localhost/hr/cgi-bin/case".into(),
        "http://proxy.test/hr/cgi-bin/case".into(),
        "http://[::1]/hr/cgi-bin/case".into(),
        format!("http://2130706433:{port}/hr/cgi-bin/case"),
        format!("http://127.1:{port}/hr/cgi-bin/case"),
        format!("http://0x7f.0.0.1:{port}/hr/cgi-bin/case"),
        format!("http://127.0.0.1.:{port}/hr/cgi-bin/case"),
        "http:///hr/cgi-bin/case".into(),
        "http:/hr/cgi-bin/case".into(),
        "http:hr/cgi-bin/case".into(),
        "http://".into(),
        "http:".into(),
        "://evil.test/hr/cgi-bin/case".into(),
        format!("://{own}/hr/cgi-bin/case"),
        format!("ftp://{own}/hr/cgi-bin/case"),
        format!("file://{own}/hr/cgi-bin/case"),
        format!("ws://{own}/hr/cgi-bin/case"),
        format!("gopher://{own}/hr/cgi-bin/case"),
        format!("javascript://{own}/hr/cgi-bin/case"),
        format!("x://{own}/hr/cgi-bin/case"),
        format!("http//{own}/hr/cgi-bin/case"),
        format!("http:\\\\{own}\\hr\\cgi-bin\\case"),
        format!("{own}/hr/cgi-bin/case"),
        "file:///etc/passwd".into(),
        "urn:x".into(),
        "data:,x".into(),
        format!("http://{own}/hr/cgi-bin/../case"),
        format!("http://{own}/hr/cgi-bin/case#x"),
        format!("http://{own}//../hr/cgi-bin/case"),
    ] {
        for host in ["proxy.test".to_owned(), own.to_string()] {
            let name = format!("target {target}, host {host}").replace(&own.to_string(), "OWN");
            let name = name.replace(&api.to_string(), "API").replace(&port.to_string(), "PORT");
            cases.push(
                case(name, [ask(&target, &host), smuggled_request()].concat())
                    .or_refused_keeping_connection(BAD_OR_UNSUPPORTED)
                    .then_smuggled(),
            );
        }
    }
    for (name, target) in [
        ("of another path", format!("http://{own}/nowhere")),
        ("without a path", format!("http://{own}")),
        ("with a query alone", format!("http://{own}?/hr/cgi-bin/case")),
        ("of the root", format!("http://{own}/")),
        ("of another host's fragment", format!("http://{own}#@evil.test/hr/cgi-bin/case")),
    ] {
        cases.push(case(format!("own {name}"), ask(&target, "x")).or_refused_keeping_connection(&[400, 404]));
    }
    for (name, target) in [
        ("OWN", format!("http://{own}/hr/cgi-bin/case")),
        ("API", format!("http://{api}/hr/cgi-bin/case")),
        ("localhost", format!("http://localhost:{port}/hr/cgi-bin/case")),
        ("LOCALHOST", format!("HTTP://LOCALHOST:{port}/hr/cgi-bin/case")),
    ] {
        for host in ["evil.test".to_owned(), String::new(), own.to_string()] {
            let what = host.replace(&own.to_string(), "OWN");
            cases.push(
                case(format!("{name}, host {what:?}"), ask(&target, &host))
                    .forwarded("")
                    .or_refused_keeping_connection(BAD_REQUEST),
            );
        }
        for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a b\r\n"] {
            let bytes = format!("GET {target} HTTP/1.1\r\n{hosts}\r\n");
            cases.push(
                case(format!("{name}, hosts {hosts:?}"), bytes).or_refused_keeping_connection(BAD_REQUEST),
            );
        }
    }
    // The scheme of another port says nothing about where it goes.
    let secure = ask(&format!("https://{own}/hr/cgi-bin/case"), "x");
    cases.push(case("OWN by https", secure).forwarded("").or_refused_keeping_connection(BAD_REQUEST));
    let padded = ask(&format!("http://{}:0{port}/hr/cgi-bin/case", own.ip()), "x");
    cases.push(
        case("OWN with a zero before its port", padded)
            .forwarded("")
            .or_refused_keeping_connection(BAD_REQUEST),
    );
    scene.run(cases).await;
}
