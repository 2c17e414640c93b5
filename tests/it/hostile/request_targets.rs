//! Invalid and ambiguous request lines, hosts, paths and queries.

use std::net::SocketAddr;

use super::cases::{
    BAD_OR_UNSUPPORTED, BAD_REQUEST, CLOSED_SILENTLY, CaseRunner, HEAD_TOO_LONG, case, case_name, request,
    smuggled_request,
};

mod tables;

use tables::{
    AMBIGUOUS_HOSTS, AMBIGUOUS_PATHS, GETTOKEN, INVALID_HOSTS, INVALID_REQUEST_LINES, QUERIES,
    REFUSED_METHODS, UNROUTED_PATHS, UNSUPPORTED_TARGETS, UNUSUAL_TARGETS, VALID_HOSTS,
};

/// A GET of the case's path with this query.
fn get_with_query(query: &[u8]) -> Vec<u8> {
    request([b"GET /hr/cgi-bin/case", query, b" HTTP/1.1"].concat(), "", "")
}

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
        ("a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HTTP/0.9", b"GET /hr/cgi-bin/case\r\n"),
        ("HTTP/0.9 and an empty line", b"GET /hr/cgi-bin/case\r\n\r\n"),
        ("zeros", &[0; 64]),
        ("high bytes", &[0xff; 64]),
        ("an incomplete preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
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
    // A later minor version of HTTP/1 is processed as HTTP/1.1 (RFC 9110, section 2.5).
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
    let post_to = |path: &[u8]| request([b"POST ", path, b" HTTP/1.1"].concat(), &length, smuggled_request());
    for path in AMBIGUOUS_PATHS {
        cases.push(case(case_name("path", path), post_to(path)).or_refused_keeping_connection(BAD_REQUEST));
    }
    for path in UNROUTED_PATHS {
        cases.push(case(case_name("path", path), post_to(path)).or_refused_keeping_connection(&[404]));
    }
    for path in [&b"/cgi-bin/case"[..], b"//cgi-bin/case", b"/cgi-bin/hr/cgi-bin/../case"] {
        cases.push(
            case(case_name("no agent", path), post_to(path)).or_refused_keeping_connection(BAD_REQUEST),
        );
    }
    for path in [&b"/#/hr/cgi-bin/case"[..], b"/hr#/cgi-bin/case"] {
        cases.push(case(case_name("path", path), post_to(path)).or_refused_keeping_connection(&[400, 404]));
    }
    for path in GETTOKEN {
        cases.push(
            case(format!("path {path}"), post_to(path.as_bytes())).or_refused_keeping_connection(&[200]),
        );
    }
    for (path, target) in UNUSUAL_TARGETS {
        cases.push(
            case(case_name("path", path), post_to(path)).forwarded(smuggled_request()).forwarded_to(target),
        );
    }
    for (query, target) in QUERIES {
        cases.push(
            case(case_name("query", query), get_with_query(query))
                .forwarded("")
                .forwarded_to(&format!("/cgi-bin/case{target}")),
        );
    }
    // Not allowed in a URI, but sent by many scripts.
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
    let with_hosts = |line: &str, hosts: &[u8]| [line.as_bytes(), b"\r\n", hosts, b"\r\n"].concat();
    let line = "GET /hr/cgi-bin/case HTTP/1.1";
    for hosts in INVALID_HOSTS {
        cases.push(
            case(case_name("hosts", hosts), [with_hosts(line, hosts), smuggled_request()].concat())
                .or_refused_keeping_connection(BAD_REQUEST)
                .then_smuggled(),
        );
    }
    for hosts in VALID_HOSTS {
        cases.push(case(case_name("hosts", hosts), with_hosts(line, hosts)).forwarded(""));
    }
    for hosts in AMBIGUOUS_HOSTS {
        cases.push(
            case(case_name("hosts", hosts), with_hosts(line, hosts))
                .forwarded("")
                .or_refused_keeping_connection(BAD_REQUEST),
        );
    }
    let http10_line = "GET /hr/cgi-bin/case HTTP/1.0";
    cases.push(case("HTTP/1.0 without Host", with_hosts(http10_line, b"")).forwarded("").closes_connection());
    cases.push(
        case("HTTP/1.0 with two", with_hosts(http10_line, b"Host: a\r\nHost: b\r\n")).or_refused(BAD_REQUEST),
    );
    cases.push(
        case("HTTP/1.0 with a bad one", with_hosts(http10_line, b"Host: a b\r\n")).or_refused(BAD_REQUEST),
    );
    CaseRunner::start().await.run(cases).await;
}

/// Absolute targets that name neither the proxy nor the upstream, or are invalid.
fn foreign_targets(own: SocketAddr, api: SocketAddr) -> Vec<String> {
    let port = own.port();
    vec![
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
    ]
}

#[tokio::test]
async fn absolute_target_must_name_the_proxy_or_upstream() {
    let mut runner = CaseRunner::start().await;
    let (own, api) = (runner.proxy.address(), runner.recorder.address);
    let port = own.port();
    let mut cases = Vec::new();
    let get =
        |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    for target in foreign_targets(own, api) {
        for host in ["proxy.test".to_owned(), own.to_string()] {
            let name = format!("target {target}, host {host}").replace(&own.to_string(), "OWN");
            let name = name.replace(&api.to_string(), "API").replace(&port.to_string(), "PORT");
            cases.push(
                case(name, [get(&target, &host), smuggled_request()].concat())
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
        cases.push(case(format!("own {name}"), get(&target, "x")).or_refused_keeping_connection(&[400, 404]));
    }
    for (name, target) in [
        ("OWN", format!("http://{own}/hr/cgi-bin/case")),
        ("API", format!("http://{api}/hr/cgi-bin/case")),
        ("localhost", format!("http://localhost:{port}/hr/cgi-bin/case")),
        ("LOCALHOST", format!("HTTP://LOCALHOST:{port}/hr/cgi-bin/case")),
    ] {
        for host in ["evil.test".to_owned(), String::new(), own.to_string()] {
            let host_label = host.replace(&own.to_string(), "OWN");
            cases.push(
                case(format!("{name}, host {host_label:?}"), get(&target, &host))
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
    // The scheme does not change the destination.
    let secure = get(&format!("https://{own}/hr/cgi-bin/case"), "x");
    cases.push(case("OWN by https", secure).forwarded("").or_refused_keeping_connection(BAD_REQUEST));
    let padded = get(&format!("http://{}:0{port}/hr/cgi-bin/case", own.ip()), "x");
    cases.push(
        case("OWN with a zero before its port", padded)
            .forwarded("")
            .or_refused_keeping_connection(BAD_REQUEST),
    );
    runner.run(cases).await;
}
