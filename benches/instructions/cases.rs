//! The counted cases. Each is the work for one request, unless its name says otherwise.

use std::{
    cell::Cell,
    hint::black_box,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use flate2::{Compression, write::GzEncoder};
use http::{Method, Version};
use tokio::time::Instant;
use wecom_proxy::{
    directory::PassBuyer,
    http1::headers::{HeaderCache, Headers},
    internals::{self, RequestHeadCache, parse_request_head, parse_response_head, with_token},
    proxy::{Request, RequestTarget},
    telemetry::access_log::{AccessLogEntry, FLUSH_TIMEOUT, Level, QueryText},
    wecom::response::{ResponseScanner, Verdict},
};

use crate::{
    counter::{Counter, uncounted},
    harness::{KEY, TOKEN, TestProxy},
    http2_session::Http2Session,
};

/// Rounds of a case with some thousand instructions.
const DEFAULT_ROUNDS: u32 = 1000;
/// Rounds of a case with many more instructions.
const REDUCED_ROUNDS: u32 = 50;

/// The headers of a common SDK, without the key.
const HEADER_LINES: &str = "Host: 127.0.0.1:8080\r\n\
                     User-Agent: python-requests/2.32.3\r\n\
                     Accept-Encoding: gzip, deflate\r\n\
                     Accept: */*\r\n\
                     Connection: keep-alive\r\n";

/// Counts all cases.
pub fn count_all(counter: &mut Counter) -> io::Result<()> {
    let proxy = TestProxy::start()?;
    count_request_cases(counter, &proxy);
    count_response_cases(counter, &proxy)?;
    count_access_log_cases(counter, &proxy)?;
    count_complete_requests(counter, &proxy)
}

/// The cases up to the upstream request.
fn count_request_cases(counter: &mut Counter, proxy: &TestProxy) {
    let head = format!(
        "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\n{HEADER_LINES}Authorization: Bearer {KEY}\r\n\r\n"
    );
    counter.count("request head", DEFAULT_ROUNDS, || {
        let (mut buffer, mut empty_cache) =
            uncounted(|| (BytesMut::from(&*head), RequestHeadCache::default()));
        parse_request_head(&mut buffer, &mut empty_cache).ok().flatten().expect("a head")
    });
    let mut warm_cache = RequestHeadCache::default();
    counter.count("request head, cached", DEFAULT_ROUNDS, || {
        let mut buffer = uncounted(|| BytesMut::from(&*head));
        parse_request_head(&mut buffer, &mut warm_cache).ok().flatten().expect("a head")
    });

    for (name, target) in [
        ("route", "/hr/cgi-bin/user/get?userid=zhangsan"),
        ("route, encoded", "/hr/cgi-bin/user%5Fx//get?userid=zhangsan"),
    ] {
        counter.count(name, DEFAULT_ROUNDS, || {
            let target = RequestTarget::new(black_box(target));
            target.check().ok().map(|()| target.normalized_path().len()).expect("a route")
        });
    }

    for (name, query) in [
        ("query", "userid=zhangsan&fetch_child=1"),
        ("query with a token", "access_token=abcdef&userid=zhangsan&fetch_child=1"),
    ] {
        let target = RequestTarget::new(&format!("/cgi-bin/user/get?{query}"));
        counter.count(name, DEFAULT_ROUNDS, || {
            let target = black_box(&target);
            with_token(target.upstream_path(), &target.query_without_token(), TOKEN).map(str::len)
        });
    }

    let headers = Headers::from_pairs(&[("Accept", "*/*"), ("Authorization", &format!("Bearer {KEY}"))]);
    counter.count("key", DEFAULT_ROUNDS, || {
        internals::key_client(&proxy.directory, black_box(&headers)).expect("a client")
    });

    let query = format!("access_token={}&userid=zhangsan", issue_pass(proxy));
    counter.count("pass", DEFAULT_ROUNDS, || {
        internals::pass_client(&proxy.directory, black_box(&query)).expect("a client")
    });

    let client = proxy.directory.client_by_key(KEY).expect("a configured client");
    let may_call = |path: &str| client.may_call(black_box(&Method::GET), black_box(path));
    counter.count("allow list, third rule", DEFAULT_ROUNDS, || assert!(may_call("/cgi-bin/user/get")));
    counter
        .count("allow list, no rule", DEFAULT_ROUNDS, || assert!(!may_call("/cgi-bin/externalcontact/get")));

    let (token, now) = (proxy.agent().token.clone(), Instant::now());
    counter.count("token", DEFAULT_ROUNDS, || token.cached(black_box(now)).expect("a token"));
}

/// A pass of the client `billing` for the agent `hr`.
fn issue_pass(proxy: &TestProxy) -> String {
    let client = proxy.directory.client_by_key(KEY).expect("a configured client");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let key = client.find_key(KEY).expect("its key");
    proxy.agent().issue_pass(PassBuyer::Client(client, key), now).expose().to_owned()
}

/// The cases from the upstream response on.
fn count_response_cases(counter: &mut Counter, proxy: &TestProxy) -> io::Result<()> {
    let head = response_head(r#"{"errcode":0}"#.len());
    counter.count("response head", DEFAULT_ROUNDS, || {
        let (mut buffer, mut empty_cache) = uncounted(|| (BytesMut::from(&*head), HeaderCache::default()));
        parse_response_head(&mut buffer, &mut empty_cache).ok().flatten().expect("a head")
    });
    let mut warm_cache = HeaderCache::default();
    counter.count("response head, cached", DEFAULT_ROUNDS, || {
        let mut buffer = uncounted(|| BytesMut::from(&*head));
        parse_response_head(&mut buffer, &mut warm_cache).ok().flatten().expect("a head")
    });

    let head = |text: &str| {
        let head = parse_response_head(&mut BytesMut::from(text), &mut HeaderCache::default());
        head.ok().flatten().expect("a head").headers
    };
    let headers = head(&response_head(300));
    let header_builder =
        internals::ResponseHeaderBench::new(&get_request(), proxy.agent(), proxy.telemetry.clone());
    let token = proxy.token();
    counter.count("response headers", DEFAULT_ROUNDS, || {
        header_builder.build_headers(black_box(&headers), &token)
    });

    let gzip_headers =
        head("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n");
    let mut count_scan = |name, rounds, headers: &Headers, body: &[u8]| {
        counter.count(name, rounds, || {
            let verdict = ResponseScanner::new(headers).feed(black_box(body));
            assert_eq!(verdict, Verdict::Found(0));
        });
    };
    let [first, last, large] =
        [json_with_errcode_first(), json_with_errcode_last(300), json_with_errcode_last(64 * 1024)];
    count_scan("errcode first in 300 B", DEFAULT_ROUNDS, &headers, first.as_bytes());
    count_scan("errcode last in 300 B", DEFAULT_ROUNDS, &headers, last.as_bytes());
    count_scan("errcode last in 64 KiB", REDUCED_ROUNDS, &headers, large.as_bytes());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(last.as_bytes())?;
    count_scan("errcode last in 300 B, gzip", REDUCED_ROUNDS, &gzip_headers, &gzip.finish()?);
    Ok(())
}

fn get_request() -> Request {
    Request {
        method: Method::GET,
        version: Version::HTTP_11,
        target: RequestTarget::new("/cgi-bin/user/get"),
        path_credential: None,
        absolute_form: None,
        malformed: None,
        headers: Headers::from_pairs(&[("Host", "x")]),
        peer: None,
        socket_peer: None,
        draining: false,
        authorized: Cell::default(),
        waiting: Cell::default(),
    }
}

/// A response head as WeCom sends it.
fn response_head(length: usize) -> String {
    format!(
        "HTTP/1.1 200 OK\r\n\
         Server: nginx\r\n\
         Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
         Content-Type: application/json; charset=UTF-8\r\n\
         Content-Length: {length}\r\n\
         Connection: keep-alive\r\n\
         Error-Code: 0\r\n\
         Error-Msg: ok\r\n\
         X-W-No: 4\r\n\r\n"
    )
}

/// A body of about 300 bytes that begins with the errcode, as most responses do.
fn json_with_errcode_first() -> String {
    let rest = json_with_errcode_last(270);
    format!(r#"{{"errcode":0,"errmsg":"ok",{}"#, &rest[1..])
}

/// A list of people followed by the errcode, of about `length` bytes.
fn json_with_errcode_last(length: usize) -> String {
    let mut text = r#"{"userlist":["#.to_owned();
    for nth in 0.. {
        text.push_str(&format!(
            r#"{{"userid":"user{nth:05}","name":"张三","department":[1,2],"mobile":"138{nth:08}"}}"#
        ));
        if text.len() + 110 > length {
            break;
        }
        text.push(',');
    }
    text.push_str(r#"],"errcode":0,"errmsg":"ok"}"#);
    text
}

/// The access log.
fn count_access_log_cases(counter: &mut Counter, proxy: &TestProxy) -> io::Result<()> {
    let entry = AccessLogEntry {
        level: Level::Info,
        ended_at: SystemTime::now(),
        request_id: "0123456789abcdef00000001",
        trace_id: None,
        peer: Some(IpAddr::V4(Ipv4Addr::new(192, 168, 12, 34))),
        client: Some("billing"),
        agent: Some("hr"),
        upstream: None,
        method: "GET",
        path: "/hr/cgi-bin/user/get",
        query: QueryText("userid=zhangsan"),
        status: 200,
        errcode: Some(0),
        is_wecom_errcode: false,
        untrusted_address: None,
        retried: None,
        first_attempt: None,
        request_bytes: None,
        error: None,
        reason: None,
        response_bytes: 314,
        complete: true,
        token_time: Duration::ZERO,
        upstream_time: Duration::from_micros(23_456),
        total_time: Duration::from_micros(24_567),
        hint: None,
    };
    let json = proxy.json_log()?;
    for (name, log) in [("access log entry, text", &proxy.access), ("access log entry, JSON", &json)] {
        counter.count(name, DEFAULT_ROUNDS, || {
            // Flushing empties the buffer, so that no round includes the growth of the buffer or a hand-over to the writer.
            uncounted(|| log.flush(FLUSH_TIMEOUT));
            log.write(black_box(&entry));
        });
    }
    Ok(())
}

/// Complete requests: received, forwarded, responded to, logged, on persistent connections.
fn count_complete_requests(counter: &mut Counter, proxy: &TestProxy) -> io::Result<()> {
    let body = json_with_errcode_first();
    let mut session = proxy.open_session(format!("{}{body}", response_head(body.len())))?;

    let get = format!(
        "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\n{HEADER_LINES}Authorization: Bearer {KEY}\r\n\r\n"
    );
    counter.count("complete GET with a key", DEFAULT_ROUNDS, || session.exchange(&get));

    let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"你好"}}"#;
    let post = format!(
        "POST /cgi-bin/message/send?access_token={} HTTP/1.1\r\n{HEADER_LINES}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{message}",
        issue_pass(proxy),
        message.len()
    );
    counter.count("complete POST with a pass", DEFAULT_ROUNDS, || session.exchange(&post));

    let framed = format!("Content-Length: {}\r\n\r\n{message}", message.len());
    let chunk = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{message}\r\n0\r\n\r\n", message.len());
    let chunked = post.replace(&framed, &chunk);
    counter.count("complete chunked POST with a pass", DEFAULT_ROUNDS, || session.exchange(&chunked));

    let authorization = format!("Bearer {KEY}");
    let headers = [
        (":path", "/hr/cgi-bin/user/get?userid=zhangsan"),
        (":authority", "127.0.0.1:8080"),
        ("user-agent", "python-httpx/0.28.1"),
        ("accept-encoding", "gzip, deflate"),
        ("accept", "*/*"),
        ("authorization", &authorization),
    ];
    // Of its own: the pool of the other proxy has upstream connections that the sessions before have accepted.
    let http2_proxy = TestProxy::start()?;
    let mut session =
        Http2Session::open(&http2_proxy, &headers, format!("{}{body}", response_head(body.len())))?;
    counter.count("complete GET with a key, HTTP/2, one stream", DEFAULT_ROUNDS, || session.exchange(1));
    counter.count("10 complete GETs with a key, HTTP/2, 10 streams", 100, || session.exchange(10));

    let proxy_without_quotas = TestProxy::start_without_quotas()?;
    let mut session = proxy_without_quotas.open_session(format!("{}{body}", response_head(body.len())))?;
    counter.count("complete GET with a key, quotas off", DEFAULT_ROUNDS, || session.exchange(&get));

    let traced_proxy = TestProxy::start_traced()?;
    let mut session = traced_proxy.open_session(format!("{}{body}", response_head(body.len())))?;
    counter.count("complete GET with a key, traced", DEFAULT_ROUNDS, || session.exchange(&get));
    Ok(())
}
