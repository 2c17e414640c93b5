use super::*;

fn names<'a>(headers: impl Iterator<Item = Header<'a>>) -> Vec<String> {
    headers.map(|header| String::from_utf8_lossy(header.name).into_owned()).collect()
}

#[test]
fn request_headers_for_proxy_only_are_not_forwarded() {
    let headers = Headers::from_pairs(&[
        ("Host", "x"),
        ("User-Agent", "curl"),
        ("AUTHORIZATION", "Bearer x"),
        ("x-api-key", "x"),
        ("Cookie", "a"),
        ("Via", "1.1 x"),
        ("Forwarded", "for=x"),
        ("X-Forwarded-For", "x"),
        ("X-Forwarded-Anything", "x"),
        ("x-real-ip", "x"),
        ("X-Client-IP", "x"),
        ("True-Client-Ip", "x"),
        ("CF-Connecting-IP", "x"),
        ("X-Original-URL", "x"),
        ("X-Envoy-Original-Path", "x"),
        ("X-Scheme", "x"),
        ("Referer", "x"),
        ("Origin", "x"),
        ("Idempotency-Key", "x"),
        ("Traceparent", "00-x"),
        ("TRACESTATE", "x"),
        ("baggage", "x"),
        ("X-Wecom-Agent", "hr"),
        ("X-Wecom-New", "x"),
        ("Content-Length", "3"),
        ("Expect", "100-continue"),
        ("TE", "trailers"),
        ("Proxy-Authorization", "x"),
        ("Transfer-Encoding", "chunked"),
        ("X-Wecom", "stays as it is not ours"),
        ("X-Request-Id", "1"),
        ("Connection", "keep-alive, X-Mine,,close"),
        ("x-MINE", "1"),
        ("Accept", "*/*"),
    ]);
    assert_eq!(names(headers.forwarded_to_upstream()), ["User-Agent", "X-Wecom", "X-Request-Id", "Accept"]);
    assert!(headers.has_connection_close() && headers.has_connection_keep_alive());
    assert_eq!(headers.first(HeaderKind::WecomAgent), Some(&b"hr"[..]));
}

#[test]
fn response_hop_by_hop_headers_are_not_forwarded() {
    let headers = Headers::from_pairs(&[
        ("Content-Type", "text/plain"),
        ("Content-Length", "3"),
        ("Connection", "content-length, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
    ]);
    assert_eq!(names(headers.forwarded_to_client()), ["Content-Type", "Set-Cookie", "Set-Cookie"]);
}
